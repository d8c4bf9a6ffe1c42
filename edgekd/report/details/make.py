"""Make the details of an output: its kind's own figures, then groups, the worst samples, and those that changed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from msgspec.structs import replace

from edgekd.gram.answers import sample_errors
from edgekd.report.details.classes import describe_classes
from edgekd.report.details.compared import Findings, mean_of, shown_change
from edgekd.report.details.content import (
    ChangedAnswers,
    GroupFigures,
    GroupRow,
    InputPicture,
    OutputDetails,
    SampleDetails,
)
from edgekd.report.details.labels import describe_labels
from edgekd.report.details.masks import describe_masks
from edgekd.report.details.numbers import describe_numbers
from edgekd.report.details.retrieval import describe_retrieval
from edgekd.report.details.sequences import describe_sequences

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputName
    from edgekd.report.details.compared import ComparedOutput

#: Gives pictures of the inputs of some samples, by their rows.
SampleInputs: TypeAlias = "Callable[[Sequence[int]], Mapping[int, tuple[InputPicture, ...]]]"

#: The most samples of a list, those of them that are of one kind, those that are looked at, and groups of a table.
MOST_SAMPLES, _MOST_ALIKE, _MOST_LOOKED_AT, _MOST_GROUPS = 12, 3, 500, 20

#: Characters that the pictures of one list of samples may take in all; samples farther down have none.
_ROOM = 24_000


def output_details(compared: ComparedOutput, pictures: SampleInputs | None) -> OutputDetails:
    """Return what stands behind the quality of one output.

    Args:
        compared: The output of what ships, of the reference and maybe of the teacher, and what is true.
        pictures: Gives pictures of samples' inputs; None where no sample is to be shown, nor a group's name.
    """
    found = _describe(compared)
    shown = pictures is not None
    labelled = ~np.isnan(found.scores[compared.shipped]) if found.by_labels else np.zeros(len(compared.ids), bool)

    def alike(row: int) -> tuple[str, str]:
        return found.true(row), "" if compared.groups is None else str(compared.groups[row])

    worst, flips = (_largest(values, alike) if shown else [] for values in (found.bad, found.moved))
    inputs = pictures(list(dict.fromkeys(worst + flips))) if pictures else {}

    def sample(row: int, figure: float, room: _Room) -> SampleDetails:
        drawn = (*inputs.get(row, ()), *(found.maps(row) if found.maps else ()))
        return SampleDetails(
            id=str(compared.ids[row]),
            group="" if compared.groups is None else str(compared.groups[row]),
            true=found.true(row),
            said={model: found.say(model, row) for model in compared.outputs},
            score={model: _finite(found.scores[model][row]) for model in found.judged} if found.by_labels else {},
            figure=_finite(figure),
            pictures=room.take(drawn),
            retrieved=found.nearest(row) if found.nearest else {},
        )

    def listed(rows: Sequence[int], figures: Array) -> tuple[SampleDetails, ...]:
        room = _Room(_ROOM)
        return tuple(sample(row, float(figures[row]), room) for row in rows)

    return OutputDetails(
        kind=compared.kind.name,
        models=found.judged,
        reference=compared.reference,
        truth="labels" if found.by_labels else "reference",
        samples=len(compared.ids),
        labelled=int(labelled.sum()),
        score=found.score,
        higher_is_better=found.higher_is_better,
        worst_by=found.worst_by,
        flips_by=found.flips_by,
        shown=shown,
        mean_score={model: mean_of(scores) for model, scores in found.scores.items()},
        classes=found.classes,
        curves=dict(found.curves),
        numbers=found.numbers if shown or found.numbers is None else replace(found.numbers, points={}),
        retrieval=found.retrieval,
        tokens=found.tokens,
        groups=_groups(compared, found, labelled, shown),
        changes=_changes(compared, found, labelled),
        worst=listed(worst, found.bad),
        flips=listed(flips, found.moved),
    )


def _describe(compared: ComparedOutput) -> Findings:
    """Describe an output by its kind, as far as there is something to say."""
    shape = compared.outputs[compared.shipped].shape
    alone = compared.kind.name == "embedding" and shape[0] < 2  # finds no sample but itself
    describe = _describe_others if alone or 0 in shape else _KINDS.get(compared.kind.name, _describe_others)
    return describe(compared)


def _describe_others(compared: ComparedOutput) -> Findings:
    """Describe an output of which nothing is known but how far it is from the reference's."""
    rows = len(compared.ids)
    moved = sample_errors(compared.outputs[compared.shipped], compared.outputs[compared.reference])
    return Findings(
        judged=(compared.shipped,),
        by_labels=False,
        score="",
        worst_by="",
        flips_by="length of the difference over the length of the reference's output",
        scores={compared.shipped: np.full(rows, np.nan)},
        bad=np.zeros(rows),
        moved=shown_change(moved),
        say=lambda _model, _row: "",
        true=lambda _row: "",
        decides=False,
    )


