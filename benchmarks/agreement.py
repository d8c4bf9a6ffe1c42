"""Does edgekd measure what others measure? p50 beside OpenVINO's ``benchmark_app`` and a bare ONNX Runtime loop.

Like is compared with like: ``benchmark_app`` times the inference alone, as edgekd's ``compute`` does; the bare loop
takes arrays and gives arrays, as edgekd's ``latency`` does. Each runs in processes of its own, on the very same file at
batch 1 and on one thread, in float32, one after the other in orders that rotate and turn, over several rounds. The
goal: over the rounds the median ratio of the two p50 is within 5 %.

What each round found is kept in ``build/benchmarks/agreement``, so that a run that was stopped goes on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from common import arguments, export, keep, kept, parse, write_result
from compress_cases import IMPORTED, load_case
from onnxruntime.tools.onnx_model_utils import make_input_shape_fixed
from side_by_side import THREADS, take_turns

from edgekd.compress.graph import drop_embeddings, save
from edgekd.config.recipe import ProfileConfig
from edgekd.devices.local import LocalDevice
from edgekd.gram.npz import INPUT_PREFIX
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import TEST, onnx_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.runtime.session import Feeds

FOLDER = Path("build/benchmarks/agreement")
GOAL = 0.05
ENGINES = ("digits", "gestures", *IMPORTED)
#: Inferences of each contestant in a round, at most and at least; between them as many as fit into ``--seconds``.
_CALLS, _FEWEST = 2000, 50
_PROCESSES = 4
#: What the command ``benchmark_app`` does; it is not in every environment that has OpenVINO.
_BENCHMARK_APP = "from openvino.tools.benchmark.main import main; main()"
_UNITS_MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0}


def write_engine(name: str, recipe: Sequence[str]) -> tuple[Path, Path]:
    """Return a float32 engine of static shapes with logits alone, and the samples that it is timed on."""
    if name in IMPORTED:
        case = load_case(name, 0)
        source, samples = case.network, case.context.test
    else:
        exported = export(name, settings=recipe)[1].folder
        source, samples = exported / onnx_name("pruned"), exported / TEST
    engine = FOLDER / f"{name}.onnx"
    FOLDER.mkdir(parents=True, exist_ok=True)
    drop_embeddings(source, engine)
    model = onnx.load(str(engine))
    with open_arrays(samples) as arrays:
        for value in model.graph.input:
            make_input_shape_fixed(model.graph, value.name, [1, *arrays[INPUT_PREFIX + value.name].shape[1:]])
    save(model, engine)
    return engine, samples


def edgekd_p50(engine: Path, samples: Path, runtime: str, calls: int) -> dict[str, float]:
    """Return p50 in ms, end to end and of computing alone, as ``edgekd profile`` measures them."""
    config = ProfileConfig(threads=THREADS, iterations=calls, cold_starts=_PROCESSES, layers=False, energy_s=0)
    with TemporaryDirectory() as scratch:
        device, options = LocalDevice(), {"precision": "f32"} if runtime == "openvino" else {}
        found = device.profile(
            {"engine": engine}, Runtime(runtime, options), samples, Path(scratch), config, lambda *_: None
        )
    (one,) = found.engines
    assert one.latency.p50
    assert one.compute
    assert one.compute.p50
    return {"end to end": one.latency.p50.value_ms, "compute": one.compute.p50.value_ms}


def benchmark_app_p50(engine: Path, calls: int) -> float:
    """Return the median in ms that OpenVINO's own tool prints."""
    command = [
        sys.executable, "-c", _BENCHMARK_APP, "-m", str(engine), "-d", "CPU",
        "-hint", "none", "-api", "sync", "-nireq", "1", "-nstreams", "1", "-nthreads", str(THREADS),
        "-infer_precision", "f32", "-niter", str(calls),
    ]  # fmt: skip
    # It reports its use to its maker unless it believes that it runs in CI.
    said = subprocess.run(command, env={**os.environ, "CI": "true"}, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s+([\d.]+) (\w+)", said)
    if found is None:
        raise RuntimeError(f"benchmark_app printed no median: {said[-500:]}")
    return float(found[1]) * _UNITS_MS[found[2]]


def open_bare(engine: Path) -> Callable[[Feeds], Any]:
    """Open an engine in ONNX Runtime, and call it as the docstring of ``InferenceSession.run`` does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: session.run(names, feeds)


def bare_p50(engine: Path, samples: Path, calls: int) -> float:
    """Return p50 in ms of ``session.run`` in a loop, in a fresh process."""
    times = take_turns([{"bare": partial(open_bare, engine)}], samples, 1, calls)["bare"]
    return float(np.median(times)) / 1e6


def measure_round(engine: Path, samples: Path, index: int, seconds: float) -> dict[str, float]:
    """Return the p50 in ms of everyone, in an order that begins with another one each round, and turns each other time.

    Who comes after whom matters by some percent on a machine whose speed drifts.
    """
    slow_ms = bare_p50(engine, samples, _FEWEST)
    calls = int(np.clip(seconds * 1000 / slow_ms, _FEWEST, _CALLS)) // _FEWEST * _FEWEST
    jobs: list[tuple[str, Callable[[], Any]]] = [
        ("edgekd, onnxruntime", lambda: edgekd_p50(engine, samples, "onnxruntime", calls)["end to end"]),
        ("bare loop", lambda: bare_p50(engine, samples, calls)),
        ("edgekd, openvino", lambda: edgekd_p50(engine, samples, "openvino", calls)["compute"]),
        ("benchmark_app", lambda: benchmark_app_p50(engine, calls)),
    ]
    shift = index // 2 % len(jobs)
    ordered = jobs[shift:] + jobs[:shift]
    return {name: job() for name, job in (reversed(ordered) if index % 2 else ordered)}


def compare(rounds: list[dict[str, float]], ours: str, theirs: str) -> dict[str, Any]:
    """Return the median ratio of the two p50 over the rounds, and whether it is within the goal."""
    ratios = [found[ours] / found[theirs] for found in rounds]
    ratio = float(np.median(ratios))
    return {
        "ours_ms": float(np.median([found[ours] for found in rounds])),
        "theirs_ms": float(np.median([found[theirs] for found in rounds])),
        "ratio": ratio,
        "lowest": min(ratios),
        "highest": max(ratios),
        "agrees": abs(ratio - 1) <= GOAL,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES, help="what is timed")
    parser.add_argument("--rounds", type=int, default=12, help="rounds, each in fresh processes")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each contestant in a round")
    options = parse(parser, engines=["digits"], rounds=1, seconds=0.1)
    engines, rounds = options.engines, options.rounds
    place = FOLDER / "rounds.json"
    found = kept(place)
    files = {name: write_engine(name, options.recipe) for name in engines}
    for index in range(rounds):
        for name in engines:
            done = found.setdefault(name, [])
            if len(done) <= index:
                done.append(measure_round(*files[name], index, options.seconds))
                told = ", ".join(f"{who} {ms:.4f} ms" for who, ms in done[-1].items())
                print(f"round {index + 1}/{rounds}, {name}: {told}")
                keep(place, found)
    rows = []
    for name in engines:
        pairs = (("edgekd, onnxruntime", "bare loop"), ("edgekd, openvino", "benchmark_app"))
        for ours, theirs in pairs:
            row = {"engine": name, "ours": ours, "theirs": theirs, **compare(found[name][:rounds], ours, theirs)}
            rows.append(row)
            print(
                f"{name}: {ours} {row['ours_ms']:.4f} ms, {theirs} {row['theirs_ms']:.4f} ms, ratio {row['ratio']:.3f} "
                f"({row['lowest']:.3f} to {row['highest']:.3f}): {'agrees' if row['agrees'] else 'DIFFERS'}"
            )
    settings = {"threads": THREADS, "batch": 1, "precision": "float32", "goal": GOAL, "rounds": rounds}
    by_round = {name: found[name][:rounds] for name in engines}
    write_result(__file__, {**settings, "rows": rows, "p50_ms_by_round": by_round}, options)


if __name__ == "__main__":
    main()
