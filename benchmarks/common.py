"""What every benchmark shares: its command line, quick runs, and its result, which is JSON beside the script.

The JSON has versions, machine and raw figures. With ``--quick`` a benchmark goes the whole way on the smallest input,
in an empty folder that is removed at the end: it finds nothing that an earlier run kept, and leaves nothing.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import edgekd
from edgekd.files import write_text
from edgekd.runtime.measure.machine import machine_facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekd.pipeline.project import Project
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.stage import Done

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs" / "explanation"
REFERENCE = DOCS.parent / "reference"
CACHE = Path("build/benchmarks/cache")
TASKS = ("digits", "gestures")
#: What a quick run says otherwise in every recipe: the gate has limits that a hardly trained student keeps.
QUICK_RECIPE = (
    "teacher.epochs=1",
    "distill.epochs=1",
    "prune.epochs=1",
    "quantize.calibration=minmax",
    "gate.tau_pass=1",
    "gate.tau_fail=1",
    "gate.max_flips=1",
    "gate.max_metric_drop=1",
    "gate.resamples=200",
    "profile.iterations=100",
    "profile.cold_starts=2",
    "profile.layers=false",
    "profile.energy_s=0",
)
_OPSET = 20


def arguments(description: str | None, tasks: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have.

    Args:
        description: The docstring of the script.
        tasks: The shipped tasks that are measured where ``--tasks`` names no others; without any there is no such
            option.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    if tasks:
        parser.add_argument("--tasks", nargs="+", default=list(tasks), help="shipped tasks")
    parser.add_argument("--quick", action="store_true", help="go the whole way on the smallest input; keep nothing")
    parser.add_argument("--output", type=Path, help="file of the result [default: results/<script>.json, if not quick]")
    return parser


def parse(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Parse the command line, and go to an empty folder if the run is a quick one.

    Args:
        parser: That of :func:`arguments`.
        quick: The defaults of a quick run, by the names of the options.

    Returns:
        The options, and as ``recipe`` what every recipe is to say otherwise.
    """
    if parser.parse_args().quick:
        parser.set_defaults(**quick)
    options = parser.parse_args()
    options.recipe = QUICK_RECIPE if options.quick else ()
    options.output = options.output and options.output.absolute()
    if options.quick:
        scratch = TemporaryDirectory()
        atexit.register(_leave, scratch, Path.cwd())
        os.chdir(scratch.name)
    return options


def _leave(scratch: TemporaryDirectory[str], home: Path) -> None:
    os.chdir(home)
    scratch.cleanup()


def export(task: str, seed: int = 0, settings: Sequence[str] = ()) -> tuple[Project, Done[Exported]]:
    """Train, prune and export one task as a build for the target ``cpu`` does, or read it from the cache.

    Args:
        task: The name of a shipped task.
        seed: The seed of its training.
        settings: What the recipe says otherwise.
    """
    from edgekd.cli.terminal import choose_observer
    from edgekd.pipeline.project import Project
    from edgekd.pipeline.trained_source import TrainingStages
    from edgekd.stages.cache import Cache
    from edgekd.stages.stage import Runner

    rounding = f"prune.round_to={edgekd.load_target('cpu').round_to}"
    recipe = edgekd.load_recipe(task, (*settings, f"seed={seed}", rounding))
    project = Project(recipe.task, CACHE)
    with choose_observer(json=False, quiet=True, verbose=False, terminal=False) as observer:
        return project, TrainingStages(Runner(Cache(CACHE), observer), project, recipe, _OPSET).run().exported


def kept(path: Path) -> dict[str, Any]:
    """Return what a benchmark that was stopped has kept; nothing where it is the first run."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def keep(path: Path, found: dict[str, Any]) -> None:
    """Keep what a benchmark has found so far, for the case that it is stopped; remove the file to begin anew."""
    write_text(path, json.dumps(found) + "\n")


def result_path(script: str, options: argparse.Namespace) -> Path:
    """Return where the result of a run goes; that of a quick run into its folder, with which it vanishes."""
    name = f"{Path(script).stem}.json"
    return options.output or (Path(name) if options.quick else RESULTS / name)


def pages_folder(options: argparse.Namespace, folder: Path = DOCS) -> Path:
    """Return where pages and pictures go: into a folder of the docs, those of a quick run into its own."""
    return Path() if options.quick else folder


@contextmanager
def drawing(**settings: Any) -> Iterator[None]:
    """Let Matplotlib draw the same SVG in every run, with settings of its own that end with the block."""
    import matplotlib as mpl

    mpl.use("svg")
    with mpl.rc_context({"svg.hashsalt": "edgekd", **settings}):
        yield


def write_result(script: str, result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the result with what it was measured on; that of a quick run is marked, and so is its last line."""
    from edgekd.stages.stage import library_versions

    versions = library_versions(["torch", "torch-pruning", "onnx", "onnxruntime", "numpy"], "build")
    content = {"versions": {"edgekd": edgekd.__version__, **versions}, "machine": machine_facts(), **result}
    path = result_path(script, options)
    write_text(path, json.dumps({"quick": True, **content} if options.quick else content, indent=1) + "\n")
    kept_nothing = options.quick and not options.output
    print("quick run: its figures measure nothing, and are not kept" if kept_nothing else f"wrote {path}")
