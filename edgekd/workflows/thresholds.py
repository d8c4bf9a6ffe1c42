"""The alarm: which limits of the gate find, on a user's own network, what lost too much of the metric.

A float network is damaged in many known ways, and each measure of the gate is compared with the loss. Drift does not
see the fusion, which comes after the embeddings: its limits are derived from the other perturbations alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekd.compress.perturb import Perturbation, perturb, perturbations_of
from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.gram.answers import changed_answers, joint_divergences
from edgekd.gram.blame import FUSION
from edgekd.gram.drift import sample_drifts
from edgekd.gram.intervals import round_up
from edgekd.gram.jackknife import Series, make_blocks
from edgekd.gram.limits import Suggestion, Tally, has_lost, is_refused, samples_that_tell, suggest
from edgekd.gram.nest import take_rows, targets_of
from edgekd.gram.npz import answers_of, embeddings_of
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import answer_of
from edgekd.gram.stats import t_quantile
from edgekd.pipeline.target.missing import read_stand_ins, without
from edgekd.runtime.backends.registry import AS_WRITTEN
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.session import open_arrays, run_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.gram.metric import Metric
    from edgekd.gram.nest import Nest
    from edgekd.gram.probe import Answer
    from edgekd.gram.verdict import GateLimits
    from edgekd.runtime.session import Array, Feeds
    from edgekd.stages.progress import StageReporter

#: Keys of ``[gate]`` for which a limit may be suggested.
LimitName = Literal["max_divergence", "max_flips", "max_missing_flips", "tau_fail", "tau_pass"]

#: With a modality absent this many times ``max_metric_drop`` is too much: more is at stake there, and less is sure.
MISSING_FACTOR = 3.0

_BATCH = 256
#: Losses near the limit whose intervals say how many samples would tell more.
_NEAR_LIMIT = 5
#: Confidence of these intervals, one-sided.
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Outcome:
    """The effect of one perturbation, against the unperturbed network on the same samples.

    Attributes:
        perturbation: The perturbation.
        divergence: Mean divergence of the output, see :data:`edgekd.gram.answers.MEASURES`.
        flips: Share of answers that changed, such as the top-1 class; None where the output decides nothing.
        drift: Mean drift of the Gram.
        loss: How much worse the metric is, positive where it is worse; where there is no metric, the flips.
        missing_flips: The flips with one modality absent in both networks, of the modality with the most; None where
            the output decides nothing or there are not two modalities.
        missing_loss: The loss of the metric with one modality absent in both, of the modality with the largest; None
            where there is no metric or there are not two modalities.
    """

    perturbation: Perturbation
    divergence: float
    flips: float | None
    drift: float
    loss: float
    missing_flips: float | None = None
    missing_loss: float | None = None


@dataclass(frozen=True)
class SuggestedLimit:
    """One limit of the gate: the recipe's, and the one that the perturbations give.

    Attributes:
        now: The recipe's limit.
        at_now: Whom it lets through and refuses.
        suggestion: The limit by :func:`edgekd.gram.limits.suggest`.
        at_suggested: Whom that lets through and refuses; None where there is none.
    """

    now: float
    at_now: Tally
    suggestion: Suggestion
    at_suggested: Tally | None


@dataclass(frozen=True)
class Alarm:
    """Which limits find what lost too much. Rates are on the same samples and perturbations that gave the limits.

    Attributes:
        judged_by: What a loss is: a loss of the metric, or, without labels, flips.
        max_loss: The largest loss that counts as none; half of it does for ``tau_pass``, and three times as much with a
            modality absent.
        metric: The metric of the unperturbed network; None without labels.
        samples: Number of samples that everything is measured on.
        limits: By their key the limits that this network has.
        together: Whom the recipe's divergence, flips and tau_fail let through and refuse together.
        suggested_together: The same with those of them that are suggested in the place of the recipe's.
        needed: About how many samples would tell ``max_loss`` from half of it; None where these do.
        outcomes: Effects of all perturbations.
    """

    judged_by: Literal["metric", "flips"]
    max_loss: float
    metric: float | None
    samples: int
    limits: dict[LimitName, SuggestedLimit]
    together: Tally
    suggested_together: Tally
    needed: int | None
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class AlarmSamples:
    """What damaged networks are compared on.

    Attributes:
        path: ``.npz`` with ``ids``, ``input.<modality>`` and, for the metric, ``labels``. Limits that are to gate a
            build must not be read off the samples that gate it: give ``calibration.npz``, not ``test.npz``.
        metric: Computes the task's metric from what a network answered for N samples, and their labels; it is not a
            number where no sample has a label. None to judge by flips.
        kinds: What each of the network's outputs is, by name.
        modalities: The inputs that may be absent; of fewer than two none is.
        stand_ins: For some of them the inputs that take a number while it is absent.
    """

    path: Path
    metric: Metric | None
    kinds: Mapping[str, OutputKind] = field(default_factory=lambda: {"logits": OutputKind()})
    modalities: Sequence[str] = ()
    stand_ins: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def measure_alarm(
    graph: Path,
    samples: AlarmSamples,
    limits: GateLimits,
    report: StageReporter,
    grid: Sequence[Perturbation] | None = None,
) -> Alarm:
    """Perturb a float network, and find the limits that tell what lost too much.

    Graphs run as they are written, without ONNX Runtime's optimizers, as the gate's own do.

    Args:
        graph: Float ONNX with the network's outputs and ``embedding.<modality>``.
        samples: What it is compared on.
        limits: The recipe's limits, with the largest loss, ``max_metric_drop`` or ``max_flips``.
        report: Receives the progress.
        grid: The perturbations; by default those of :func:`edgekd.compress.perturb.perturbations_of`.

    Raises:
        ModelError: The graph cannot be read, run or perturbed, the samples do not fit it, or there is no loss to
            measure: there are no labels, and the output decides nothing.
    """
    bench = _AlarmBench.open(graph, samples, limits)
    model = need("onnx", "build").load(str(graph))
    grid = perturbations_of(model) if grid is None else grid
    outcomes = []
    for done, perturbation in enumerate(grid, 1):
        outcomes.append(bench.measure(model, perturbation))
        report.advance(done, len(grid))
    alarm = summarize(outcomes, limits, bench.score, bench.count, bench.kinds)
    return _with_needed(alarm, bench, model)


@dataclass(frozen=True)
class _DamagedOutputs:
    """What a network gives: all outputs, and the same with each modality absent."""

    outputs: dict[str, Array]
    absent: list[dict[str, Array]]


@dataclass(frozen=True)
class _AlarmBench:
    """All that a perturbed network is compared with.

    Attributes:
        feeds: The samples.
        absent: The same with each modality absent.
        targets: What the samples are labelled with; None where there is no metric.
        groups: Cluster of each sample [N]; None where samples are independent.
        metric: The metric of outputs and targets, higher for better.
        score: The unperturbed network's metric; None where there are no labels.
        kinds: What each output is.
        reference: What the unperturbed network gives.
    """

    feeds: Feeds
    absent: Sequence[Feeds]
    targets: Nest | None
    groups: Array | None
    metric: Metric
    score: float | None
    kinds: Mapping[str, OutputKind]
    reference: _DamagedOutputs

    @classmethod
    def open(cls, graph: Path, samples: AlarmSamples, limits: GateLimits) -> _AlarmBench:
        metric, kinds = samples.metric, samples.kinds
        with AS_WRITTEN.open(graph) as session:
            feeds = read_feeds(samples.path, session.inputs)
        with open_arrays(samples.path) as arrays:
            targets, groups = targets_of(arrays), arrays.get("groups")
        absent = _without(feeds, samples)
        reference = _run(graph, feeds, absent)
        score = math.nan if metric is None or targets is None else metric(_answer(reference.outputs), targets)
        if math.isnan(score) and not any(map(_decides, kinds.values())):
            names = ", ".join(f"'{kind.name}'" for kind in kinds.values())
            raise ModelError(
                f"{samples.path}: has no labels for a metric, and the output of {graph} is {names}, which decides "
                "nothing whose flips would do"
            )
        known = None if math.isnan(score) else float(score)
        sign = 1 if limits.higher_is_better else -1

        def signed(outputs: Answer, of: Nest) -> float:
            return sign * metric(outputs, of) if metric else math.nan

        return cls(feeds, absent, None if known is None else targets, groups, signed, known, kinds, reference)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.reference.outputs[next(iter(self.kinds))])

    def measure(self, model: ModelProto, perturbation: Perturbation) -> Outcome:
        """Return the effect of a perturbation."""
        found = _run(perturb(model, perturbation).SerializeToString(), self.feeds, self.absent)
        ours, exact = found.outputs, self.reference.outputs
        flips, loss = self._flips(ours, exact), self._loss(ours, exact)
        pairs = list(zip(found.absent, self.reference.absent, strict=True))
        missing_flips = [flip for pair in pairs if (flip := self._flips(*pair)) is not None]
        missing_losses = [lost for pair in pairs if (lost := self._loss(*pair)) is not None]
        measured = loss if loss is not None else flips
        assert measured is not None  # there is a metric, or else the output decides
        return Outcome(
            perturbation,
            divergence=float(joint_divergences(ours, exact, self.kinds).mean()),
            flips=flips,
            drift=float(sample_drifts(*map(embeddings_of, (found.outputs, self.reference.outputs))).mean()),
            loss=measured,
            missing_flips=max(missing_flips, default=None),
            missing_loss=max(missing_losses, default=None),
        )

    def half_width(self, model: ModelProto, perturbation: Perturbation, confidence: float) -> float:
        """Return by how much the loss of a perturbation is unsure, by the jackknife; infinite for one group alone."""
        outputs = _run(perturb(model, perturbation).SerializeToString(), self.feeds, ()).outputs
        blocks = make_blocks(self.count, self.groups)

        def loss(kept: Array) -> float:
            ours, exact = ({name: x[kept] for name, x in table.items()} for table in (outputs, self.reference.outputs))
            lost = self._loss(ours, exact, kept)
            return lost if lost is not None else float(self._flips(ours, exact) or 0.0)

        error = Series.of(loss, blocks)
        return math.inf if error.error is None else error.error * t_quantile(confidence, len(error.without) - 1)

    def _flips(self, outputs: Mapping[str, Array], exact: Mapping[str, Array]) -> float | None:
        """Return the share of changed answers of the output of which most changed; None where none decides."""
        shares = [
            float(changed.mean())
            for name, kind in self.kinds.items()
            if _decides(kind) and (changed := changed_answers(outputs[name], exact[name], kind)) is not None
        ]
        return max(shares, default=None)

    def _loss(
        self, outputs: Mapping[str, Array], exact: Mapping[str, Array], kept: Array | slice = slice(None)
    ) -> float | None:
        if self.targets is None:
            return None
        targets = take_rows(self.targets, kept)
        return float(self.metric(_answer(exact), targets) - self.metric(_answer(outputs), targets))


def _answer(outputs: Mapping[str, Array]) -> Answer:
    return answer_of(answers_of(outputs))


def _without(feeds: Feeds, samples: AlarmSamples) -> list[Feeds]:
    """Return the samples with each modality absent, as the gate leaves it out; none of fewer than two."""
    if len(samples.modalities) < 2:
        return []
    read = [name for name in samples.modalities if name in feeds]
    return [without(feeds, one) for one in read_stand_ins(samples.path, read, samples.stand_ins).values()]


def _run(graph: Path | bytes, feeds: Feeds, absent: Sequence[Feeds]) -> _DamagedOutputs:
    with AS_WRITTEN.open(graph) as session:
        outputs = run_rows(session, feeds, _BATCH)
        return _DamagedOutputs(outputs, [run_rows(session, others, _BATCH) for others in absent])


def _decides(kind: OutputKind) -> bool:
    """Whether an output decides anything that can flip; an embedding's near neighbours trade places for nothing."""
    return kind.class_axis is not None or kind.name == "multilabel" or kind.threshold is not None


