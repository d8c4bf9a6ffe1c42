"""The engine that edgekd ships against what one would have without it: is it ever slower?

Each shipped recipe is built for this processor in ONNX Runtime and in OpenVINO, and for the browser where Chromium and
onnxruntime-web are installed. What ships then takes turns of 50 inferences, at batch 1 and one thread, with

- "float student": the unpruned float student, and "float pruned": the pruned one;
- "usual INT8": the runtime's own quantizer with its defaults on the same pruned student and the same calibration
  samples: ``quantize_static`` of ONNX Runtime after its ``quant_pre_process``, or NNCF on OpenVINO's IR.

All run in the bare library, called in the fastest way that we found, so that engines are compared with engines; the
shipped one also in edgekd's session, as an app has it. A browser has edgekd's page alone. The criterion: the shipped
engine is never slower, which it is where the whole interval of the ratio of p50 is above 1. Where the pruned float
student is what ships, its ratio to itself shows the noise.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from common import TASKS, arguments, parse, write_result
from msgspec.structs import replace
from side_by_side import (
    BLOCK,
    LEAD_IN,
    OPENVINO_OPTIONS,
    THREADS,
    compare_p50,
    open_edgekd,
    open_onnxruntime,
    open_openvino,
    summarize,
    take_turns,
)

import edgekd
from edgekd.cli.terminal import choose_observer
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.graph import drop_embeddings
from edgekd.config.recipe import ProfileConfig
from edgekd.config.target import load_calibration
from edgekd.devices.browser.device import BrowserDevice
from edgekd.devices.local import LocalDevice
from edgekd.files import quiet
from edgekd.gram.drift import flips, measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.gram.probe import Probe
from edgekd.pipeline.project import Project
from edgekd.pipeline.publish import BUNDLE, REJECTED
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.backends.telemetry import no_telemetry
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import CALIBRATION, DEPLOY, PROBE_GRAPH, TEST, onnx_name
from edgekd.stages.cache import Cache
from edgekd.stages.stage import Runner, library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from side_by_side import Nanoseconds, Opener

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.pipeline.trained_source import TrainedOrigin
    from edgekd.report.results import TargetResult

FOLDER = Path("build/benchmarks")
CACHE = FOLDER / "cache"
TARGETS = ("cpu", "openvino-cpu", "browser")
SHIPPED, STUDENT, PRUNED, USUAL = "shipped", "float student", "float pruned", "usual INT8"
IN_SESSION = "shipped, in edgekd's session"


@dataclass(frozen=True)
class Engine:
    """One engine: the file that is timed, and the one that gives the embeddings too."""

    deploy: Path
    full: Path

    @property
    def size_bytes(self) -> int:
        """Size of the timed file; the weights of OpenVINO's IR are a file of their own."""
        weights = self.deploy.with_suffix(".bin")
        return self.deploy.stat().st_size + (weights.stat().st_size if weights.exists() else 0)


class _Reader:
    """ONNX Runtime's reader of calibration samples."""

    def __init__(self, samples: CalibrationSamples) -> None:
        self._chunks: Iterator[Any] = iter(samples)

    def get_next(self) -> Any:
        return next(self._chunks, None)


def usual_onnxruntime(model: Path, samples: CalibrationSamples, path: Path) -> Path:
    """Quantize as ONNX Runtime's documentation does."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")
    with quiet():
        quant_pre_process(str(model), str(prepared))
        quantize_static(str(prepared), str(path), _Reader(samples))
    return path


def usual_openvino(model: Path, samples: CalibrationSamples, path: Path) -> Path:
    """Quantize as NNCF's documentation does."""
    with quiet(), no_telemetry(), redirect_stdout(io.StringIO()):
        import nncf
        import openvino

        one_by_one = CalibrationSamples(samples.path, replace(samples.calibration, chunk=1))
        found = nncf.quantize(openvino.Core().read_model(str(model)), nncf.Dataset(one_by_one))
        openvino.save_model(found, str(path.with_suffix(".xml")))
    return path.with_suffix(".xml")