#: What describes each kind of output; of any other nothing is known but its change.
_KINDS: dict[OutputName, Callable[[ComparedOutput], Findings]] = {
    "classes": describe_classes,
    "multilabel": describe_labels,
    "regression": describe_numbers,
    "embedding": describe_retrieval,
    "dense-classes": describe_masks,
    "sequence-classes": describe_sequences,
}


class _Room:
    """Hands out room for pictures until there is none."""

    def __init__(self, characters: int) -> None:
        self._left = characters

    def take(self, pictures: tuple[InputPicture, ...]) -> tuple[InputPicture, ...]:
        self._left -= sum(len(one.png) + sum(map(len, one.series)) for one in pictures)
        return pictures if self._left >= 0 else ()


def _largest(values: Array, alike: Callable[[int], object]) -> list[int]:
    """Return the rows with the largest values above 0, the largest first.

    Samples of one group and of one truth are often one mistake many times: of these no more than a few are taken as
    long as there are others.

    Args:
        values: A value for each sample [N]; NaN is none.
        alike: Returns for a row what it has in common with others.
    """
    known = np.nan_to_num(values, nan=0.0, posinf=np.inf)
    order = [int(row) for row in np.argsort(-known, kind="stable")[:_MOST_LOOKED_AT] if known[row] > 0]
    seen: Counter[object] = Counter()
    first = []
    for row in order:
        seen[alike(row)] += 1
        if seen[alike(row)] <= _MOST_ALIKE:
            first.append(row)
    chosen = [*first, *(row for row in order if row not in first)][:MOST_SAMPLES]
    return sorted(chosen, key=order.index)


def _finite(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _groups(compared: ComparedOutput, found: Findings, labelled: Array, shown: bool) -> GroupFigures | None:
    if compared.groups is None or not labelled.any():
        return None
    names, members = np.unique(compared.groups[labelled], return_inverse=True)
    counts = np.bincount(members, minlength=len(names))
    means = {
        model: np.bincount(members, scores[labelled], len(names)) / counts for model, scores in found.scores.items()
    }
    ours = means[compared.shipped]
    order = np.argsort(ours if found.higher_is_better else -ours, kind="stable")[:_MOST_GROUPS]
    rows = (
        GroupRow(
            str(names[at]) if shown else "",
            int(counts[at]),
            {model: _finite(mean[at]) for model, mean in means.items()},
        )
        for at in order
    )
    return GroupFigures(len(names), tuple(rows))


def _changes(compared: ComparedOutput, found: Findings, labelled: Array) -> ChangedAnswers:
    mean = _finite(float(found.moved.mean()))
    if not found.decides:
        return ChangedAnswers(None, mean, 0, 0, 0, 0)
    changed = found.moved > 0 if found.changed is None else found.changed
    known = changed & labelled
    unknown = int((changed & ~labelled).sum())
    if not known.any():
        return ChangedAnswers(unknown, mean, 0, 0, 0, unknown)
    gain = found.scores[compared.shipped][known] - found.scores[compared.reference][known]
    gain = gain if found.higher_is_better else -gain
    return ChangedAnswers(
        count=int(changed.sum()),
        mean=mean,
        broken=int((gain < 0).sum()),
        mended=int((gain > 0).sum()),
        alike=int((gain == 0).sum()),
        unknown=unknown,
    )
