"""The readings of a machine's sensors while engines run: temperature, clock, throttling.

``root`` is the folder where Linux's files lie: "/" except for tests, which have recorded trees of other machines.
Reading a Jetson's and Intel's counters is *not verified on hardware*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.runtime.measure.machine import ROOT, gpu_clock, read, read_number

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Degrees C beyond which a reading is a placeholder: the sensors of cores that are off read -256, or 0 K.
_COLDEST, _HOTTEST = -40.0, 150.0


@dataclass(frozen=True)
class SensorReading:
    """One reading of the sensors; each is None where the machine has none that this user can read.

    Attributes:
        temperature_c: The temperature of the hottest sensor.
        clock_mhz: The clock of the fastest core of the processor, or of the GPU.
        throttle_events: The number of times that the processor or the board was throttled since it started.
        throttled_now: Whether a board's alert stands.
    """

    temperature_c: float | None
    clock_mhz: float | None
    throttle_events: int | None
    throttled_now: bool | None


def read_sensors(root: Path = ROOT, gpu: bool = False) -> SensorReading:
    """Read the sensors.

    Args:
        root: The folder where the files lie.
        gpu: Whether the engine runs on a Jetson's GPU, whose clock is then read.
    """
    return SensorReading(_temperature(root), _gpu_mhz(root) if gpu else _cpu_mhz(root), _events(root), _alerts(root))


def throttled(before: SensorReading, after: SensorReading) -> bool | None:
    """Return whether the system reports throttling between two readings; None where it reports nothing of the kind."""
    counted = before.throttle_events is not None and after.throttle_events is not None
    if not counted and after.throttled_now is None:
        return None
    more = counted and (after.throttle_events or 0) > (before.throttle_events or 0)
    return more or bool(after.throttled_now)


def _temperature(root: Path) -> float | None:
    zones = (root / "sys/class/thermal").glob("thermal_zone*/temp")
    degrees = [value / 1e3 for value in _numbers([*zones, *(root / "sys/class/hwmon").glob("hwmon*/temp*_input")])]
    return max((value for value in degrees if _COLDEST < value < _HOTTEST), default=None)


def _cpu_mhz(root: Path) -> float | None:
    clocks = _numbers((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return max(clocks) / 1e3 if clocks else None


def _gpu_mhz(root: Path) -> float | None:
    folder = gpu_clock(root)
    hertz = read_number(folder / "cur_freq") if folder else None
    return None if hertz is None else hertz / 1e6


def _events(root: Path) -> int | None:
    """Add up Intel's counts of cores and packages, and a Jetson's of over-current."""
    intel = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = _numbers([*intel, *(root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")])
    return sum(counts) if counts else None


def _alerts(root: Path) -> bool | None:
    """Return whether one of a Jetson's throttle alerts stands: a cooling device whose state is not 0."""
    devices = (root / "sys/class/thermal").glob("cooling_device*")
    states = _numbers(path / "cur_state" for path in devices if "throttle-alert" in read(path / "type"))
    return any(states) if states else None


def _numbers(paths: Iterable[Path]) -> list[int]:
    return [value for value in map(read_number, paths) if value is not None]
