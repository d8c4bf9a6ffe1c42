"""Whether a network still answers as its reference does: each output of each sample beside the reference's.

What counts as the same answer depends on the kind of output. Whatever it is, the error of a sample is the length of the
difference over the length of the reference's output, so that a scale, a sign or a rotation shows; Grams of cosines
between samples do not see these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from edgekd.errors import TaskError
from edgekd.gram.intervals import Bootstrap, Estimate, estimate, estimate_share
from edgekd.gram.measures.classes import ClassDivergence, PositionDivergence, TokenDivergence
from edgekd.gram.measures.embeddings import FloatIndexDivergence, OwnIndexDivergence
from edgekd.gram.measures.labels import LabelDivergence
from edgekd.gram.measures.measure import PairedChunk
from edgekd.gram.measures.numbers import NumberDivergence
from edgekd.gram.measures.rows import as_rows, lengths, near_zero
from edgekd.gram.output_kind import MAX_DIVERGENCE, OutputKind, OutputName
from edgekd.gram.probe import in_chunks, side_by_side
from edgekd.gram.streaming import Units, hash_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from edgekd.gram.measures.measure import Measure
    from edgekd.gram.measures.rows import Rows
    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Answer, Probe
    from edgekd.gram.streaming import Keys

#: Says of what two networks answered, an array each, or a dict of such, which share of each sample's changed [N].
Sameness: TypeAlias = "Callable[[Any, Any], Array]"


@dataclass(frozen=True)
class Answers:
    """What an output is beside the reference's, on the same samples.

    Attributes:
        kind: What the output is.
        error: Length of a sample's difference over the length of the reference's output ("relative L2"), 0 for the
            same. Of an output that is as good as zero, over a tenth of the outputs' root mean square. Of an "embedding"
            with an index of its own it is that of the inner products with the index.
        largest_error: The largest absolute difference of any number, in the output's own unit.
        divergence: The kind's own measure, see :data:`edgekd.gram.output_kind.MEASURES`.
        changed: Share of a sample's decisions that changed, as the task itself says, or else: of "classes" the top-1
            class ("flips"), of "dense-classes" and "sequence-classes" those of the positions or steps, with CTC's blank
            the edit distance between the tokens over their number, of "multilabel", "regression" and "custom" the
            sides of the threshold, of "embedding" the five nearest of the reference's samples. None where nothing is
            decided.
        worst_element: Of "regression" and "custom" the element, counted in C order, whose divergence is largest, where
            it has no more than 64; else None.
        worst_divergence: The mean divergence of that element.
        samples: Number of samples.
        units: Number of independent units, which are groups where samples come in groups.
        changed_held: Of "multilabel" the share of the labels that hold in either network that changed, mean over the
            samples that have such; where few of many labels hold, :attr:`changed` hardly shows that all of these are
            lost. None where no label holds in any sample.
        reference_broken: Number of samples for which the reference's own output is not finite.
        worst_class: Of "multilabel", "dense-classes" and "sequence-classes" the label or class of which the surest is
            that it changed most, among those that the reference gives at least one decision in a thousand; else None.
        worst_class_changed: Which share of what either network decided for it the other did not, ties left out; its
            bounds hold for all classes together.
        by_task: Whether the output is "custom" and the task itself said what changed. Then its numbers decide nothing:
            boxes in another order are the same, and so may be what they say.
    """

    kind: OutputName
    error: Estimate
    largest_error: float
    divergence: Estimate
    changed: Estimate | None
    worst_element: int | None
    worst_divergence: float | None
    samples: int
    units: int
    changed_held: Estimate | None = None
    reference_broken: int = 0
    worst_class: int | None = None
    worst_class_changed: Estimate | None = None
    by_task: bool = False

    @property
    def flips(self) -> Estimate | None:
        """The changed decisions that a limit is for; None of embeddings, whose near neighbours swap for nothing."""
        return None if self.kind == "embedding" else self.changed


def compare_outputs(
    probe: Probe,
    reference: Probe,
    kinds: Mapping[str, OutputKind],
    groups: Array | None,
    bootstrap: Bootstrap,
    same: Sameness | None = None,
) -> dict[str, Answers]:
    """Compare each output of a network with its reference's; the arguments are as for :func:`compare_answers`.

    Args:
        probe: What the network gave for N samples.
        reference: What the reference gave for the same samples.
        kinds: What each output is, by name.
        groups: Each sample's cluster [N], or None where samples are independent.
        bootstrap: How means are bounded.
        same: The task's own word on which share of each sample's answer changed, of all outputs together.

    Raises:
        ValueError: The probes are not of the same samples, lack an output, or their outputs differ in shape.
        TaskError: The task's own word is no share of each sample.
    """
    changed = None if same is None else changed_by(same, probe.answer, reference.answer, len(probe))
    return {
        name: compare_answers(probe, reference, name, kind, groups, bootstrap, changed) for name, kind in kinds.items()
    }


def changed_by(same: Sameness, answer: Answer, reference: Answer, samples: int) -> Array:
    """Return which share of each sample's answer [N] changed, by the task's own word.

    Raises:
        TaskError: It is no share of each sample.
    """
    shares = np.asarray(same(answer, reference))
    if shares.shape != (samples,) or shares.dtype.kind not in "biuf" or (shares < 0).any() or (shares > 1).any():
        raise TaskError(
            "the task's same must return which share of each sample's answer changed, an array of numbers from 0 to 1 "
            f"of shape ({samples},), but it returned {shares.dtype} of shape {shares.shape}"
            + (f", from {shares.min()} to {shares.max()}" if shares.size and shares.dtype.kind in "iuf" else "")
        )
    return shares


def compare_answers(
    probe: Probe,
    reference: Probe,
    output: str,
    kind: OutputKind,
    groups: Array | None,
    bootstrap: Bootstrap,
    changed: Array | None = None,
) -> Answers:
    """Compare one output of a network with its reference's, sample by sample.

    Args:
        probe: What the network gave for N samples.
        reference: What the reference gave for the same samples.
        output: Name of the output.
        kind: What the output is.
        groups: Each sample's cluster [N], or None where samples are independent.
        bootstrap: How means are bounded.
        changed: The share of each sample's decisions that changed [N], where the task itself says what the same answer
            is; None to go by the kind.

    Raises:
        ValueError: The probes are not of the same samples, lack the output, or their outputs differ in shape.
    """
    shapes = [side.shapes.get(output) for side in (probe, reference)]
    if shapes[0] != shapes[1] or None in shapes:
        raise ValueError(f"the outputs '{output}' are {shapes[0]} and {shapes[1]}")
    scale = _length_floor(reference, output, kind)
    measure = _make_measure(kind, lambda: _chunks(probe, output), lambda: _chunks(reference, output))
    error, divergence, shares, held = Units(), Units(), Units(), Units()
    largest, start, broken = 0.0, 0, 0
    for ours, theirs in side_by_side(probe, reference, [output]):
        keys = hash_names(ours["ids"])
        these = slice(start, start + len(keys))
        units = keys if groups is None else hash_names(groups[these])
        start = these.stop
        chunk = PairedChunk(keys, units, ours[output], theirs[output])
        kept, expected = _unless_ruled_out(as_rows(chunk.ours), as_rows(chunk.theirs), kind)
        difference = kept - expected
        largest = float(np.fmax(largest, np.abs(difference).max(initial=0.0)))
        if not np.isfinite(difference).all():
            largest = math.nan
            broken += int((~np.isfinite(expected)).any(1).sum())
        errors = measure.errors(chunk)
        error.add(units, lengths(difference) / np.maximum(lengths(expected), scale) if errors is None else errors)
        diverged, decided = measure.compare(chunk)
        divergence.add(units, diverged)
        decided = decided if changed is None else np.asarray(changed[these], np.float64)
        if decided is not None:
            shares.add(units, decided)
        if (holds := measure.held(chunk)) is not None:
            held.add(units[holds[0]], holds[1])
    by_task = changed is not None and kind.name == "custom"
    element, of_class = None if by_task else measure.worst_element(), _worst_class(measure, bootstrap)
    return Answers(
        kind=kind.name,
        error=estimate(error.totals(), bootstrap, 0.0, math.inf),
        largest_error=largest,
        divergence=estimate(divergence.totals(), bootstrap, 0.0, math.inf),
        changed=_share(shares, bootstrap),
        worst_element=element[0] if element else None,
        worst_divergence=element[1] if element else None,
        samples=start,
        units=start if groups is None else divergence.totals().shape[1],
        changed_held=_share(held, bootstrap),
        reference_broken=broken,
        worst_class=of_class[0] if of_class else None,
        worst_class_changed=of_class[1] if of_class else None,
        by_task=by_task,
    )


def _share(shares: Units, bootstrap: Bootstrap) -> Estimate | None:
    """Return a mean share with its bounds; None where there is none of any sample."""
    totals = shares.totals()
    return estimate_share(totals, bootstrap) if totals.size else None


def _worst_class(measure: Measure, bootstrap: Bootstrap) -> tuple[int, Estimate] | None:
    """Return the class that is the surest to have changed most, and the share of it that changed.

    The bounds hold for all classes together (Bonferroni): among many some are always far off by chance.
    """
    found = measure.changed_classes()
    if found is None:
        return None
    strict = replace(bootstrap, confidence=1 - (1 - bootstrap.confidence) / max(found.looked_at, 1))
    shares = {label: estimate_share(trials, strict) for label, trials in found.totals.items()}
    return max(shares.items(), key=lambda item: (item[1].low, item[1].mean), default=None)


def sample_errors(outputs: Array, reference: Array) -> Rows:
    """Return the error [N] of each sample's output [N, ...], as :attr:`Answers.error` has it, in memory."""
    ours, theirs = as_rows(outputs), as_rows(reference)
    floor = near_zero(float((theirs**2).sum()), len(theirs))
    errors: Rows = lengths(ours - theirs) / np.maximum(lengths(theirs), floor)
    return errors


