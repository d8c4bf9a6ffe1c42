"""The command line: each command parses, calls the library, prints."""

from __future__ import annotations

import errno
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import edgekd
from edgekd.errors import BundleError, DeviceError, EdgekdError, GateFailed, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.report.result import BuildReport
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
            resumes = context.invoked_subcommand == "build"
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


@main.command()
@_recipe_options
@click.option("--target", "targets", multiple=True, default=["cpu"], show_default=True, metavar="NAME|FILE.toml",
              help="A kind of device. Repeatable.")  # fmt: skip
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="[TARGET=]DEVICE",
    help="Where engines run; see 'edgekd device' [default: what is at hand]. Repeatable.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder of report and bundles [default: build/RECIPE].")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".edgekd"), show_default=True,
              envvar="EDGEKD_CACHE", help="Folder of finished stages.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors alone.")
@click.option("-v", "--verbose", is_flag=True, help="Print every step.")
@click.option("--json", "as_json", is_flag=True, help="Print events, and at last the report, as JSON lines.")
def build(recipe: str | None, overrides: tuple[str, ...], targets: tuple[str, ...], devices: tuple[str, ...],
          output: Path | None, cache: Path, quiet: bool, verbose: bool, as_json: bool) -> None:  # fmt: skip
    """Build a recipe for a device, from teacher to bundle.

    Runs teacher, distil, prune and export once, then for each target quantize, compile, engine, check, profile and
    bundle, as far as it has them; what is up to date is not run again. Exits with 20 when the gate rejects the result;
    its artefacts are kept under OUTPUT/TARGET/rejected.
    """
    from edgekd.console import Json, choose_observer, print_report
    from edgekd.files import make_folder
    from edgekd.pipeline import Places
    from edgekd.recipe import load_recipe, recipe_name
    from edgekd.report.build import report_json
    from edgekd.target import load_targets

    loaded, kinds, name = load_recipe(recipe, overrides), load_targets(targets), recipe_name(recipe)
    places = Places(output or Path("build") / name, cache)
    make_folder(places.output, OutputError, "--output")
    with choose_observer(json=as_json, quiet=quiet, verbose=verbose, terminal=sys.stdout.isatty()) as observer:
        report = edgekd.build(loaded, kinds, places, devices=devices, name=name, observer=observer)
    if as_json:
        Json().emit("report", report=report_json(report))
    elif not quiet:
        print_report(report, places.output)
    _require_release(report)


def _require_release(report: BuildReport) -> None:
    rejected = [result for result in report.targets if result.ledger.verdict == "fail"]
    if rejected:
        reasons = "; ".join(f"{r.target}: {reason}" for r in rejected for reason in r.ledger.reasons)
        raise GateFailed(f"the gate rejected the build: {reasons}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Print the report of a finished build again.

    FOLDER is the build's output; the report is Markdown.
    """
    path = folder / "report.md"
    if not path.is_file():
        raise OutputError(f"{path}: no such file; a finished build writes it into its output folder")
    click.echo(path.read_text(encoding="utf-8"), nl=False)


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

        print_devices(
            (found.name, "accuracy alone" if found.no_latency else "accuracy, latency", found.missing() or "ready")
            for found in known_devices()
        )


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


def _runtime_option(command: Callable[..., Any]) -> Callable[..., Any]:
    what = "Open it with this runtime instead of its own, e.g. onnxruntime on any machine."
    return click.option("--runtime", metavar="NAME", help=what)(command)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_runtime_option
def verify(bundle: Path, runtime: str | None) -> None:
    """Check a bundle on this machine.

    Checks the digest of every file, then runs the bundle's own reference samples through its engine and compares logits
    and Grams with those recorded. Needs no labels and no teacher.
    """
    with edgekd.load(bundle, runtime=runtime, allow_rejected=True) as loaded:
        found = loaded.verify()
        library = loaded.runtime.name.removesuffix("-web")  # a browser's engine runs in ONNX Runtime here
        click.echo(
            f"{bundle}: {loaded.manifest.verdict}; {found.samples} reference samples in {library}, "
            f"{found.flips} flips, Gram drift {found.gram_drift:.2g}, largest logit error {found.max_logit_error:.2g}"
        )
    if not found.ok:
        raise BundleError(f"{bundle}: its engine does not do here what it did where it was built; rebuild it here")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_runtime_option
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one inference.")
@click.option("--iterations", type=click.IntRange(1), default=2000, show_default=True, help="Timed inferences.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def profile(bundle: Path, runtime: str | None, threads: int, iterations: int, as_json: bool) -> None:
    """Measure a bundle's engine on this machine.

    Checks the bundle, then times single inferences of its reference samples in a process of their own. Run it on the
    device that the bundle is for: numpy and the engine library are enough there.
    """
    import msgspec

    from edgekd.console import print_profile, steps
    from edgekd.profiling import profile_bundle
    from edgekd.recipe import ProfileConfig

    config = ProfileConfig(threads=threads, iterations=iterations)
    with steps(f"profiling {bundle}", shown=not as_json) as advance:
        manifest, found = profile_bundle(bundle, runtime, config, advance)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found)))
    else:
        print_profile(manifest, found, runtime or manifest.runtime)
