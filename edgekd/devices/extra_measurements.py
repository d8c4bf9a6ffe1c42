"""Measurements of an engine besides its latency back to back: paced and sustained runs, energy, layers."""

from __future__ import annotations

import base64
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekd.errors import ModelError
from edgekd.runtime.measure.results import Energy, LayerTime, Paced, Sustained, Window, latency_from

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgekd.config.recipe import ProfileConfig
    from edgekd.files import JsonObject
    from edgekd.runtime.measure.results import Nanoseconds

    #: Gives the agent of an open engine a job, by its name, the keys that its answer must have, and its arguments.
    Ask: TypeAlias = Callable[..., JsonObject]

_PACED_SECONDS = 10.0
_WINDOW_SECONDS = 1.0


@dataclass(frozen=True)
class ExtraMeasurements:
    """The extra measurements of one engine, named as in :class:`~edgekd.runtime.measure.results.EngineProfile`."""

    paced: Paced | None
    sustained: Sustained | None
    energy: Energy | None
    layers: tuple[LayerTime, ...]
    not_measured: dict[str, str]


def count_steps(config: ProfileConfig) -> int:
    """Return the number of steps that :func:`measure_extras` reports."""
    return (config.rate_hz is not None) + _windows(config) + (config.energy_s > 0) + config.layers


def nothing_measured(reason: str) -> ExtraMeasurements:
    """Return measurements of which none was made, for a ``reason``: ``"not measured: ..."``."""
    return ExtraMeasurements(None, None, None, (), dict.fromkeys(("paced", "sustained", "energy", "layers"), reason))


def measure_extras(
    name: str, ask: Ask, folder: Path, config: ProfileConfig, notify: Callable[[str], None], layer_runs: int
) -> ExtraMeasurements:
    """Measure one open engine. It is closed in the end, since its layers are measured in another session.

    Args:
        name: The engine's name.
        ask: Gives the engine's agent a job.
        folder: The folder that receives ``<name>.paced.npy`` and ``<name>.sustained.npy``, every latency in ns, in
            order.
        config: The measurements to make.
        notify: Called after each step with its result.
        layer_runs: The number of inferences under the library's profiler.
    """
    reasons: dict[str, str] = {}
    paced = sustained = energy = None
    if config.rate_hz is None:
        reasons["paced"] = "not measured: no rate was asked for (--rate, profile.rate_hz)"
    else:
        paced = _pace(name, ask, folder, config.rate_hz)
        notify(f"{name} at {config.rate_hz:g} Hz")
    if not config.sustained_s:
        reasons["sustained"] = "not measured: no time was asked for (--sustained, profile.sustained_s)"
    else:
        sustained = _sustain(name, ask, folder, config, notify)
    if not config.energy_s:
        reasons["energy"] = "not measured: it is switched off (profile.energy_s = 0)"
    else:
        answer = ask("energy", "energy", seconds=config.energy_s, rails=list(config.rails))
        if answer["energy"] is None:
            reasons["energy"] = f"not measured: {answer['reason']}"
        else:
            energy = Energy(**answer["energy"])
        notify(f"{name} energy")
    layers: tuple[LayerTime, ...] = ()
    if not config.layers:
        reasons["layers"] = "not measured: it is switched off (profile.layers = false)"
    else:
        layers, reason = _layers(ask, layer_runs)
        if reason:
            reasons["layers"] = f"not measured: {reason}"
        notify(f"{name} layers")
    return ExtraMeasurements(paced, sustained, energy, layers, reasons)


def nanoseconds(answer: JsonObject) -> Nanoseconds:
    """Return the times of an agent's answer [n]."""
    return np.frombuffer(base64.b64decode(answer["ns"]), "<i8")


def _pace(name: str, ask: Ask, folder: Path, rate_hz: float) -> Paced:
    answer = ask("pace", "ns", "late", rate_hz=rate_hz, iterations=math.ceil(rate_hz * _PACED_SECONDS))
    ns, file = nanoseconds(answer), f"{name}.paced.npy"
    np.save(folder / file, ns)
    return Paced(rate_hz, latency_from(ns), answer["late"], file)


def _windows(config: ProfileConfig) -> int:
    return math.ceil(config.sustained_s / _WINDOW_SECONDS)


def _sustain(name: str, ask: Ask, folder: Path, config: ProfileConfig, notify: Callable[[str], None]) -> Sustained:
    windows, parts, throttled = [], [], []
    begin = time.monotonic()
    for index in range(_windows(config)):
        seconds = min(_WINDOW_SECONDS, config.sustained_s - index * _WINDOW_SECONDS)
        at_s = time.monotonic() - begin
        answer = ask("sustain", "ns", "temperature_c", "clock_mhz", "throttled", seconds=seconds)
        parts.append(nanoseconds(answer))
        throttled.append(answer["throttled"])
        p50_ms = float(np.median(parts[-1])) / 1e6
        windows.append(Window(at_s, len(parts[-1]), p50_ms, answer["temperature_c"], answer["clock_mhz"]))
        degrees = answer["temperature_c"]
        notify(f"{name} {p50_ms:.3f} ms" + ("" if degrees is None else f", {degrees:.0f} °C"))
    seconds, ns, file = time.monotonic() - begin, np.concatenate(parts), f"{name}.sustained.npy"
    np.save(folder / file, ns)
    known = [value for value in throttled if value is not None]
    return Sustained(seconds, tuple(windows), _slowdown(windows), any(known) if known else None, file)


def _slowdown(windows: Sequence[Window]) -> float:
    """Return the median p50 of the last tenth of the windows over that of the first tenth."""
    tenth = max(1, len(windows) // 10)
    first, last = (np.median([window.p50_ms for window in part]) for part in (windows[:tenth], windows[-tenth:]))
    return float(last / first)


def _layers(ask: Ask, runs: int) -> tuple[tuple[LayerTime, ...], str | None]:
    """Return the layers, or the reason why there are none."""
    try:
        layers = ask("layers", "layers", runs=runs)["layers"]
    except ModelError as error:  # the engine runs: the rest is kept although its library cannot profile it
        return (), str(error)
    if layers is None:
        return (), "the runtime has no profiler that edgekd knows"
    if not layers:
        return (), "most layers take less than 1 us, the step of the library's counters"
    return tuple(LayerTime(**{**layer, "nodes": tuple(layer["nodes"])}) for layer in layers), None
