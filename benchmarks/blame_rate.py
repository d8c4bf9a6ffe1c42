"""How many candidates a second the blame tries on the shipped tasks, each a part quantized alone or undone alone.

The first pass, which opens the session and runs the float graph, is timed by itself. Rates are of the whole of the
blame, ranking and its standard errors included. The goal: at least 10 candidates a second.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
from common import TASKS, arguments, export, parse, write_result

import edgekd
from edgekd.compress import quantize
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.blame import blame
from edgekd.compress.partial import SAMPLES, Examiner, SampleFacts
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.stages.artifacts import CALIBRATION, PREPARED, QDQ, onnx_name

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGET = "openvino-cpu"  # it has both quantizers
GOAL = 10.0


def measure(task: str, quantizer: str, rounds: int, recipe: Sequence[str]) -> dict[str, Any]:
    """Blame one task's INT8 by one quantizer, several times."""
    project, exported = export(task, settings=recipe)
    target, calibration = edgekd.load_target(TARGET), load_calibration("minmax")
    path = exported.folder / CALIBRATION
    with TemporaryDirectory() as scratch:
        way = CandidateSpec("int8", quantizer)
        model = exported.folder / onnx_name("pruned")
        quantize.run(way, model, path, target.scheme, calibration, Path(scratch))
        qdq, floats = (onnx.load(Path(scratch) / way.name / name) for name in (QDQ, PREPARED))
    samples = CalibrationSamples(path, msgspec.structs.replace(calibration, samples=SAMPLES))
    with np.load(path) as arrays:
        labels = arrays["labels"][samples.rows]
    first_s, blame_s = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        examiner = Examiner(qdq, floats, samples, SampleFacts(labels, metric=project.loaded.metric))
        opened = time.perf_counter()
        found = blame(examiner)
        first_s.append(opened - start)
        blame_s.append(time.perf_counter() - opened)
    candidates = 2 * len(found.suspects)
    rates = [candidates / seconds for seconds in blame_s]
    return {
        "task": task,
        "quantizer": quantizer,
        "layers": len(found.of("layer")),
        "candidates": candidates,
        "samples": found.samples,
        "first_pass_s": statistics.median(first_s),
        "candidates_per_s": statistics.median(rates),
        "slowest_candidates_per_s": min(rates),
        "met": min(rates) >= GOAL,
        "raw_s": {"first_pass": [round(s, 4) for s in first_s], "blame": [round(s, 4) for s in blame_s]},
    }


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--rounds", type=int, default=5, help="times that each is blamed")
    options = parse(parser, tasks=["digits"], rounds=1)
    rows = []
    for task in options.tasks:
        for quantizer in edgekd.load_target(TARGET).quantizers:
            rows.append(measure(task, quantizer, options.rounds, options.recipe))
            print(f"{task} {quantizer}: {rows[-1]['candidates_per_s']:.0f} candidates a second")
    write_result(__file__, {"goal_candidates_per_s": GOAL, "rows": rows}, options)


if __name__ == "__main__":
    main()
