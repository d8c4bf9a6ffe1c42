"""What measuring a drift costs: peak memory and time for few samples and for many, each in a process of its own.

Embeddings of a model and of one that strays from it are drawn from a seed, chunk by chunk, and metered as they come, so
that neither side is ever held whole. Drawing and metering are timed apart, by the clock and by the processor's time.
Scope "sample" compares the modalities of a sample, scope "intra" the samples within a modality.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from common import arguments, parse, write_result

from edgekd.gram.drift import DriftMeter
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.gram.within import choose_anchors
from edgekd.runtime.measure.machine import peak_rss_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    Embeddings = dict[str, np.ndarray[Any, np.dtype[np.float32]]]

MODALITIES = tuple("abcdef")
WIDTH = 128
CHUNK = 512
NOISE = 0.1


def draw(samples: int) -> Iterator[tuple[np.ndarray[Any, Any], Embeddings, Embeddings]]:
    """Yield ids, a model's embeddings and a reference's, a chunk at a time."""
    random = np.random.default_rng(0)
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        reference = {name: random.standard_normal((size, WIDTH), dtype=np.float32) for name in MODALITIES}
        noise = np.float32(NOISE)
        model = {k: z + noise * random.standard_normal(z.shape, dtype=np.float32) for k, z in reference.items()}
        yield np.array([f"sample-{index:07d}" for index in range(start, start + size)]), model, reference


def measure(samples: int, scope: str) -> dict[str, Any]:
    """Meter so many samples in this process."""
    anchors = None
    if scope == "intra":
        chunks = (
            [{"ids": ids, **{EMBEDDING_PREFIX + name: z for name, z in side.items()}} for side in (model, reference)]
            for ids, model, reference in draw(samples)
        )
        anchors = choose_anchors(chunks, MODALITIES)
    meter = DriftMeter(MODALITIES, Bootstrap(), anchors)
    start, metering = now(), np.zeros(2)
    for ids, model, reference in draw(samples):
        before = now()
        meter.add(ids, model, reference)
        metering += now() - before
    before = now()
    drift = meter.result()
    end = now()
    metering += end - before
    drawing = end - start - metering
    return {
        "samples": samples,
        "metering_s": metering[0],
        "metering_cpu_s": metering[1],
        "drawing_s": drawing[0],
        "drawing_cpu_s": drawing[1],
        "peak_rss_bytes": peak_rss_bytes(),
        "mean": drift.mean,
        "bound": drift.bound,
    }


def now() -> np.ndarray[Any, Any]:
    """Return the clock and this process's processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def in_a_process(samples: int, scope: str) -> dict[str, Any]:
    """Run :func:`measure` in a new process."""
    command = [sys.executable, __file__, "--only", str(samples), scope]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", nargs=2, type=int, default=[10_000, 1_000_000], help="few, and many")
    parser.add_argument("--only", nargs=2, metavar=("SAMPLES", "SCOPE"), help="print one measurement of this process")
    options = parse(parser, samples=[1000, 10_000])
    if options.only:
        print(json.dumps(measure(int(options.only[0]), options.only[1])))
        return
    scopes: dict[str, Any] = {}
    for scope in ("sample", "intra"):
        few, many = (in_a_process(samples, scope) for samples in options.samples)
        ratio = many["peak_rss_bytes"] / few["peak_rss_bytes"]
        scopes[scope] = {"peak_rss_ratio": ratio, "runs": [few, many]}
        seconds = f"{many['metering_s']:.1f} s ({many['metering_cpu_s']:.1f} s of processor time)"
        print(f"{scope}: {many['samples']} samples in {seconds}, peak RSS {ratio:.3f} times as high")
    settings = {"modalities": len(MODALITIES), "width": WIDTH, "chunk": CHUNK}
    write_result(__file__, {**settings, "scopes": scopes}, options)


if __name__ == "__main__":
    main()
