"""Where losses read the networks: at the networks' own taps, and at those that a recipe gives single losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekd.config.recipe import Tap
from edgekd.training.taps.taps import NetworkTaps, outputs_read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.config.recipe import LossConfig, Term
    from edgekd.training.distillation.answer_losses import AnswerLosses


@dataclass(frozen=True)
class LossTaps:
    """Where losses may read the networks.

    Attributes:
        modalities: Names of the task's modalities, in order.
        student: For each modality the student's tap.
        anchor: For each modality the tap of the networks whose embeddings the student is aligned with.
        table: Which of a loss's own tables of taps holds for the anchor.
        answers: The losses of the task's outputs; None for those of the kinds of what is read of the student.
    """

    modalities: Sequence[str]
    student: Mapping[str, Tap]
    anchor: Mapping[str, Tap]
    table: Literal["teacher", "student"]
    answers: AnswerLosses | None = None


def taps_with_losses(taps: Mapping[str, Tap], config: LossConfig, side: str) -> dict[str, Tap]:
    """Return a network's taps and those that single losses read beside them, by the taps' names.

    Args:
        taps: For each modality the network's own tap.
        config: The losses of a recipe.
        side: "student" or "teacher": which of a loss's own tables of taps is meant.
    """
    named = NetworkTaps(taps, outputs_read(taps))
    for term in config.terms.values():
        for modality, tap in own_taps(term, side).items():
            named[tap_name(modality, tap, taps)] = tap
    return named


def own_taps(term: Term, side: str) -> dict[str, Tap]:
    """Return the taps that a recipe gives one loss, for some modalities, on one side."""
    table = term.student if side == "student" else term.teacher
    return {name: tap if isinstance(tap, Tap) else Tap(module=tap) for name, tap in table.items()}


def tap_name(modality: str, tap: Tap, taps: Mapping[str, Tap]) -> str:
    """Return the name of a loss's own tap: the modality's whose tap it is already, or else a new one."""
    same = [name for name, other in taps.items() if other == tap]
    if same:
        return same[0]
    part = "" if tap.output is None else f"[{tap.output}]"
    return f"{modality}@{tap.module}#{tap.call}{part} {tap.pool}"
