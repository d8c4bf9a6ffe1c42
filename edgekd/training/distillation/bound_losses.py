"""The losses beside cross entropy and KD, each bound to what a recipe says of it and to where it is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from msgspec.structs import asdict
from torch import Tensor, nn

from edgekd.config.recipe import ANCHOR_EXTRA, DEFAULT_EXTRA
from edgekd.errors import RecipeError, TaskError, nearest
from edgekd.gram.matrix import pair_indices, pair_names
from edgekd.training.distillation.answer_losses import losses_at
from edgekd.training.distillation.kinds.class_scores import class_rows
from edgekd.training.distillation.kinds.facts import OutputFacts
from edgekd.training.distillation.loss_registry import check_term
from edgekd.training.distillation.loss_taps import own_taps, tap_name
from edgekd.training.distillation.own_losses import find_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.config.recipe import LossConfig, Tap, Term
    from edgekd.training.distillation.loss import Loss
    from edgekd.training.distillation.loss_taps import LossTaps
    from edgekd.training.distillation.outputs import BatchOutputs, NetworkOutputs

#: Samples of a batch: a mask [B], or all of them.
Rows: TypeAlias = "Tensor | slice"


class BoundLoss(nn.Module):
    """One loss of a recipe. What it learns, if anything, are this module's parameters.

    Args:
        name: The recipe's name of it.
        term: What the recipe says of it.
        loss: The loss that is meant.
        taps: Where it may read the networks.

    Raises:
        RecipeError: The loss is told what it does not take.
        TaskError: The recipe names a modality or a pair that the task does not have.
    """

    def __init__(self, name: str, term: Term, loss: Loss, taps: LossTaps) -> None:
        super().__init__()
        self.name, self.term, self.loss = name, term, loss
        self.options = asdict(check_term(loss, term))
        student, anchor = own_taps(term, "student"), own_taps(term, taps.table)
        self.modalities = self._chosen_modalities([*term.modalities, *student, *anchor], taps.modalities)
        self._student = self._tap_names(student, taps.student)
        self._anchor = self._tap_names(anchor, taps.anchor)

    def _chosen_modalities(self, named: Sequence[str], known: Sequence[str]) -> list[str]:
        for modality in named:
            if modality not in known:
                raise TaskError(
                    f"loss '{self.name}': '{modality}' is no modality of the task{nearest(modality, known)}"
                )
        chosen = [modality for modality in known if not named or modality in named]
        pairs = pair_names(chosen)
        for pair in self.term.pairs:
            if pair not in pairs:
                raise TaskError(
                    f"loss '{self.name}': there is no pair '{pair}' of its modalities{nearest(pair, pairs)}"
                )
        if len(chosen) < self.loss.least_modalities:
            raise TaskError(
                f"loss '{self.name}': '{self.loss.name}' is of two modalities or more, but is given {chosen[0]} alone"
            )
        return chosen

    def _tap_names(self, own: Mapping[str, Tap], taps: Mapping[str, Tap]) -> dict[str, str]:
        return {name: tap_name(name, own[name], taps) if name in own else name for name in self.modalities}

    @property
    def student_taps(self) -> tuple[str, ...]:
        """Names of the student's taps on which the norm of the loss's gradient is measured."""
        return tuple(self._student.values())

    def prepare(self, outputs: BatchOutputs) -> None:
        """Make what is learned, whose widths a batch shows.

        Raises:
            TaskError: The loss cannot be computed of what the networks give.
        """
        if not self.loss.between:
            return
        sides = [(self._student, outputs.student), *((self._anchor, anchor) for anchor in outputs.anchors)]
        for names, side in sides:
            widths = {modality: side.embeddings[tap].shape[1] for modality, tap in names.items()}
            if len(set(widths.values())) > 1:
                raise TaskError(
                    f"loss '{self.name}': '{self.loss.name}' takes inner products between modalities, so the "
                    "embeddings of one model must share a width, but are "
                    + ", ".join(f"{name} {width}" for name, width in widths.items())
                    + "; give the encoders one width, or choose losses that do without: intra, fd, sp, rkd, pkt"
                )

    def forward(self, outputs: BatchOutputs) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError


class _LogitLoss(BoundLoss):
    """A loss of the logits: the sum over the outputs that are scores of classes."""

    def __init__(self, name: str, term: Term, loss: Loss, taps: LossTaps) -> None:
        super().__init__(name, term, loss, taps)
        self._answers = losses_at(taps.answers, taps.student)
        self._outputs = self._answers.class_outputs()
        if not self._outputs:
            kinds = ", ".join(f"'{key}' ({kind.name})" for key, kind in self._answers.kinds.items())
            raise TaskError(
                f"loss '{name}': '{loss.name}' is of scores of classes, one for each sample, and the task's outputs "
                f"are none: {kinds}"
            )

    def forward(self, outputs: BatchOutputs) -> Tensor:
        losses = [self._of(name, outputs) for name in self._outputs]
        return torch.stack(losses).sum()

    def _of(self, name: str, outputs: BatchOutputs) -> Tensor:
        facts = OutputFacts(self._answers.kinds[name])
        student, teacher = (class_rows(side[name], facts) for side in (outputs.student.answers, outputs.teacher))
        labels = outputs.labels if self._answers.has_own_loss else self._answers.target(name, outputs.targets)
        return self.loss.function(student, teacher, labels.reshape(len(student)), **self.options)


class _GramLoss(BoundLoss):
    """A loss of all modalities at once."""

    def forward(self, outputs: BatchOutputs) -> Tensor:
        student = {name: outputs.student.embeddings[tap] for name, tap in self._student.items()}
        teachers = [{name: side.embeddings[tap] for name, tap in self._anchor.items()} for side in outputs.anchors]
        present = None
        if outputs.present:
            everyone = torch.ones(len(outputs.labels), device=outputs.labels.device)
            present = torch.stack([outputs.present.get(name, everyone) for name in self.modalities], 1)
        return self.loss.function(student, teachers, present, self.term.pairs, **self.options)


class _ModalityLoss(BoundLoss):
    """A loss of single modalities: the mean over modalities and anchors, each with a projection of its own if any."""

    def prepare(self, outputs: BatchOutputs) -> None:
        super().prepare(outputs)
        if self.loss.projection is None:
            return
        self.projections = nn.ModuleList()
        for ours, theirs, _ in self._sides(outputs):
            self.projections.append(self.loss.projection(ours.shape[1], theirs.shape[1]).to(ours.device))

    def forward(self, outputs: BatchOutputs) -> Tensor:
        losses = []
        for index, (ours, theirs, rows) in enumerate(self._sides(outputs)):
            if not _enough(rows):
                continue
            student = ours[rows] if self.loss.projection is None else self.projections[index](ours[rows])
            losses.append(self.loss.function(student, theirs[rows], **self.options))
        return _mean(losses, outputs)

    def _sides(self, outputs: BatchOutputs) -> list[tuple[Tensor, Tensor, Rows]]:
        """Return for each anchor and modality the student's values, the anchor's, and the samples that count."""
        return [
            (
                self._values(outputs.student, self._student[name]),
                self._values(anchor, self._anchor[name]),
                _rows(outputs, [name]),
            )
            for anchor in outputs.anchors
            for name in self.modalities
        ]

    def _values(self, side: NetworkOutputs, tap: str) -> Tensor:
        if self.loss.kind != "maps":
            return side.embeddings[tap]
        maps = side.outputs[tap]
        if maps.dim() < 3:
            raise TaskError(
                f"loss '{self.name}': '{self.loss.name}' is of feature maps [B, C, ...], but '{tap}' gives "
                f"{list(maps.shape)}: name a module before the pooling"
            )
        return maps.flatten(2)


class _PairLoss(BoundLoss):
    """A loss of two modalities: the mean over their pairs and anchors."""

    def forward(self, outputs: BatchOutputs) -> Tensor:
        losses = []
        for i, j in zip(*pair_indices(len(self.modalities)), strict=True):
            names = [self.modalities[i], self.modalities[j]]
            rows = _rows(outputs, names)
            if not _enough(rows) or (self.term.pairs and "-".join(names) not in self.term.pairs):
                continue
            student = tuple(outputs.student.embeddings[self._student[name]][rows] for name in names)
            for anchor in outputs.anchors:
                teacher = tuple(anchor.embeddings[self._anchor[name]][rows] for name in names)
                losses.append(self.loss.function(student, teacher, **self.options))
        return _mean(losses, outputs)


_KINDS: Mapping[str, type[BoundLoss]] = {
    "logits": _LogitLoss,
    "gram": _GramLoss,
    "embeddings": _ModalityLoss,
    "maps": _ModalityLoss,
    "pairs": _PairLoss,
}


def bind_losses(config: LossConfig, taps: LossTaps) -> dict[str, BoundLoss]:
    """Return the losses that a recipe adds to cross entropy and KD, by its names of them.

    Raises:
        RecipeError: A loss is not known, or is told what it does not take.
        TaskError: A loss names a modality or a pair that the task does not have, or the user's own cannot be found.
    """
    given = config.extra not in (DEFAULT_EXTRA, ANCHOR_EXTRA)
    # Of one modality there are no pairs: a loss of pairs is then left out where it is there by default alone.
    terms = {
        name: term
        for name, term in config.terms.items()
        if given or len(taps.modalities) >= find_loss(term.loss or name).least_modalities
    }
    return {name: _bind(name, term, config, taps) for name, term in terms.items()}


def _bind(name: str, term: Term, config: LossConfig, taps: LossTaps) -> BoundLoss:
    loss = find_loss(term.loss or name)
    try:
        bound = _KINDS[loss.kind](name, term, loss, taps)
    except RecipeError as error:
        raise RecipeError(f"extra.{name}: {error}") from error
    if loss.kind == "logits" and bound.options.get("temperature", 0) is None:
        bound.options["temperature"] = config.temperature
    return bound


def _rows(outputs: BatchOutputs, names: Sequence[str]) -> Rows:
    """Return which samples have all of these modalities."""
    masks = [outputs.present[name] > 0 for name in names if name in outputs.present]
    return torch.stack(masks).all(0) if masks else slice(None)


def _enough(rows: Rows) -> bool:
    """Whether there are two samples to relate."""
    return isinstance(rows, slice) or int(rows.sum()) > 1


def _mean(losses: list[Tensor], outputs: BatchOutputs) -> Tensor:
    return torch.stack(losses).mean() if losses else next(iter(outputs.student.answers.values())).sum() * 0
