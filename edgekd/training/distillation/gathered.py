"""Put together what all processes see of one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekd.training.distillation.outputs import BatchOutputs, NetworkOutputs
from edgekd.training.loop import distributed
from edgekd.training.task.targets import map_nest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


def gather_batch(outputs: BatchOutputs, modalities: Sequence[str], maps: bool) -> BatchOutputs:
    """Return the outputs of the whole batch, of which this process has a share; they are the same in all processes.

    Args:
        outputs: Outputs of this process's share.
        modalities: Names of the task's modalities.
        maps: Whether any loss reads the modules' outputs; if not, these are left out, since they are large.
    """
    if distributed.world_size() == 1:
        return outputs
    counts = distributed.sample_counts(len(outputs.labels), outputs.labels.device)

    def gather_table(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: distributed.gather(x, counts) for name, x in table.items()}

    def gather_network(network: NetworkOutputs) -> NetworkOutputs:
        return NetworkOutputs(
            gather_table(network.answers),
            gather_table(network.embeddings),
            gather_table(network.outputs if maps else {}),
        )

    everyone = torch.ones(len(outputs.labels), device=outputs.labels.device)
    # A process whose samples have all modalities has no masks, while another process may have some.
    masks = gather_table({name: outputs.present.get(name, everyone) for name in modalities})
    return BatchOutputs(
        gather_network(outputs.student),
        gather_table(outputs.teacher),
        [gather_network(anchor) for anchor in outputs.anchors],
        distributed.gather(outputs.labels, counts),
        {name: mask for name, mask in masks.items() if not bool(mask.all())},
        map_nest(lambda x: distributed.gather(x, counts), outputs.targets),
    )
