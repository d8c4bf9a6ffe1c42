"""The losses beside cross entropy and KD, each bound to what a recipe says of it and to where it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from edgekd.config.recipe import LOGIT_LOSSES, LOSSES_BETWEEN, Tap
from edgekd.errors import TaskError, nearest
from edgekd.gram.distance import GramKind, gram_distance
from edgekd.gram.matrix import SOFTNESS, pair_indices, pair_names
from edgekd.training.distillation.losses.features import FEATURES
from edgekd.training.distillation.losses.logits import dist_loss, dkd_loss
from edgekd.training.distillation.losses.relations import affinity_loss, pkt_loss, rkd_loss, sp_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekd.config.recipe import LossConfig, Term
    from edgekd.gram.distance import Scope

#: Of `affinity`, where the recipe gives none: cosines are in [-1, 1], so 1 would leave next to no differences.
AFFINITY_TEMPERATURE = 0.1
#: Of `dkd`, the paper's on CIFAR-100.
BETA = 8.0

_RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sp": sp_loss, "rkd": rkd_loss, "pkt": pkt_loss}


@dataclass(frozen=True)
class Side:
    """What one model gave for a batch, in fp32.

    Attributes:
        logits: [B, C].
        embeddings: for each place that is read [B, D].
        outputs: for each place what its module put out, before it was pooled.
    """

    logits: Tensor
    embeddings: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """What losses see of one batch.

    Attributes:
        student: the student.
        teacher: logits of the teacher [B, C].
        anchors: the models whose embeddings the student is aligned with, most often one.
        labels: [B].
        present: 1.0 where a sample has a modality, for each modality [B]; empty where all have all.
    """

    student: Side
    teacher: Tensor
    anchors: Sequence[Side]
    labels: Tensor
    present: Mapping[str, Tensor]


def places(taps: Mapping[str, Tap], config: LossConfig, side: str) -> dict[str, Tap]:
    """Return a network's taps and those that single losses read beside them, by the name of the place.

    Args:
        taps: for each modality the network's own.
        config: the losses.
        side: "student" or "teacher": whose table of a loss is meant.
    """
    found = dict(taps)
    for term in config.terms.values():
        for modality, tap in _own(term, side).items():
            found[_place(modality, tap, taps)] = tap
    return found


@dataclass(frozen=True)
class Where:
    """Where a loss may look.

    Attributes:
        modalities: of the task, in order.
        student: the student's taps.
        anchor: the anchor's taps.
        table: which of a term's tables of own taps holds for the anchor, "teacher" or "student".
    """

    modalities: Sequence[str]
    student: Mapping[str, Tap]
    anchor: Mapping[str, Tap]
    table: Literal["teacher", "student"]


def _own(term: Term, side: str) -> dict[str, Tap]:
    table = term.student if side == "student" else term.teacher
    return {name: tap if isinstance(tap, Tap) else Tap(module=tap) for name, tap in table.items()}


def _place(modality: str, tap: Tap, taps: Mapping[str, Tap]) -> str:
    same = [name for name, other in taps.items() if other == tap]
    if same:
        return same[0]
    part = "" if tap.output is None else f"[{tap.output}]"
    return f"{modality}@{tap.module}#{tap.call}{part} {tap.pool}"


class Extra(nn.Module):
    """One loss of a recipe. What it learns, if anything, are this module's parameters.

    Args:
        name: the recipe's name of it.
        term: what the recipe says.
        where: what it may look at.

    Raises:
        TaskError: it names a modality or a pair that the task does not have.
    """

    def __init__(self, name: str, term: Term, where: Where) -> None:
        super().__init__()
        self.name, self.term = name, term
        own = {"student": _own(term, "student"), "anchor": _own(term, where.table)}
        named = [*term.modalities, *own["student"], *own["anchor"]]
        for modality in named:
            if modality not in where.modalities:
                raise TaskError(
                    f"loss '{name}': '{modality}' is no modality of the task{nearest(modality, where.modalities)}"
                )
        self.modalities = [modality for modality in where.modalities if not named or modality in named]
        known = pair_names(self.modalities)
        for pair in term.pairs:
            if pair not in known:
                raise TaskError(f"loss '{name}': there is no pair '{pair}' of its modalities{nearest(pair, known)}")
        if term.loss in LOSSES_BETWEEN and term.loss != "joint" and len(self.modalities) < 2:
            raise TaskError(f"loss '{name}': '{term.loss}' is of two modalities or more, but is given {named[0]} alone")
        self._student = self._keys(own["student"], where.student)
        self._anchor = self._keys(own["anchor"], where.anchor)

    def _keys(self, own: Mapping[str, Tap], taps: Mapping[str, Tap]) -> dict[str, str]:
        return {name: _place(name, own[name], taps) if name in own else name for name in self.modalities}

    @property
    def on(self) -> tuple[str, ...]:
        """Places of the student on which its gradient's norm is measured."""
        return tuple(self._student.values())

    def prepare(self, seen: Seen) -> None:
        """Make what is learned, whose widths a batch shows.

        Raises:
            TaskError: the loss cannot be computed of what the networks give.
        """
        if self.term.loss not in LOSSES_BETWEEN:
            return
        for keys, side in [(self._student, seen.student), *((self._anchor, anchor) for anchor in seen.anchors)]:
            widths = {name: side.embeddings[key].shape[1] for name, key in keys.items()}
            if len(set(widths.values())) > 1:
                raise TaskError(
                    f"loss '{self.name}': '{self.term.loss}' takes inner products between modalities, so the "
                    "embeddings of one model must share a width, but are "
                    + ", ".join(f"{name} {width}" for name, width in widths.items())
                    + "; give the encoders one width, or choose losses that do without: intra, fd, sp, rkd, pkt"
                )

    def forward(self, seen: Seen) -> Tensor:
        """Return the loss."""
        raise NotImplementedError

    def _pairs_of(self, seen: Seen, anchor: Side, modality: str) -> tuple[Tensor, Tensor] | None:
        """Return student's and anchor's embeddings of the samples that have a modality, None of fewer than two."""
        rows = _rows(seen, [modality])
        ours, theirs = seen.student.embeddings[self._student[modality]], anchor.embeddings[self._anchor[modality]]
        return (ours[rows], theirs[rows]) if _enough(rows) else None


