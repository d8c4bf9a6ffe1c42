"""What every benchmark shares: its result is JSON with versions, machine and raw figures, beside the script."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekd
from edgekd.cli.terminal import choose_observer
from edgekd.files import write_text
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.runtime.measure.machine import machine_facts
from edgekd.stages.cache import Cache
from edgekd.stages.stage import Runner, library_versions

if TYPE_CHECKING:
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.stage import Done

RESULTS = Path(__file__).parent / "results"
CACHE = Path("build/benchmarks/cache")
_OPSET = 20


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["digits", "gestures"], help="shipped tasks")
    return parser


def export(task: str, seed: int = 0) -> tuple[Project, Done[Exported]]:
    """Train, prune and export one task as a build for the target ``cpu`` does, or read it from the cache."""
    recipe = edgekd.load_recipe(task, (f"seed={seed}", f"prune.round_to={edgekd.load_target('cpu').round_to}"))
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


def write_result(script: str, result: dict[str, Any]) -> None:
    """Write ``results/<script>.json`` with what it was measured on."""
    versions = library_versions(["torch", "torch-pruning", "onnx", "onnxruntime", "numpy"], "build")
    content = {"versions": {"edgekd": edgekd.__version__, **versions}, "machine": machine_facts(), **result}
    path = RESULTS / f"{Path(script).stem}.json"
    write_text(path, json.dumps(content, indent=1) + "\n")
    print(f"wrote {path}")
