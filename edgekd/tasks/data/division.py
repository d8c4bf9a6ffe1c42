"""Divide samples into the four splits: by class, and never a group into two."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import DataError
from edgekd.training.task.protocol import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    _Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """What share of the samples each split gets.

    Attributes:
        train: Share of the split that the networks learn from.
        val: Share of the split that chooses what ships.
        calibration: Share of the split that sets INT8's ranges.
        test: Share of the split that judges.
        seed: Seed of the division; another seed makes other splits.

    Raises:
        DataError: A share is not above 0, or they do not add up to 1.
    """

    train: float = 0.6
    val: float = 0.1
    calibration: float = 0.1
    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            told = ", ".join(f"{name} = {share:g}" for name, share in zip(SPLITS, self.shares, strict=True))
            raise DataError(f"a division into {told}: each share must be above 0, and all must add up to 1")

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """The four shares in the order of ``SPLITS``."""
        return self.train, self.val, self.calibration, self.test


def divide(
    what: str, division: Division, classes: Sequence[str], groups: Sequence[str] | None = None
) -> dict[str, _Ints]:
    """Divide samples into splits: each class by the shares, and the samples of a group into one split.

    Args:
        what: The data, at the beginning of errors.
        division: The shares, and the seed.
        classes: Class of each of the N samples, or "" of all where there are no classes.
        groups: Group of each sample, or None where samples are independent.

    Returns:
        For each split the numbers of its samples, in a random order.

    Raises:
        DataError: A class has too few samples or groups, so that it would be in no sample of a split.
    """
    random = np.random.RandomState(division.seed)
    codes = np.unique(np.asarray(classes, dtype=object).astype(str), return_inverse=True)[1]
    if groups is None:
        _check_counts(what, Counter(classes), "sample")
        split_of = _by_class(codes, division, random)
    else:
        pairs = {(name, group) for name, group in zip(classes, groups, strict=True)}
        _check_counts(what, Counter(name for name, _ in pairs), "group")
        split_of = _by_group(codes, np.unique(np.asarray(groups, str), return_inverse=True)[1], division, random)
    order = random.permutation(len(codes))
    parts = {name: order[split_of[order] == index] for index, name in enumerate(SPLITS)}
    _check_parts(what, division, classes, parts)
    return parts


def _check_counts(what: str, counts: Counter[str], noun: str) -> None:
    few = {name: count for name, count in counts.items() if count < len(SPLITS)}
    if not few:
        return
    if "" in few:
        raise DataError(f"{what}: has {few['']} {noun}s, must have {len(SPLITS)} or more, one for each split")
    told = ", ".join(f"'{name}' is in {count} {noun}{'s' * (count > 1)}" for name, count in sorted(few.items())[:5])
    more = f" and {len(few) - 5} more" if len(few) > 5 else ""
    raise DataError(
        f"{what}: class {told}{more}; each must be in {len(SPLITS)} {noun}s or more, one for each split: add some, "
        "join classes, or leave such a class out"
    )


def _check_parts(what: str, division: Division, classes: Sequence[str], parts: dict[str, _Ints]) -> None:
    """Check that large groups have not left a class out of the training or of the test."""
    for split in ("train", "test"):
        lost = sorted(set(classes) - {classes[row] for row in parts[split]})
        if lost:
            called = f"of the class '{lost[0]}'" if lost[0] else ""
            raise DataError(
                f"{what}: with seed {division.seed} no group {called} falls into the split '{split}'; choose another "
                "seed of the division, other shares, or finer groups"
            )


def _by_class(codes: _Ints, division: Division, random: np.random.RandomState) -> _Ints:
    split_of = np.empty(len(codes), np.int64)
    for code in range(codes.max() + 1):
        rows = random.permutation(np.flatnonzero(codes == code))
        counts = _whole_counts(len(rows), np.array(division.shares))
        split_of[rows] = np.repeat(np.arange(len(SPLITS)), counts)
    return split_of


def _whole_counts(count: int, shares: NDArray[np.float64]) -> _Ints:
    """Return how many of ``count`` samples each split gets: at least one, then those that lack most of their share."""
    counts = np.maximum(1, np.floor(count * shares)).astype(np.int64)
    while counts.sum() < count:
        counts[np.argmax(count * shares - counts)] += 1
    while counts.sum() > count:
        counts[np.argmax(np.where(counts > 1, counts - count * shares, -np.inf))] -= 1
    return counts


def _by_group(codes: _Ints, groups: _Ints, division: Division, random: np.random.RandomState) -> _Ints:
    """Give each group, the largest first, to the split that lacks most of its classes."""
    members = np.zeros((groups.max() + 1, codes.max() + 1))
    np.add.at(members, (groups, codes), 1)
    wanted = np.outer(division.shares, members.sum(0))
    lacking = wanted.copy()
    split_of_group = np.empty(len(members), np.int64)
    order = random.permutation(len(members))
    for group in order[np.argsort(-members[order].sum(1), kind="stable")]:
        split_of_group[group] = np.argmax((lacking / wanted) @ members[group])
        lacking[split_of_group[group]] -= members[group]
    return split_of_group[groups]
