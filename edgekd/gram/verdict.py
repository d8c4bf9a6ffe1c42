"""The verdict: three questions, each answered by itself, and the one rule that joins the answers.

*Did the student learn?* its metric against the teacher's, and against the best answer that is always the same. *Does
the compressed network still answer the same?* the metric and the output's divergence, by their bounds. *Does the
structure survive?* the drift of the modality Gram, by its bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edgekd.gram.intervals import MOST_NEEDED, Estimate, mean_needs, share_needs
from edgekd.gram.output_kind import MAX_DIVERGENCE, MEASURES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from edgekd.gram.answers import Answers
    from edgekd.gram.drift import Drift
    from edgekd.gram.metric import LedgerMetrics
    from edgekd.gram.output_kind import OutputName

#: From good to bad. "undecided": the samples are too few to tell.
Verdict = Literal["pass", "warn", "undecided", "fail"]
VERDICTS: tuple[Verdict, ...] = ("pass", "warn", "undecided", "fail")

Question = Literal["learned", "behaviour", "structure"]

#: What each question asks, in the user's words.
QUESTIONS: dict[Question, str] = {
    "learned": "Did the student learn?",
    "behaviour": "Does the compressed network still answer the same?",
    "structure": "Does the structure survive?",
}

#: A figure at its limit keeps it: 0.9125 - 0.8975 is a little more than 0.015.
AT_LIMIT = 1e-9

#: Outputs whose divergence and error are bounded by this much of their limits are the same up to rounding.
_SAME = 1e-3

#: A divergence of this many limits and more is none that a metric on few samples could excuse.
_FAR = 5.0

#: An element of an output whose divergence is this many limits is broken, whatever the others do.
_BROKEN_ELEMENT = 25.0

#: Where this share of the labels that hold in either network is other labels, the answers are others, however many
#: labels hold in neither; and so they are where it is of all that either network gives one label or class.
_OTHER_LABELS = 0.5

#: Relative error from which an embedding is another vector, though its direction may be the same.
_OTHER_VECTOR = 0.4

#: A divergence of this share of its limit is so small that the changed answers, of which few samples say little, need
#: not be within theirs.
_NEAR = 0.25

#: Fewer samples do not tell that outputs are the same.
_FEWEST = 20


@dataclass(frozen=True)
class GateLimits:
    """Limits that a build must keep; see :class:`edgekd.config.recipe.GateConfig` for each."""

    tau_pass: float
    tau_fail: float
    max_flips: float
    max_metric_drop: float
    higher_is_better: bool = True
    max_divergence: float | None = None
    max_missing_flips: float = 0.08
    min_learned: float = 0.9
    structure: Literal["auto", "strict"] = "auto"
    undecided: Literal["release", "reject"] = "release"

    def divergence(self, kind: OutputName) -> float:
        """Return the largest divergence of an output of this kind."""
        return MAX_DIVERGENCE[kind] if self.max_divergence is None else self.max_divergence

    def releases(self, verdict: Verdict) -> bool:
        """Whether a build with this verdict is released."""
        return verdict != "fail" and (verdict != "undecided" or self.undecided == "release")


@dataclass(frozen=True)
class Answered:
    """The answer to one question.

    Attributes:
        question: The question.
        verdict: The answer; None where the question was not asked, for want of a teacher, labels or a reference.
        reasons: Why it is not simply "pass".
        figures: The figures that it rests on, in words.
    """

    question: Question
    verdict: Verdict | None
    reasons: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What was measured of one row against the reference.

    Attributes:
        answers: Each of its outputs beside the reference's, by name.
        loss: How much worse its metric is; None without labels.
        drift: The drift of its Gram.
        missing: For modalities the share of changed answers with that modality absent, in both networks; empty where
            that was not measured.
        gain: How much better the reference's metric is than that of the best constant answer; None where there is no
            such answer.
    """

    answers: Mapping[str, Answers]
    loss: Estimate | None
    drift: Drift
    missing: Mapping[str, Estimate] = field(default_factory=dict)
    gain: Estimate | None = None


def worst(*verdicts: Verdict) -> Verdict:
    """Return the most severe of some verdicts."""
    return max(verdicts, key=VERDICTS.index)


