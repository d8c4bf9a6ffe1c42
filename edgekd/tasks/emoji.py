"""The group of an emoji from its picture and its name, and its name among others by its picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.errors import DataError
from edgekd.tasks.catalogue import EMOJI, EMOJI_DATASOURCE
from edgekd.tasks.data.files import as_colours
from edgekd.tasks.data.png import PngError, decode_png
from edgekd.tasks.data.words import told_tokens, word_tokens
from edgekd.tasks.networks import Matching, WordEncoder
from edgekd.tasks.packages import fetch, read_members
from edgekd.training.task.models import Conv2dEncoder, Standardize
from edgekd.training.task.output import Output
from edgekd.training.task.protocol import SPLITS, ArraySplit, Modality, resized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class EmojiSize:
    """The size of a network.

    Attributes:
        channels: Output channels of each stride-2 convolution over the picture.
        word: Width of a word's vector.
        width: Width of every embedding.
        head: Hidden units of the head.
    """

    channels: Sequence[int]
    word: int
    width: int
    head: int


TEACHER = EmojiSize(channels=(32, 64, 128), word=128, width=128, head=128)
STUDENT = EmojiSize(channels=(16, 32, 48), word=64, width=64, head=64)

PIXELS = 32
WORDS = 8
BUCKETS = 512
#: Width of the vectors by which pictures and names match, the same in both networks.
VECTOR = 32
#: How sharp the matching of a batch is: cosines are divided by it before the softmax.
TEMPERATURE = 0.1
#: A picture's name counts as found among so many.
NEAREST = 5

#: Width of an emoji's place in the sheet, which has a pixel on each side that is empty.
_PLACE = PIXELS + 2

#: The drawings of a sample: the networks learn from two, and are measured on the first.
SHEETS = ("twitter", "google")

#: Shares of the emojis in each split, and the seed by which they are drawn, which never changes.
SPLIT_SHARES = {"train": 0.6, "val": 0.1, "calibration": 0.1, "test": 0.2}
SPLIT_SEED = 20

#: Code points that make variants of one emoji: joiners, a style, women and men, children, turned to the right.
_VARIANT = frozenset(("200D", "FE0F", "2640", "2642", "27A1", "1F466", "1F467", "1F468", "1F469", "1F9D1", "1F9D2"))

MODALITIES = (
    Modality("picture", (3, PIXELS, PIXELS), "emoji of 32 rows and columns on white, RGB, 0 to 1"),
    Modality("words", (WORDS,), f"name: {told_tokens(BUCKETS)}", dtype="int64", pad=0),
)


@dataclass(frozen=True)
class EmojiSign:
    """One emoji.

    Attributes:
        code: Its code points, as ``"1F468-200D-1F373"``.
        name: Its name.
        group: Its group, e.g. "Food & Drink".
        row: Its row in the sheets.
        column: Its column in the sheets.
    """

    code: str
    name: str
    group: str
    row: int
    column: int

    @property
    def family(self) -> str:
        """The code points that it has in common with its variants, as a cook has with a man and a woman that cook."""
        kept = [code for code in self.code.split("-") if code not in _VARIANT]
        return "-".join(kept) or "person"


class Emoji:
    """Emojis as two makers draw them, with their names. Meets :class:`edgekd.training.task.protocol.Task`.

    The networks say to which of nine groups an emoji belongs, and give a vector of its picture and one of its name,
    which are to be near to each other. Variants of an emoji are in one split, and a sample's ``group`` is this family.
    The training split has each emoji as Twitter and as Google draw it, the other splits Twitter's drawing alone.

    The metric is the mean of two shares: of emojis whose group is right, and of those whose name is among the five that
    are nearest to their picture, of all names of the split.

    Args:
        teacher: Fields of :class:`EmojiSize` that replace those of ``TEACHER``.
        student: Fields of :class:`EmojiSize` that replace those of ``STUDENT``.

    Raises:
        TaskError: A size has an unknown field.
        DataError: The data cannot be fetched or read.
    """

    modalities: Sequence[Modality] = MODALITIES
    licence = EMOJI.licence
    citation = EMOJI.citation
    metric_name = "mean of accuracy and recall@5"
    higher_is_better = True

    def __init__(
        self, teacher: Mapping[str, object] | None = None, student: Mapping[str, object] | None = None
    ) -> None:
        self.teacher_taps = self.student_taps = {modality.name: f"encoders.{modality.name}" for modality in MODALITIES}
        self._teacher_size = resized(TEACHER, teacher)
        self._student_size = resized(STUDENT, student)
        archive = fetch(EMOJI_DATASOURCE)
        self.files: Sequence[Path] = (archive,)
        signs, sheets = read_emojis(archive)
        self.groups = tuple(sorted({sign.group for sign in signs}))
        self.outputs = (
            Output("group", classes=self.groups),
            Output("picture_vector", "embedding", description="near to the vector of the emoji's name"),
            Output("words_vector", "embedding", description="near to the vector of the emoji's picture"),
        )
        self._splits = _split(signs, sheets, self.groups)

    def splits(self) -> dict[str, ArraySplit]:
        """Return about 60, 10, 10 and 20 % of the emojis for train, val, calibration and test."""
        return self._splits

    def teacher(self) -> nn.Module:
        """Return the untrained teacher."""
        return self._network(self._teacher_size)

    def student(self) -> nn.Module:
        """Return the untrained student."""
        return self._network(self._student_size)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Return the cross entropy of the groups, and that of finding names by pictures and pictures by names."""
        group = functional.cross_entropy(outputs["group"], targets["group"])
        return group + 0.5 * matching_loss(outputs["picture_vector"], outputs["words_vector"], targets["emoji"])

    def metric(self, outputs: Mapping[str, NDArray[np.float32]], targets: Mapping[str, NDArray[np.int64]]) -> float:
        """Return the mean of the groups' accuracy and of the share of names found."""
        accuracy = float((outputs["group"].argmax(1) == targets["group"]).mean())
        return (accuracy + found_names(outputs["picture_vector"], outputs["words_vector"])) / 2

    def _network(self, size: EmojiSize) -> nn.Module:
        picture = Standardize(self._splits["train"].inputs["picture"])
        encoders = {
            "picture": nn.Sequential(picture, Conv2dEncoder((3, *size.channels), size.width)),
            "words": WordEncoder(BUCKETS, size.word, size.width),
        }
        return Matching(encoders, size.width, size.head, len(self.groups), VECTOR)


