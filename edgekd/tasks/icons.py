"""The tags of an icon, several at once, from its picture and its name: Material Design Icons."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgekd.errors import DataError
from edgekd.tasks.catalogue import ICONS, MDI
from edgekd.tasks.data.words import told_tokens, word_tokens
from edgekd.tasks.networks import WordEncoder
from edgekd.tasks.packages import fetch, read_member, read_members
from edgekd.tasks.svg_path import drawn
from edgekd.training.task.models import Conv2dEncoder, LateFusion, Standardize
from edgekd.training.task.output import Output
from edgekd.training.task.protocol import SPLITS, ArraySplit, Modality, resized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class IconsSize:
    """The size of a network.

    Attributes:
        channels: Output channels of each stride-2 convolution over the picture.
        vector: Width of a word's vector.
        width: Width of every embedding.
        head: Hidden units of the head.
    """

    channels: Sequence[int]
    vector: int
    width: int
    head: int


TEACHER = IconsSize(channels=(32, 64, 128), vector=128, width=128, head=192)
STUDENT = IconsSize(channels=(16, 32, 48), vector=64, width=64, head=96)

PIXELS = 24
WORDS = 8
BUCKETS = 1024

#: A tag is said to fit from this probability on: most have few icons, and half is seldom reached.
THRESHOLD = 0.3

#: A tag that fewer icons have is left out.
LEAST_ICONS = 80

#: Shares of the families of icons in each split, and the seed by which they are drawn, which never changes.
SPLIT_SHARES = {"train": 0.6, "val": 0.1, "calibration": 0.1, "test": 0.2}
SPLIT_SEED = 20

MODALITIES = (
    Modality("picture", (1, PIXELS, PIXELS), "icon of 24 rows and columns, ink 0 to 1"),
    Modality("words", (WORDS,), f"name and other names: {told_tokens(BUCKETS)}", dtype="int64", pad=0),
)

_PATH = re.compile(r' d="([^"]+)"')


@dataclass(frozen=True)
class Icon:
    """One icon.

    Attributes:
        name: Its name, words with hyphens between them.
        family: The icon that it is a variant of, or itself.
        others: Other names of it.
        tags: Its tags.
    """

    name: str
    family: str
    others: tuple[str, ...]
    tags: frozenset[str]


class Icons:
    """Icons with one tag or several. Meets :class:`edgekd.training.task.protocol.Task`.

    Icons that are made of one ("account", "account-alert", "account-alert-outline") are in one split, and a sample's
    ``group`` is this family. Icons without a tag are left out: nobody says that no tag fits them. Nobody says either
    that an icon has all tags that fit it, so what is measured is how well the makers' own choice is foretold.

    Args:
        teacher: Fields of :class:`IconsSize` that replace those of ``TEACHER``.
        student: Fields of :class:`IconsSize` that replace those of ``STUDENT``.

    Raises:
        TaskError: A size has an unknown field.
        DataError: The data cannot be fetched or read.
    """

    modalities: Sequence[Modality] = MODALITIES
    licence = ICONS.licence
    citation = ICONS.citation

    def __init__(
        self, teacher: Mapping[str, object] | None = None, student: Mapping[str, object] | None = None
    ) -> None:
        self.teacher_taps = self.student_taps = {modality.name: f"encoders.{modality.name}" for modality in MODALITIES}
        self._teacher_size = resized(TEACHER, teacher)
        self._student_size = resized(STUDENT, student)
        archive = fetch(MDI)
        self.files: Sequence[Path] = (archive,)
        self.tags, icons = chosen_icons(read_icons(archive))
        self.outputs = (Output("tags", "multilabel", threshold=THRESHOLD, classes=self.tags),)
        self._splits = _split(icons, draw_icons(archive, icons), self.tags)

    def splits(self) -> dict[str, ArraySplit]:
        """Return the icons of about 60, 10, 10 and 20 % of the families for train, val, calibration and test."""
        return self._splits

    def teacher(self) -> nn.Module:
        """Return the untrained teacher: logits [B, tags] of pictures and words."""
        return self._network(self._teacher_size)

    def student(self) -> nn.Module:
        """Return the untrained student: logits [B, tags] of pictures and words."""
        return self._network(self._student_size)

    def _network(self, size: IconsSize) -> nn.Module:
        picture = Standardize(self._splits["train"].inputs["picture"])
        encoders = {
            "picture": nn.Sequential(picture, Conv2dEncoder((1, *size.channels), size.width)),
            "words": WordEncoder(BUCKETS, size.vector, size.width),
        }
        return LateFusion(encoders, size.width, size.head, len(self.tags))


def read_icons(archive: Path) -> list[Icon]:
    """Read what the package says of its icons.

    Raises:
        DataError: It lacks that, or it is damaged.
    """
    try:
        listed = json.loads(read_member(archive, "package/meta.json"))
        names = {icon["id"]: icon["name"] for icon in listed}
        return [
            Icon(
                icon["name"],
                names.get(icon["baseIconId"], icon["name"]),
                tuple(icon["aliases"]),
                frozenset(icon["tags"]),
            )
            for icon in listed
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{archive}: its meta.json is damaged: {error}") from error


def chosen_icons(icons: Sequence[Icon]) -> tuple[tuple[str, ...], list[Icon]]:
    """Return the tags that enough icons have, in alphabetical order, and the icons with any of them."""
    counts = Counter(tag for icon in icons for tag in icon.tags)
    tags = tuple(sorted(tag for tag, count in counts.items() if count >= LEAST_ICONS))
    return tags, [icon for icon in icons if not icon.tags.isdisjoint(tags)]


def draw_icons(archive: Path, icons: Sequence[Icon]) -> NDArray[np.float32]:
    """Draw icons, ink float32 [N, 1, PIXELS, PIXELS].

    Raises:
        DataError: The archive lacks one, or it is damaged.
    """
    texts = read_members(archive, [f"package/svg/{icon.name}.svg" for icon in icons])
    paths = [_PATH.search(text.decode()) for text in texts]
    if None in paths:
        raise DataError(f"{archive}: the icon '{icons[paths.index(None)].name}' has no path")
    return np.stack([drawn(path[1], PIXELS, PIXELS) for path in paths if path])[:, None]


def icon_tokens(icon: Icon) -> NDArray[np.int64]:
    """Return the words of an icon's name and of its other names as token ids [WORDS]."""
    return word_tokens(" ".join((icon.name, *icon.others)).replace("-", " "), WORDS, BUCKETS)


def _split(icons: Sequence[Icon], pictures: NDArray[np.float32], tags: Sequence[str]) -> dict[str, ArraySplit]:
    families = sorted({icon.family for icon in icons})
    # RandomState, since its stream is frozen: a Generator's may change with numpy's version.
    random = np.random.RandomState(SPLIT_SEED)
    ends = np.round(np.cumsum([SPLIT_SHARES[name] for name in SPLITS]) * len(families)).astype(int)
    parts = np.split(random.permutation(len(families)), ends[:-1])
    splits = {}
    for name, part in zip(SPLITS, parts, strict=True):
        own = {families[number] for number in part}
        rows = random.permutation([row for row, icon in enumerate(icons) if icon.family in own])
        chosen = [icons[row] for row in rows]
        splits[name] = ArraySplit(
            ids=[f"icons-{icon.name}" for icon in chosen],
            inputs={
                "picture": torch.from_numpy(pictures[rows]),
                "words": torch.from_numpy(np.stack([icon_tokens(icon) for icon in chosen])),
            },
            targets=torch.tensor([[float(tag in icon.tags) for tag in tags] for icon in chosen]),
            groups=[icon.family for icon in chosen],
        )
    return splits