def summarize(
    outcomes: Sequence[Outcome], limits: GateLimits, metric: float | None, samples: int, kinds: Mapping[str, OutputKind]
) -> Alarm:
    """Return the limits that these outcomes give, and whom they let through and refuse.

    Args:
        outcomes: Outcome of every perturbation.
        limits: The recipe's limits, with the largest loss.
        metric: The metric of the unperturbed network; None where the losses are flips.
        samples: Number of samples that the outcomes were measured on.
        kinds: What each of the network's outputs is; the limit on the divergence is that of the first.
    """
    max_loss = limits.max_flips if metric is None else limits.max_metric_drop
    seen = [outcome for outcome in outcomes if outcome.perturbation.where != FUSION]
    found: dict[LimitName, SuggestedLimit] = {
        "max_divergence": _limit(outcomes, "divergence", limits.divergence(next(iter(kinds.values())).name), max_loss)
    }
    if metric is not None and all(outcome.flips is not None for outcome in outcomes):
        found["max_flips"] = _limit(outcomes, "flips", limits.max_flips, max_loss)
    if all(None not in (outcome.missing_flips, outcome.missing_loss) for outcome in outcomes):
        found["max_missing_flips"] = _limit(
            outcomes, "missing_flips", limits.max_missing_flips, MISSING_FACTOR * max_loss, "missing_loss"
        )
    found["tau_fail"] = _limit(seen, "drift", limits.tau_fail, max_loss)
    found["tau_pass"] = _limit(seen, "drift", limits.tau_pass, max_loss / 2)
    return Alarm(
        judged_by="flips" if metric is None else "metric",
        max_loss=max_loss,
        metric=metric,
        samples=samples,
        limits=found,
        together=_together(outcomes, found, max_loss, suggested=False),
        suggested_together=_together(outcomes, found, max_loss, suggested=True),
        needed=None,
        outcomes=tuple(outcomes),
    )