class _Logits(Extra):
    """DKD or DIST."""

    def forward(self, seen: Seen) -> Tensor:
        temperature = cast("float", self.term.temperature)
        if self.term.loss == "dist":
            return dist_loss(seen.student.logits, seen.teacher, temperature)
        beta = BETA if self.term.beta is None else self.term.beta
        return dkd_loss(seen.student.logits, seen.teacher, seen.labels, temperature, beta)


class _GramTerm(Extra):
    """The Gram in one scope."""

    def forward(self, seen: Seen) -> Tensor:
        term = self.term
        kind = GramKind(
            cast("Scope", term.loss),
            centered=bool(term.centered),
            normalize=term.normalize or "cosine",
            distance=term.distance or "mse",
            pairs=tuple(term.pairs),
        )
        ours = {name: seen.student.embeddings[key] for name, key in self._student.items()}
        theirs = [{name: side.embeddings[key] for name, key in self._anchor.items()} for side in seen.anchors]
        present = None
        if seen.present:
            everyone = torch.ones(len(seen.labels), device=seen.labels.device)
            present = torch.stack([seen.present.get(name, everyone) for name in self.modalities], 1)
        return cast("Tensor", gram_distance(ours, theirs, kind, present, softness=SOFTNESS))


class _Relation(Extra):
    """SP, RKD or PKT: the mean over modalities and anchors."""

    def forward(self, seen: Seen) -> Tensor:
        loss = _RELATIONS[cast("str", self.term.loss)]
        sides = [self._pairs_of(seen, anchor, name) for anchor in seen.anchors for name in self.modalities]
        return _mean([loss(*pair) for pair in sides if pair is not None], seen)