def matching_loss(pictures: Tensor, words: Tensor, emojis: Tensor) -> Tensor:
    """Return how hard it is to find names by pictures, and pictures by names, in a batch.

    The formula is InfoNCE in both directions, as in CLIP (arXiv:2103.00020); drawings of one emoji share their names.

    Args:
        pictures: Vectors of the pictures [B, D].
        words: Vectors of the names [B, D].
        emojis: Number of each sample's emoji [B].
    """
    cosines = functional.normalize(pictures, dim=1) @ functional.normalize(words, dim=1).T / TEMPERATURE
    same = (emojis[:, None] == emojis).float()
    right = same / same.sum(1, keepdim=True)
    by_picture = -(right * functional.log_softmax(cosines, 1)).sum(1).mean()
    by_words = -(right * functional.log_softmax(cosines.T, 1)).sum(1).mean()
    return (by_picture + by_words) / 2


def found_names(pictures: NDArray[np.float32], words: NDArray[np.float32]) -> float:
    """Return the share of pictures [N, D] of whose NEAREST nearest names [N, D] one is their own."""
    cosines = _unit(pictures) @ _unit(words).T
    nearer = (cosines > np.diag(cosines)[:, None]).sum(1)
    return float((nearer < NEAREST).mean())


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def read_emojis(archive: Path) -> tuple[list[EmojiSign], list[NDArray[np.uint8]]]:
    """Read the emojis that both makers draw, and the makers' sheets, uint8 [height, width, 4].

    Raises:
        DataError: The archive lacks them, or they are damaged.
    """
    members = ["package/emoji.json", *(f"package/img/{maker}/sheets/32.png" for maker in SHEETS)]
    text, *images = read_members(archive, members)
    try:
        listed = [sign for sign in json.loads(text) if all(sign[f"has_img_{maker}"] for maker in SHEETS)]
        signs = [
            EmojiSign(sign["unified"], sign["name"], sign["category"], sign["sheet_y"], sign["sheet_x"])
            for sign in listed
            if sign["category"] != "Component"  # parts that no text has by themselves
        ]
        return signs, [decode_png(image) for image in images]
    except (ValueError, KeyError, TypeError, PngError) as error:
        raise DataError(f"{archive}: its emojis are damaged: {error}") from error


def picture_of(sign: EmojiSign, sheet: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the picture of an emoji, float32 [3, PIXELS, PIXELS], 0 to 1, on white."""
    top, left = sign.row * _PLACE + 1, sign.column * _PLACE + 1
    return as_colours(sheet[top : top + PIXELS, left : left + PIXELS])


def _split(
    signs: Sequence[EmojiSign], sheets: Sequence[NDArray[np.uint8]], groups: Sequence[str]
) -> dict[str, ArraySplit]:
    families = sorted({sign.family for sign in signs})
    # RandomState, since its stream is frozen: a Generator's may change with numpy's version.
    random = np.random.RandomState(SPLIT_SEED)
    ends = np.round(np.cumsum([SPLIT_SHARES[name] for name in SPLITS]) * len(families)).astype(int)
    splits = {}
    for name, part in zip(SPLITS, np.split(random.permutation(len(families)), ends[:-1]), strict=True):
        own = {families[number] for number in part}
        drawings = [
            (number, maker)
            for number, sign in enumerate(signs)
            for maker in range(len(SHEETS) if name == "train" else 1)
            if sign.family in own
        ]
        drawings = [drawings[index] for index in random.permutation(len(drawings))]
        labels = torch.tensor([groups.index(signs[number].group) for number, _ in drawings])
        words = [word_tokens(signs[number].name, WORDS, BUCKETS) for number, _ in drawings]
        splits[name] = ArraySplit(
            ids=[f"emoji-{signs[number].code}-{SHEETS[maker]}" for number, maker in drawings],
            inputs={
                "picture": torch.from_numpy(np.stack([picture_of(signs[n], sheets[maker]) for n, maker in drawings])),
                "words": torch.from_numpy(np.stack(words)),
            },
            labels=labels,
            targets={"group": labels, "emoji": torch.tensor([number for number, _ in drawings])},
            groups=[signs[number].family for number, _ in drawings],
        )
    return splits
