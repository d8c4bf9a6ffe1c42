"""Judge a pruned network as the gate does, against the unpruned student, on the validation split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.gram.drift import measure_drift
from edgekd.gram.gate import FINETUNED, keep_ledger
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.jackknife import choosing_groups
from edgekd.gram.probe import Probe
from edgekd.stages.judging import measure_metrics
from edgekd.training.loop.evaluate import ground_truth, probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.config.recipe import Tap
    from edgekd.gram.gate import GateRules, LedgerRow
    from edgekd.training.task.loading import LoadedTask

#: What is compared among branches are means, so no time is spent on their bounds.
_UNBOUNDED = Bootstrap(resamples=1)


@dataclass(frozen=True)
class JudgedPruning:
    """What the gate says of a pruned network.

    Attributes:
        row: Its row of the ledger.
        drifts: For each modality how far the Gram between samples drifted in its own embeddings.
    """

    row: LedgerRow
    drifts: dict[str, float]


class PruneJudge:
    """Judges pruned networks. The test split stays unseen: what is decided here is judged there.

    Args:
        task: The task.
        student: The unpruned student, on its device.
        taps: For each modality where the student's embedding is.
        rules: How rows of a ledger are judged.

    Attributes:
        limits: The limits of the gate.
    """

    def __init__(self, task: LoadedTask, student: nn.Module, taps: Mapping[str, Tap], rules: GateRules) -> None:
        self._task, self._taps, self._rules = task, taps, rules
        self.limits = rules.limits
        self._truth = ground_truth(task.splits["val"])
        self._reference = probe(student, taps, task.splits["val"])

    def __call__(self, model: nn.Module) -> JudgedPruning:
        """Judge a network that is finished."""
        probed = probe(model, self._taps, self._task.splits["val"])
        probes, groups = {"student": self._reference, FINETUNED: probed}, choosing_groups(self._truth.groups)
        figures = measure_metrics(probes, self._truth.labels, groups, self._task.metric, self._rules)
        row = keep_ledger(probes, figures, self._rules, groups).row(FINETUNED)
        return JudgedPruning(row, {name: self._drift(probed, name) for name in probed.modalities})

    def _drift(self, probed: Probe, modality: str) -> float:
        ours, theirs = (
            Probe(side.ids, side.logits, {modality: side.embeddings[modality]}) for side in (probed, self._reference)
        )
        return measure_drift(ours, theirs, None, _UNBOUNDED).mean
