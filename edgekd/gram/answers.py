"""Whether a network still answers as its reference does: each output of each sample beside the reference's.

What counts as the same answer depends on the kind of output. Whatever it is, the error of a sample is the length of the
difference over the length of the reference's output, so that a scale, a sign or a rotation shows; Grams of cosines
between samples do not see these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from edgekd.gram.intervals import Bootstrap, Estimate, estimate, estimate_share
from edgekd.gram.output_kind import MAX_DIVERGENCE, OutputKind, OutputName
from edgekd.gram.probe import in_chunks, side_by_side
from edgekd.gram.streaming import Subsample, Units, hash_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Probe

_Array: TypeAlias = "NDArray[np.float64]"

#: Samples of the reference that an embedding is compared with, and how many of them are its nearest.
_INDEX, _NEAREST = 512, 5

#: An output is as good as zero where it is shorter than this share of the outputs' root mean square, and is compared
#: with that instead: a cosine with it, or an error over its length, would be noise.
_NEAR_ZERO = 0.1

#: An output of more numbers is a map, in which no single one matters.
_NAMED = 64

#: Probabilities are kept away from 0 and 1 by this much.
_EDGE = 1e-7

#: An element that hardly varies is compared with this share of its own power, and of the median power of the elements:
#: they may be of units that are far apart, so a mean would be that of the largest.
_OWN_POWER, _MEDIAN_POWER = 1e-3, 1e-14

#: Probabilities, and lengths of 1, may be this far off, in float16 too.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Answers:
    """What an output is beside the reference's, on the same samples.

    Attributes:
        kind: What the output is.
        error: Length of a sample's difference over the length of the reference's output ("relative L2"), 0 for the
            same. Of an output that is as good as zero, over a tenth of the outputs' root mean square.
        largest_error: The largest absolute difference of any number, in the output's own unit.
        divergence: The kind's own measure, see :data:`MEASURES`.
        changed: Share of a sample's decisions that changed: of "classes" the top-1 class ("flips"), of "multilabel" and
            "values" the sides of the threshold, of "embedding" the five nearest of the reference's samples. None where
            nothing is decided.
        worst_element: Of "values" the element, counted in C order, whose divergence is largest, where it has no more
            than 64; else None.
        worst_divergence: The mean divergence of that element.
        samples: Number of samples.
        units: Number of independent units, which are groups where samples come in groups.
        changed_held: Of "multilabel" the share of the labels that hold in either network that changed, mean over the
            samples that have such; where few of many labels hold, :attr:`changed` hardly shows that all of these are
            lost. None where no label holds in any sample.
        reference_broken: Number of samples for which the reference's own output is not finite.
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

    @property
    def flips(self) -> Estimate | None:
        """The changed decisions that a limit is for; None of embeddings, whose near neighbours swap for nothing."""
        return None if self.kind == "embedding" else self.changed


def guess_kind(outputs: Array, labelled: bool) -> OutputKind:
    """Guess what an output is from its values: for a network that comes without a task.

    Args:
        outputs: The output for some samples [N, ...].
        labelled: Whether samples have class indices as labels.

    Returns:
        "classes" for [N, C] where there are labels, or where rows are distributions; "multilabel" where all values lie
        between 0 and 1; "embedding" where rows have unit length; else "values".
    """
    if outputs.ndim != 2:
        return OutputKind("values")
    if outputs.shape[1] > 1:
        distributions = are_probabilities(outputs, "classes")
        if labelled or distributions:
            return OutputKind("classes", distributions)
        if np.allclose(_lengths(_rows(outputs)), 1, atol=_ROUNDING):
            return OutputKind("embedding")
    labels = are_probabilities(outputs, "multilabel") and outputs.any()
    return OutputKind("multilabel", True, 0.5) if labels else OutputKind("values")


def are_probabilities(outputs: Array, kind: OutputName) -> bool:
    """Whether an output [N, ...] of a kind is probabilities, by its values; those of classes sum to 1."""
    within = bool((outputs >= -_ROUNDING).all() and (outputs <= 1 + _ROUNDING).all())
    if kind == "classes":
        return within and bool(np.allclose(outputs.sum(-1, dtype=np.float64), 1, atol=_ROUNDING))
    return kind == "multilabel" and within


