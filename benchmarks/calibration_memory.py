"""What calibrating takes in memory: peak RSS with 8192 samples over that with 128, for every calibrator.

A network of two convolutional encoders, which nobody trained, reads images of 3 x 48 x 48 and windows of 6 x 256. Each
calibrator quantizes it with either number of samples, each time in a process of its own, whose peak the operating
system tells.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from common import arguments, parse, write_result

from edgekd.config.recipe import Tap
from edgekd.config.target import Calibration
from edgekd.devices.targets import load_target
from edgekd.gram.npz import INPUT_PREFIX
from edgekd.training.export.onnx import ExportNetwork, write_onnx
from edgekd.training.task.models import Conv1dEncoder, Conv2dEncoder, LateFusion

FEW, MANY = 128, 8192
GOAL = 1.1
SHAPES = {"image": (3, 48, 48), "motion": (6, 256)}
TARGET = "cpu"
#: Quantizer, method and rounding.
WAYS = (
    ("qdq", "minmax", "nearest"),
    ("qdq", "percentile", "nearest"),
    ("qdq", "entropy", "nearest"),
    ("qdq", "mse", "nearest"),
    ("qdq", "gram", "nearest"),
    ("qdq", "minmax", "reconstruct"),
    ("qdq", "gram", "reconstruct"),
    ("nncf", "minmax", "nearest"),
)

#: Runs in each process, and prints its peak in bytes.
QUANTIZE = f"""
import sys
from pathlib import Path
import msgspec
from edgekd.compress.variants import CandidateSpec
from edgekd.compress import quantize
from edgekd.runtime.measure.machine import peak_rss_bytes
from edgekd.config.target import Calibration
from edgekd.devices.targets import load_target
quantizer, calibration, model, samples, folder = sys.argv[1:]
how = msgspec.json.decode(calibration, type=Calibration)
spec = CandidateSpec("int8", quantizer)
quantize.run(spec, Path(model), Path(samples), load_target("{TARGET}").scheme, how, Path(folder))
print(peak_rss_bytes())
"""


def write_network(path: Path) -> None:
    """Write the float network."""
    torch.manual_seed(0)
    encoders = {"image": Conv2dEncoder([3, 16, 32, 32], 32), "motion": Conv1dEncoder([6, 24, 48], 32)}
    taps = {name: Tap(module=f"encoders.{name}") for name in encoders}
    inputs = {name: torch.randn(8, *shape) for name, shape in SHAPES.items()}
    write_onnx(ExportNetwork(LateFusion(encoders, 32, 32, 10), taps), inputs, load_target(TARGET).opset, path)


def write_samples(path: Path, count: int) -> None:
    """Write as many samples as are asked for at most."""
    random = np.random.default_rng(0)
    arrays = {
        INPUT_PREFIX + name: random.standard_normal((count, *shape), np.float32) for name, shape in SHAPES.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes every keyword for allow_pickle


def measure(way: tuple[str, str, str], count: int, model: Path, samples: Path) -> float:
    """Quantize in a process of its own; return its peak RSS in MB (10^6 bytes)."""
    quantizer, method, rounding = way
    how = Calibration(description="", ranges=method, rounding=rounding, samples=count)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        given = [quantizer, msgspec.json.encode(how).decode(), str(model), str(samples), folder]
        done = subprocess.run([sys.executable, "-c", QUANTIZE, *given], check=True, capture_output=True, text=True)
        return int(done.stdout) / 1e6


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", nargs=2, type=int, default=[FEW, MANY], help="few, and many")
    names = {", ".join(way): way for way in WAYS}
    parser.add_argument("--ways", nargs="+", choices=names, default=list(names), help="calibrators")
    options = parse(parser, samples=[16, 32], ways=list(names)[-2:])
    few, many = options.samples
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model, samples = Path(scratch) / "model.onnx", Path(scratch) / "samples.npz"
        write_network(model)
        write_samples(samples, many)
        for name in options.ways:
            way = names[name]
            few_mb, many_mb = (measure(way, count, model, samples) for count in options.samples)
            ratio = many_mb / few_mb
            rows.append(
                {
                    **dict(zip(("quantizer", "method", "rounding"), way, strict=True)),
                    "peak_rss_mb": {str(few): few_mb, str(many): many_mb},
                    "ratio": ratio,
                    "met": ratio <= GOAL,
                }
            )
            print(f"{name}: {few_mb:.0f} MB -> {many_mb:.0f} MB, ratio {ratio:.3f}")
    shapes = {name: list(shape) for name, shape in SHAPES.items()}
    settings = {"target": TARGET, "inputs": shapes, "samples": options.samples, "goal": GOAL}
    write_result(__file__, {**settings, "rows": rows}, options)


if __name__ == "__main__":
    main()
