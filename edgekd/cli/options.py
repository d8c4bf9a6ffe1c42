"""Options that several commands share."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from edgekd.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.pipeline.build import BuildPaths


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


@dataclass(frozen=True)
class BuildRequest:
    """What a build is asked for on the command line."""

    recipe: Recipe
    name: str
    targets: list[Target]
    devices: tuple[str, ...]
    places: BuildPaths


def build_options(command: Callable[..., Any]) -> Callable[..., Any]:
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
        from edgekd.config.loading import load_recipe, recipe_name
        from edgekd.devices.targets import load_targets
        from edgekd.files import make_folder
        from edgekd.pipeline.build import BuildPaths, follow
        from edgekd.pipeline.multi_process import is_follower

        if model is None:
            _refuse_without_model(calibration, test, taps)
            loaded, name = load_recipe(recipe, overrides), recipe_name(recipe)
        else:
            loaded, name = _model_recipe(recipe, overrides, model, calibration, test, taps), model.stem
        if is_follower():
            follow(loaded, load_targets(targets), cache)
            return None
        places = BuildPaths(output or Path("build") / name, cache)
        wanted = BuildRequest(loaded, name, load_targets(targets), devices, places)
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
        cache_option,
    )  # fmt: skip
    wrapped: Callable[..., Any] = with_build
    for option in reversed(options):
        wrapped = option(wrapped)
    return recipe_options(wrapped)


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
    from edgekd.config.loading import model_recipe
    from edgekd.config.recipe import ModelConfig

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


def progress_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of what it prints, as arguments ``quiet``, ``verbose`` and ``as_json``."""
    command = click.option("--json", "as_json", is_flag=True, help="Print events and the outcome as JSON lines.")(
        command
    )
    command = click.option("-v", "--verbose", is_flag=True, help="Print every step.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors alone.")(command)


class Duration(click.ParamType[float]):
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


def runtime_option(command: Callable[..., Any]) -> Callable[..., Any]:
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