class _Feature(Extra):
    """FD, FitNet or ICKD: the mean over modalities and anchors, each with a projection of its own."""

    def prepare(self, seen: Seen) -> None:
        make = FEATURES[cast("str", self.term.loss)][1]
        self.projections = nn.ModuleList()
        for ours, theirs in self._all(seen):
            self.projections.append(make(ours.shape[1], theirs.shape[1]).to(ours.device))

    def forward(self, seen: Seen) -> Tensor:
        loss = FEATURES[cast("str", self.term.loss)][0]
        rows = [_rows(seen, [name]) for _ in seen.anchors for name in self.modalities]
        return _mean(
            [
                loss(projection(ours[there]), theirs[there])
                for projection, there, (ours, theirs) in zip(self.projections, rows, self._all(seen), strict=True)
                if _enough(there)
            ],
            seen,
        )

    def _all(self, seen: Seen) -> list[tuple[Tensor, Tensor]]:
        return [
            (self._features(seen.student, self._student[name]), self._features(anchor, self._anchor[name]))
            for anchor in seen.anchors
            for name in self.modalities
        ]

    def _features(self, side: Side, place: str) -> Tensor:
        if self.term.loss != "ickd":
            return side.embeddings[place]
        maps = side.outputs[place]
        if maps.dim() < 3:
            raise TaskError(
                f"loss '{self.name}': 'ickd' is of feature maps [B, C, ...], but '{place}' gives "
                f"{list(maps.shape)}: name a module before the pooling"
            )
        return maps.flatten(2)


class _Affinity(Extra):
    """CLIP-KD's affinities: the mean over pairs of modalities and anchors."""

    def forward(self, seen: Seen) -> Tensor:
        temperature = self.term.temperature or AFFINITY_TEMPERATURE
        losses = []
        for i, j in zip(*pair_indices(len(self.modalities)), strict=True):
            names = [self.modalities[i], self.modalities[j]]
            rows = _rows(seen, names)
            if not _enough(rows) or (self.term.pairs and "-".join(names) not in self.term.pairs):
                continue
            a, b = (seen.student.embeddings[self._student[name]][rows] for name in names)
            for anchor in seen.anchors:
                c, d = (anchor.embeddings[self._anchor[name]][rows] for name in names)
                losses.append(affinity_loss((a, b), (c, d), temperature))
        return _mean(losses, seen)


_CLASSES: dict[str, type[Extra]] = {
    **dict.fromkeys(LOGIT_LOSSES, _Logits),
    **dict.fromkeys(("sample", "intra", "cross", "joint"), _GramTerm),
    **dict.fromkeys(_RELATIONS, _Relation),
    **dict.fromkeys(FEATURES, _Feature),
    "affinity": _Affinity,
}


def make_extras(config: LossConfig, where: Where) -> dict[str, Extra]:
    """Return the losses that a recipe adds to cross entropy and KD, by its names of them.

    Raises:
        TaskError: one names a modality or a pair that the task does not have.
    """
    extras = {}
    for name, term in config.terms.items():
        softened = term.loss in LOGIT_LOSSES and term.temperature is None
        complete = replace(term, temperature=config.temperature) if softened else term
        extras[name] = _CLASSES[cast("str", term.loss)](name, complete, where)
    return extras


def _rows(seen: Seen, names: Sequence[str]) -> Tensor | slice:
    """Return which samples have all of these modalities."""
    masks = [seen.present[name] > 0 for name in names if name in seen.present]
    return torch.stack(masks).all(0) if masks else slice(None)


def _enough(rows: Tensor | slice) -> bool:
    """Whether there are two samples to relate."""
    return isinstance(rows, slice) or int(rows.sum()) > 1


def _mean(losses: list[Tensor], seen: Seen) -> Tensor:
    return torch.stack(losses).mean() if losses else seen.student.logits.sum() * 0
