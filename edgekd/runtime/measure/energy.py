"""Energy of an inference, from the sensors that a machine has: RAPL of Intel and AMD, INA3221 of Jetson boards.

Neither was at hand: this is *not verified on hardware*. Files and units are those of Linux's
``Documentation/power/powercap/powercap.rst`` and ``Documentation/hwmon/ina3221.rst``.
"""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgekd.errors import DeviceError
from edgekd.runtime.measure.machine import ROOT, read, read_number
from edgekd.runtime.measure.results import Energy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: Time between two readings of a rail. The chip of a Jetson averages for some ms; RAPL counts by itself.
_STEP_SECONDS = 0.1
_RAPL, _HWMON = "sys/class/powercap", "sys/class/hwmon"
#: The rail of a Jetson that is the whole module, and the rails that are read where the target names none.
_MODULE = "VDD_IN"
_WHOLE = re.compile(rf"package-\d+|{_MODULE}")


class Rail(Protocol):
    """A power sensor."""

    @property
    def name(self) -> str:
        """The system's name of it, e.g. "RAPL package-0"."""

    def read(self) -> int:
        """Return its reading now, in a unit that :meth:`watts` knows.

        Raises:
            DeviceError: it cannot be read.
        """

    def watts(self, times_s: Sequence[float], readings: Sequence[int]) -> float:
        """Return the mean power in W over two or more readings at these times."""


@dataclass(frozen=True)
class _Rapl:
    """A domain of RAPL: a counter of uJ that starts again from 0 after ``range_uj``."""

    name: str
    path: Path
    range_uj: int

    def read(self) -> int:
        return _value(self.path)

    def watts(self, times_s: Sequence[float], readings: Sequence[int]) -> float:
        steps = [after - before for before, after in itertools.pairwise(readings)]
        used = sum(step if step >= 0 else step + self.range_uj for step in steps)
        return used / 1e6 / (times_s[-1] - times_s[0])


@dataclass(frozen=True)
class _Ina:
    """A channel of an INA3221: voltage in mV, current in mA."""

    name: str
    volts: Path
    amperes: Path

    def read(self) -> int:
        return _value(self.volts) * _value(self.amperes)

    def watts(self, times_s: Sequence[float], readings: Sequence[int]) -> float:
        """Return the mean over time, by trapezoids."""
        pairs = itertools.pairwise(zip(times_s, readings, strict=True))
        joules = sum((end - begin) * (first + second) / 2 for (begin, first), (end, second) in pairs) / 1e6
        return joules / (times_s[-1] - times_s[0])


def find_rails(wanted: Sequence[str] = (), root: Path = ROOT) -> tuple[Rail, ...]:
    """Return the power sensors to add up.

    Args:
        wanted: The sensors' names, as the target has them, e.g. ``["package-0"]``; by default all packages of RAPL, or
            the Jetson's VDD_IN.
        root: The folder where Linux's files lie.

    Raises:
        DeviceError: there is none, one of ``wanted`` is not there, or this user may not read it. The message says what
            was looked for.
    """
    rails = {**_rapl_rails(root), **_ina_rails(root)}
    if not rails:
        raise DeviceError(f"no power sensor: no RAPL in /{_RAPL} and no INA3221 in /{_HWMON}")
    names = list(wanted) or [name for name in rails if _WHOLE.fullmatch(name)]
    lacking = [name for name in names if name not in rails]
    if lacking or not names:
        looked = ", ".join(lacking or [_MODULE])
        raise DeviceError(f"no power sensor called {looked}; this machine has {', '.join(rails)}")
    for name in names:
        rails[name].read()
    return tuple(rails[name] for name in names)


def measure_energy(rails: Sequence[Rail], run: Callable[[], object], seconds: float) -> Energy:
    """Measure the energy of one call of ``run``: first the idle power, then the power of calls one after another.

    Args:
        rails: The power sensors, as :func:`find_rails` returns them.
        run: Runs one inference.
        seconds: The length of the idle phase, and of the busy phase.

    Raises:
        DeviceError: a rail can no longer be read.
    """
    idle_w, _, _ = _mean_power(rails, lambda: time.sleep(_STEP_SECONDS), seconds)
    busy_w, spent_s, runs = _mean_power(rails, run, seconds)
    millijoules = (busy_w - idle_w) * spent_s / runs * 1e3
    return Energy(millijoules, idle_w, busy_w, " + ".join(rail.name for rail in rails), spent_s)


def _mean_power(rails: Sequence[Rail], step: Callable[[], object], seconds: float) -> tuple[float, float, int]:
    """Repeat a step for so long; return the rails' mean power in W, the time in s, and the number of steps."""
    times = [time.perf_counter()]
    readings = [[rail.read() for rail in rails]]
    steps = 0
    while times[-1] - times[0] < seconds:
        until = times[-1] + _STEP_SECONDS
        step()
        steps += 1
        while time.perf_counter() < until:
            step()
            steps += 1
        times.append(time.perf_counter())
        readings.append([rail.read() for rail in rails])
    power = sum(rail.watts(times, column) for rail, column in zip(rails, zip(*readings, strict=True), strict=True))
    return power, times[-1] - times[0], steps


def _rapl_rails(root: Path) -> dict[str, Rail]:
    """Return RAPL's domains by name; a domain inside of a package is named by a path, as package-0/core."""
    rails: dict[str, Rail] = {}
    for folder in sorted((root / _RAPL).glob("intel-rapl:*")):
        numbers = folder.name.split(":")[1:]
        parents = [":".join(["intel-rapl", *numbers[: depth + 1]]) for depth in range(len(numbers))]
        name = "/".join(read(root / _RAPL / parent / "name") for parent in parents)
        range_uj = read_number(folder / "max_energy_range_uj")
        if name and range_uj is not None:
            rails[name] = _Rapl(f"RAPL {name}", folder / "energy_uj", range_uj)
    return rails


def _ina_rails(root: Path) -> dict[str, Rail]:
    rails: dict[str, Rail] = {}
    for folder in sorted((root / _HWMON).glob("hwmon*")):
        if read(folder / "name") == "ina3221":
            for label in sorted(folder.glob("in[0-9]_label")):
                channel = label.name[2]
                name, amperes = read(label), folder / f"curr{channel}_input"
                if amperes.exists():
                    rails[name] = _Ina(f"INA3221 {name}", folder / f"in{channel}_input", amperes)
    return rails


def _value(path: Path) -> int:
    try:
        return int(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise DeviceError(f"{path}: this user may not read it; RAPL is for root alone on most systems") from error
    except (OSError, ValueError) as error:
        raise DeviceError(f"{path}: cannot be read: {error}") from error
