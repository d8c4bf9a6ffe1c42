"""The command line: each command parses, calls the library, prints."""

from __future__ import annotations

import errno
import functools
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

import edgekd
from edgekd.errors import (
    BudgetMissed,
    BundleError,
    DeviceError,
    EdgekdError,
    GateFailed,
    OutputError,
    nearest,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from edgekd.pipeline import Places
    from edgekd.progress import Observer
    from edgekd.recipe import Recipe
    from edgekd.report.joined.formats import Joined
    from edgekd.report.result import BuildReport
    from edgekd.target import Target
    from edgekd.tasks import TaskInfo


#: What the system refuses a user, rather than a defect of edgekd.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class _Group(click.Group):
    """Prints a user's error as one line and exits with its code; a defect keeps its traceback."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the commands in the order of this file: the one that matters first."""
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except EdgekdError as error:
            _fail(context, error)
        except KeyboardInterrupt:
            resumes = context.invoked_subcommand in ("build", "search", "advise")
            click.echo(f"interrupted{'; the same command goes on from here' if resumes else ''}", err=True)
            context.exit(130)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            _fail(context, OutputError(f"{error.filename or 'a file'}: {error.strerror}"))


def _fail(context: click.Context, error: EdgekdError) -> None:
    line = " ".join(str(error).split())
    click.echo(f"{click.style('error', fg='red', bold=True)}: {line}", err=True)
    context.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(edgekd.__version__, "-V", "--version", prog_name="edgekd")
def main() -> None:
    """Distil multi-modal models for edge devices, and prove that their Gram structure survives."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign is no reason to fail


def _recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    override = "Override a key, e.g. distill.epochs=5. Repeatable."
    command = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=override)(command)
    recipe = "A shipped recipe or a file [default: ./edgekd.toml]."
    return click.option("--recipe", metavar="NAME|PATH", help=recipe)(command)


_cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path(".edgekd"),
    show_default=True,
    envvar="EDGEKD_CACHE",
    help="Folder of finished stages.",
)


@dataclass(frozen=True)
class _Build:
    """What a build is asked for on the command line."""

    recipe: Recipe
    name: str
    targets: list[Target]
    devices: tuple[str, ...]
    places: Places


def _build_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name a build, as one argument ``wanted``."""

    @functools.wraps(command)
    def with_build(
        recipe: str | None,
        overrides: tuple[str, ...],
        model: Path | None,
        calibration: Path | None,
        test: Path | None,
        taps: tuple[str, ...],
        targets: tuple[str, ...],
        devices: tuple[str, ...],
        output: Path | None,
        cache: Path,
        **others: Any,
    ) -> Any:
        from edgekd.files import make_folder
        from edgekd.joint import follows
        from edgekd.pipeline import Places, follow
        from edgekd.recipe import load_recipe, recipe_name
        from edgekd.target import load_targets

        if model is None:
            _refuse_without_model(calibration, test, taps)
            loaded, name = load_recipe(recipe, overrides), recipe_name(recipe)
        else:
            loaded, name = _model_recipe(recipe, overrides, model, calibration, test, taps), model.stem
        if follows():
            follow(loaded, load_targets(targets), cache)
            return None
        places = Places(output or Path("build") / name, cache)
        wanted = _Build(loaded, name, load_targets(targets), devices, places)
        make_folder(places.output, OutputError, "--output")
        return command(wanted=wanted, **others)

    file = click.Path(path_type=Path)
    options = (
        click.option("--model", type=file, metavar="FILE.onnx",
                     help="Build a trained ONNX network instead of a recipe's task."),
        click.option("--calibration", type=file, metavar="FILE.npz",
                     help="With --model: real samples, an array for each input of the graph."),
        click.option("--test", type=file, metavar="FILE.npz",
                     help="With --model: the samples of the gate [default: half of --calibration]."),
        click.option("--tap", "taps", multiple=True, metavar="NAME=TENSOR",
                     help="With --model: the tensor that is a modality's embedding [default: found]. Repeatable."),
        click.option("--target", "targets", multiple=True, default=["cpu"], show_default=True,
                     metavar="NAME|FILE.toml", help="A kind of device. Repeatable."),
        click.option("--device", "devices", multiple=True, metavar="[TARGET=]DEVICE",
                     help="Where engines run; see 'edgekd device' [default: what is at hand]. Repeatable."),
        click.option("--output", type=file, help="Folder of report and bundles [default: build/RECIPE]."),
        _cache_option,
    )  # fmt: skip
    wrapped: Callable[..., Any] = with_build
    for option in reversed(options):
        wrapped = option(wrapped)
    return _recipe_options(wrapped)


def _refuse_without_model(calibration: Path | None, test: Path | None, taps: tuple[str, ...]) -> None:
    for option, given in (("--calibration", calibration), ("--test", test), ("--tap", taps)):
        if given:
            raise click.UsageError(f"{option} is for --model; a recipe's task brings its own samples and taps")


def _model_recipe(
    recipe: str | None,
    overrides: tuple[str, ...],
    model: Path,
    calibration: Path | None,
    test: Path | None,
    taps: tuple[str, ...],
) -> Recipe:
    from edgekd.recipe import ModelConfig, model_recipe

    if recipe is not None:
        raise click.UsageError("give --model or --recipe, not both; a recipe can name a model in its [model] section")
    if calibration is None:
        raise click.UsageError("--model needs --calibration: an .npz of real samples to quantize with")
    pairs = [tap.partition("=") for tap in taps]
    for name, equals, tensor in pairs:
        if not (name and equals and tensor):
            raise click.UsageError(f"--tap {name}{equals}{tensor}: write it as NAME=TENSOR")
    named = {name: tensor for name, _, tensor in pairs}
    wanted = ModelConfig(path=str(model), calibration=str(calibration), test=str(test or ""), taps=named)
    return model_recipe(wanted, overrides)


def _progress_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "as_json", is_flag=True, help="Print events and the outcome as JSON lines.")(
        command
    )
    command = click.option("-v", "--verbose", is_flag=True, help="Print every step.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors alone.")(command)