def join_answers(
    learned: Answered | None,
    behaviour: Answered,
    structure: Answered,
    limits: GateLimits,
    kinds: Collection[OutputName],
) -> tuple[Verdict, tuple[str, ...], tuple[str, ...]]:
    """Join the answers to the three questions to one verdict.

    Behaviour decides. A structure that moved beyond its limit, or is not shown to be within, warns where behaviour is
    shown to have stayed; it counts as it is where that is not shown, where an output is an embedding, which is used by
    its structure, and where the limits are strict. A student that learned nothing fails.

    Args:
        learned: Whether the student learned; None for a row in between.
        behaviour: Whether the network still answers the same.
        structure: Whether its structure survives.
        limits: The limits.
        kinds: What the outputs are.

    Returns:
        The verdict, the reasons for it, and the reasons of answers that are less severe.
    """
    moved = structure.verdict or "pass"
    stayed = behaviour.verdict in ("pass", "warn")
    if stayed and "embedding" not in kinds and limits.structure == "auto":
        moved = min(moved, "warn", key=VERDICTS.index)
    asked = [(learned.verdict or "pass", learned.reasons)] if learned else []
    asked += [(behaviour.verdict or "pass", behaviour.reasons), (moved, structure.reasons)]
    verdict = worst(*(answer for answer, _ in asked))
    reasons = tuple(text for answer, texts in asked if answer == verdict for text in texts)
    return verdict, reasons, tuple(text for answer, texts in asked if answer != verdict for text in texts)


def judge_learned(metric: str, figures: LedgerMetrics, reference: str, limits: GateLimits) -> Answered:
    """Answer whether the student learned.

    Args:
        metric: Name of the metric.
        figures: The metric of the rows.
        reference: The row of the student, or of the imported network.
        limits: The limits.
    """
    own, teacher, constant = figures.values.get(reference), figures.values.get("teacher"), figures.constant
    if own is None or (teacher is None and figures.gain is None and not math.isnan(own)):
        return Answered("learned", None, figures=("not measured: there are no labels",) if own is None else ())
    told = [f"{metric} {own:.4f}"]
    if teacher is not None:
        told.append(f"teacher {teacher:.4f}")
    if constant is not None:
        told.append(f"always {constant.answer}: {constant.metric:.4f}")
    text = (", ".join(told),)
    if math.isnan(own):
        reason = f"the {reference}'s {metric} is not a number on these samples: nothing tells whether it learned"
        return Answered("learned", "fail" if reference == "student" else "warn", (reason,), text)
    if constant is not None and constant.alone:
        reason = f"all samples are labelled {constant.answer}, so nothing tells whether the {reference} learned others"
        return Answered("learned", "warn", (reason,), text)
    if figures.gain is not None and not figures.gain.low > 0:
        verdict, reason = _not_learned(f"its {metric} {own:.4f}", figures, figures.gain, reference)
        return Answered("learned", verdict, (reason,), text)
    kept = _kept(own, teacher, constant.metric if constant else None)
    if kept is not None and not kept >= limits.min_learned:
        above = " above the best constant answer" if constant else ""
        reason = (
            f"the student has {kept * 100:.0f}% of the teacher's {metric}{above}, less than "
            f"{limits.min_learned * 100:.0f}%: {own:.4f} against {teacher:.4f}; more distill.epochs, more data, or a "
            "wider student may help"
        )
        return Answered("learned", "warn", (reason,), text)
    return Answered("learned", "pass", (), text)


def _not_learned(own: str, figures: LedgerMetrics, gain: Estimate, reference: str) -> tuple[Verdict, str]:
    """Return the verdict on a reference that is not shown to be better than what learned nothing, and the reason."""
    if figures.constant and gain is figures.constant.gain:
        better = f"better than {figures.constant.metric:.4f}, which is what always answering "
        better += f"{figures.constant.answer} gives"
    else:
        better = "better than with its answers given to other samples"
    if not gain.mean <= 0 and not math.isfinite(gain.low):
        unknown = f"nothing tells whether the {reference} learned, as {own} cannot be shown to be {better}"
        return "warn", f"{unknown}: without some of the samples the metric is not a number"
    head = "learned nothing" if gain.mean <= 0 else "is not shown to have learned anything"
    verdict: Verdict = "fail" if reference == "student" else "warn"
    return verdict, f"the {reference} {head}: {own} is not shown to be {better}"


def _kept(own: float, teacher: float | None, constant: float | None) -> float | None:
    """Return which share of what the teacher is better than the constant answer the student is, too."""
    if teacher is None or constant is None or teacher == constant:
        return None
    return (own - constant) / (teacher - constant)


