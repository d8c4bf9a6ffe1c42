"""Options that several commands share."""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from edgekd.cli.signals import Signals, StoppableObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgekd.config.recipe import Effort, Kind, Recipe
    from edgekd.stages.progress import Observer

#: What an output may be, as in a recipe, which is not read for a command's help.
KINDS: tuple[Kind, ...] = (
    *("auto", "classes", "multilabel", "regression"),
    *("dense-classes", "sequence-classes", "embedding", "custom"),
)
#: The efforts of a recipe.
EFFORTS: tuple[Effort, ...] = ("quick", "normal", "best")

#: The function behind a command. click passes it each option as a keyword argument.
CommandFunction: TypeAlias = "Callable[..., None]"


def as_one_argument(name: str, kind: type) -> Callable[[CommandFunction], CommandFunction]:
    """Pass the options that are fields of the dataclass ``kind`` to a command as one argument of this name."""
    names = [field.name for field in fields(kind)]

    def decorate(command: CommandFunction) -> CommandFunction:
        @functools.wraps(command)
        def grouped(**options: object) -> None:
            command(**{name: kind(**{field: options.pop(field) for field in names})}, **options)

        return grouped

    return decorate


def recipe_options(command: CommandFunction) -> CommandFunction:
    """Give a command the options that name a recipe, as arguments ``recipe`` and ``overrides``."""
    override = "Override a key, e.g. distill.epochs=5. Repeatable."
    command = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=override)(command)
    recipe = "A shipped recipe or a file [default: ./edgekd.toml]."
    return click.option("--recipe", metavar="NAME|PATH", help=recipe)(command)


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path(".edgekd"),
    show_default=True,
    envvar="EDGEKD_CACHE",
    help="Folder of finished stages.",
)


def target_option(what: str) -> Callable[[CommandFunction], CommandFunction]:
    """Give a command the option of its targets, as an argument ``targets``."""
    return click.option(
        "--target",
        "targets",
        multiple=True,
        default=["cpu"],
        show_default=True,
        metavar="NAME|FILE.toml",
        help=f"{what} Repeatable.",
    )


@dataclass(frozen=True)
class BuildRequest:
    """A build as the command line asks for it.

    Attributes:
        recipe: A shipped recipe's name or a file, None for the default file, or the recipe of an imported model.
        overrides: Changes of a recipe that is named or a file.
        targets: Names or files of targets.
        devices: Where engines run.
        output: Folder of report and bundles.
        cache: Folder of finished stages.
    """

    recipe: str | Recipe | None
    overrides: tuple[str, ...]
    targets: tuple[str, ...]
    devices: tuple[str, ...]
    output: Path
    cache: Path


@dataclass(frozen=True)
class _BuildArguments:
    """The options of :func:`build_options` as click passes them."""

    recipe: str | None
    overrides: tuple[str, ...]
    model: Path | None
    calibration: Path | None
    effort: Effort | None
    test: Path | None
    taps: tuple[str, ...]
    states: tuple[str, ...]
    fixed: tuple[str, ...]
    kind: Kind | None
    threshold: float | None
    metric: str | None
    as_is: bool
    reference: Path | None
    targets: tuple[str, ...]
    devices: tuple[str, ...]
    outputs: tuple[str, ...]
    cache: Path

    def request(self) -> BuildRequest:
        """Return the build that these options ask for."""
        from edgekd.workflows.arguments import resolve_output

        if self.model is None:
            _refuse_without_model(self)
            recipe: str | Recipe | None = self.recipe
        else:
            recipe = _model_recipe(self, self.model)
        overrides = self.changes if self.model is None else ()
        output = resolve_output(self.folder, recipe)
        return BuildRequest(recipe, overrides, self.targets, self.devices, output, self.cache)

    @property
    def changes(self) -> tuple[str, ...]:
        """The changes of the recipe, that of ``--effort`` among them."""
        return self.overrides if self.effort is None else (*self.overrides, f"quantize.effort={self.effort}")

    @property
    def named_outputs(self) -> dict[str, Kind]:
        """The outputs of the network that are named by ``--output``, and what each is."""
        return {value[: -len(kind) - 1]: kind for value in self.outputs for kind in KINDS if _is_named(value, kind)}

    @property
    def folder(self) -> Path | None:
        """The folder that is named by ``--output``; None where none is."""
        folders = [value for value in self.outputs if not any(_is_named(value, kind) for kind in KINDS)]
        if len(folders) > 1:
            raise click.UsageError(f"--output names two folders: {', '.join(folders)}")
        return Path(folders[0]) if folders else None


