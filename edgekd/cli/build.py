"""Commands that build, and that find out what to build: build, check, blame, search, advise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import edgekd
from edgekd.cli.main import main
from edgekd.cli.options import (
    build_options,
    cache_option,
    progress_options,
    recipe_options,
    target_option,
)
from edgekd.cli.refused import also_refused, require_all
from edgekd.cli.values import EPOCHS, TRIALS, WORKERS, Duration
from edgekd.errors import GateFailed

if TYPE_CHECKING:
    from edgekd.cli.options import BuildRequest, Printing
    from edgekd.report.results import BuildReport


class _CommandWithStages(click.Command):
    """A command whose help ends with the stages of a build, in their order."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (click's)
        """Write the stages."""
        from edgekd.pipeline.order import stage_purposes

        with formatter.section("Stages"):
            formatter.write_dl(list(stage_purposes().items()))


@main.command(cls=_CommandWithStages)
@build_options
@click.option(
    "--dry-run", is_flag=True, help="Try every stage on a few samples with untrained networks; train nothing."
)
@progress_options
def build(request: BuildRequest, dry_run: bool, printing: Printing) -> None:
    """Build a recipe, or an ONNX network, for a device: from teacher to bundle.

    Runs those of the stages below that the recipe, the targets and their devices ask for; what is up to date is not run
    again. Exits with 20 when the gate rejects the result; its artefacts are kept under OUTPUT/TARGET/rejected, and the
    bundle of the last build that was released stays. An undecided result is released unless gate.undecided says so. Of
    several targets one that refuses ends alone: the others are published, and the exit code is 22.

    With --dry-run only what comes before the first training runs, in seconds: it says of each stage and target what
    would be refused later, and leaves nothing but the cache. It exits as the build would.
    """
    from edgekd.cli.terminal import Json, print_report
    from edgekd.report.build.files import report_json

    if dry_run:
        _dry_run(request, printing)
        return
    with printing.observer() as observer:
        report = edgekd.build(
            request.recipe,
            request.targets,
            overrides=request.overrides,
            output=request.output,
            devices=request.devices,
            cache=request.cache,
            observer=observer,
        )
    if printing.as_json:
        Json().emit("report", report=report_json(report))
    elif not printing.quiet:
        print_report(report, request.output, verbose=printing.verbose)
    if printing.as_json or printing.quiet:
        _warn_of_undecided(report)
    _require_release(report, request.output)


def _dry_run(request: BuildRequest, printing: Printing) -> None:
    """Run what comes before the first training, and print what became of it."""
    from edgekd.cli.terminal import Json, say
    from edgekd.cli.terminal.dry_run import dry_run_json, print_dry_run

    with printing.observer() as observer:
        tried = edgekd.dry_run(
            request.recipe,
            request.targets,
            overrides=request.overrides,
            output=request.output,
            devices=request.devices,
            cache=request.cache,
            observer=observer,
        )
    if printing.as_json:
        Json().emit("dry_run", dry_run=dry_run_json(tried))
    elif not printing.quiet:
        print_dry_run(tried)
    for stage in tried.stages if printing.as_json or printing.quiet else ():
        for warning in stage.warnings:
            say(f"warning: {stage.name}: {warning}", sys.stderr)
    if tried.error is not None:
        raise tried.error
    require_all(tried.refused, "nothing was trained")


def _warn_of_undecided(report: BuildReport) -> None:
    """Warn on stderr of what is released although the samples are too few to tell."""
    from edgekd.cli.terminal import say

    for result in report.targets:
        if result.ledger.verdict == "undecided" and result.ledger.released:
            for reason in result.ledger.reasons:
                say(f"warning: {result.target} is released, {reason}", sys.stderr)


