"""Commands that build, and that find out what to build: build, check, blame, search, advise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import edgekd
from edgekd.cli.main import main
from edgekd.cli.options import Duration, build_options, cache_option, progress_options, recipe_options
from edgekd.errors import GateFailed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from edgekd.cli.options import BuildRequest
    from edgekd.report.results import BuildReport
    from edgekd.stages.progress import Observer


@main.command()
@build_options
@progress_options
def build(wanted: BuildRequest, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Build a recipe, or an ONNX network, for a device: from teacher to bundle.

    Runs teacher, distil, prune and export once (with --model only an import), then for each target quantize, compile,
    engine, check, repair, profile, bundle and verify, as far as it has them; what is up to date is not run again. Exits
    with 20 when the gate rejects the result; its artefacts are kept under OUTPUT/TARGET/rejected.
    """
    from edgekd.cli.terminal import Json, choose_observer, print_report
    from edgekd.report.build.files import report_json

    with choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty()) as observer:
        report = edgekd.build(
            wanted.recipe, wanted.targets, wanted.places, devices=wanted.devices, name=wanted.name, observer=observer
        )
    if as_json:
        Json().emit("report", report=report_json(report))
    elif not quiet:
        print_report(report, wanted.places.output, verbose=verbose)
    _require_release(report)


def _require_release(report: BuildReport) -> None:
    rejected = [result for result in report.targets if result.ledger.verdict == "fail"]
    if rejected:
        reasons = "; ".join(f"{r.target}: {reason}" for r in rejected for reason in r.ledger.reasons)
        raise GateFailed(f"the gate rejected the build: {reasons}")


def _refuse_calibrate(_context: click.Context, _parameter: click.Parameter, given: bool) -> None:
    """Refuse the former name of ``--suggest-limits``."""
    if given:
        raise click.UsageError("--calibrate is now --suggest-limits")


@main.command()
@build_options
@click.option("--cpu", metavar="NAME", help="Run the engine on an emulated processor, e.g. haswell.")
@click.option("--suggest-limits", is_flag=True, help="Measure on this task which drift costs accuracy: gate limits.")
@click.option("--calibrate", is_flag=True, hidden=True, expose_value=False, callback=_refuse_calibrate)
@progress_options
def check(
    wanted: BuildRequest, cpu: str | None, suggest_limits: bool, quiet: bool, verbose: bool, as_json: bool
) -> None:
    """Judge every candidate without timing or bundling it; show each ledger.

    With --cpu the engine runs on that processor's instructions: INT8 that is right here can be wrong there. With
    --suggest-limits the float network is damaged in many ways, and how much of the metric each drift costs gives the
    gate's limits for this task. Exits with 20 when the gate rejects every candidate of a target.
    """
    import msgspec

    from edgekd.cli.terminal import Json, choose_observer
    from edgekd.cli.terminal.checks import print_checks
    from edgekd.workflows.check import check_targets

    if cpu is not None and wanted.devices:
        raise click.UsageError("give --cpu or --device, not both")
    devices = (f"emulated:{cpu}",) if cpu else wanted.devices
    watched = choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty())
    if suggest_limits:
        _suggest_limits(wanted, watched, as_json)
        return
    with watched as observer:
        checks = check_targets(wanted.recipe, wanted.targets, wanted.places.cache, devices, observer)
    if as_json:
        Json().emit("checks", checks=msgspec.to_builtins(checks))
    elif not quiet:
        print_checks(checks)
    rejected = [found.target for found in checks if found.rejected]
    if rejected:
        raise GateFailed(f"the gate rejects every candidate of {', '.join(rejected)}")


def _suggest_limits(wanted: BuildRequest, watched: AbstractContextManager[Observer], as_json: bool) -> None:
    """Show what drift costs on the user's own task, for the first target's reference network."""
    import msgspec

    from edgekd.cli.terminal import Json
    from edgekd.cli.terminal.checks import print_alarm
    from edgekd.workflows.check import suggest_limits

    with watched as observer:
        alarm = suggest_limits(wanted.recipe, wanted.targets[0], wanted.places.cache, observer)
    if as_json:
        Json().emit("alarm", alarm=msgspec.to_builtins(alarm))
    else:
        print_alarm(alarm)