def joint_errors(outputs: Mapping[str, Array], reference: Mapping[str, Array], names: Iterable[str]) -> Rows:
    """Return the mean error [N] of each sample over the outputs with these names."""
    return _mean_of([sample_errors(outputs[name], reference[name]) for name in names])


def joint_divergences(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], kinds: Mapping[str, OutputKind]
) -> Rows:
    """Return the divergence [N] of each sample, in the measure of the first output.

    Of several outputs it is the mean of their divergences, each over the largest that its kind is allowed by default,
    times that of the first output's kind: they are measured in different units.
    """
    unit = MAX_DIVERGENCE[next(iter(kinds.values())).name]
    parts = [
        sample_divergences(outputs[name], reference[name], kind) * (unit / MAX_DIVERGENCE[kind.name])
        for name, kind in kinds.items()
    ]
    return _mean_of(parts)


def _mean_of(parts: Sequence[Rows]) -> Rows:
    mean: Rows = sum(parts[1:], parts[0]) / len(parts)
    return mean


def sample_divergences(outputs: Array, reference: Array, kind: OutputKind) -> Rows:
    """Return the divergence [N] of each sample's output [N, ...] from the reference's, in the kind's own measure."""
    return _compare_arrays(outputs, reference, kind)[0]


def changed_answers(outputs: Array, reference: Array, kind: OutputKind) -> Rows | None:
    """Return the share [N] of each sample's decisions that differ from the reference's; None where none are made."""
    return _compare_arrays(outputs, reference, kind)[1]


