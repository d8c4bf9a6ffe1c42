"""A network of which any part is quantized, measured against the float network on calibration samples."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.oracles import identity
from edgekd.compress.switchboard import Switchboard
from edgekd.errors import TaskError
from edgekd.gram.answers import joint_divergences, joint_errors
from edgekd.gram.blame import Effect
from edgekd.gram.drift import pair_drifts
from edgekd.gram.jackknife import Series, make_blocks
from edgekd.gram.nest import take_rows
from edgekd.gram.npz import answers_of, embeddings_of
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import answer_of, top1

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray
    from onnx import ModelProto

    from edgekd.gram.metric import Metric
    from edgekd.gram.nest import Nest
    from edgekd.gram.probe import Answer
    from edgekd.runtime.session import Array, Feeds

#: Number of samples that tell suspects apart, at most and at least. Each costs one inference of the whole network for
#: every suspect, which in all is quadratic in the layers; of many layers fewer samples do, so that it stays linear.
SAMPLES, _FEWEST = 256, 32
_LAYERS_TIMES_SAMPLES = 4096

#: A mean divergence that is rounding alone.
_ROUNDING = 1e-12


def enough_samples(layers: int) -> int:
    """Return the number of samples on which a network of so many layers is examined."""
    return max(_FEWEST, min(SAMPLES, _LAYERS_TIMES_SAMPLES // max(layers, 1)))


@dataclass(frozen=True)
class SampleFacts:
    """What the output is, labels and groups of the samples, and the task's metric.

    Attributes:
        targets: What each sample is labelled with; None without labels.
        groups: Cluster of each sample [N]; None where samples are independent.
        metric: The task's metric, a function of what a network answered and targets; None without labels.
        higher_is_better: Whether a larger metric is better.
        kinds: What each output is, by name, which decides how its divergence is measured.
    """

    targets: Nest | None = None
    groups: Array | None = None
    metric: Metric | None = None
    higher_is_better: bool = True
    kinds: Mapping[str, OutputKind] = field(default_factory=lambda: {"logits": OutputKind()})


@dataclass(frozen=True)
class PartialResult:
    """Figures of a partly quantized network, with the jackknife series that their standard errors need.

    Attributes:
        effect: Divergence, error, drift, flips, signal-to-noise ratio and metric.
        divergence: The mean divergence over all samples, and without each block of them.
        error: The mean error of the output likewise.
        metric: The metric likewise, negated where lower is better; None without labels.
    """

    effect: Effect
    divergence: Series
    error: Series
    metric: Series | None

    def loss(self, whole: PartialResult) -> Series:
        """Return how much is left of what the output of the quantized network ``whole`` loses.

        It is the mean of two shares, those of the divergence and of the error: 1 with everything quantized, 0 in float.
        With few samples the error tells more, as it shows on samples that are far from being decided otherwise; with
        many the divergence, as it does not count what decides nothing.
        """
        pairs = ((self.divergence, whole.divergence), (self.error, whole.error))
        shares = [part / everything for part, everything in pairs if everything.value > _ROUNDING]
        if not shares:
            return self.error * 0.0
        return sum(shares[1:], shares[0]) * (1 / len(shares))


class Examiner:
    """Measures a network with any of its tensors in float. The samples are held in memory.

    Attributes:
        qdq: The QDQ graph.
        floats: The float graph that was quantized.
        board: The network with a switch for each quantized tensor.
        kinds: What each output is, by name.
        samples: Number of samples.
        few: The first few of them.
    """

    def __init__(
        self, qdq: ModelProto, floats: ModelProto, samples: Iterable[Feeds], judging: SampleFacts | None = None
    ) -> None:
        """Run the float graph.

        Args:
            qdq: The QDQ graph, with the network's outputs and ``embedding.<modality>``.
            floats: The float graph that was quantized.
            samples: The samples in chunks; none of them may be among the gate's.
            judging: Labels and groups in the order of the samples, and the metric.

        Raises:
            ModelError: The two graphs do not belong together.
            ValueError: There are no samples.
        """
        self.qdq, self.floats = qdq, floats
        self.board = Switchboard(qdq, floats)
        self._judging = judging or SampleFacts()
        self.kinds = self._judging.kinds
        self._chunks = list(samples)
        if not self._chunks:
            raise ValueError("there are no samples to examine the network on")
        self.few = [{name: x[: identity.SAMPLES] for name, x in self._chunks[0].items()}]
        self._exact = self._outputs([item.tensor for item in self.board.tensors])
        self.samples = len(self._exact[next(iter(self.kinds))])
        self._blocks = make_blocks(self.samples, self._judging.groups)

    def on_first(self, count: int) -> Examiner:
        """Return the same network on the first samples alone, without labels."""
        few, groups = copy(self), self._judging.groups
        few._exact = {name: x[:count] for name, x in self._exact.items()}
        few._chunks, left = [], count
        for chunk in self._chunks:
            if left > 0:
                few._chunks.append({name: x[:left] for name, x in chunk.items()})
                left -= len(next(iter(chunk.values())))
        few.samples = min(count, self.samples)
        few._judging = replace(
            self._judging, targets=None, metric=None, groups=None if groups is None else groups[:count]
        )
        few._blocks = make_blocks(few.samples, few._judging.groups)
        return few

    def measure(self, off: Collection[str] = ()) -> PartialResult:
        """Compare the network with the tensors ``off`` in float, and all others quantized, with the float network."""
        found, exact = self._outputs(off), self._exact
        pairs = pair_drifts(embeddings_of(found), embeddings_of(exact))
        worst = max(pairs, key=lambda name: float(pairs[name].mean()))
        divergence = Series.mean(joint_divergences(found, exact, self.kinds), self._blocks)
        error = Series.mean(joint_errors(found, exact, self.kinds), self._blocks)
        metric = self._metric(answer_of(answers_of(found)))
        first = next(iter(self.kinds))
        effect = Effect(
            divergence=divergence.value,
            error=error.value,
            drift=float(np.mean(list(pairs.values()))),
            worst_pair=worst,
            worst_pair_drift=float(pairs[worst].mean()),
            flips=_flips(found[first], exact[first]),
            snr_db=_snr_db(found[first], exact[first]),
            metric=metric.value if metric else None,
        )
        sign = 1 if self._judging.higher_is_better else -1
        return PartialResult(effect, divergence, error, metric * sign if metric else None)

    def tensors_of(self, layers: Collection[str]) -> frozenset[str]:
        """Return the tensors that only these layers read; a tensor that another layer reads too is not among them."""
        wanted = set(layers)
        return frozenset(item.tensor for item in self.board.tensors if item.layers and wanted.issuperset(item.layers))

    def _outputs(self, off: Collection[str]) -> dict[str, Array]:
        chunks = [self.board.run(feeds, off) for feeds in self._chunks]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _metric(self, answer: Answer) -> Series | None:
        metric, targets = self._judging.metric, self._judging.targets
        if metric is None or targets is None:
            return None

        def tried(kept: NDArray[np.bool_]) -> float:
            try:
                return float(metric(take_rows(answer, kept), take_rows(targets, kept)))
            except TaskError:  # of these few samples, as without any of some class
                return math.nan

        return Series.of(tried, self._blocks)


def _flips(output: Array, exact: Array) -> float | None:
    if exact.ndim != 2 or exact.shape[1] < 2:
        return None
    return float((top1(output) != top1(exact)).mean())


def _snr_db(output: Array, exact: Array) -> float | None:
    power, error = _power(exact), _power(output - exact)
    return float(10 * np.log10(power / error)) if power and error else None


def _power(x: Array) -> float:
    return float(np.square(x, dtype=np.float64).sum())
