"""What is odd about the samples themselves, gathered while each is read once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekd.gram.measures.constant import are_alike
from edgekd.gram.nest import known_rows
from edgekd.stages.labels import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from edgekd.gram.output_kind import OutputKind
    from edgekd.training.loop.evaluate import GroundTruth
    from edgekd.training.task.protocol import Batch

#: Fewer samples than that say next to nothing: of a network, or of the ranges of its tensors.
_FEW = 16

#: Share of a split from which samples that are in another one too change what is measured.
_LEAK = 0.01

#: Pairs of splits that must not have samples in common: what is learned from or chosen by one is judged on the other.
_APART = (("train", "val"), ("train", "test"), ("val", "test"), ("calibration", "test"))

#: The most names that a warning lists.
_SHOWN = 3


@dataclass
class SplitFacts:
    """What is seen of a split while it is read.

    Attributes:
        digests: A digest of each sample's inputs, in order.
        alike: The modalities whose input was the same in every sample so far.
    """

    digests: list[bytes] = field(default_factory=list)
    alike: set[str] = field(default_factory=set)
    _first: dict[str, Tensor] = field(default_factory=dict)
    _inputs: tuple[str, ...] = ()

    @property
    def never(self) -> list[str]:
        """The modalities that every sample so far lacks."""
        return [name for name in self._inputs if name not in self._first]

    def add(self, batch: Batch) -> None:
        """Look at a batch."""
        self._inputs = tuple(batch.inputs)
        for name, x in batch.inputs.items():
            present = batch.present.get(name)
            rows = x if present is None else x[present > 0]
            if name not in self._first and len(rows):
                self._first[name] = rows[0].clone()
                self.alike.add(name)
            if name in self.alike and not torch.equal(rows, self._first[name].expand_as(rows)):
                self.alike.discard(name)
        arrays = [np.ascontiguousarray(x.numpy()) for x in batch.inputs.values()]
        for row in range(len(batch.ids)):
            hasher = hashlib.blake2b(digest_size=12)
            for array in arrays:
                hasher.update(array[row].tobytes())
            self.digests.append(hasher.digest())


def describe_data(
    truths: Mapping[str, GroundTruth],
    facts: Mapping[str, SplitFacts],
    classes: Sequence[str],
    outputs: Mapping[str, OutputKind],
) -> Iterator[str]:
    """Yield a sentence for what is odd about the samples.

    Args:
        truths: The ground truth of each split.
        facts: What was seen of each split.
        classes: The names of the classes that a label stands for.
        outputs: What each output of the task is, by name.
    """
    yield from _few(truths)
    yield from _labels(truths, classes)
    if not classes:
        yield from _constant(truths, outputs)
    yield from _alike(truths, facts)
    for first, second in _APART:
        yield from _shared(first, second, truths, facts)


def _few(truths: Mapping[str, GroundTruth]) -> Iterator[str]:
    uses = {
        "calibration": "the ranges of INT8 are found on them alone",
        "val": "what ships is chosen by them",
        "test": "what ships is judged by them",
    }
    for name, use in uses.items():
        truth = truths[name]
        count = len(truth.ids)
        if count < _FEW:
            yield f"split '{name}' has {count} sample{'s' if count > 1 else ''}, and {use}: give it more"
        elif name == "test" and truth.groups is not None and len(np.unique(truth.groups)) == 1:
            yield (
                f"all samples of split '{name}' are of one group, '{truth.groups[0]}', and {use}: nothing tells how "
                "other groups would fare; give it some of several"
            )


def _labels(truths: Mapping[str, GroundTruth], classes: Sequence[str]) -> Iterator[str]:
    """Yield what is odd about the labels; nothing where they stand for no classes, or samples have none."""
    if not classes:
        return
    for name in ("train", "val", "test"):
        labels = truths[name].targets
        if not classes or not isinstance(labels, np.ndarray) or labels.ndim != 1:
            continue
        known = np.unique(labels[labels != UNLABELLED]).tolist()
        if not known:
            continue
        if len(known) == 1:
            lesson = {"train": "there is nothing to learn"}.get(name, "the metric cannot tell a constant answer")
            yield f"all labels of split '{name}' are of class {_named(classes, known)}: {lesson}"
            continue
        absent = sorted(set(range(len(classes))) - set(known))
        if absent:
            lesson = {"train": "no network can learn it"}.get(name, "nothing is measured of it")
            what = "class" if len(absent) == 1 else f"{len(absent)} of {len(classes)} classes:"
            yield f"no sample of split '{name}' is of {what} {_named(classes, absent)}: {lesson}"


def _constant(truths: Mapping[str, GroundTruth], outputs: Mapping[str, OutputKind]) -> Iterator[str]:
    """Yield what targets are the same in all samples, of outputs whose targets edgekd can read."""
    for name in ("train", "val", "test"):
        targets = truths[name].targets
        for output, kind in outputs.items():
            found = targets.get(output) if isinstance(targets, dict) else targets
            one_of_all = isinstance(targets, dict) == (len(outputs) > 1)
            if kind.name == "custom" or not one_of_all or not isinstance(found, np.ndarray):
                continue
            if known_rows(found).sum() > 1 and are_alike(kind, found):
                lesson = {"train": "there is nothing to learn"}.get(name, "the metric cannot tell a constant answer")
                yield f"the target of output '{output}' is the same in all samples of split '{name}': {lesson}"


def _named(classes: Sequence[str], numbers: Sequence[int]) -> str:
    names = ", ".join(f"'{classes[number]}'" for number in numbers[:_SHOWN])
    return names + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")


def _alike(truths: Mapping[str, GroundTruth], facts: Mapping[str, SplitFacts]) -> Iterator[str]:
    uses = {
        "train": "nothing can be learned from it",
        "calibration": "the ranges of INT8 are not found for it",
        "val": "what ships is chosen without it",
        "test": "nothing is measured of it",
    }
    for split, use in uses.items():
        for name in facts[split].never:
            yield f"every sample of split '{split}' lacks '{name}', so {use}"
    if len(truths["train"].ids) > 1:
        for name in sorted(facts["train"].alike):
            yield (
                f"the input of '{name}' is the same in every sample of split 'train', so nothing can be learned from "
                "it: is it read as it should be?"
            )


def _shared(
    first: str, second: str, truths: Mapping[str, GroundTruth], facts: Mapping[str, SplitFacts]
) -> Iterator[str]:
    """Yield a sentence where a split has the very inputs of another one."""
    places = {digest: index for index, digest in enumerate(facts[first].digests)}
    both = [(places[digest], index) for index, digest in enumerate(facts[second].digests) if digest in places]
    if len(both) > _LEAK * len(facts[second].digests):
        of_first, of_second = truths[first].ids[both[0][0]], truths[second].ids[both[0][1]]
        yield (
            f"{len(both)} of the {len(facts[second].digests):,} samples of split '{second}' have the very inputs of "
            f"samples of '{first}', as '{of_second}' those of '{of_first}': what is measured on them is too good"
        )
