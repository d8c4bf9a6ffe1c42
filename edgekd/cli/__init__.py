"""The command line: each command parses, calls the library, prints."""

# Commands are listed in the order in which these modules are imported: the one that matters first.
from edgekd.cli.main import main  # isort: skip
from edgekd.cli import build, report, catalogue, predict, devices  # isort: skip

__all__ = ["build", "catalogue", "devices", "main", "predict", "report"]
