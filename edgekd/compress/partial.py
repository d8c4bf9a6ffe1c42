"""A network of which any part is quantized, measured against the float network on calibration samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.oracles import identity
from edgekd.compress.switchboard import Switchboard
from edgekd.gram.blame import Effect, Series, make_blocks
from edgekd.gram.drift import sample_drifts
from edgekd.gram.npz import embeddings_of
from edgekd.gram.probe import top1

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from onnx import ModelProto

    from edgekd.runtime.session import Array, Feeds

#: Number of samples that tell suspects apart; each costs one inference for every suspect.
SAMPLES = 256


@dataclass(frozen=True)
class SampleFacts:
    """Labels and groups of the samples, and the task's metric.

    Attributes:
        labels: Label of each sample [N]; None without labels.
        groups: Cluster of each sample [N]; None where samples are independent.
        metric: The task's metric, a function of logits and labels; None without labels.
        higher_is_better: Whether a larger metric is better.
    """

    labels: Array | None = None
    groups: Array | None = None
    metric: Callable[[Array, Array], float] | None = None
    higher_is_better: bool = True


@dataclass(frozen=True)
class PartialResult:
    """Figures of a partly quantized network, with the jackknife series that their standard errors need.

    Attributes:
        effect: Drift, flips, signal-to-noise ratio and metric.
        noise: RMS of the logits' error over the RMS of the float logits.
        drift: The mean drift over all samples, and without each block of them.
        metric: The metric likewise, negated where lower is better; None without labels.
    """

    effect: Effect
    noise: float
    drift: Series
    metric: Series | None


class Examiner:
    """Measures a network with any of its tensors in float. The samples are held in memory.

    Attributes:
        qdq: The QDQ graph.
        floats: The float graph that was quantized.
        board: The network with a switch for each quantized tensor.
        samples: Number of samples.
        few: The first few of them.
    """

    def __init__(
        self, qdq: ModelProto, floats: ModelProto, samples: Iterable[Feeds], judging: SampleFacts | None = None
    ) -> None:
        """Run the float graph.

        Args:
            qdq: The QDQ graph, with outputs ``logits`` and ``embedding.<modality>``.
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
        self._chunks = list(samples)
        if not self._chunks:
            raise ValueError("there are no samples to examine the network on")
        self.few = [{name: x[: identity.SAMPLES] for name, x in self._chunks[0].items()}]
        self._exact = self._outputs([item.tensor for item in self.board.tensors])
        self.samples = len(self._exact["logits"])
        self._blocks = make_blocks(self.samples, self._judging.groups)

    def measure(self, off: Collection[str] = ()) -> PartialResult:
        """Compare the network with the tensors ``off`` in float, and all others quantized, with the float network."""
        found, exact = self._outputs(off), self._exact
        drifts = sample_drifts(embeddings_of(found), embeddings_of(exact))
        drift = Series.of(lambda kept: float(drifts[kept].mean()), self._blocks)
        power, error = _power(exact["logits"]), _power(found["logits"] - exact["logits"])
        metric = self._metric(found["logits"])
        effect = Effect(
            drift=drift.value,
            flips=_flips(found["logits"], exact["logits"]),
            snr_db=float(10 * np.log10(power / error)) if power and error else None,
            metric=metric.value if metric else None,
        )
        sign = 1 if self._judging.higher_is_better else -1
        return PartialResult(
            effect, float(np.sqrt(error / power)) if power else 0.0, drift, metric * sign if metric else None
        )

    def tensors_of(self, layers: Collection[str]) -> frozenset[str]:
        """Return the tensors that only these layers read; a tensor that another layer reads too is not among them."""
        wanted = set(layers)
        return frozenset(item.tensor for item in self.board.tensors if item.layers and wanted.issuperset(item.layers))

    def _outputs(self, off: Collection[str]) -> dict[str, Array]:
        chunks = [self.board.run(feeds, off) for feeds in self._chunks]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _metric(self, logits: Array) -> Series | None:
        metric, labels = self._judging.metric, self._judging.labels
        if metric is None or labels is None:
            return None
        return Series.of(lambda kept: float(metric(logits[kept], labels[kept])), self._blocks)


def _flips(logits: Array, exact: Array) -> float | None:
    if exact.ndim != 2 or exact.shape[1] < 2:
        return None
    return float((top1(logits) != top1(exact)).mean())


def _power(x: Array) -> float:
    return float(np.square(x, dtype=np.float64).sum())