USUAL_INT8: dict[str, Callable[[Path, CalibrationSamples, Path], Path]] = {
    "onnxruntime": usual_onnxruntime,
    "onnxruntime-web": usual_onnxruntime,
    "openvino": usual_openvino,
}


def write_engines(target: Target, recipe: Recipe, shipped: Path, exported: Path, folder: Path) -> dict[str, Engine]:
    """Write what the shipped engine is compared with."""
    samples = CalibrationSamples(exported / CALIBRATION, load_calibration(recipe.quantize.calibration))
    plain = {}
    for name, network in ((STUDENT, "student"), (PRUNED, "pruned")):
        plain[name] = Engine(folder / f"{network}.onnx", exported / onnx_name(network))
        drop_embeddings(plain[name].full, plain[name].deploy)
    usual = (
        USUAL_INT8[target.runtime](model, samples, folder / f"usual.{variant}.onnx")
        for variant, model in (("deploy", plain[PRUNED].deploy), ("full", plain[PRUNED].full))
    )
    return {SHIPPED: Engine(shipped / DEPLOY, shipped / PROBE_GRAPH), **plain, USUAL: Engine(*usual)}


def probe(engine: Engine, device: Device, runtime: Runtime, test: Path, folder: Path) -> Probe:
    """Return what an engine says of the test samples on a device."""
    found = []
    for path in (engine.deploy, engine.full):
        device.evaluate(path, runtime, test, folder / "outputs.npz", THREADS)
        with open_arrays(folder / "outputs.npz") as arrays:
            found.append({name: arrays[name] for name in arrays})
    deploy, full = found
    with open_arrays(test) as arrays:
        ids = arrays["ids"]
    embeddings = {
        name.removeprefix(EMBEDDING_PREFIX): z for name, z in full.items() if name.startswith(EMBEDDING_PREFIX)
    }
    return Probe(ids, {"logits": deploy["logits"]}, embeddings)


def time_local(engines: Mapping[str, Engine], runtime: Runtime, test: Path, rounds: int, calls: int) -> dict[str, Any]:
    """Time engines on this host, each in a process of its own."""
    openers: dict[str, Opener] = {}
    for name, engine in engines.items():
        if runtime.name == "onnxruntime":
            openers[name] = partial(open_onnxruntime, engine.deploy)
        else:
            openers[name] = partial(open_openvino, engine.deploy, OPENVINO_OPTIONS if name == SHIPPED else {})
    openers[IN_SESSION] = partial(open_edgekd, engines[SHIPPED].deploy, runtime)
    return take_turns([{name: opener} for name, opener in openers.items()], test, rounds, calls)


def time_browser(
    engines: Mapping[str, Engine], runtime: Runtime, test: Path, rounds: int, calls: int
) -> dict[str, Any]:
    """Time engines in Chromium, each in a browser of its own: means of blocks, since a page's clock moves in steps."""
    config = ProfileConfig(threads=THREADS, iterations=calls, cold_starts=1)
    files = {name: engine.deploy for name, engine in engines.items()}
    found: dict[str, list[Any]] = {name: [] for name in engines}
    for _ in range(rounds):
        with TemporaryDirectory() as scratch:
            BrowserDevice().profile(files, runtime, test, Path(scratch), config, lambda *_: None)
            for name, times in found.items():
                times.append(np.load(Path(scratch) / f"{name}.npy").reshape(-1, BLOCK).mean(axis=1, keepdims=True))
    return {name: np.stack(times) for name, times in found.items()}


def compare(ours: Nanoseconds, theirs: Nanoseconds) -> dict[str, Any]:
    """Return the ratio of p50, and whether ours is slower beyond noise."""
    ratio = compare_p50(ours, theirs, lambda shipped, other: shipped / other)
    return {**ratio, "slower": ratio["low"] > 1}


