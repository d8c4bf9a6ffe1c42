"""The alarm: whether the drift of the Gram, measured without labels, predicts a loss of accuracy, and from which limit.

A float network is damaged in many known ways, and the effect of each on the Gram is compared with its effect on the
metric. The fusion is damaged apart from the rest: it comes after the embeddings, so the drift does not see it, and only
flips and metric gate it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekd.compress.perturb import Perturbation, perturb, perturbations_of
from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.gram.answers import OutputKind, changed_answers
from edgekd.gram.blame import FUSION
from edgekd.gram.drift import sample_drifts
from edgekd.gram.limits import Suggestion, has_lost, suggest
from edgekd.gram.npz import embeddings_of
from edgekd.gram.probe import Probe
from edgekd.gram.stats import spearman
from edgekd.report.format import number, share
from edgekd.report.table import Column, Table
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.session import open_arrays, run_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgekd.gram.verdict import GateLimits
    from edgekd.runtime.session import Array, Feeds
    from edgekd.stages.progress import StageReporter

#: Edges between the bins in which perturbations are counted by their drift.
EDGES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)

_BATCH = 256

_CLASSES = OutputKind()


@dataclass(frozen=True)
class Outcome:
    """The effect of one perturbation, against the unperturbed network on the same samples.

    Attributes:
        perturbation: The perturbation.
        drift: Mean drift of the Gram.
        flips: Share of answers that changed, such as the top-1 class; None where the output decides nothing.
        loss: How much worse the metric is, positive where it is worse; where there is no metric, the flips.
    """

    perturbation: Perturbation
    drift: float
    flips: float | None
    loss: float


@dataclass(frozen=True)
class Bin:
    """The perturbations within a range of drift.

    Attributes:
        low: The smallest drift of the range.
        high: The drift that all are below; None where the range has no end.
        count: Number of perturbations.
        lost: Number of those that lost too much.
    """

    low: float
    high: float | None
    count: int
    lost: int


@dataclass(frozen=True)
class Alarm:
    """How well drift predicts loss.

    Attributes:
        judged_by: What a loss is: a loss of the metric, or, without labels, flips.
        max_loss: The largest loss that counts as none.
        metric: The metric of the unperturbed network; None without labels.
        samples: Number of samples that everything is measured on.
        drift_to_loss: Spearman's correlation of drift and loss; None where one is constant. Where a drift is too small
            to cost anything the loss is chance, so more perturbations with such a drift lower the correlation.
        drift_to_flips: Spearman's correlation of drift and flips; None where the output decides nothing.
        bins: Number of perturbations that lost too much, by drift.
        tau_pass: The limit by :func:`edgekd.gram.limits.suggest` for half of ``max_loss``.
        tau_fail: The limit by :func:`edgekd.gram.limits.suggest` for ``max_loss``.
        outcomes: Effects on the whole network and on each branch alone; all figures above are of these.
        fusion: Effects on the fusion alone.
    """

    judged_by: Literal["metric", "flips"]
    max_loss: float
    metric: float | None
    samples: int
    drift_to_loss: float | None
    drift_to_flips: float | None
    bins: tuple[Bin, ...]
    tau_pass: Suggestion
    tau_fail: Suggestion
    outcomes: tuple[Outcome, ...]
    fusion: tuple[Outcome, ...]


def measure_alarm(
    graph: Path,
    samples: Path,
    metric: Callable[[Array, Array], float] | None,
    limits: GateLimits,
    report: StageReporter,
    grid: Sequence[Perturbation] | None = None,
    kind: OutputKind = _CLASSES,
) -> Alarm:
    """Perturb a float network and measure how well drift predicts the loss.

    Limits that are to gate a build must not be read off the samples that gate it: give ``calibration.npz``, not
    ``test.npz``.

    Args:
        graph: Float ONNX with ``logits`` and ``embedding.<modality>`` outputs.
        samples: ``.npz`` with ``ids``, ``input.<modality>`` and, for the metric, ``labels``.
        metric: Computes the task's metric from logits [N, C] and labels [N]; it is not a number where no sample has a
            label. None to judge by flips.
        limits: The largest loss, ``max_metric_drop`` or ``max_flips``, and whether a higher metric is better.
        report: Receives the progress.
        grid: The perturbations; by default those of :func:`edgekd.compress.perturb.perturbations_of`.
        kind: What the network's output is.

    Raises:
        ModelError: The graph cannot be read, run or perturbed, the samples do not fit it, or there is no loss to
            measure: there are no labels, and the output decides nothing.
    """
    with open_engine(graph) as session:
        feeds = read_feeds(samples, session.inputs)
    with open_arrays(samples) as arrays:
        ids, labels = arrays["ids"], arrays.get("labels")
    model, reference = need("onnx", "build").load(str(graph)), _probe(graph, ids, feeds)
    score = math.nan if metric is None or labels is None else metric(reference.logits, labels)
    if math.isnan(score) and not _decides(kind):
        raise ModelError(
            f"{samples}: has no labels for a metric, and the output of {graph} is '{kind.name}', which decides nothing "
            "whose flips would do"
        )
    grid = perturbations_of(model) if grid is None else grid
    outcomes = []
    for done, perturbation in enumerate(grid, 1):
        found = _probe(perturb(model, perturbation).SerializeToString(), ids, feeds)
        loss = flipped = _flips(found, reference, kind)
        if metric and labels is not None and not math.isnan(score):
            loss = (score - metric(found.logits, labels)) * (1 if limits.higher_is_better else -1)
        assert loss is not None  # there is a metric, or else the output decides
        drift = float(sample_drifts(found.embeddings, reference.embeddings).mean())
        outcomes.append(Outcome(perturbation, drift, flipped, loss))
        report.advance(done, len(grid))
    return summarize(outcomes, limits, None if math.isnan(score) else score, len(ids))


def _decides(kind: OutputKind) -> bool:
    """Whether an output decides anything that can flip; an embedding's near neighbours trade places for nothing."""
    return kind.name in ("classes", "multilabel") or (kind.name == "values" and kind.threshold is not None)