@main.command()
@build_options
@progress_options
def blame(wanted: BuildRequest, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Find out which layers, branches and kinds of tensor break the Gram structure in INT8.

    Quantizes one alone and undoes one alone, and ranks them by the drift that undoing relieves, also per millisecond
    that it costs on the device. Writes blame.json and a picture on the graph, blame.svg, into OUTPUT/TARGET.
    """
    from edgekd.cli.terminal import Json, choose_observer
    from edgekd.cli.terminal.checks import print_blame
    from edgekd.report.blame.tables import blame_json
    from edgekd.workflows.check import blame_targets

    with choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty()) as observer:
        found = blame_targets(wanted.recipe, wanted.targets, wanted.places, wanted.devices, observer)
    for target, blamed in found.items():
        if as_json:
            Json().emit("blame", target=target, blame=blame_json(blamed))
        elif not quiet:
            print_blame(target, blamed, wanted.places.output / target)


@main.command()
@click.option(
    "--trials",
    type=click.IntRange(1),
    metavar="N",
    help="Trials that the study is to have, earlier ones and other machines' included [default: 30].",
)
@click.option("--budget", type=Duration(), metavar="TIME", help="Begin trials for so long, e.g. 30m.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--storage", metavar="URL|FILE", help="Where the study is kept [default: a file in --cache].")
@click.option("--study", metavar="NAME", help="Name of the study [default: one for recipe, task and space].")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=["cpu"],
    show_default=True,
    metavar="NAME|FILE.toml",
    help="A kind of device that pruned widths are to suit. Repeatable.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder of what was found [default: build/RECIPE].")
@cache_option
@recipe_options
@progress_options
def search(
    recipe: str | None,
    overrides: tuple[str, ...],
    output: Path | None,
    budget: float | None,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **others: Any,
) -> None:
    """Search for better students than the recipe's own: more accurate, faster, closer to the teacher.

    Tries losses, temperature, width and pruning, or what [search.space] of the recipe names, and shows the trials that
    no other beats. The same command goes on where it stopped; on another machine, with one --storage, it joins in.
    """
    from edgekd.cli.terminal import Json, choose_observer
    from edgekd.cli.terminal.search import print_search
    from edgekd.config.loading import recipe_name
    from edgekd.report.search.tables import search_json
    from edgekd.workflows.search.run import Wanted
    from edgekd.workflows.search.run import search as run

    folder = output or Path("build") / recipe_name(recipe)
    wanted = Wanted(recipe=recipe, overrides=overrides, output=folder, seconds=budget, **others)
    with choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty()) as observer:
        found = run(wanted, observer)
    if as_json:
        Json().emit("search", search=search_json(found))
    elif not quiet:
        print_search(found, folder)


@main.command()
@recipe_options
@click.option(
    "--budget",
    type=Duration(),
    default="10m",
    show_default=True,
    metavar="TIME",
    help="Time for all trials, e.g. 90s, 10m, 2h; the teacher comes on top.",
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs of each trial [default: as many as fit].")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the answer [default: build/RECIPE].")
@cache_option
@progress_options
def advise(
    recipe: str | None,
    overrides: tuple[str, ...],
    budget: float,
    epochs: int | None,
    output: Path | None,
    cache: Path,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Find out which distillation loss suits the recipe's task.

    Runs short trainings with labels alone, with KD, and with KD and each Gram scope or feature distillation, from the
    same seeds, and compares them with KD on the validation split; then switches pairs and modalities off in turn. Says
    what to use and by how much it is better, or that nothing is. Writes advice.json and advice.md into OUTPUT.
    """
    from edgekd.cli.terminal import Json, choose_observer
    from edgekd.cli.terminal.advice import print_advice
    from edgekd.config.loading import load_recipe, recipe_name
    from edgekd.pipeline.build import BuildPaths
    from edgekd.workflows.advise.report import advice_json
    from edgekd.workflows.advise.run import advise as find

    loaded, name = load_recipe(recipe, overrides), recipe_name(recipe)
    places = BuildPaths(output or Path("build") / name, cache)
    with choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty()) as observer:
        found = find(loaded, places, budget, epochs=epochs, name=name, observer=observer)
    if as_json:
        Json().emit("advice", advice=advice_json(found))
    elif not quiet:
        print_advice(found, places.output)