@main.command()
@_build_options
@_progress_options
def build(wanted: _Build, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Build a recipe, or an ONNX network, for a device: from teacher to bundle.

    Runs teacher, distil, prune and export once (with --model only an import), then for each target quantize, compile,
    engine, check, repair, profile, bundle and verify, as far as it has them; what is up to date is not run again. Exits
    with 20 when the gate rejects the result; its artefacts are kept under OUTPUT/TARGET/rejected.
    """
    from edgekd.console import Json, choose_observer, print_report
    from edgekd.report.build import report_json

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


@main.command()
@_build_options
@click.option("--cpu", metavar="NAME", help="Run the engine on an emulated processor, e.g. haswell.")
@click.option("--calibrate", is_flag=True, help="Measure on this task which drift costs accuracy, and suggest limits.")
@_progress_options
def check(wanted: _Build, cpu: str | None, calibrate: bool, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Judge every candidate without timing or bundling it; show each ledger.

    With --cpu the engine runs on that processor's instructions: INT8 that is right here can be wrong there. With
    --calibrate the float network is damaged in many ways, and what drift each costs how much of the metric gives the
    gate's limits for this task. Exits with 20 when the gate rejects every candidate of a target.
    """
    import msgspec

    from edgekd.checking import check_targets
    from edgekd.console import Json, choose_observer
    from edgekd.console.checks import print_checks

    if cpu is not None and wanted.devices:
        raise click.UsageError("give --cpu or --device, not both")
    devices = (f"emulated:{cpu}",) if cpu else wanted.devices
    watched = choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty())
    if calibrate:
        _calibrate(wanted, watched, as_json)
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


