"""Outputs of a task's networks: their names, and what each is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from edgekd.errors import TaskError, nearest
from edgekd.gram.output_kind import OutputKind, OutputName
from edgekd.stages.user_code import describe, shown
from edgekd.training.task.columns import check_text

#: Names that files of samples, probes and graphs have for something else.
_TAKEN = ("ids", "labels", "groups", "target")
_PREFIXES = ("embedding.", "input.", "present.", "target.")

#: The kinds that each option is of.
_OPTIONS: dict[str, tuple[OutputName, ...]] = {
    "probabilities": ("classes", "multilabel", "dense-classes", "sequence-classes"),
    "threshold": ("multilabel", "regression"),
    "blank": ("sequence-classes",),
    "classes": ("classes", "multilabel", "dense-classes", "sequence-classes"),
}


@dataclass(frozen=True)
class Output:
    """One named output of a task's networks.

    Attributes:
        name: Name of the output: of a dict or an object that a network returns, the key or the attribute.
        kind: What it is: "classes" [B, C], "multilabel" [B, L], "regression" [B, ...], "dense-classes" [B, C, ...],
            "sequence-classes" [B, T, C], "embedding" [B, D], or "custom" [B, ...], which the task's own ``loss``,
            ``distill`` and ``metric`` read.
        probabilities: Whether scores are probabilities already, and not logits.
        threshold: Where a label or a number is decided: of "multilabel" by default 0.5 of a probability; of
            "regression" None where nothing is.
        blank: Of "sequence-classes" the blank class of CTC; None where every step is a token by itself.
        index: Of "embedding" what queries are compared with: an index that stays "float", or the network's "own".
        classes: Names of its classes or labels, in order; by default their numbers.
        weight: Its weight among the losses and metrics of several outputs.
        description: What it means, with units.

    Raises:
        TaskError: The name is taken, or an option is none of the kind's.
    """

    name: str
    kind: OutputName = "classes"
    probabilities: bool = False
    threshold: float | None = None
    blank: int | None = None
    index: Literal["float", "own"] = "float"
    classes: Sequence[str] = ()
    weight: float = 1.0
    description: str = ""

    def __post_init__(self) -> None:
        check_text("an output's name", self.name)
        what, kinds = f"output '{self.name}'", get_args(OutputName)
        if self.name in _TAKEN or self.name.startswith(_PREFIXES):
            raise TaskError(f"{what}: an output may not be named so, or begin with {', '.join(_PREFIXES)}")
        if self.kind not in kinds:
            hint = nearest(str(self.kind), kinds)
            raise TaskError(f"{what} has the kind {shown(self.kind)}, must be one of {', '.join(kinds)}{hint}")
        if self.index not in ("float", "own") or (self.index == "own" and self.kind != "embedding"):
            raise TaskError(f"{what}: its index is {shown(self.index)}, must be 'float', or 'own' of an embedding")
        if not isinstance(self.classes, Sequence | np.ndarray) or isinstance(self.classes, str):
            raise TaskError(f"{what}: its classes are {describe(self.classes)}, must be a list of names")
        object.__setattr__(self, "classes", tuple(self.classes))
        for option, of in _OPTIONS.items():
            value: object = getattr(self, option)
            if value is not None and value is not False and value != () and self.kind not in of:
                raise TaskError(f"{what}: {option} is no option of the kind '{self.kind}', but of {', '.join(of)}")
        self._check_options(what)
        if not isinstance(self.weight, int | float) or not math.isfinite(self.weight) or self.weight < 0:
            raise TaskError(f"{what}: its weight is {shown(self.weight)}, must be a number from 0")

    def _check_options(self, what: str) -> None:
        given: tuple[object, object] = self.probabilities, self.description
        if not isinstance(given[0], bool):
            raise TaskError(f"{what}: its probabilities is {shown(given[0])}, must be True or False")
        if not isinstance(given[1], str):
            raise TaskError(f"{what}: its description is {describe(given[1])}, must be a text (str)")
        if self.threshold is not None:
            number = isinstance(self.threshold, int | float | np.number) and math.isfinite(self.threshold)
            if not number or (self.kind == "multilabel" and not 0 < self.threshold < 1):
                of = "a number between 0 and 1, of a probability" if self.kind == "multilabel" else "a finite number"
                raise TaskError(f"{what}: its threshold is {shown(self.threshold)}, must be {of}")
        blank: object = self.blank
        if blank is not None and (not isinstance(blank, int | np.integer) or isinstance(blank, bool) or blank < 0):
            raise TaskError(f"{what}: its blank is {shown(blank)}, must be the number of a class, from 0")

    @property
    def output_kind(self) -> OutputKind:
        """What it is."""
        return OutputKind(self.kind, self.probabilities, self.threshold, self.blank, self.index)