def judge_structure(drift: Drift, limits: GateLimits) -> Answered:
    """Answer whether the structure survives. A figure that is not a number fails.

    A drift above the limit fails, and one whose bound alone is above it is undecided: more samples would tell.
    """
    worst_of = "pair" if drift.scope == "sample" else "modality"
    at = f"worst {worst_of} {drift.worst_pair}, {drift.worst_pair_mean:.4f}"
    figures = (f"Gram drift {drift.mean:.4f}, bound {drift.bound:.4f} ({at})",)
    if drift.alone:
        return Answered("structure", None, ("Gram drift is not measured: one sample alone has no others",))
    if not drift.mean <= limits.tau_fail:
        reason = f"Gram drift {drift.mean:.4f} is above {limits.tau_fail:g} ({at})"
        return Answered("structure", "fail", (reason,), figures)
    if drift.mean * drift.samples <= _SAME:  # in each sample the same up to rounding, whatever the bound
        return Answered("structure", "pass", (), figures)
    if not drift.bound <= limits.tau_fail:
        count = _counted(drift.samples, "sample") if drift.clusters is None else _counted(drift.clusters, "group")
        reason = f"Gram drift {drift.mean:.4f} has a bound of {drift.bound:.4f}, above {limits.tau_fail:g}: n = {count}"
        return Answered("structure", "undecided", (reason,), figures)
    if drift.bound > limits.tau_pass:
        reason = f"Gram drift bound {drift.bound:.4f} is above {limits.tau_pass:g}"
        return Answered("structure", "warn", (reason,), figures)
    return Answered("structure", "pass", (), figures)


def judge_behaviour(measured: Measured, limits: GateLimits, confidence: float) -> Answered:
    """Answer whether the network still answers as the reference does: of several outputs, the worst decides.

    Where there are labels, a metric that provably did not fall by more than the limit passes, with a warning where the
    outputs diverge all the same; one that provably fell, and by more than the limit as measured, fails, unless the
    outputs are all but the same. A metric that the best constant answer keeps within the limit, too, excuses nothing.
    Where the metric cannot tell, or there are no labels, the outputs pass where the divergence and the changed answers
    are within their limits by their bounds, or the divergence within a quarter of its own and the changed answers not
    provably beyond theirs. A divergence that is provably beyond its limit fails, and so, without labels, do changed
    answers; what neither passes nor fails is undecided.

    Args:
        measured: What was measured against the reference.
        limits: The limits.
        confidence: Confidence of the bounds.
    """
    verdict, reasons = _of_all_outputs(measured, limits, confidence)
    beyond = [
        f"without {name} its outputs are not numbers, where the reference's are"
        if math.isnan(share.mean)
        else f"without {name} {_share(share)} of the answers changed, more than {limits.max_missing_flips * 100:.3g}%"
        for name, share in measured.missing.items()
        if not share.mean <= limits.max_missing_flips + AT_LIMIT
    ]
    if beyond and verdict in ("pass", "warn"):
        verdict, reasons = "warn", [*reasons, *beyond]
    return Answered("behaviour", verdict, tuple(reasons), _behaviour_figures(measured))


def _of_all_outputs(measured: Measured, limits: GateLimits, confidence: float) -> tuple[Verdict, list[str]]:
    """Return the worst verdict on an output, and its reasons, which name it where there are several."""
    judged = {name: _behaviour(answers, measured, limits, confidence) for name, answers in measured.answers.items()}
    verdict = worst(*(found for found, _ in judged.values()))
    of_all = {_fell(measured.loss, limits)} if measured.loss is not None else set()
    told = [
        reason if len(judged) == 1 or reason in of_all else f"{name}: {reason}"
        for name, (found, reasons) in judged.items()
        for reason in reasons
        if found == verdict
    ]
    return verdict, list(dict.fromkeys(told))


def _behaviour(
    answers: Answers, measured: Measured, limits: GateLimits, confidence: float
) -> tuple[Verdict, list[str]]:
    limit = limits.divergence(answers.kind)
    if broken := _broken(answers, measured.drift, limit):
        return "fail", broken
    if _is_same(answers, limit):
        return "pass", []
    loss = measured.loss
    if loss is not None and not _tells(measured.gain, limits) and not _provably_fell(loss, limits):
        loss = None
    found = loss and _by_metric(answers, loss, limits)
    found = found or _by_output(answers, loss, limits)
    return found or ("undecided", [_undecided(answers, loss, limits, confidence)])


def _tells(gain: Estimate | None, limits: GateLimits) -> bool:
    """Whether the metric would fall by more than its limit if every answer were the same."""
    return gain is None or gain.low > limits.max_metric_drop


def _provably_fell(loss: Estimate, limits: GateLimits) -> bool:
    return math.isnan(loss.mean) or (loss.mean > limits.max_metric_drop + AT_LIMIT and loss.low > 0)


