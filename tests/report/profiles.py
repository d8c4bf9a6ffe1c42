"""Engines with all that can be measured, and with reasons why it was not."""

from dataclasses import replace

from builds import latency, profile

from edgekd.runtime.measure.results import Energy, LayerTime, Paced, Sustained, Window

LAYERS = tuple(
    LayerTime(name, "Conv", branch, ms)
    for name, branch, ms in (("a", "image", 0.3), ("b", "audio", 0.1), ("c", "fusion", 0.05), ("d", None, 0.05))
)
WINDOWS = tuple(Window(float(s), 1000, 0.2 + 0.01 * s, 50.0 + s, 2000.0 - 10 * s) for s in range(3))
MEASURED = {
    "compute": latency(0.08),
    "paced": Paced(30.0, latency(0.4, 300), 7, "engine.paced.npy"),
    "sustained": Sustained(3.0, WINDOWS, 1.1, throttled=True, raw_file="engine.sustained.npy"),
    "energy": Energy(1.234, 9.5, 12.75, "RAPL package-0", 3.0),
    "layers": LAYERS,
    "import_ms": (25.1, 26.2, 24.9),
}
REASONS = {name: f"not measured: no {name} here" for name in ("compute", "paced", "sustained", "energy", "layers")}


def engine(**changes):
    return replace(profile().engines[2], **changes)


def all_of(**changes):
    return replace(profile(), engines=(engine(**changes),), processes=8)
