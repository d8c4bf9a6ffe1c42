"""The output of ``edgekd report``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli.terminal.tables import open_page, print_table, print_title
from edgekd.report.compare.formats import check_table, short_tables, title

if TYPE_CHECKING:
    from edgekd.report.compare.formats import Comparison


def print_joined(joined: Comparison, width: int | None = None) -> None:
    """Print the joined table, and below it the limits of a budget file where one was given."""
    console = open_page(width)
    print_title(console, title(joined))
    for table in short_tables(joined):
        print_table(console, table)
    if joined.checks is not None:
        table = check_table(joined)
        print_title(console, table.title.lower())
        print_table(console, table)