def _by_metric(answers: Answers, loss: Estimate, limits: GateLimits) -> tuple[Verdict, list[str]] | None:
    """Judge by the metric; None where it cannot tell."""
    limit, margin = limits.divergence(answers.kind), limits.max_metric_drop + AT_LIMIT
    near = _is_near(answers, limit)  # a few ties that fell to the other side are chance
    if _provably_fell(loss, limits) and not (near and loss.low <= margin):
        return "fail", [_fell(loss, limits)]
    if not loss.high <= margin:
        return None
    if _is_within(answers, limit):
        return "pass", []
    return "warn", [f"the answers differ, though the metric holds: {_diverged(answers)}, limit {limit:g}"]


def _by_output(answers: Answers, loss: Estimate | None, limits: GateLimits) -> tuple[Verdict, list[str]] | None:
    """Judge by what the outputs are beside the reference's; None where they cannot tell.

    Args:
        answers: The outputs beside the reference's.
        loss: How much worse the metric is, which alone cannot tell; None without labels.
        limits: The limits.
    """
    limit = limits.divergence(answers.kind)
    fell = loss is not None and loss.mean > limits.max_metric_drop + AT_LIMIT
    flips = answers.flips
    many = flips is not None and flips.low > limits.max_flips + AT_LIMIT
    near = _is_near(answers, limit) and not many
    few = flips is None or flips.high <= limits.max_flips + AT_LIMIT or near
    if _is_within(answers, limit) and few and answers.samples >= _FEWEST and not fell:
        return "pass", []
    diverged = _is_beyond(answers, limit)
    if not (diverged or many) or not (loss is None or fell or _is_beyond(answers, _FAR * limit)):
        return None
    reasons = [f"{_diverged(answers)}, more than {limit:g}"] if diverged else []
    if many and flips is not None:
        reasons.append(f"{_share(flips)} of the answers changed, more than {limits.max_flips * 100:.3g}%")
    if loss and fell:
        reasons.append(_fell(loss, limits))
    return "fail", reasons


def _is_near(answers: Answers, limit: float) -> bool:
    return not answers.by_task and answers.divergence.high <= _NEAR * limit


def _is_within(answers: Answers, limit: float) -> bool:
    return answers.by_task or answers.divergence.high <= limit


def _is_beyond(answers: Answers, limit: float) -> bool:
    return not answers.by_task and answers.divergence.low > limit


def _fell(loss: Estimate, limits: GateLimits) -> str:
    if math.isnan(loss.mean):
        return "the metric is not a number, where the reference's is"
    return f"the metric is {_bounds(loss)} worse, more than {limits.max_metric_drop:g}"


def _diverged(answers: Answers) -> str:
    return f"{MEASURES[answers.kind]} {_bounds(answers.divergence)}"


def _is_same(answers: Answers, limit: float) -> bool:
    """Whether outputs are the same up to rounding: by their bounds, or in each sample, as a mean over few may tell."""
    most = answers.samples * answers.divergence.mean, answers.samples * answers.error.mean
    bounds = answers.divergence.high, answers.error.high
    return any(divergence <= _SAME * limit and error <= _SAME for divergence, error in (bounds, most))


def _not_finite(answers: Answers, drift: Drift) -> list[str]:
    """Return what is not a number, of the reference's or in what is held against it."""
    if answers.reference_broken:
        return [
            f"the reference's own output is not finite for {answers.reference_broken} of "
            f"{_counted(answers.samples, 'sample')}: nothing can be held against it there"
        ]
    if math.isnan(answers.error.mean) or math.isnan(answers.divergence.mean):
        return ["outputs are not numbers, or are infinite, where the reference's are finite"]
    if math.isnan(drift.mean) and not drift.alone:
        return ["embeddings are not numbers, or are infinite, where the reference's are finite"]
    return []


def _broken(answers: Answers, drift: Drift, limit: float) -> list[str]:
    """Return what no metric can excuse: outputs that are not numbers, another vector, one element of several."""
    if wrong := _not_finite(answers, drift):
        return wrong
    if answers.kind == "embedding" and answers.error.low > _OTHER_VECTOR:
        return [
            f"the embeddings are other vectors: relative error {_bounds(answers.error)}, more than {_OTHER_VECTOR:g}"
        ]
    if answers.changed_held is not None and answers.changed_held.low > _OTHER_LABELS:
        return [f"of the labels that hold in either network {_share(answers.changed_held)} changed"]
    if answers.worst_class_changed is not None and answers.worst_class_changed.low > _OTHER_LABELS:
        what = "label" if answers.kind == "multilabel" else "class"
        return [
            f"{what} {answers.worst_class} is lost or elsewhere: of all that either network gives it "
            f"{_share(answers.worst_class_changed)} changed"
        ]
    if answers.worst_divergence is not None and answers.worst_divergence > _BROKEN_ELEMENT * limit:
        return [
            f"element {answers.worst_element} of the output is broken: its squared error is "
            f"{answers.worst_divergence:.3g} of its variance"
        ]
    return []