def _require_release(report: BuildReport, output: Path) -> None:
    """Raise the error that the command ends with where a target was rejected by the gate, or refused."""
    rejected = [result for result in report.targets if not result.ledger.released]
    if rejected:
        told = "; ".join(
            f"{r.target}: {'; '.join(r.ledger.reasons)} (kept in {output / r.shown_bundle})" for r in rejected
        )
        raise GateFailed(f"the gate rejected the build: {told}{also_refused(report.refused)}")
    require_all(report.refused, f"published: {', '.join(result.target for result in report.targets)}")


def _refuse_calibrate(_context: click.Context, _parameter: click.Parameter, given: bool) -> None:
    """Refuse the former name of ``--suggest-limits``."""
    if given:
        raise click.UsageError("--calibrate is now --suggest-limits")


@main.command()
@build_options
@click.option("--cpu", metavar="NAME", help="Run the engine on an emulated processor, e.g. haswell.")
@click.option("--suggest-limits", is_flag=True, help="Suggest limits of the gate for this task.")
@click.option("--calibrate", is_flag=True, hidden=True, expose_value=False, callback=_refuse_calibrate)
@progress_options
def check(request: BuildRequest, cpu: str | None, suggest_limits: bool, printing: Printing) -> None:
    """Judge every candidate without timing or bundling it; show each ledger.

    With --cpu the engine runs on that processor's instructions: INT8 that is right here can be wrong there. With
    --suggest-limits the float network is damaged in many ways, and what that costs of the metric gives the gate's
    limits for this task. Exits with 20 when the gate rejects every candidate of a target, and with 22 when one of
    several targets refuses.
    """
    import msgspec

    from edgekd.cli.terminal import Json
    from edgekd.cli.terminal.checks import print_checks
    from edgekd.runtime.manifest import null_not_finite

    if cpu is not None and request.devices:
        raise click.UsageError("give --cpu or --device, not both")
    if suggest_limits:
        _suggest_limits(request, printing)
        return
    devices = (f"emulated:{cpu}",) if cpu else request.devices
    with printing.observer() as observer:
        checks = edgekd.check(
            request.recipe,
            request.targets,
            overrides=request.overrides,
            devices=devices,
            cache=request.cache,
            observer=observer,
        )
    if printing.as_json:
        Json().emit("checks", checks=null_not_finite(msgspec.to_builtins(checks)))
    elif not printing.quiet:
        print_checks(checks)
    rejected = [target_check.target for target_check in checks if target_check.rejected]
    refused = [found.target for found in checks if found.refused]
    if rejected:
        raise GateFailed(f"the gate rejects every candidate of {', '.join(rejected)}{also_refused(refused)}")
    require_all(refused, f"checked: {', '.join(found.target for found in checks if not found.refused)}")


def _suggest_limits(request: BuildRequest, printing: Printing) -> None:
    """Show limits for the user's own task, by the first target's reference network."""
    import msgspec

    from edgekd.cli.terminal import Json
    from edgekd.cli.terminal.checks import print_alarm

    with printing.observer() as observer:
        alarm = edgekd.suggest_limits(
            request.recipe,
            request.targets[0],
            overrides=request.overrides,
            cache=request.cache,
            observer=observer,
        )
    if printing.as_json:
        Json().emit("alarm", alarm=msgspec.to_builtins(alarm))
    else:
        print_alarm(alarm)


@main.command()
@build_options
@progress_options
def blame(request: BuildRequest, printing: Printing) -> None:
    """Find out which layers, branches and kinds of tensor break in INT8.

    Quantizes one alone and undoes one alone, and ranks them by what the output regains, also per millisecond
    that it costs on the device. Writes blame.json and a picture on the graph, blame.svg, into OUTPUT/TARGET.
    """
    from edgekd.cli.terminal import Json
    from edgekd.cli.terminal.checks import print_blame
    from edgekd.report.blame.tables import blame_json

    with printing.observer() as observer:
        blames = edgekd.blame(
            request.recipe,
            request.targets,
            overrides=request.overrides,
            output=request.output,
            devices=request.devices,
            cache=request.cache,
            observer=observer,
        )
    for target, blamed in blames.items():
        if printing.as_json:
            Json().emit("blame", target=target, blame=blame_json(blamed))
        elif not printing.quiet:
            print_blame(target, blamed, request.output / target)


