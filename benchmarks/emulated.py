"""What INT8 computes on processors that are not here: metric, Gram drift and bits, by emulation.

For each task the shipped recipe is trained and exported once. Its pruned graph then runs in three forms (float, INT8
with weights of 7 bits, which is the scheme of the target ``cpu``, and INT8 with weights of 8 bits) on this host and on
every processor that edgekd emulates; ``edgekd device install emulated:cortex-a76`` comes first. The seconds are what
emulation costs this host: they say nothing of a processor. An SNR of null is one without any noise.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from common import TASKS, arguments, export, parse, write_result

import edgekd
from edgekd.compress import quantize
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.devices.emulated.device import EmulatedDevice
from edgekd.devices.emulated.processors import processors
from edgekd.devices.local import LocalDevice
from edgekd.gram.drift import flips, measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.gram.probe import Probe
from edgekd.runtime.backends.registry import ORT
from edgekd.stages.artifacts import CALIBRATION, PROBE_GRAPH, TEST, onnx_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.devices.base import Device

TARGET = edgekd.load_target("cpu")
FLOAT, INT8 = CandidateSpec("float32", None), CandidateSpec("int8", "qdq")
#: The forms of a graph: which way it is written, and whether weights have 7 bits.
GRAPHS = {"float": (FLOAT, True), "int8 with 7-bit weights": (INT8, True), "int8 with 8-bit weights": (INT8, False)}


def snr_db(exact: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float | None:
    """Return the signal-to-noise ratio of all logits in dB, or None where there is no noise at all."""
    noise = np.sum((exact - found).astype(np.float64) ** 2)
    return None if noise == 0 else float(10 * np.log10(np.sum(exact.astype(np.float64) ** 2) / noise))


def same(a: Probe, b: Probe) -> bool:
    """Whether every logit and every embedding has the same bits."""
    arrays = [(a.answer, b.answer), *((a.embeddings[name], b.embeddings[name]) for name in a.embeddings)]
    return all(np.array_equal(x, y) for x, y in arrays)


def run(device: Device, engine: Path, test: Path, outputs: Path) -> tuple[Probe, float]:
    """Run an engine on the test split; return what it said, and the seconds that took, start included."""
    started = time.monotonic()
    device.evaluate(engine, ORT, test, outputs, 1)
    seconds = time.monotonic() - started
    with np.load(outputs) as found, np.load(test) as samples:
        named = [name for name in found if name.startswith(EMBEDDING_PREFIX)]
        embeddings = {name.removeprefix(EMBEDDING_PREFIX): found[name] for name in named}
        return Probe(samples["ids"], {"logits": found["logits"]}, embeddings), seconds


def write_graph(exported: Path, way: CandidateSpec, reduce_range: bool, folder: Path) -> Path:
    """Write the pruned network in one form below ``folder``."""
    folder.mkdir()
    scheme = msgspec.structs.replace(TARGET.scheme, reduce_range=reduce_range)
    model, samples = exported / onnx_name("pruned"), exported / CALIBRATION
    quantize.run(way, model, samples, scheme, load_calibration("minmax"), folder)
    return folder / way.name / PROBE_GRAPH


def measure(task: str, seed: int, devices: dict[str, Device], recipe: Sequence[str]) -> dict[str, Any]:
    """Compare what all devices make of one task's graphs with what this host makes of the float graph."""
    project, exported = export(task, seed, recipe)
    test = exported.folder / TEST
    with np.load(test) as arrays:
        labels, groups = arrays["labels"], arrays.get("groups")
    probes: dict[tuple[str, str], Probe] = {}
    rows = []
    with TemporaryDirectory() as scratch:
        for graph, (way, reduce_range) in GRAPHS.items():
            engine = write_graph(exported.folder, way, reduce_range, Path(scratch) / graph)
            for name, device in devices.items():
                probe, seconds = run(device, engine, test, Path(scratch) / "outputs.npz")
                alike = [other for other in devices if (graph, other) in probes and same(probes[graph, other], probe)]
                probes[graph, name] = probe
                exact = probes["float", "local"]
                drift = measure_drift(probe, exact, groups, Bootstrap(seed=seed))
                row = {
                    "graph": graph,
                    "processor": name,
                    "metric": project.loaded.metric(probe.answer, labels),
                    "gram_drift": drift.mean,
                    "gram_drift_bound": drift.bound,
                    "flips": flips(probe, exact),
                    "logit_snr_db": snr_db(exact.answer, probe.answer),
                    "same_bits_as": alike,
                    "seconds": round(seconds, 2),
                }
                rows.append(row)
                print(f"{task}: {row}")
    return {"metric": exported.result.facts.metric, "samples": len(labels), "rows": rows}


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processors", nargs="*", choices=processors(), default=processors(), help="to emulate")
    options = parse(parser, tasks=["digits"], processors=processors()[-1:])
    devices: dict[str, Device] = {"local": LocalDevice()}
    for name in options.processors:
        device = EmulatedDevice(name)
        if lacking := device.missing():
            print(f"{name} is left out: {lacking}")
        else:
            devices[name] = device
    described = {name: device.describe(ORT) for name, device in devices.items()}
    tasks = {task: measure(task, options.seed, devices, options.recipe) for task in options.tasks}
    write_result(__file__, {"seed": options.seed, "processors": described, "tasks": tasks}, options)


if __name__ == "__main__":
    main()