def _undecided(answers: Answers, loss: Estimate | None, limits: GateLimits, confidence: float) -> str:
    """Say that the samples are too few, and how many would tell were the figures to stay as they are."""
    grouped = answers.units < answers.samples
    count, what = (answers.units, "group") if grouped else (answers.samples, "sample")
    ways = _to_pass(answers, loss, limits, confidence) + _to_fail(answers, loss, limits)
    told = [way for way in ways if way is not None and way > count]
    if math.isinf(answers.divergence.high):
        tell = "of which one alone tells nothing of others"
    elif not told:
        tell = "more of the same would not tell soon: the figures are at their limits"
    elif min(told) >= MOST_NEEDED:
        tell = "more than a million would tell"
    else:
        tell = f"about {min(told)} would tell"
    return f"undecided: n = {_counted(count, what)}, {tell}"


def _to_pass(answers: Answers, loss: Estimate | None, limits: GateLimits, confidence: float) -> list[int | None]:
    """Return for each way to pass about how many samples or groups it would take; None where it is none."""
    limit, count = limits.divergence(answers.kind), answers.units
    by_metric = mean_needs(loss, limits.max_metric_drop, count) if loss else None
    if loss is not None and loss.mean > limits.max_metric_drop + AT_LIMIT:
        return [by_metric]
    changed = answers.flips
    within, near = mean_needs(answers.divergence, limit, count), mean_needs(answers.divergence, _NEAR * limit, count)
    few: int | None = _FEWEST
    if changed is not None:
        few = (
            mean_needs(changed, limits.max_flips, count)
            if answers.units < answers.samples
            else share_needs(changed.mean, limits.max_flips, confidence)
        )
        near = near if changed.mean <= limits.max_flips else None
    if answers.by_task:
        within, near = _FEWEST, None
    by_output = None if within is None or few is None else max(_FEWEST, within, few)
    return [by_metric, by_output, None if near is None else max(_FEWEST, near)]


def _to_fail(answers: Answers, loss: Estimate | None, limits: GateLimits) -> list[int | None]:
    """Return for each way to fail about how many samples or groups it would take; None where it is none."""
    fell = loss is not None and loss.mean > limits.max_metric_drop + AT_LIMIT
    limit = limits.divergence(answers.kind)
    if loss is not None and not fell:
        return [None if answers.by_task else _needed_above(answers.divergence, _FAR * limit, answers.units)]
    ways = [None if answers.by_task else _needed_above(answers.divergence, limit, answers.units)]
    if answers.flips is not None:
        ways.append(_needed_above(answers.flips, limits.max_flips, answers.units))
    return [*ways, _needed_above(loss, 0.0, answers.units)] if loss else ways


def _needed_above(bounds: Estimate, limit: float, samples: int) -> int | None:
    """Return about how many samples would show a mean to be above a limit, as :func:`mean_needs` does below it."""
    return mean_needs(Estimate(-bounds.mean, -bounds.high, -bounds.low), -limit, samples)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _behaviour_figures(measured: Measured) -> tuple[str, ...]:
    named = {("" if len(measured.answers) == 1 else f"{name}: "): each for name, each in measured.answers.items()}
    figures = []
    for at, answers in named.items():
        figures.append(f"{at}{_diverged(answers)}")
        if answers.changed is not None:
            figures.append(f"{at}answers changed {_share(answers.changed)}")
        if answers.worst_class_changed is not None:
            what = "label" if answers.kind == "multilabel" else "class"
            figures.append(f"{at}most of {what} {answers.worst_class}, {_share(answers.worst_class_changed)}")
    if measured.loss is not None:
        figures.append(f"metric worse by {_bounds(measured.loss)}")
    figures += [f"{at}relative error {answers.error.mean:.3g}" for at, answers in named.items()]
    figures += [f"answers changed without {name} {_share(share)}" for name, share in measured.missing.items()]
    return tuple(figures)


def _bounds(value: Estimate) -> str:
    return f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _share(value: Estimate) -> str:
    return f"{value.mean * 100:.3g}% [{value.low * 100:.3g}, {value.high * 100:.3g}]"