def _is_named(value: str, kind: Kind) -> bool:
    """Whether a value of ``--output`` names an output of this kind, and no folder."""
    return value.endswith(f"={kind}") and len(value) > len(kind) + 1


def build_options(command: CommandFunction) -> CommandFunction:
    """Give a command the options that name a build, as one argument ``request``.

    In the processes that torchrun starts beside the first, the command does not run: they only train along.
    """

    @functools.wraps(command)
    def with_request(build: _BuildArguments, **others: object) -> None:
        from edgekd.pipeline.multi_process import is_follower

        request = build.request()
        if is_follower():
            if not others.get("dry_run"):
                _follow(request)
        else:
            command(request=request, **others)

    file = click.Path(path_type=Path)
    options = (
        click.option("--model", type=file, metavar="FILE.onnx",
                     help="Build a trained ONNX network instead of a recipe's task."),
        click.option("--calibration", type=file, metavar="FILE.npz",
                     help="With --model: real samples, an array for each input of the graph."),
        click.option("--effort", type=click.Choice(EFFORTS),
                     help="How long INT8 may take to write and to mend [default: quantize.effort, normal]."),
        click.option("--test", type=file, metavar="FILE.npz",
                     help="With --model: the samples of the gate [default: half of --calibration]."),
        click.option("--tap", "taps", multiple=True, metavar="NAME=TENSOR",
                     help="With --model: the tensor that is a modality's embedding [default: found]. Repeatable."),
        click.option("--state", "states", multiple=True, metavar="IN=OUT",
                     help="With --model: an input that is a state, and the output that holds it after a step; 'none' "
                     "where there is none [default: found by sizes and names]. Repeatable."),
        click.option("--fix", "fixed", multiple=True, metavar="INPUT=NUMBER",
                     help="With --model: an input that never changes, such as a sampling rate. Repeatable."),
        click.option("--kind", type=click.Choice(KINDS),
                     help="With --model: what its output is [default: auto, told and shown]."),
        click.option("--threshold", type=float, metavar="NUMBER",
                     help="With --model: where a label or a number of the output is decided."),
        click.option("--metric", metavar="FILE.py:NAME",
                     help="With --model: your own metric, a function of outputs and targets [default: the accuracy]."),
        click.option("--as-is", "as_is", is_flag=True,
                     help="With --model: check, profile and bundle it in its own precision; quantize nothing."),
        click.option("--reference", type=file, metavar="FLOAT.onnx",
                     help="With --as-is: the float network that it is compared with."),
        target_option("A kind of device."),
        click.option("--device", "devices", multiple=True, metavar="[TARGET=]DEVICE",
                     help="Where engines run; see 'edgekd device' [default: what is at hand]. Repeatable."),
        click.option("--output", "outputs", multiple=True, metavar="FOLDER",
                     help="Folder of report and bundles [default: build/RECIPE]. With --model also NAME=KIND, "
                     "repeatable: an output that the engine keeps, and what it is [default: all of floats]."),
        cache_option,
    )  # fmt: skip
    wrapped = as_one_argument("build", _BuildArguments)(with_request)
    for option in reversed(options):
        wrapped = option(wrapped)
    return recipe_options(wrapped)


def _follow(request: BuildRequest) -> None:
    """Train along with the process that builds."""
    from edgekd.pipeline.build import follow
    from edgekd.workflows.arguments import resolve_recipe, resolve_targets

    recipe, _ = resolve_recipe(request.recipe, request.overrides)
    follow(recipe, resolve_targets(request.targets), request.cache)