def _compare_arrays(outputs: Array, reference: Array, kind: OutputKind) -> tuple[Rows, Rows | None]:
    keys = hash_names(np.arange(len(outputs)))
    measure = _make_measure(kind, lambda: iter([(keys, outputs)]), lambda: iter([(keys, reference)]))
    return measure.compare(PairedChunk(keys, keys, outputs, reference))


class _Chunks(Protocol):
    """All outputs of one network: yields them from the first on, hashes of names [B], and outputs [B, ...]."""

    def __call__(self) -> Iterator[tuple[Keys, Array]]: ...


def _make_measure(kind: OutputKind, ours: _Chunks, reference: _Chunks) -> Measure:
    """Return what compares two networks' outputs, after what it has to know of all of them beforehand.

    Args:
        kind: What the output is.
        ours: The outputs to judge, which are read where they have an index of their own.
        reference: The reference's outputs.
    """
    if kind.name == "classes":
        return ClassDivergence(kind)
    if kind.name == "embedding":
        return OwnIndexDivergence(reference(), ours()) if kind.index == "own" else FloatIndexDivergence(reference())
    outputs = (rows for _, rows in reference())
    if kind.name == "multilabel":
        return LabelDivergence(kind, outputs)
    if kind.name in ("dense-classes", "sequence-classes"):
        return (PositionDivergence if kind.blank is None else TokenDivergence)(kind, outputs)
    return NumberDivergence(kind, outputs)


def _chunks(probe: Probe, output: str) -> Iterator[tuple[Keys, Array]]:
    return ((hash_names(chunk["ids"]), chunk[output]) for chunk in in_chunks(probe, [output]))


def _length_floor(reference: Probe, output: str, kind: OutputKind) -> float:
    """Return the length below which an output is as good as zero."""
    chunks = (as_rows(outputs) for _, outputs in _chunks(reference, output))
    square = sum(float((_unless_ruled_out(rows, rows, kind)[1] ** 2).sum()) for rows in chunks)
    return near_zero(square, len(reference))


def _unless_ruled_out(ours: Rows, theirs: Rows, kind: OutputKind) -> tuple[Rows, Rows]:
    """Return both with 0 for classes whose logits are -inf in the reference: it rules them out by that."""
    if kind.class_axis is None or kind.probabilities:
        return ours, theirs
    ruled_out = np.isneginf(theirs)
    return np.where(ruled_out, 0, ours), np.where(ruled_out, 0, theirs)