def compare_outputs(
    probe: Probe, reference: Probe, kinds: Mapping[str, OutputKind], groups: Array | None, bootstrap: Bootstrap
) -> dict[str, Answers]:
    """Compare each output of a network with its reference's; the arguments are as for :func:`compare_answers`."""
    return {name: compare_answers(probe, reference, name, kind, groups, bootstrap) for name, kind in kinds.items()}


def compare_answers(
    probe: Probe, reference: Probe, output: str, kind: OutputKind, groups: Array | None, bootstrap: Bootstrap
) -> Answers:
    """Compare one output of a network with its reference's, sample by sample.

    Args:
        probe: What the network gave for N samples.
        reference: What the reference gave for the same samples.
        output: Name of the output.
        kind: What the output is.
        groups: Each sample's cluster [N], or None where samples are independent.
        bootstrap: How means are bounded.

    Raises:
        ValueError: The probes are not of the same samples, lack the output, or their outputs differ in shape.
    """
    shapes = [side.shapes.get(output) for side in (probe, reference)]
    if shapes[0] != shapes[1] or None in shapes:
        raise ValueError(f"the outputs '{output}' are {shapes[0]} and {shapes[1]}")
    scale, measure = _length_floor(reference, output, kind), _comparison(reference, output, kind)
    error, divergence, changed, held = Units(), Units(), Units(), Units()
    largest, start, decides, broken = 0.0, 0, False, 0
    for ours, theirs in side_by_side(probe, reference, [output]):
        mine, other = _rows(ours[output]), _rows(theirs[output])
        keys = hash_names(ours["ids"])
        units = keys if groups is None else hash_names(groups[start : start + len(keys)])
        start += len(keys)
        kept, expected = _unless_ruled_out(mine, other, kind)
        difference = kept - expected
        largest = float(np.fmax(largest, np.abs(difference).max(initial=0.0)))
        if not np.isfinite(difference).all():
            largest = math.nan
            broken += int((~np.isfinite(expected)).any(1).sum())
        error.add(units, _lengths(difference) / np.maximum(_lengths(expected), scale))
        diverged, decided = measure(keys, mine, other)
        divergence.add(units, diverged)
        if decided is not None:
            decides = True
            changed.add(units, decided)
        if isinstance(measure, _Labels):
            some, share = measure.held(mine, other)
            held.add(units[some], share)
    worst = measure.worst() if isinstance(measure, _Values) else None
    return Answers(
        kind=kind.name,
        error=estimate(error.totals(), bootstrap, 0.0, math.inf),
        largest_error=largest,
        divergence=estimate(divergence.totals(), bootstrap, 0.0, math.inf),
        changed=estimate_share(changed.totals(), bootstrap) if decides else None,
        worst_element=worst[0] if worst else None,
        worst_divergence=worst[1] if worst else None,
        samples=start,
        units=start if groups is None else divergence.totals().shape[1],
        changed_held=estimate_share(held.totals(), bootstrap) if held.totals().size else None,
        reference_broken=broken,
    )


def sample_errors(outputs: Array, reference: Array) -> _Array:
    """Return the error [N] of each sample's output [N, ...], as :attr:`Answers.error` has it, in memory."""
    ours, theirs = _rows(outputs), _rows(reference)
    floor = _near_zero(float((theirs**2).sum()), len(theirs))
    errors: _Array = _lengths(ours - theirs) / np.maximum(_lengths(theirs), floor)
    return errors


def joint_errors(outputs: Mapping[str, Array], reference: Mapping[str, Array], kinds: Iterable[str]) -> _Array:
    """Return the mean error [N] of each sample over the outputs with these names."""
    return _mean_of([sample_errors(outputs[name], reference[name]) for name in kinds])


def joint_divergences(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], kinds: Mapping[str, OutputKind]
) -> _Array:
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


def _mean_of(parts: Sequence[_Array]) -> _Array:
    mean: _Array = sum(parts[1:], parts[0]) / len(parts)
    return mean


def sample_divergences(outputs: Array, reference: Array, kind: OutputKind) -> _Array:
    """Return the divergence [N] of each sample's output [N, ...] from the reference's; see :data:`MEASURES`."""
    measure = _of_arrays(reference, kind)
    keys = hash_names(np.arange(len(outputs)))
    return measure(keys, _rows(outputs), _rows(reference))[0]


def changed_answers(outputs: Array, reference: Array, kind: OutputKind) -> _Array | None:
    """Return the share [N] of each sample's decisions that differ from the reference's; None where none are made."""
    measure = _of_arrays(reference, kind)
    return measure(hash_names(np.arange(len(outputs))), _rows(outputs), _rows(reference))[1]