@main.command()
@click.option(
    "--trials",
    type=TRIALS,
    metavar="N",
    help="Trials that the study is to have, earlier ones and other machines' included [default: 30].",
)
@click.option("--budget", "seconds", type=Duration(days=30), metavar="TIME", help="Begin trials for so long, e.g. 30m.")
@click.option("--workers", type=WORKERS, default=1, show_default=True, help="Processes on this machine.")
@click.option("--storage", metavar="URL|FILE", help="Where the study is kept [default: a file in --cache].")
@click.option("--study", metavar="NAME", help="Name of the study [default: one for recipe, task and space].")
@target_option("A kind of device that pruned widths are to suit.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the result [default: build/RECIPE].")
@cache_option
@recipe_options
@progress_options
def search(
    recipe: str | None,
    overrides: tuple[str, ...],
    targets: tuple[str, ...],
    output: Path | None,
    cache: Path,
    printing: Printing,
    **limits: object,
) -> None:
    """Search for better students than the recipe's own: more accurate, faster, closer to the teacher.

    Tries losses, temperature, width and pruning, or what [search.space] of the recipe names, and shows the trials that
    no other beats and that the gate lets through, judged on the validation split. The same command goes on where it
    stopped; on another machine, with one --storage, it joins in. Exits with 20 when the gate rejects every trial.
    """
    import msgspec

    from edgekd.cli.terminal import Json
    from edgekd.cli.terminal.search import print_search
    from edgekd.report.search.tables import rejection, search_json
    from edgekd.workflows.arguments import resolve_output

    output = resolve_output(output, recipe)
    options = msgspec.convert(limits, edgekd.SearchOptions)
    with printing.observer() as observer:
        result = edgekd.search(
            recipe, targets, overrides=overrides, output=output, options=options, cache=cache, observer=observer
        )
    if printing.as_json:
        Json().emit("search", search=search_json(result))
    elif not printing.quiet:
        print_search(result, output)
    if result.rejected and not result.released:
        raise GateFailed(rejection(result))


@main.command()
@recipe_options
@click.option(
    "--budget",
    type=Duration(days=30),
    default="10m",
    show_default=True,
    metavar="TIME",
    help="Time for all trials, e.g. 90s, 10m, 2h; the teacher comes on top.",
)
@click.option("--epochs", type=EPOCHS, help="Epochs of each trial [default: as many as fit].")
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
    printing: Printing,
) -> None:
    """Find out which distillation loss suits the recipe's task.

    Runs short trainings with labels alone, with KD, and with KD and each Gram scope or feature distillation, from the
    same seeds, and compares them with KD on the validation split; then switches pairs and modalities off in turn. Says
    what to use and by how much it is better, or that nothing is. A short budget leaves losses out. As far as the budget
    allows, what is recommended is trained in full, pruned and judged by the gate; where the gate rejects all, the exit
    code is 20. Writes advice.json and advice.md into OUTPUT.
    """
    from edgekd.cli.terminal import Json
    from edgekd.cli.terminal.advice import print_advice
    from edgekd.workflows.advise.report import advice_json
    from edgekd.workflows.arguments import resolve_output

    output = resolve_output(output, recipe)
    with printing.observer() as observer:
        advice = edgekd.advise(
            recipe,
            budget=budget,
            epochs=epochs,
            overrides=overrides,
            output=output,
            cache=cache,
            observer=observer,
        )
    if printing.as_json:
        Json().emit("advice", advice=advice_json(advice))
    elif not printing.quiet:
        print_advice(advice, output)
    if advice.verdict.kind == "rejected":
        reasons = "; ".join(f"{found.name}: {reason}" for found in advice.judgements for reason in found.reasons)
        raise GateFailed(f"{advice.verdict.text}: {reasons}")