#: Which figure of an outcome each limit that refuses by itself is held against.
_REFUSING: Mapping[LimitName, str] = {"max_divergence": "divergence", "max_flips": "flips", "tau_fail": "drift"}


def _column(outcomes: Sequence[Outcome], name: str) -> Array:
    return np.array([getattr(outcome, name) for outcome in outcomes], np.float64)


def _limit(
    outcomes: Sequence[Outcome], measure: str, now: float, max_loss: float, loss: str = "loss"
) -> SuggestedLimit:
    figures, losses = _column(outcomes, measure), _column(outcomes, loss)
    lost = has_lost(losses, max_loss)
    suggestion = suggest(figures, losses, max_loss, measure.replace("missing_flips", "share of flips"))
    limit = suggestion.limit
    at_suggested = None if limit is None else Tally.of(is_refused(figures, limit), lost)
    return SuggestedLimit(now, Tally.of(is_refused(figures, now), lost), suggestion, at_suggested)


def _together(
    outcomes: Sequence[Outcome], limits: Mapping[LimitName, SuggestedLimit], max_loss: float, *, suggested: bool
) -> Tally:
    refused = np.zeros(len(outcomes), bool)
    for name, measure in _REFUSING.items():
        if name in limits:
            own = limits[name].suggestion.limit if suggested else None
            refused |= is_refused(_column(outcomes, measure), limits[name].now if own is None else own)
    return Tally.of(refused, has_lost(_column(outcomes, "loss"), max_loss))


def _with_needed(alarm: Alarm, bench: _AlarmBench, model: ModelProto) -> Alarm:
    """Return the alarm with the number of samples that would tell more, by the losses nearest to the limit."""
    known = alarm.limits["max_divergence"]
    limit = known.now if known.suggestion.limit is None else known.suggestion.limit
    nearest = sorted(alarm.outcomes, key=lambda outcome: abs(math.log((outcome.divergence + 1e-12) / limit)))
    widths = [bench.half_width(model, each.perturbation, _CONFIDENCE) for each in nearest[:_NEAR_LIMIT]]
    needed = samples_that_tell(widths, alarm.max_loss, alarm.samples)
    return replace(alarm, needed=None if needed is None else round_up(needed))