def _calibrate(wanted: _Build, watched: AbstractContextManager[Observer], as_json: bool) -> None:
    """Show what drift costs on the user's own task, for the first target's reference network."""
    import msgspec

    from edgekd.checking import calibrate_gate
    from edgekd.console import Json
    from edgekd.console.checks import print_alarm

    with watched as observer:
        alarm = calibrate_gate(wanted.recipe, wanted.targets[0], wanted.places.cache, observer)
    if as_json:
        Json().emit("alarm", alarm=msgspec.to_builtins(alarm))
    else:
        print_alarm(alarm)


@main.command()
@_build_options
@_progress_options
def blame(wanted: _Build, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Find out which layers, branches and kinds of tensor break the Gram structure in INT8.

    Quantizes one alone and undoes one alone, and ranks them by the drift that undoing relieves, also per millisecond
    that it costs on the device. Writes blame.json and a picture on the graph, blame.svg, into OUTPUT/TARGET.
    """
    from edgekd.checking import blame_targets
    from edgekd.console import Json, choose_observer
    from edgekd.console.checks import print_blame
    from edgekd.report.blame import blame_json

    with choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty()) as observer:
        found = blame_targets(wanted.recipe, wanted.targets, wanted.places, wanted.devices, observer)
    for target, blamed in found.items():
        if as_json:
            Json().emit("blame", target=target, blame=blame_json(blamed))
        elif not quiet:
            print_blame(target, blamed, wanted.places.output / target)


class _Duration(click.ParamType[float]):
    """A time such as ``90s``, ``30m`` or ``1h30m``, in seconds."""

    name = "time"
    _UNITS: ClassVar = {"h": 3600, "m": 60, "s": 1}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Add up hours, minutes and seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(?=.)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", value)
        if not found or not any(map(int, filter(None, found.groups()))):
            self.fail(f"'{value}' is no time above 0: write it as 90s, 30m or 1h30m", param, ctx)
        return float(sum(int(n or 0) * unit for n, unit in zip(found.groups(), self._UNITS.values(), strict=True)))


@main.command()
@click.option(
    "--trials",
    type=click.IntRange(1),
    metavar="N",
    help="Trials that the study is to have, earlier ones and other machines' included [default: 30].",
)
@click.option("--budget", type=_Duration(), metavar="TIME", help="Begin trials for so long, e.g. 30m.")
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
@_cache_option
@_recipe_options
@_progress_options
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
    from edgekd.console import Json, choose_observer
    from edgekd.console.search import print_search
    from edgekd.recipe import recipe_name
    from edgekd.report.search import search_json
    from edgekd.searching.search import Wanted
    from edgekd.searching.search import search as run

    folder = output or Path("build") / recipe_name(recipe)
    wanted = Wanted(recipe=recipe, overrides=overrides, output=folder, seconds=budget, **others)
    with choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty()) as observer:
        found = run(wanted, observer)
    if as_json:
        Json().emit("search", search=search_json(found))
    elif not quiet:
        print_search(found, folder)


@main.command()
@_recipe_options
@click.option(
    "--budget",
    type=_Duration(),
    default="10m",
    show_default=True,
    metavar="TIME",
    help="Time for all trials, e.g. 90s, 10m, 2h; the teacher comes on top.",
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs of each trial [default: as many as fit].")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the answer [default: build/RECIPE].")
@_cache_option
@_progress_options
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
    from edgekd.advice.report import advice_json
    from edgekd.advising import advise as find
    from edgekd.console import Json, choose_observer
    from edgekd.console.advice import print_advice
    from edgekd.pipeline import Places
    from edgekd.recipe import load_recipe, recipe_name

    loaded, name = load_recipe(recipe, overrides), recipe_name(recipe)
    places = Places(output or Path("build") / name, cache)
    with choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty()) as observer:
        found = find(loaded, places, budget, epochs=epochs, name=name, observer=observer)
    if as_json:
        Json().emit("advice", advice=advice_json(found))
    elif not quiet:
        print_advice(found, places.output)


#: Forms of the joined table, and the suffixes of files that have them.
_FORMATS = {"markdown": ".md", "csv": ".csv", "json": ".json", "html": ".html"}
#: Those that hold what came of a budget file.
_CHECKED = ("markdown", "json")


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--sort",
    "key",
    default="p50",
    show_default=True,
    metavar="KEY",
    help="p50, p90, p99, throughput, "
    "metric, change, bound, size, memory, energy, task, target, device, runtime, precision or verdict.",
)
@click.option("--reverse", is_flag=True, help="The largest first.")
@click.option("--max-latency-ms", type=float, metavar="MS", help="Leave out rows whose p50 is above.")
@click.option("--min-metric", type=float, metavar="X", help="Leave out rows whose metric is below; higher is better.")
@click.option("--max-metric", type=float, metavar="X", help="Leave out rows whose metric is above; lower is better.")
@click.option("--verdict", type=click.Choice(("pass", "warn", "fail")), default="fail", help="The worst to show.")
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
def report(
    runs: tuple[Path, ...],
    key: str,
    reverse: bool,
    form: str | None,
    output: Path | None,
    budget: Path | None,
    max_latency_ms: float | None,
    min_metric: float | None,
    max_metric: float | None,
    **names: Any,
) -> None:
    """Join builds of many targets and devices into one table.

    RUNS are output folders of `edgekd build`. A row is one engine on its device: latency, throughput, metric, Gram
    drift, size, memory, energy. As HTML it is one page with pictures that needs no network.
    """
    from edgekd.report.joined.budgets import check_budgets, read_budgets
    from edgekd.report.joined.formats import Joined
    from edgekd.report.joined.read import read_runs
    from edgekd.report.joined.rows import SORT_KEYS, Filters, choose, order

    if key not in SORT_KEYS:
        raise click.UsageError(f"--sort {key}: there is no such key{nearest(key, SORT_KEYS)}")
    filters = Filters(max_latency_ms=max_latency_ms, min_metric=min_metric, max_metric=max_metric, **names)
    form = _form(form, output, budget, filters != Filters())
    limits = read_budgets(budget) if budget else None
    kept, left_out = choose(order(read_runs(runs), key, reverse), filters)
    checks = check_budgets(kept, limits, budget) if budget and limits else None
    _show_joined(Joined(kept, left_out, key, reverse, checks), form, output)
    missed = [check for check in checks or () if not check.kept]
    if missed:
        first = missed[0]
        told = f"{first.row.target} on {first.row.device}: {first.key} {first.found}, wanted {first.wanted}"
        told += f"; and {len(missed) - 1} more" if len(missed) > 1 else ""
        raise BudgetMissed(f"{budget}: {len(missed)} of {len(checks or ())} limits not kept: {told}")


def _form(form: str | None, output: Path | None, budget: Path | None, filtered: bool) -> str | None:
    """Return the form that is wanted, None for the terminal's; refuse what does not go together."""
    if output and form is None:
        form = next((name for name, suffix in _FORMATS.items() if suffix == output.suffix.lower()), None)
        if form is None:
            raise click.UsageError(f"--output {output}: ends in none of {', '.join(_FORMATS.values())}; give --format")
    if budget and filtered:
        raise click.UsageError("--check holds every row against its limits: a filter would hide some; leave it out")
    if budget and form not in (None, *_CHECKED):
        raise click.UsageError(f"--check goes with --format {' or '.join(_CHECKED)}, or none, not with {form}")
    return form


def _show_joined(joined: Joined, form: str | None, output: Path | None) -> None:
    """Print the joined table, or write it into a file."""
    if form is None:
        from edgekd.console.joined import print_joined

        print_joined(joined)
        return
    from edgekd.files import write_text
    from edgekd.report.joined.formats import as_csv, as_json, as_markdown
    from edgekd.report.joined.page import as_html

    write = {"markdown": as_markdown, "csv": as_csv, "json": as_json, "html": as_html}[form]
    text = write(joined)
    if output is None:
        click.echo(text, nl=False)
        return
    write_text(output, text)
    click.echo(f"wrote {output}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Start a project that builds as it stands.

    Writes a recipe, edgekd.toml, and a commented task, task.py, into FOLDER.
    """
    from edgekd.init import init as write

    for path in write(folder):
        click.echo(f"wrote {path}")
    click.echo(f"\nNext:  cd {folder} && edgekd build\nThen replace the data and the two networks in task.py.")


@main.command()
def tasks() -> None:
    """List the shipped tasks, with the licence of their data."""
    from edgekd.console import print_tasks
    from edgekd.tasks import describe

    def description(task: TaskInfo) -> str:
        what = f"{task.summary}; {task.samples} samples of {', '.join(task.modalities)}"
        return f"{what}\n{task.licence}; {task.citation}"

    print_tasks((task.name, description(task)) for task in describe())


@main.group(invoke_without_command=True)
@click.pass_context
def targets(context: click.Context) -> None:
    """List the kinds of device.

    `targets show NAME` prints one, to copy and change.
    """
    if context.invoked_subcommand is None:
        from edgekd.console import print_targets
        from edgekd.target import load_target, shipped_targets

        shipped = [load_target(name) for name in shipped_targets()]
        print_targets((target.name, target.runtime, target.description) for target in shipped)


@targets.command("show")
@click.argument("name")
def show_target(name: str) -> None:
    """Print a target's TOML."""
    from edgekd.target import find_target

    click.echo(find_target(name).read_text(encoding="utf-8"), nl=False)


@main.group()
def recipe() -> None:
    """Show a recipe, or the schema of all."""


@recipe.command("schema")
def schema() -> None:
    """Print the JSON schema of edgekd.toml: every key, default and description."""
    from edgekd.recipe import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))