def _refuse_without_model(options: _BuildArguments) -> None:
    given = {
        "--calibration": options.calibration,
        "--test": options.test,
        "--tap": options.taps or None,
        "--state": options.states or None,
        "--fix": options.fixed or None,
        "--kind": options.kind,
        "--threshold": options.threshold,
        "--metric": options.metric,
        "--as-is": options.as_is or None,
        "--reference": options.reference,
        "--output NAME=KIND": options.named_outputs or None,
    }
    for option, value in given.items():
        if value is not None:
            raise click.UsageError(f"{option} is for --model; a recipe's task brings its own samples and taps")


def _model_recipe(options: _BuildArguments, model: Path) -> Recipe:
    from edgekd.config.loading import model_recipe
    from edgekd.config.recipe import ModelConfig

    if options.recipe is not None:
        raise click.UsageError("give --model or --recipe, not both; a recipe can name a model in its [model] section")
    if options.calibration is None:
        raise click.UsageError("--model needs --calibration: an .npz of real samples to quantize with")
    taps = _pairs("--tap", options.taps, "NAME=TENSOR")
    none = options.states == ("none",)
    states = _pairs("--state", () if none else options.states, "IN=OUT, or --state none alone")
    if options.reference is not None and not options.as_is:
        raise click.UsageError("--reference is for --as-is: it is what a model is compared with that is built as it is")
    calibration, test = str(options.calibration), str(options.test or "")
    config = ModelConfig(
        path=str(model),
        calibration=calibration,
        test=test,
        taps=taps,
        outputs=dict(options.named_outputs),
        states="none" if none else states or "auto",
        fix={name: _number(name, text) for name, text in _pairs("--fix", options.fixed, "INPUT=NUMBER").items()},
        kind=options.kind or "auto",
        threshold=options.threshold,
        metric=options.metric or "",
        as_is=options.as_is,
        reference=str(options.reference or ""),
    )
    return model_recipe(config, options.changes)


def _number(name: str, text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"--fix {name}={text}: write it as INPUT=NUMBER") from None


def _pairs(option: str, values: tuple[str, ...], form: str) -> dict[str, str]:
    """Return the values of an option by the names before their first "="."""
    parts = [value.partition("=") for value in values]
    for name, equals, tensor in parts:
        if not (name and equals and tensor):
            raise click.UsageError(f"{option} {name}{equals}{tensor}: write it as {form}")
    return {name: tensor for name, _, tensor in parts}


@dataclass(frozen=True)
class Printing:
    """What a command prints.

    Attributes:
        quiet: Print warnings and errors alone.
        verbose: Print every step.
        as_json: Print events and the outcome as JSON lines.
    """

    quiet: bool
    verbose: bool
    as_json: bool

    @contextmanager
    def observer(self) -> Iterator[Observer]:
        """Yield the observer that shows the progress of the work that runs meanwhile."""
        from edgekd.cli.terminal import choose_observer

        terminal = sys.stdout.isatty()
        with choose_observer(self.as_json, self.quiet, self.verbose, terminal) as observer:
            signals = click.get_current_context().find_object(Signals)
            yield observer if signals is None else StoppableObserver(observer, signals)


def progress_options(command: CommandFunction) -> CommandFunction:
    """Give a command the options of what it prints, as one argument ``printing``."""
    command = as_one_argument("printing", Printing)(command)
    as_json = "Print events and the outcome as JSON lines."
    command = click.option("--json", "as_json", is_flag=True, help=as_json)(command)
    command = click.option("-v", "--verbose", is_flag=True, help="Print every step.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors alone.")(command)


def runtime_option(command: CommandFunction) -> CommandFunction:
    """Give a command the option of another runtime than the bundle's own, as an argument ``runtime``."""
    what = "Open it with this runtime instead of its own, e.g. onnxruntime on any machine."
    return click.option("--runtime", metavar="NAME", help=what, cls=_RuntimeOption)(command)


class _RuntimeOption(click.Option):
    """An option whose help names the engine libraries, which are looked up only where the help is printed."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help."""
        from edgekd.runtime.backends.registry import BACKENDS

        self.help = f"{self.help} Names: {', '.join(BACKENDS)}; or your own, file.py:name."
        return super().get_help_record(ctx)
