"""What the checks of a build on the host take: graphs as they are written against fused, masks, and fused differences.

The network and the samples are those of ``calibration_memory.py``. The INT8 graph of the target runs as it is written
and with ONNX Runtime's optimizers in turns, one thread each; the search for masks, and the comparison of a few
calibration samples, are set against the time of quantizing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from calibration_memory import TARGET, write_network, write_samples
from common import arguments, parse, write_result

from edgekd.compress import quantize
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.oracles.fused import fused_difference
from edgekd.compress.quantizers.masked import survey
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.devices.targets import load_target
from edgekd.runtime.backends.registry import AS_WRITTEN, ORT
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.session import run_rows
from edgekd.stages.artifacts import DEPLOY, PREPARED

if TYPE_CHECKING:
    from collections.abc import Callable

#: Calibration samples of the comparison of fused and unfused in a build.
FEW = 32


def seconds(work: Callable[[], object]) -> float:
    """Return the time that a function takes, in s."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def inference_s(engine: Path, samples: Path, repeats: int) -> dict[str, float]:
    """Return the median time in s in which all samples run, as written and fused, taking turns."""
    times: dict[str, list[float]] = {"as_written": [], "fused": []}
    with AS_WRITTEN.open(engine) as written, ORT.open(engine) as fused:
        feeds = read_feeds(samples, written.inputs)
        for _ in range(repeats):
            times["as_written"].append(seconds(lambda: run_rows(written, feeds, 256)))
            times["fused"].append(seconds(lambda: run_rows(fused, feeds, 256)))
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=512, help="samples that calibrate and that are run")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    options = parse(parser, samples=32, repeats=2)
    calibration = load_calibration("reconstruct")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, samples = folder / "model.onnx", folder / "samples.npz"
        write_network(model)
        write_samples(samples, options.samples)
        spec = CandidateSpec("int8", "qdq")
        scheme = load_target(TARGET).scheme
        quantizing_s = seconds(lambda: quantize.run(spec, model, samples, scheme, calibration, folder))
        chunks = CalibrationSamples(samples, calibration)
        engine = folder / spec.name / DEPLOY
        masks_s = seconds(lambda: survey(folder / spec.name / PREPARED, chunks))
        fused_s = seconds(lambda: fused_difference(engine, chunks.fewer(FEW), tolerance=0.01))
        running_s = inference_s(engine, samples, options.repeats)
    ratio = running_s["as_written"] / running_s["fused"]
    print(f"INT8 as written takes {ratio:.1f} times as long as fused: {running_s}")
    print(f"masks {masks_s:.2f} s and fused difference {fused_s:.2f} s, of {quantizing_s:.1f} s of quantizing")
    write_result(
        __file__,
        {
            "target": TARGET,
            "samples": options.samples,
            "inference_s": running_s,
            "as_written_over_fused": ratio,
            "quantizing_s": quantizing_s,
            "masks_s": masks_s,
            "masks_share_of_quantizing": masks_s / quantizing_s,
            "fused_difference_s": fused_s,
        },
        options,
    )


if __name__ == "__main__":
    main()