@recipe.command("show")
@_recipe_options
def show_recipe(recipe: str | None, overrides: tuple[str, ...]) -> None:
    """Print a recipe as JSON, with every default filled in."""
    import msgspec

    from edgekd.recipe import load_recipe

    click.echo(json.dumps(msgspec.to_builtins(load_recipe(recipe, overrides)), indent=2))


@main.group(invoke_without_command=True)
@click.pass_context
def device(context: click.Context) -> None:
    """List the devices that engines can run on here.

    `device install NAME` fetches what an emulated processor or the browser needs.
    """
    if context.invoked_subcommand is None:
        from edgekd.console import print_devices
        from edgekd.devices.choose import known_devices

        rows = [
            (found.name, "accuracy alone" if found.no_latency else "accuracy, latency", found.missing() or "ready")
            for found in known_devices()
        ]
        print_devices([*rows, ("ssh://USER@HOST", "accuracy, latency", "any board: edgekd device probe ssh://...")])


@device.command("install")
@click.argument("name")
def install_device(name: str) -> None:
    """Fetch what a device needs, once, into the user's cache: `emulated:cortex-a76`, `browser`."""
    from edgekd.console import steps
    from edgekd.devices.choose import install, known_devices

    with steps(f"installing {name}") as advance:
        install(name, advance)
    lacking = next(found.missing() for found in known_devices() if found.name == name)
    if lacking:  # what edgekd does not fetch: Chromium
        raise DeviceError(f"{name}: {lacking}")
    click.echo(f"{name}: ready")


