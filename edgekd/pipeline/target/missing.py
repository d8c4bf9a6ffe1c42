"""Stage missing: how many answers change where a modality is absent, in what ships and in its reference alike.

On samples that have every modality, one may decide so surely that what compression did to another does not show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgekd.errors import ModelError
from edgekd.gram.answers import compare_outputs
from edgekd.gram.intervals import Estimate
from edgekd.gram.npz import INPUT_PREFIX, PRESENT_PREFIX, answers_of
from edgekd.gram.probe import Probe
from edgekd.pipeline.target.context import LIBRARIES
from edgekd.runtime.backends.registry import AS_WRITTEN
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.sequences import read_sequences, run_feeds
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import DEPLOY, onnx_name
from edgekd.stages.stage import StageSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edgekd.gram.gate import GateRules
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind
    from edgekd.pipeline.target.context import Context, PreparedCandidate
    from edgekd.runtime.sequences import Sequences
    from edgekd.runtime.session import Feeds, Session
    from edgekd.stages.artifacts import TaskFacts
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done

_BATCH = 256


@dataclass(frozen=True)
class MissingModalities:
    """Whether what ships still answers as its reference does where one modality is absent in both.

    Attributes:
        changed: By modality the share of answers that differ, not a number where what ships gives no finite numbers;
            without those that were not measured.
        notes: Sentences for the user on what was not measured, and why.
    """

    changed: dict[str, Estimate]
    notes: tuple[str, ...]


def _describe(missing: MissingModalities) -> str:
    shares = (f"without {name} {share.mean:.1%} changed" for name, share in missing.changed.items())
    return ", ".join(shares) or ("not measured" if missing.notes else "nothing to leave out")


MISSING: StageSpec[MissingModalities] = StageSpec(
    "missing",
    2,
    MissingModalities,
    LIBRARIES,
    "compare what ships with its reference with each modality absent",
    _describe,
)


def measure_missing(
    context: Context, candidate: PreparedCandidate, samples: Path, label: str = ""
) -> Done[MissingModalities]:
    """Compare a candidate with the ledger's reference on the same samples, with each modality absent in both.

    In place of an absent modality both are given what the calibration samples that lack it have there; where none lacks
    it, the mean of each channel over the calibration samples, as modality dropout does in training. ``deploy.onnx``
    runs in ONNX Runtime on this host, so no labels and no device are needed.

    Args:
        context: The target.
        candidate: The candidate whose graphs are written.
        samples: File of the samples, beside the export's other files.
        label: What tells the stage from that of another candidate; "" for the first.
    """
    rules, facts, runtime = context.rules, context.exported.result.facts, context.host_runtime

    def run(_folder: Path, report: StageReporter) -> MissingModalities:
        if len(facts.modalities) < 2:
            return MissingModalities({}, ())
        why = tuple(_why_not(rules))
        if len(why) == len(rules.kinds):
            return MissingModalities({}, why)
        stand_ins = read_stand_ins(context.calibration, facts.modalities, facts.stand_ins)
        reference = context.exported.folder / onnx_name(context.origin.baselines[-1])
        try:
            with AS_WRITTEN.open(reference) as exact, runtime.open(candidate.folder / DEPLOY) as ours:
                missing = _compare(_SessionPair(exact, ours, rules, samples), stand_ins, report)
        except ModelError as error:
            return MissingModalities({}, (f"Answers with a modality absent are not measured: {error}.",))
        return MissingModalities(missing.changed, (*why, *_left_in(facts), *missing.notes))

    bootstrap = rules.bootstrap
    config = {
        "bounds": [bootstrap.confidence, bootstrap.resamples, bootstrap.seed],
        "kinds": msgspec.to_builtins(rules.kinds),
        "samples": samples.name,
        "runtime": [runtime.name, runtime.options],
    }
    inputs = {"exported": context.exported.key, "candidate": [candidate.key, candidate.name]}
    return context.stage(MISSING, label, config=config, inputs=inputs, run=run)


def read_stand_ins(
    samples: Path, modalities: Sequence[str], numbers: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Array]]:
    """Return for each modality what its inputs take where it is absent, each of a shape that broadcasts to a sample.

    It is the number that the task says. Else it is the mean of what is there in the samples that lack it; where none
    does, the mean of each channel, the first dimension of a sample, over all samples.

    Args:
        samples: The ``.npz`` of the samples.
        modalities: Names of the modalities.
        numbers: For some modalities the inputs that take a number, such as ids and masks.
    """
    stand_ins: dict[str, dict[str, Array]] = {}
    with open_arrays(samples) as arrays:
        for name in modalities:
            said = {
                key: np.asarray(value, arrays[INPUT_PREFIX + key].dtype) for key, value in numbers.get(name, {}).items()
            }
            stand_ins[name] = said
            if name in said:
                continue
            x, present = arrays[INPUT_PREFIX + name], arrays.get(PRESENT_PREFIX + name)
            if present is not None and not present.all():
                mean = x[~present].mean(0, dtype=np.float64)
            else:
                over = tuple(axis for axis in range(x.ndim) if axis != 1)
                mean = x.mean(over, dtype=np.float64, keepdims=True)[0]
            said[name] = np.asarray(mean, x.dtype)
    return stand_ins


def without(feeds: Feeds, stand_ins: Mapping[str, Array]) -> Feeds:
    """Return samples in each of which a modality is absent: something stands in for its inputs."""
    changed = {
        name: np.ascontiguousarray(np.broadcast_to(x, feeds[name].shape))
        for name, x in stand_ins.items()
        if name in feeds
    }
    return {**feeds, **changed}


def _why_not(rules: GateRules) -> Iterator[str]:
    """Yield a sentence on each output whose answers cannot be counted."""
    for name, kind in rules.kinds.items():
        reason = None if rules.same else _not_measurable(kind)
        of = "" if len(rules.kinds) == 1 else f" of '{name}'"
        if reason:
            yield f"Answers{of} with a modality absent are not measured: {reason}."


def _not_measurable(kind: OutputKind) -> str | None:
    """Explain why the answers cannot be counted; None where they can."""
    if kind.name == "embedding":
        return "an embedding decides nothing by itself, and near neighbours trade places for nothing"
    if kind.name in ("regression", "custom") and kind.threshold is None:
        return "the output is numbers, which decide nothing without a threshold"
    return None


def _left_in(facts: TaskFacts) -> tuple[str, ...]:
    """Say which inputs were never left out, for they are no modalities."""
    others = [str(spec["name"]) for spec in facts.inputs if spec["name"] not in facts.modalities]
    if not others:
        return ()
    return (f"Never left out, for a mask, a state or whole numbers are no modality: {', '.join(others)}.",)


@dataclass(frozen=True)
class _SessionPair:
    """The reference and the candidate, opened, and the samples that both are given."""

    reference: Session
    candidate: Session
    rules: GateRules
    samples: Path


def _compare(
    pair: _SessionPair, stand_ins: Mapping[str, Mapping[str, Array]], report: StageReporter
) -> MissingModalities:
    feeds, sequences = read_feeds(pair.samples, pair.reference.inputs), read_sequences(pair.samples)
    with open_arrays(pair.samples) as arrays:
        ids, groups = arrays["ids"], arrays.get("groups")
    changed: dict[str, Estimate] = {}
    notes: list[str] = []
    for done, (name, stand_in) in enumerate(stand_ins.items(), 1):
        if name not in feeds:
            notes.append(f"Answers without {name} are not measured: the float network does not read it.")
            continue
        absent = without(feeds, stand_in)
        try:
            reference, candidate = (
                Probe(ids, answers_of(_outputs(session, absent, sequences)), {})
                for session in (pair.reference, pair.candidate)
            )
            if not _finite(reference):
                raise ModelError("the float network's output is not finite there")
            share = _most_changed(candidate, reference, pair.rules, groups)
        except (ModelError, ValueError) as error:  # numpy's, where the size of an output depends on the data
            notes.append(f"Answers without {name} are not measured: {error}.")
            continue
        if not _finite(candidate):
            notes.append(f"Without {name} what ships gives numbers that are not finite.")
            share = Estimate(math.nan, math.nan, math.nan)
        if share is not None:
            changed[name] = share
        report.advance(done, len(stand_ins), name)
    return MissingModalities(changed, tuple(notes))


def _finite(probe: Probe) -> bool:
    return all(np.isfinite(x).all() for x in probe.outputs.values())


def _most_changed(candidate: Probe, reference: Probe, rules: GateRules, groups: Array | None) -> Estimate | None:
    """Return the share of changed answers of the output of which most changed; None where none decides anything."""
    kinds = {name: kind for name, kind in rules.kinds.items() if rules.same or not _not_measurable(kind)}
    compared = compare_outputs(candidate, reference, kinds, groups, rules.bootstrap, rules.same)
    shares = [answers.changed for answers in compared.values() if answers.changed is not None]
    return max(shares, key=lambda share: share.mean, default=None)


def _outputs(session: Session, feeds: Feeds, sequences: Sequences | None) -> dict[str, Array]:
    """Return the outputs [N, ...] for all rows of those feeds that the engine takes."""
    return run_feeds(session, {spec.name: feeds[spec.name] for spec in session.inputs}, sequences, _BATCH)
