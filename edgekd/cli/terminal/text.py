"""Lines of text for a terminal: the only place where the command line makes text for it, so nothing gets there raw."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.text import Text

from edgekd.report.escape import one_line

if TYPE_CHECKING:
    from typing import TextIO


def shown(text: str, style: str = "") -> Text:
    """Return text on one line for rich, which obeys neither its own markup nor control characters in it."""
    return Text(one_line(text), style)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line.

    Args:
        text: The line.
        stream: Where it goes; None for stdout.
    """
    print(one_line(text), file=stream or sys.stdout, flush=True)