@device.command("probe")
@click.argument("address")
def probe_device(address: str) -> None:
    """Show what a board is: `ssh://[user@]host[:port]`.

    Connects, unpacks edgekd's agent in ~/.cache/edgekd/board there, and asks: processor, system, power mode, clocks,
    Python, engine libraries, free disk.
    """
    from contextlib import closing

    from edgekd.console import print_probe
    from edgekd.devices.ssh import SshDevice

    with closing(SshDevice(address)) as board:
        print_probe(board.name, board.probe())


@device.command("clean")
@click.argument("address")
def clean_device(address: str) -> None:
    """Remove all that edgekd keeps on a board: `ssh://[user@]host[:port]`."""
    from edgekd.devices.ssh import SshDevice
    from edgekd.report.figures import size

    board = SshDevice(address)
    click.echo(f"{board.name}: {size(board.clean())} removed; nothing of edgekd is left there")


def _runtime_option(command: Callable[..., Any]) -> Callable[..., Any]:
    what = "Open it with this runtime instead of its own, e.g. onnxruntime on any machine."
    return click.option("--runtime", metavar="NAME", help=what)(command)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_runtime_option
@click.option("--device", metavar="DEVICE", help="Where, e.g. ssh://user@board [default: this very process].")
def verify(bundle: Path, runtime: str | None, device: str | None) -> None:
    """Check a bundle on this machine, or on a board.

    Checks the digest of every file, then runs the bundle's own reference samples through its engine and compares logits
    and Grams with those recorded. Needs no labels and no teacher.
    """
    if device is None:
        with edgekd.load(bundle, runtime=runtime, allow_rejected=True) as loaded:
            manifest, library, found = loaded.manifest, loaded.runtime, loaded.verify()
    else:
        from edgekd.profiling import verify_bundle

        manifest, library, found = verify_bundle(bundle, runtime, device)
    flips = "" if found.flips is None else f"{found.flips} flips, "
    named = library.name.removesuffix("-web")  # a browser's engine runs in ONNX Runtime here
    click.echo(
        f"{bundle}: {manifest.verdict}; {found.samples} reference samples in {named}, "
        f"{flips}Gram drift {found.gram_drift:.2g}, largest logit error {found.max_logit_error:.2g}"
    )
    if not found.ok:
        where = f"on {device}" if device else "here"
        raise BundleError(
            f"{bundle}: its engine does not do {where} what it did where it was built; rebuild it for that machine"
        )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_runtime_option
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one inference.")
@click.option("--iterations", type=click.IntRange(1), default=2000, show_default=True, help="Timed inferences.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    help="Where, e.g. ssh://user@board [default: this machine]. Repeatable: boards measure at the same time.",
)
@click.option(
    "--rate",
    "rate_hz",
    type=click.FloatRange(0, 10_000, min_open=True),
    metavar="HZ",
    help="Also for 10 s at a sensor's rate, from a sample's arrival to its result.",
)
@click.option(
    "--sustained", "sustained_s", type=_Duration(), metavar="TIME", help="Also back to back for so long, e.g. 5m."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write profile.json and raw times there; of several devices, into a folder for each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print profile.json, a line for each device.")
def profile(
    bundle: Path,
    runtime: str | None,
    threads: int,
    iterations: int,
    devices: tuple[str, ...],
    rate_hz: float | None,
    sustained_s: float | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure a bundle's engine on this machine, or on boards.

    Checks the bundle, then times single inferences of its reference samples in several fresh processes: end to end and
    computing alone, each layer, cold starts, memory, and energy where a power sensor can be read. Run it on the device
    that the bundle is for: numpy and the engine library are enough there.
    """
    from edgekd.console import print_profile, steps
    from edgekd.profiling import profile_bundle
    from edgekd.recipe import ProfileConfig
    from edgekd.report.profile import profile_json, write_profile

    config = ProfileConfig(threads=threads, iterations=iterations, rate_hz=rate_hz, sustained_s=sustained_s or 0)
    with steps(f"profiling {bundle}", shown=not as_json) as advance:
        found = profile_bundle(bundle, runtime, config, advance, output, devices)
    for one in found:
        content = profile_json(one.manifest, one.ledger, one.runtime, one.device, one.profile)
        if one.folder:
            write_profile(content, one.folder)
        if as_json:
            click.echo(json.dumps(content))
        else:
            print_profile(one.manifest, one.profile, one.device, one.runtime)
