"""The command that joins builds into one table: report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli.main import main
from edgekd.cli.options import as_one_argument
from edgekd.cli.values import Finite
from edgekd.errors import BudgetMissed, nearest
from edgekd.report.figures import filter_limits, sort_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.report.compare.formats import Comparison


#: Forms of the joined table, and the suffixes of files that have them.
_FORMATS = {"markdown": ".md", "csv": ".csv", "json": ".json", "html": ".html"}
#: From good to bad; :data:`edgekd.gram.verdict.VERDICTS` would import numpy for a help page.
_VERDICTS = ("pass", "warn", "undecided", "fail")
#: The forms that show the result of a budget file.
_CHECKED = ("markdown", "json")


@dataclass(frozen=True)
class Display:
    """The order and form of the joined table, and the limits that it is held against.

    Attributes:
        key: The figure or name that rows are sorted by.
        reverse: Whether the largest comes first.
        form: One of the forms; None for what the output's suffix says, or a table for the terminal.
        output: The file to write; None to print.
        budget: A budget file; None where rows are held against none.
    """

    key: str
    reverse: bool
    form: str | None
    output: Path | None
    budget: Path | None


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each limit on a figure that one can filter by."""
    for name, (_, limit) in reversed(filter_limits().items()):
        side = "above" if limit.upper else "below"
        option = click.option(
            f"--{name.replace('_', '-')}",
            type=Finite(),
            metavar=limit.unit.strip().upper() or "X",
            help=f"Leave out rows {side} it: {limit.meaning}.",
        )
        command = option(command)
    return command


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--sort", "key", default="p50", show_default=True, metavar="KEY", help=f"{_or(sort_keys())}.")
@click.option("--reverse", is_flag=True, help="The largest first.")
@_filter_options
@click.option("--verdict", type=click.Choice(_VERDICTS), default="fail", help="The worst to show.")
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Show this target alone. Repeatable.")
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Show this device alone. Repeatable.")
@click.option("--format", "form", type=click.Choice(tuple(_FORMATS)), help="Instead of a table for the terminal.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it there; .md, .csv, .json and .html say in which form.",
)
@click.option(
    "--check",
    "budget",
    type=click.Path(path_type=Path),
    metavar="BUDGET.toml",
    help="Hold every row against limits, and exit with 21 when one is not kept.",
)
@as_one_argument("display", Display)
def report(runs: tuple[Path, ...], display: Display, **filtering: Any) -> None:
    """Join builds of many targets and devices into one table.

    RUNS are output folders of `edgekd build` or of `edgekd profile`. A row is one engine on its device: latency,
    throughput, metric, Gram drift, size, memory, energy. As HTML it is one page with pictures that needs no network.
    """
    from edgekd.report.compare.budgets import check_budgets, read_budgets
    from edgekd.report.compare.formats import Comparison
    from edgekd.report.compare.read import read_runs
    from edgekd.report.compare.rows import Filters, filter_entries, sort_entries

    key, budget = display.key, display.budget
    if key not in sort_keys():
        raise click.UsageError(f"--sort {key}: there is no such key{nearest(key, sort_keys())}")
    wanted = {option: filtering.pop(option) for option in filter_limits()}
    filters = Filters(limits={name: value for name, value in wanted.items() if value is not None}, **filtering)
    form = _form(display.form, display.output, budget, filters != Filters())
    limits = read_budgets(budget) if budget else None
    kept, left_out = filter_entries(sort_entries(read_runs(runs), key, display.reverse), filters)
    checks = check_budgets(kept, limits, budget) if budget and limits else None
    _show_joined(Comparison(kept, left_out, key, display.reverse, checks), form, display.output)
    missed = [check for check in checks or () if not check.kept]
    if missed:
        first = missed[0]
        told = f"{first.row.target} on {first.row.device}: {first.key} {first.found}, wanted {first.wanted}"
        told += f"; and {len(missed) - 1} more" if len(missed) > 1 else ""
        raise BudgetMissed(f"{budget}: {len(missed)} of {len(checks or ())} limits not kept: {told}")


def _form(form: str | None, output: Path | None, budget: Path | None, filtered: bool) -> str | None:
    """Return the form to write, None for the terminal's; refuse options that exclude each other."""
    if output and form is None:
        form = next((name for name, suffix in _FORMATS.items() if suffix == output.suffix.lower()), None)
        if form is None:
            raise click.UsageError(f"--output {output}: ends in none of {', '.join(_FORMATS.values())}; give --format")
    if budget and filtered:
        raise click.UsageError("--check holds every row against its limits: a filter would hide some; leave it out")
    if budget and form not in (None, *_CHECKED):
        raise click.UsageError(f"--check goes with --format {' or '.join(_CHECKED)}, or none, not with {form}")
    return form


def _show_joined(joined: Comparison, form: str | None, output: Path | None) -> None:
    """Print the joined table, or write it into a file."""
    if form is None:
        from edgekd.cli.terminal.report import print_joined

        print_joined(joined)
        return
    from edgekd.cli.streams import write_through
    from edgekd.cli.terminal.text import say
    from edgekd.files import file_kind, write_text
    from edgekd.report.compare.formats import as_csv, as_json, as_markdown
    from edgekd.report.compare.page import as_html

    write = {"markdown": as_markdown, "csv": as_csv, "json": as_json, "html": as_html}[form]
    text = write(joined)
    if output is None:
        click.echo(text, nl=False)
        return
    if file_kind(output) is None:
        write_text(output, text)
    else:
        write_through(output, text)
    say(f"wrote {output}")
