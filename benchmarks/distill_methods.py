"""The contestants: distillation losses at a share or with a temperature, and the controls that must not help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekd.config.recipe import DEFAULT_EXTRA, LossConfig, Term

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Of KD; chosen on validation, for all methods of a case alike.
TEMPERATURES = (4.0, 8.0)

Extra = dict[str, "float | Term"]


@dataclass(frozen=True)
class Method:
    """One contestant.

    Attributes:
        name: as in the table.
        loss: what is minimised, of a setting, KD's temperature and the task's modalities.
        settings: those of which one is chosen on validation; what a setting is depends on the method.
        anchor: whose embeddings are learned: the teacher's, those of another sample of the batch, or those of a teacher
            that was never trained.
        longer: how many times as many epochs.
        drops: each modality of the student's input is replaced by its mean, with the setting as probability.
        group: "gram" (of the family), "rival", "baseline" or "control".
    """

    name: str
    loss: Callable[[float, float, Sequence[str]], LossConfig]
    settings: tuple[float, ...]
    group: Literal["ours", "gram", "rival", "baseline", "control"]
    anchor: Literal["teacher", "shuffled", "random"] = "teacher"
    longer: int = 1
    drops: bool = False


SHARES = (1.0, 3.0, 10.0)


def _added(extra: Callable[[float], Extra]) -> Callable[[float, float, Sequence[str]], LossConfig]:
    return lambda setting, temperature, _: LossConfig(ce=0.1, kd=0.9, temperature=temperature, extra=extra(setting))


def _dkd(beta: float, temperature: float, _: Sequence[str]) -> LossConfig:
    return LossConfig(ce=0.1, kd=0.0, temperature=temperature, extra={"dkd": Term(weight=0.9, options={"beta": beta})})


def _gram(loss: Literal["sample", "intra", "cross", "joint"], *, centered: bool = False) -> Callable[[float], Extra]:
    return lambda share: {loss: Term(share=share, options={"centered": centered})}


def _output(share: float, temperature: float, modalities: Sequence[str]) -> LossConfig:
    """The Gram of what the networks say, not of their modalities: a tap of one modality is moved to the logits."""
    said = {modalities[0]: "head"}
    term = Term(loss="intra", share=share, options={"centered": True}, student=said, teacher=said)
    return LossConfig(ce=0.1, kd=0.9, temperature=temperature, extra={"output": term})


_DEFAULT = _added(lambda _: DEFAULT_EXTRA)

METHODS = (
    Method("none", lambda *_: LossConfig(ce=1.0, kd=0.0, extra={}), (0.0,), "baseline"),
    Method("KD", _added(lambda _: {}), (0.0,), "baseline"),
    Method("KD, 3 times as long", _added(lambda _: {}), (0.0,), "baseline", longer=3),
    Method("KD, modality dropout", _added(lambda _: {}), (0.1, 0.2, 0.3), "baseline", drops=True),
    Method("edgekd", _DEFAULT, (0.0,), "ours"),
    Method("sample", _added(_gram("sample")), SHARES, "gram"),
    Method("intra", _added(_gram("intra")), SHARES, "gram"),
    Method("intra, centred", _added(_gram("intra", centered=True)), SHARES, "gram"),
    Method("cross", _added(_gram("cross")), SHARES, "gram"),
    Method("joint", _added(_gram("joint")), SHARES, "gram"),
    Method("FD", _added(lambda share: {"fd": share}), SHARES, "rival"),
    Method("SP", _added(lambda share: {"sp": share}), SHARES, "rival"),
    Method("RKD", _added(lambda share: {"rkd": share}), SHARES, "rival"),
    Method("DKD", _dkd, (1.0, 4.0, 8.0), "rival"),
    Method("edgekd, shuffled pairs", _DEFAULT, (0.0,), "control", anchor="shuffled"),
    Method("edgekd, random teacher", _DEFAULT, (0.0,), "control", anchor="random"),
    Method("Gram of the output", _output, (3.0,), "control"),
)
BY_NAME = {method.name: method for method in METHODS}
