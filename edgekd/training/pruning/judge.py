"""Judge a pruned network as the gate does, against the unpruned student, on the validation split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.gram.drift import measure_drift
from edgekd.gram.gate import FINETUNED
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.stages.judging import keep_choosing_ledger
from edgekd.stages.trained import PruneCheck
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import ground_truth, probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.config.recipe import Tap
    from edgekd.gram.gate import GateRules
    from edgekd.training.task.loading import LoadedTask

#: What is compared among branches are means, so no time is spent on their bounds.
_UNBOUNDED = Bootstrap(resamples=1)


def judge_pruned(
    task: LoadedTask, student: nn.Module, pruned: nn.Module, taps: Mapping[str, Tap], rules: GateRules
) -> PruneCheck:
    """Judge a pruned network that is finished. The test split stays unseen: what is decided here is judged there.

    Args:
        task: The task.
        student: The unpruned student.
        pruned: The pruned network.
        taps: For each modality where the embedding is in both.
        rules: How rows of a ledger are judged.
    """
    split, device = task.splits["val"], compute_device()
    truth = ground_truth(split)
    probes = {"student": probe(student.to(device), taps, split), FINETUNED: probe(pruned.to(device), taps, split)}
    ledger = keep_choosing_ledger(probes, truth.targets, truth.groups, task.scoring, rules)
    return PruneCheck(ledger.row(FINETUNED), {name: _drift(probes, name) for name in taps})


def _drift(probes: Mapping[str, Probe], modality: str) -> float:
    """Return the mean drift of the Gram between samples of one modality."""
    alone = [Probe(each.ids, each.outputs, {modality: each.embeddings[modality]}) for each in probes.values()]
    return measure_drift(alone[1], alone[0], None, _UNBOUNDED).mean
