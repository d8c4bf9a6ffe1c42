"""What all processes see of one batch, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekd.training.distillation.terms import Seen, Side
from edgekd.training.loop import distributed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


def whole(seen: Seen, modalities: Sequence[str], maps: bool) -> Seen:
    """Return what is seen of the whole batch, of which this process has a share; the same in all of them.

    Args:
        seen: by this process.
        modalities: of the task.
        maps: whether any loss reads the modules' outputs, which are large; without, they are left out.
    """
    if distributed.size() == 1:
        return seen
    counts = distributed.sizes(len(seen.labels), seen.labels.device)

    def all_of(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: distributed.gather(x, counts) for name, x in table.items()}

    def side(one: Side) -> Side:
        return Side(distributed.gather(one.logits, counts), all_of(one.embeddings), all_of(one.outputs if maps else {}))

    everyone = torch.ones(len(seen.labels), device=seen.labels.device)
    # A process whose samples lack nothing says nothing of it, while another's may.
    masks = all_of({name: seen.present.get(name, everyone) for name in modalities})
    return Seen(
        side(seen.student),
        distributed.gather(seen.teacher, counts),
        [side(anchor) for anchor in seen.anchors],
        distributed.gather(seen.labels, counts),
        {name: mask for name, mask in masks.items() if not bool(mask.all())},
    )