class _SideBySide(Protocol):
    """Compares the next rows [B, D], with the hashes [B] of their names: divergence [B], and share changed [B]."""

    def __call__(self, keys: Array, ours: _Array, theirs: _Array, /) -> tuple[_Array, _Array | None]: ...


def _comparison(reference: Probe, output: str, kind: OutputKind) -> _SideBySide:
    chunks = in_chunks(reference, [output])
    return _prepared(((hash_names(chunk["ids"]), _rows(chunk[output])) for chunk in chunks), kind)


def _of_arrays(reference: Array, kind: OutputKind) -> _SideBySide:
    return _prepared([(hash_names(np.arange(len(reference))), _rows(reference))], kind)


def _prepared(reference: Iterable[tuple[Array, _Array]], kind: OutputKind) -> _SideBySide:
    if kind.name == "classes":
        return _Classes(kind)
    if kind.name == "multilabel":
        return _Labels(kind)
    return _Values(kind, reference) if kind.name == "values" else _Embeddings(reference)


class _Classes:
    """Kullback-Leibler divergence from the reference's distribution, and whether the top-1 class changed.

    It is ``sum p log(p / q) - p + q``, which tells of probabilities that no longer sum to 1, too.
    """

    def __init__(self, kind: OutputKind) -> None:
        self._log = _log_of_probabilities if kind.probabilities else _log_softmax

    def __call__(self, _keys: Array, ours: _Array, theirs: _Array) -> tuple[_Array, _Array | None]:
        mine, other = self._log(ours), self._log(theirs)
        p = np.exp(other)
        with np.errstate(invalid="ignore"):  # a class that is ruled out by -inf in both
            terms = np.where(p == 0, 0.0, p * (other - mine))
        divergence: _Array = np.maximum((terms - p + np.exp(mine)).sum(1), 0.0)
        return divergence, (ours.argmax(1) != theirs.argmax(1)).astype(np.float64)


class _Labels:
    """The mean over labels of the divergence of each one's probability, and the share of them that changed sides."""

    def __init__(self, kind: OutputKind) -> None:
        self._kind = kind
        self._threshold = 0.5 if kind.threshold is None else kind.threshold

    def __call__(self, _keys: Array, ours: _Array, theirs: _Array) -> tuple[_Array, _Array | None]:
        mine, other = self._probabilities(ours), self._probabilities(theirs)
        ratio = other * np.log(other / mine) + (1 - other) * np.log((1 - other) / (1 - mine))
        changed = (mine >= self._threshold) != (other >= self._threshold)
        return np.maximum(ratio.mean(1), 0.0), changed.mean(1)

    def held(self, ours: _Array, theirs: _Array) -> tuple[NDArray[np.bool_], _Array]:
        """Return in which samples [B] a label holds in either network, and for each such the share of these changed."""
        mine, other = (self._probabilities(rows) >= self._threshold for rows in (ours, theirs))
        union = (mine | other).sum(1)
        some: NDArray[np.bool_] = union > 0
        return some, (mine ^ other).sum(1)[some] / union[some]

    def _probabilities(self, scores: _Array) -> _Array:
        if not self._kind.probabilities:
            scores = np.where(scores >= 0, 1, np.exp(-np.abs(scores))) / (1 + np.exp(-np.abs(scores)))
        clipped: _Array = scores.clip(_EDGE, 1 - _EDGE)
        return clipped


class _Values:
    """Squared error of each element over its variance: 1 is as bad as always answering the mean."""

    def __init__(self, kind: OutputKind, reference: Iterable[tuple[Array, _Array]]) -> None:
        self._threshold = kind.threshold
        count, first, total, square, power = 0, np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1)
        for _, rows in reference:
            if not count:
                first = rows[0]
                total, square, power = (np.zeros(rows.shape[1]) for _ in range(3))
            count += len(rows)
            total = total + (rows - first).sum(0)
            square = square + ((rows - first) ** 2).sum(0)
            power = power + (rows**2).sum(0)
        variance = np.maximum(square / count - (total / count) ** 2, 0.0)
        power = power / count
        alive = power[power > 0]
        median = float(np.quantile(alive, 0.5, method="lower")) if len(alive) else 0.0
        scale = np.maximum(np.maximum(variance, _OWN_POWER * power), _MEDIAN_POWER * median)
        # What is always 0 says nothing of its unit: it is taken for that of the others.
        scale = np.where(power > 0, scale, median)
        self._scale: _Array = np.maximum(scale, float(np.finfo(np.float32).tiny))
        self._sums, self._count = np.zeros_like(self._scale), 0

    def __call__(self, _keys: Array, ours: _Array, theirs: _Array) -> tuple[_Array, _Array | None]:
        error = (ours - theirs) ** 2 / self._scale
        self._sums, self._count = self._sums + error.sum(0), self._count + len(error)
        if self._threshold is None:
            return error.mean(1), None
        changed = (ours >= self._threshold) != (theirs >= self._threshold)
        return error.mean(1), changed.mean(1)

    def worst(self) -> tuple[int, float] | None:
        """Return the element whose divergence is largest, and that; None where no single element matters."""
        if len(self._sums) > _NAMED:
            return None
        index = int(self._sums.argmax())
        return index, float(self._sums[index] / self._count)


