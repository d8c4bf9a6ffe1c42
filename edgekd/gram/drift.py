"""The drift: how far one model's modality Gram is from another's on the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from edgekd.gram.intervals import upper_bound
from edgekd.gram.matrix import comparable, normalize, pair_cosines, pair_names
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.gram.probe import side_by_side, top1
from edgekd.gram.stats import debiased_cka, spearman
from edgekd.gram.streaming import Subsample, Units, hash_names
from edgekd.gram.within import Anchors, anchor_cosines, choose_anchors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from edgekd.gram.intervals import Bootstrap
    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Probe
    from edgekd.gram.streaming import Keys

    Embeddings = Mapping[str, Array]

_Array: TypeAlias = "NDArray[np.float64]"

Scope = Literal["sample", "intra"]


@dataclass(frozen=True)
class Drift:
    """The drift of a model's Gram from a reference's.

    Attributes:
        mean: Mean over samples of ``e_b``; 0 is the same Gram, 2 the opposite. In scope "sample"
            ``e_b = mean over pairs i < j of |G_b - G_b^ref|``; in scope "intra" the mean over modalities and anchors of
            the same difference of the sample's cosines to the anchors, NaN for one sample alone.
        bound: One-sided upper confidence bound of that mean; in scope "intra" the anchors are taken as fixed.
        worst_pair: The pair of modalities with the largest mean, ``"a-b"``; in scope "intra" the modality.
        worst_pair_mean: Mean of that pair, or of that modality.
        bias: Mean of the signed difference ``G - G^ref``.
        rank_correlation: Spearman's correlation of the cosines; None where one side is constant.
        cka: Debiased linear CKA of the unit embeddings, stacked, in scope "intra" side by side; None below 4 rows.
        samples: Number of samples that the drift was measured on.
        clusters: Number of groups that the samples belong to, or, of more than :data:`edgekd.gram.streaming.UNITS`,
            number of blocks of groups that the bound is over; None where samples are independent.
        scope: "sample", between the modalities of a sample, or "intra", between the samples of a modality.
    """

    mean: float
    bound: float
    worst_pair: str
    worst_pair_mean: float
    bias: float
    rank_correlation: float | None
    cka: float | None
    samples: int
    clusters: int | None
    scope: Scope

    @property
    def alone(self) -> bool:
        """Whether there was one sample alone, which within a modality has no others to be compared with."""
        return self.scope == "intra" and self.samples < 2


#: An embedding is noise where it is shorter than this share of the root mean square length of the reference's, or than
#: this length: one engine gives 0 where another gives 1e-9, and a cosine with that says nothing.
_NOISE_SHARE, _NOISE = 1e-4, 1e-6

#: The largest difference of two cosines.
_LARGEST = 2.0

#: The most rows of the joint CKA, whose cost is quadratic in them, and the most cosines that are ranked. Where there
#: are more, those of a subsample are taken.
_CKA_ROWS = 1024
_RANKED = 1 << 16


def measure_drift(probe: Probe, reference: Probe, groups: Array | None, bootstrap: Bootstrap) -> Drift:
    """Measure the drift of ``probe`` from ``reference``, between the modalities of a sample where that is possible.

    It is possible where there are two modalities or more and all share a width, in each of the two models. Otherwise
    samples are compared with each other, within each modality.

    Args:
        probe: The model's embeddings of N samples.
        reference: The reference's embeddings of the same samples.
        groups: Each sample's cluster [N] (a subject, a clip), or None where samples are independent.
        bootstrap: How to bound the mean.

    Raises:
        ValueError: The probes are not of the same samples, or have none, or no embeddings.
    """
    modalities = probe.modalities
    keys = [EMBEDDING_PREFIX + name for name in modalities]
    between = probe.comparable and reference.comparable
    floors = _floors((theirs for _, theirs in side_by_side(probe, reference, keys)), keys)

    def pairs() -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        for ours, theirs in side_by_side(probe, reference, keys):
            yield without_noise(ours, theirs, floors)

    anchors = None if between else choose_anchors(pairs(), modalities)
    meter = DriftMeter(modalities, bootstrap, anchors)
    seen = 0
    for ours, theirs in pairs():
        start, seen = seen, seen + len(ours["ids"])
        mine, other = ({name: side[EMBEDDING_PREFIX + name] for name in modalities} for side in (ours, theirs))
        meter.add(ours["ids"], mine, other, None if groups is None else groups[start:seen])
    return meter.result()


class DriftMeter:
    """Measures the drift of embeddings that come in chunks. Memory does not grow with the number of samples.

    The result does not depend on the chunks. The mean is over all samples; rank correlation and CKA are computed on a
    subsample that is chosen by the samples' names, and has all samples where they are few.

    Args:
        modalities: Names of the modalities.
        bootstrap: How to bound the mean.
        anchors: Samples to compare with, to measure within each modality; None to measure between the modalities of
            each sample.
    """

    def __init__(self, modalities: Sequence[str], bootstrap: Bootstrap, anchors: Anchors | None = None) -> None:
        if not modalities:
            raise ValueError("a Gram needs embeddings: there are none")
        self._bootstrap, self._anchors = bootstrap, anchors
        self._names = pair_names(modalities) if anchors is None else list(modalities)
        columns = len(self._names) * (1 if anchors is None else len(anchors.keys))
        self._samples, self._grouped = 0, False
        self._units = Units()
        self._error, self._difference = np.zeros(len(self._names)), np.zeros(len(self._names))
        self._ranked = Subsample(max(1, _RANKED // columns))
        self._embedded = Subsample(_CKA_ROWS // (len(modalities) if anchors is None else 1))

    def add(
        self,
        ids: Array,
        embeddings: Embeddings,
        reference: Embeddings,
        groups: Array | None = None,
    ) -> None:
        """Measure the next samples.

        Args:
            ids: Names of the samples [B].
            embeddings: The model's embeddings, for each modality [B, D].
            reference: The reference's embeddings, likewise.
            groups: Each sample's cluster [B], or None, in every chunk, where samples are independent.
        """
        keys = hash_names(ids)
        cosines, expected, counted = self._cosines(keys, _double(embeddings), _double(reference))
        difference = cosines - expected
        with np.errstate(invalid="ignore"):  # a sample that is the only anchor: NaN
            weights = counted[:, None] / counted.sum(1)[:, None, None]
        error = (np.abs(difference) * weights).sum(2)
        self._samples += len(ids)
        self._error += error.sum(0)
        self._difference += (difference * weights).sum((0, 2))
        self._units.add(keys if groups is None else hash_names(groups), error.mean(1))
        self._grouped = groups is not None
        self._ranked.add(keys, [cosines, expected, counted])
        self._embedded.add(keys, [*embeddings.values(), *reference.values()])

    def result(self) -> Drift:
        """Return the drift of all samples so far.

        Raises:
            ValueError: There are no samples.
        """
        if not self._samples:
            raise ValueError("a drift needs samples: there are none")
        sums, counts = self._units.totals()
        by_name = self._error / self._samples
        worst = int(by_name.argmax())
        return Drift(
            mean=float(by_name.mean()),
            bound=upper_bound(sums, counts, self._bootstrap, _LARGEST),
            worst_pair=self._names[worst],
            worst_pair_mean=float(by_name[worst]),
            bias=float(self._difference.mean() / self._samples),
            rank_correlation=self._rank_correlation(),
            cka=self._joint_cka(),
            samples=self._samples,
            clusters=len(counts) if self._grouped else None,
            scope="sample" if self._anchors is None else "intra",
        )

    def _cosines(self, keys: Keys, embeddings: Embeddings, reference: Embeddings) -> tuple[_Array, _Array, _Array]:
        """Return the cosines of both sides [B, names, columns], and which columns count for a sample [B, columns]."""
        if self._anchors is None:
            cosines, expected = (pair_cosines(z)[..., None] for z in (embeddings, reference))
            return cosines, expected, np.ones((len(keys), 1), bool)
        cosines = anchor_cosines(embeddings, self._anchors.embeddings)
        return cosines, anchor_cosines(reference, self._anchors.reference), self._anchors.others(keys)

    def _rank_correlation(self) -> float | None:
        cosines, expected, counted = self._ranked.rows
        kept = np.broadcast_to(counted[:, None], cosines.shape)
        return spearman(cosines[kept], expected[kept])

    def _joint_cka(self) -> float | None:
        """Return the CKA over rows (sample, modality): a modality that rotates against the others lowers it.

        The CKA of each modality alone does not see such a rotation.
        """
        unit = [normalize(z.astype(np.float64)) for z in self._embedded.rows]
        half = len(unit) // 2
        axis = 0 if self._anchors is None else 1
        return debiased_cka(np.concatenate(unit[:half], axis), np.concatenate(unit[half:], axis))


def sample_drifts(embeddings: Embeddings, reference: Embeddings) -> _Array:
    """Return the drift ``e_b`` of each sample [N], as :func:`measure_drift` computes it, in memory.

    Args:
        embeddings: The model's embeddings, for each modality [N, D].
        reference: The reference's embeddings of the same samples.
    """
    drifts: _Array = np.mean(list(pair_drifts(embeddings, reference).values()), axis=0)
    return drifts


def pair_drifts(embeddings: Embeddings, reference: Embeddings) -> dict[str, _Array]:
    """Return the drift of each sample [N] in each pair of modalities, or within each modality, in memory.

    Their mean is ``e_b``; names are those of :attr:`Drift.worst_pair`.

    Args:
        embeddings: The model's embeddings, for each modality [N, D].
        reference: The reference's embeddings of the same samples.
    """
    floors = _floors([reference], list(reference))
    ours, theirs = map(_double, without_noise(embeddings, reference, floors))
    if comparable(ours) and comparable(theirs):
        between = np.abs(pair_cosines(ours) - pair_cosines(theirs))
        return dict(zip(pair_names(list(ours)), between.T, strict=True))
    ids = np.arange(len(next(iter(ours.values())))).astype(str)
    sides = [{"ids": ids, **{EMBEDDING_PREFIX + name: z for name, z in side.items()}} for side in (ours, theirs)]
    anchors = choose_anchors([(sides[0], sides[1])], list(ours))
    difference = np.abs(anchor_cosines(ours, anchors.embeddings) - anchor_cosines(theirs, anchors.reference))
    counted = anchors.others(hash_names(ids))
    within = (difference * counted[:, None]).sum(2) / counted.sum(1)[:, None]
    return dict(zip(ours, within.T, strict=True))


def _double(embeddings: Embeddings) -> dict[str, _Array]:
    return {name: z.astype(np.float64) for name, z in embeddings.items()}


def without_noise(
    ours: Mapping[str, Array], theirs: Mapping[str, Array], floors: Mapping[str, float]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return both sides of a comparison with each embedding [B, D] that is noise 0, as its direction is nothing.

    It is noise where it is shorter than its floor, or the other side's is and the two differ by less than that: one a
    little above the floor and one a little below are the same, and must not count as opposites.

    Args:
        ours: Arrays of one side; those without a floor stay as they are.
        theirs: Arrays of the other side.
        floors: Lengths by the arrays' keys.
    """
    cleaned = dict(ours), dict(theirs)
    for key, floor in floors.items():
        lengths = [np.linalg.norm(side[key], axis=-1, keepdims=True) for side in (ours, theirs)]
        short = [length < floor for length in lengths]
        if ours[key].shape == theirs[key].shape:
            same = np.linalg.norm(ours[key] - theirs[key], axis=-1, keepdims=True) < floor
            short = [noise | (same & other) for noise, other in zip(short, reversed(short), strict=True)]
        for side, noise in zip(cleaned, short, strict=True):
            side[key] = np.where(noise, 0, side[key])
    return cleaned


def _floors(reference: Iterable[Mapping[str, Array]], keys: Sequence[str]) -> dict[str, float]:
    """Return by its key the length below which an embedding of a reference, which comes in chunks, is noise."""
    squares = dict.fromkeys(keys, 0.0)
    count = 0
    for chunk in reference:
        count += len(chunk[keys[0]]) if keys else 0
        for key in keys:
            squares[key] += float(np.square(chunk[key], dtype=np.float64).sum())
    return {key: max(_NOISE_SHARE * float(np.sqrt(square / count)), _NOISE) for key, square in squares.items()}


def flips(probe: Probe, reference: Probe) -> float | None:
    """Return the share of samples whose top-1 class by the first output differs; None where it is no classifier's.

    Raises:
        ValueError: The probes are not of the same samples.
    """
    output = reference.output_names[0]
    if not (probe.classifies(output) and reference.classifies(output)):
        return None
    pairs = side_by_side(probe, reference, [output])
    changed = sum(int((top1(ours[output]) != top1(theirs[output])).sum()) for ours, theirs in pairs)
    return changed / len(probe)
