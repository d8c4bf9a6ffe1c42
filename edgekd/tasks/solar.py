"""Sunlight of the next three hours from the weather of the last day: two stations' typical meteorological years."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgekd.errors import DataError
from edgekd.tasks.catalogue import PVLIB, SOLAR
from edgekd.tasks.networks import Unscaled
from edgekd.tasks.packages import fetch, read_members
from edgekd.training.task.models import Conv1dEncoder, LateFusion, MlpEncoder, Standardize
from edgekd.training.task.output import Output
from edgekd.training.task.protocol import SPLITS, ArraySplit, Modality, resized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    _Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SolarSize:
    """The size of a network.

    Attributes:
        channels: Output channels of each stride-2 convolution over time.
        hidden: Hidden units of each hidden layer over the sun's hours.
        width: Width of every embedding.
        head: Hidden units of the head.
    """

    channels: Sequence[int]
    hidden: Sequence[int]
    width: int
    head: int


TEACHER = SolarSize(channels=(64, 128), hidden=(128,), width=64, head=128)
STUDENT = SolarSize(channels=(32, 32), hidden=(32,), width=32, head=32)

#: Hours that are seen, and hours that are foretold.
PAST, AHEAD = 24, 3
WEEK = 168
WEEKS = 52

#: Greensboro in North Carolina and Sand Point in Alaska.
STATIONS = {"greensboro": "723170TYA.CSV", "sand-point": "703165TY.csv"}

#: Number of weeks of both stations together in each split, and the seed by which they are drawn, which never changes.
SPLIT_WEEKS = {"train": 62, "val": 10, "calibration": 10, "test": 22}
SPLIT_SEED = 20

LIGHT = "GHI (W/m^2)"
SUN = "ETR (W/m^2)"
COLUMNS = {
    "sky": (LIGHT, "DNI (W/m^2)", "TotCld (tenths)", "OpqCld (tenths)"),
    "air": ("Dry-bulb (C)", "Dew-point (C)", "RHum (%)", "Pressure (mbar)", "Wspd (m/s)"),
}

MODALITIES = (
    Modality(
        "sky",
        (4, PAST),
        "last 24 hours: sunlight on the level and towards the sun in W/m2, clouds, dense clouds in tenths",
    ),
    Modality(
        "air", (5, PAST), "last 24 hours: temperature and dew point in C, humidity in %, pressure in mbar, wind in m/s"
    ),
    Modality(
        "sun", (PAST + AHEAD,), "sunlight above the air in W/m2, last 24 hours and next 3, as the calendar has it"
    ),
)


class Solar:
    """Hours of daylight of 52 weeks at two stations. Meets :class:`edgekd.training.task.protocol.Task`.

    From 24 hours of weather the global horizontal irradiance of the three hours that follow, in W/m2, is foretold. No
    week is in two splits, no sample reaches into another week, and a sample's ``group`` is its week.

    A typical meteorological year is put together from months of several years, and most of its irradiance was modelled
    by its makers from clouds that were observed. So this is a forecast of such data, not of a pyranometer.

    Args:
        teacher: Fields of :class:`SolarSize` that replace those of ``TEACHER``.
        student: Fields of :class:`SolarSize` that replace those of ``STUDENT``.

    Raises:
        TaskError: A size has an unknown field.
        DataError: The data cannot be fetched or read.
    """

    modalities: Sequence[Modality] = MODALITIES
    outputs = (Output("sunlight", "regression", description="global irradiance in 1, 2 and 3 hours, W/m2"),)
    licence = SOLAR.licence
    citation = SOLAR.citation

    def __init__(
        self, teacher: Mapping[str, object] | None = None, student: Mapping[str, object] | None = None
    ) -> None:
        self.teacher_taps = self.student_taps = {modality.name: f"encoders.{modality.name}" for modality in MODALITIES}
        self._teacher_size = resized(TEACHER, teacher)
        self._student_size = resized(STUDENT, student)
        archive = fetch(PVLIB)
        self.files: Sequence[Path] = (archive,)
        texts = read_members(archive, [f"pvlib/data/{name}" for name in STATIONS.values()])
        self._splits = _split({name: read_year(text) for name, text in zip(STATIONS, texts, strict=True)})

    def splits(self) -> dict[str, ArraySplit]:
        """Return the hours of 62, 10, 10 and 22 weeks for train, val, calibration and test."""
        return self._splits

    def teacher(self) -> nn.Module:
        """Return the untrained teacher: W/m2 [B, 3] of raw hours."""
        return self._network(self._teacher_size)

    def student(self) -> nn.Module:
        """Return the untrained student: W/m2 [B, 3] of raw hours."""
        return self._network(self._student_size)

    def _network(self, size: SolarSize) -> nn.Module:
        train = self._splits["train"]
        encoders = {
            name: nn.Sequential(
                Standardize(train.inputs[name]), Conv1dEncoder((len(columns), *size.channels), size.width)
            )
            for name, columns in COLUMNS.items()
        }
        encoders["sun"] = nn.Sequential(
            Standardize(train.inputs["sun"]), MlpEncoder(PAST + AHEAD, size.hidden, size.width)
        )
        targets = train.targets
        assert isinstance(targets, torch.Tensor)
        network = LateFusion(encoders, size.width, size.head, AHEAD)
        network.head.append(Unscaled(targets))
        return network


def read_year(raw: bytes) -> dict[str, _Floats]:
    """Read the hours of a year in the format TMY3.

    Returns:
        For each column that is used float32 [8760].

    Raises:
        DataError: A column is missing, or a value is no number.
    """
    rows = list(csv.reader(io.StringIO(raw.decode("latin1"))))[1:]
    wanted = [SUN, *(column for columns in COLUMNS.values() for column in columns)]
    try:
        return {name: np.array([row[rows[0].index(name)] for row in rows[1:]], np.float32) for name in wanted}
    except (ValueError, IndexError) as error:
        raise DataError(f"a typical meteorological year: is damaged: {error}") from error


def _split(years: Mapping[str, Mapping[str, _Floats]]) -> dict[str, ArraySplit]:
    # RandomState, since its stream is frozen: a Generator's may change with numpy's version.
    random = np.random.RandomState(SPLIT_SEED)
    weeks = [(station, week) for station in STATIONS for week in range(WEEKS)]
    order = random.permutation(len(weeks))
    ends = np.cumsum([SPLIT_WEEKS[name] for name in SPLITS])
    parts = np.split(order, ends[:-1])
    return {
        name: _hours(years, [weeks[number] for number in part], random)
        for name, part in zip(SPLITS, parts, strict=True)
    }


def _hours(
    years: Mapping[str, Mapping[str, _Floats]], weeks: Sequence[tuple[str, int]], random: np.random.RandomState
) -> ArraySplit:
    """Return the samples of some weeks whose next hour is in daylight, in a random order."""
    samples = [
        (station, week, hour)
        for station, week in weeks
        for hour in range(week * WEEK + PAST, (week + 1) * WEEK - AHEAD + 1)
        if years[station][SUN][hour] > 0
    ]
    samples = [samples[index] for index in random.permutation(len(samples))]
    inputs = {
        name: np.stack([[years[s][column][h - PAST : h] for column in columns] for s, _, h in samples])
        for name, columns in COLUMNS.items()
    }
    inputs["sun"] = np.stack([years[s][SUN][h - PAST : h + AHEAD] for s, _, h in samples])
    return ArraySplit(
        ids=[f"solar-{station}-h{hour:04d}" for station, _, hour in samples],
        inputs={name: torch.from_numpy(x) for name, x in inputs.items()},
        targets=torch.from_numpy(np.stack([years[s][LIGHT][h : h + AHEAD] for s, _, h in samples])),
        groups=[f"{station}-week-{week:02d}" for station, week, _ in samples],
    )