class _Embeddings:
    """How the cosines to a sample's own embedding and to its nearest move, and how many of the nearest are others.

    The index, which holds the reference's samples, stays as it is: so it is where queries are compressed and the
    index is not, and a rotation of all shows.
    """

    def __init__(self, reference: Iterable[tuple[Array, _Array]]) -> None:
        index = Subsample(_INDEX)
        count, square = 0, 0.0
        for keys, rows in reference:
            index.add(keys, [rows])
            count, square = count + len(rows), square + float((rows**2).sum())
        self._floor = _near_zero(square, count)
        self._keys, self._index = index.keys, self._directions(index.rows[0])

    def __call__(self, keys: Array, ours: _Array, theirs: _Array) -> tuple[_Array, _Array | None]:
        mine, other = self._directions(ours), self._directions(theirs)
        itself = ((mine - other) ** 2).sum(1, keepdims=True) / 2  # of unit length: 1 - cosine
        count = min(_NEAREST, len(self._keys) - 1)
        if count < 1:
            return itself[:, 0], None
        different = keys[:, None] != self._keys[None]
        found, expected = (np.where(different, z @ self._index.T, -np.inf) for z in (mine, other))
        before, after = _nearest(expected, count), _nearest(found, count)
        moved = np.abs(np.take_along_axis(found, before, 1) - np.take_along_axis(expected, before, 1))
        change: _Array = np.concatenate([itself, moved], 1).mean(1)
        kept = (after[:, :, None] == before[:, None, :]).any(2).mean(1)
        return change, 1 - kept

    def _directions(self, rows: _Array) -> _Array:
        """Return rows [B, D] scaled to unit length, shorter where they are as good as zero."""
        directions: _Array = rows / np.maximum(_lengths(rows), self._floor)[:, None]
        return directions


def _nearest(cosines: _Array, count: int) -> NDArray[np.intp]:
    order: NDArray[np.intp] = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return order


def _length_floor(reference: Probe, output: str, kind: OutputKind) -> float:
    """Return the length below which an output is as good as zero."""
    chunks = (_rows(chunk[output]) for chunk in in_chunks(reference, [output]))
    square = sum(float((_unless_ruled_out(rows, rows, kind)[1] ** 2).sum()) for rows in chunks)
    return _near_zero(square, len(reference))


def _near_zero(square: float, count: int) -> float:
    """Return the length below which one of ``count`` rows is as good as zero, from the sum of all their squares."""
    return max(_NEAR_ZERO * math.sqrt(square / count), float(np.finfo(np.float32).tiny))


def _unless_ruled_out(ours: _Array, theirs: _Array, kind: OutputKind) -> tuple[_Array, _Array]:
    """Return both with 0 for classes whose logits are -inf in the reference: it rules them out by that."""
    if kind.name != "classes" or kind.probabilities:
        return ours, theirs
    ruled_out = np.isneginf(theirs)
    return np.where(ruled_out, 0, ours), np.where(ruled_out, 0, theirs)


def _rows(outputs: Array) -> _Array:
    rows: _Array = outputs.reshape(len(outputs), -1).astype(np.float64)
    return rows


def _lengths(rows: _Array) -> _Array:
    lengths: _Array = np.sqrt((rows**2).sum(1))
    return lengths


def _log_softmax(scores: _Array) -> _Array:
    shifted = scores - scores.max(1, keepdims=True)
    logs: _Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs


def _log_of_probabilities(scores: _Array) -> _Array:
    logs: _Array = np.log(scores.clip(_EDGE))
    return logs
