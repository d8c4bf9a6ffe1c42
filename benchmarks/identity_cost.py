"""What it costs to make sure that INT8 is the float network, its rounding left aside, on the shipped tasks.

The float graph is prepared and quantized in the scheme of the target, and the comparisons that a build makes on the way
are made once more and timed: of the graph before and after folding, of the QDQ graph twice, and of its stored weights.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from common import TASKS, arguments, export, parse, write_result

import edgekd
from edgekd.compress import quantize
from edgekd.compress.oracles.identity import SAMPLES, first_difference
from edgekd.compress.oracles.rounding_aside import first_misquantized, require_same
from edgekd.compress.quantizers.prepare import open_samples
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.stages.artifacts import CALIBRATION, PREPARED, QDQ, onnx_name

TARGET = "openvino-cpu"  # it has both quantizers


def measure(task: str, quantizer: str, rounds: int, recipe: list[str]) -> dict[str, Any]:
    """Write one task's INT8 by one quantizer several times, and compare it as often."""
    _, exported = export(task, settings=recipe)
    target, calibration = edgekd.load_target(TARGET), load_calibration("minmax")
    model, path = exported.folder / onnx_name("pruned"), exported.folder / CALIBRATION
    spec = CandidateSpec("int8", quantizer)
    feeds = list(open_samples(model, path, calibration).fewer(SAMPLES))
    write_s, compare_s = [], []
    for _ in range(rounds):
        with TemporaryDirectory() as scratch:
            start = time.perf_counter()
            quantize.run(spec, model, path, target.scheme, calibration, Path(scratch))
            written = time.perf_counter()
            exact = onnx.load(model)
            qdq, floats = (onnx.load(Path(scratch) / spec.name / name) for name in (QDQ, PREPARED))
            read = time.perf_counter()
            assert first_difference(floats, exact, feeds) is None
            assert first_misquantized(qdq, floats, feeds) is None
            require_same(qdq, floats, feeds)
            compare_s.append(time.perf_counter() - read)
            write_s.append(written - start)
    return {
        "task": task,
        "quantizer": quantizer,
        "samples": SAMPLES,
        "write_s": statistics.median(write_s),
        "compare_s": statistics.median(compare_s),
        "share": statistics.median(compared / wrote for compared, wrote in zip(compare_s, write_s, strict=True)),
        "raw_s": {"write": [round(s, 4) for s in write_s], "compare": [round(s, 4) for s in compare_s]},
    }


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--rounds", type=int, default=7, help="times that each is written and compared")
    options = parse(parser, tasks=["digits"], rounds=1)
    rows = []
    for task in options.tasks:
        for quantizer in edgekd.load_target(TARGET).quantizers:
            rows.append(measure(task, quantizer, options.rounds, options.recipe))
            print(f"{task} {quantizer}: {rows[-1]['compare_s']:.3f} s of {rows[-1]['write_s']:.2f} s")
    write_result(__file__, {"rows": rows}, options)


if __name__ == "__main__":
    main()