def _flips(probe: Probe, reference: Probe, kind: OutputKind) -> float | None:
    changed = changed_answers(probe.logits, reference.logits, kind) if _decides(kind) else None
    return None if changed is None else float(changed.mean())


def _probe(graph: Path | bytes, ids: Array, feeds: Feeds) -> Probe:
    with open_engine(graph) as session:
        outputs = run_rows(session, feeds, _BATCH)
    return Probe(ids, outputs["logits"], embeddings_of(outputs))


def summarize(outcomes: Sequence[Outcome], limits: GateLimits, metric: float | None, samples: int) -> Alarm:
    """Return the alarm of these outcomes, of one network or of several.

    Args:
        outcomes: Outcome of every perturbation.
        limits: The largest loss.
        metric: The metric of the unperturbed network; None where the losses are flips.
        samples: Number of samples that the outcomes were measured on.
    """
    max_loss = limits.max_flips if metric is None else limits.max_metric_drop
    seen = tuple(outcome for outcome in outcomes if outcome.perturbation.where != FUSION)
    drifts, losses = (np.array([getattr(outcome, name) for outcome in seen]) for name in ("drift", "loss"))
    flipped = [outcome.flips for outcome in seen if outcome.flips is not None]
    return Alarm(
        judged_by="flips" if metric is None else "metric",
        max_loss=max_loss,
        metric=metric,
        samples=samples,
        drift_to_loss=spearman(drifts, losses),
        drift_to_flips=spearman(drifts, np.array(flipped)) if flipped else None,
        bins=_bins(drifts, has_lost(losses, max_loss)),
        tau_pass=suggest(drifts, losses, max_loss / 2),
        tau_fail=suggest(drifts, losses, max_loss),
        outcomes=seen,
        fusion=tuple(outcome for outcome in outcomes if outcome.perturbation.where == FUSION),
    )


def _bins(drifts: Array, lost: Array) -> tuple[Bin, ...]:
    members = [np.searchsorted(EDGES, drifts, side="right") == index for index in range(len(EDGES) + 1)]
    return tuple(
        Bin(low, high, int(inside.sum()), int(lost[inside].sum()))
        for low, high, inside in zip((0.0, *EDGES), (*EDGES, None), members, strict=True)
    )


def alarm_table(alarm: Alarm) -> Table:
    """Return a table of how often each amount of drift came with a loss, with the suggested limits as notes."""
    loss = "flips" if alarm.judged_by == "flips" else "metric drop"
    correlations = dict.fromkeys(  # one where flips are the loss
        (f"{number(alarm.drift_to_loss, '.2f')} with {loss}", f"{number(alarm.drift_to_flips, '.2f')} with flips")
    )
    columns = (Column("drift", right=False), Column("perturbations"), Column(f"{loss} > {alarm.max_loss:g}"))
    rows = tuple(
        (
            f"{item.low:g} to {item.high:g}" if item.high is not None else f"above {item.low:g}",
            str(item.count),
            share(item.lost / item.count) if item.count else "none there",
        )
        for item in alarm.bins
    )
    notes = [
        f"Rank correlation of drift: {', '.join(correlations)}; {alarm.samples} samples.",
        f"tau_fail {_told(alarm.tau_fail)}.",
        f"tau_pass {_told(alarm.tau_pass)}.",
    ]
    if alarm.fusion:
        lost = int(has_lost(np.array([outcome.loss for outcome in alarm.fusion]), alarm.max_loss).sum())
        notes.append(
            f"The fusion alone, which drift does not see: {lost} of {len(alarm.fusion)} perturbations lost as much."
        )
    return Table("Alarm", columns, rows, tuple(notes))


def _told(limit: Suggestion) -> str:
    return limit.reason if limit.tau is None else f"= {limit.tau:.4f}: {limit.reason}"