def measure(
    target: Target,
    result: TargetResult,
    recipe: Recipe,
    project: Project,
    learning: TrainedOrigin,
    rounds: int,
    calls: int,
) -> dict[str, Any]:
    """Compare what ships for one target with the usual ways."""
    exported, runtime = learning.exported.folder, Runtime(target.runtime, target.options)
    device, timer = (BrowserDevice(), time_browser) if target.name == "browser" else (LocalDevice(), time_local)
    shipped = FOLDER / project.config.name / target.name / (BUNDLE if result.bundle else REJECTED)
    test, student, gate = exported / TEST, learning.probes()["student"], recipe.gate
    with open_arrays(test) as arrays:
        labels, groups = arrays["labels"], arrays.get("groups")
    rows, ratios = {}, {}
    with TemporaryDirectory() as scratch:
        engines = write_engines(target, recipe, shipped, exported, Path(scratch))
        times = timer(engines, runtime, test, rounds, calls)
        for name, engine in engines.items():
            found = probe(engine, device, runtime, test, Path(scratch))
            drift = measure_drift(found, student, groups, Bootstrap(gate.confidence, gate.resamples, recipe.seed))
            rows[name] = {
                "metric": project.loaded.metric(found.answer, labels),
                "drift": drift.mean,
                "drift_bound": drift.bound,
                "flips": flips(found, student),
                "size_bytes": engine.size_bytes,
                **summarize(times[name]),
            }
    where = f"{project.config.name}, {target.runtime}"
    for name, row in rows.items():
        print(
            f"{where}: {result.chosen if name == SHIPPED else name} {row['p50_us']:.1f} us, {row['size_bytes']} bytes, "
            f"metric {row['metric']:.4f}, drift bound {row['drift_bound']:.4f}"
        )
    for ours in (name for name in (SHIPPED, IN_SESSION) if name in times):
        ratios[ours] = {name: compare(times[ours], times[name]) for name in (STUDENT, PRUNED, USUAL)}
        for name, ratio in ratios[ours].items():
            print(
                f"{where}: {ours} over {name}: {ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
                f"{', SLOWER' if ratio['slower'] else ''}"
            )
    return {
        "target": target.name,
        "runtime": target.runtime,
        "device": device.describe(runtime),
        "shipped": result.chosen,
        "choice": result.choice,
        "verdict": result.verdict,
        "p50_ratios": ratios,
        "engines": rows,
        "session": summarize(times[IN_SESSION]) if IN_SESSION in times else None,
    }


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--rounds", type=int, default=5, help="how often all engines start in fresh processes")
    parser.add_argument("--calls", type=int, default=2000, help="inferences of each engine in a round")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    options = parse(parser, tasks=["digits"], rounds=1, calls=100)
    names = list(options.targets)
    if "browser" in names and (lacking := BrowserDevice().missing()):
        print(f"browser is left out: {lacking}")
        names.remove("browser")
    targets = [edgekd.load_target(name) for name in names]
    tasks = {}
    for task in options.tasks:
        overrides = (*options.recipe, "prune.round_to=8")  # what all of these targets ask for
        recipe = edgekd.load_recipe(task, overrides)
        project = Project(recipe.task, CACHE)
        with choose_observer(json=False, quiet=True, verbose=False, terminal=False) as observer:
            report = edgekd.build(
                task, names, overrides=overrides, output=FOLDER / task, cache=CACHE, observer=observer
            )
            learning = TrainingStages(Runner(Cache(CACHE), observer), project, recipe, targets[0].opset).run()
        tasks[task] = [
            measure(target, result, recipe, project, learning, options.rounds, options.calls)
            for target, result in zip(targets, report.targets, strict=True)
        ]
    versions = library_versions(["nncf", "openvino"], "build")
    settings = {"threads": THREADS, "batch": 1, "block": BLOCK, "lead_in": LEAD_IN, "rounds": options.rounds}
    settings["calls"] = options.calls
    write_result(__file__, {"quantizers": versions, **settings, "tasks": tasks}, options)


if __name__ == "__main__":
    main()
