"""One budget for the whole network: choose widths so that each branch gives up what it can spare."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgekd.training.pruning.latency import RelativeLatency

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekd.config.recipe import PruneBudget, Tap
    from edgekd.training.pruning.groups import Group
    from edgekd.training.task.protocol import Batch

#: Widths of groups, by the path of their root.
Widths = dict[str, int]


@dataclass(frozen=True)
class Budget:
    """The limit on a pruned network's cost.

    Attributes:
        what: Name of the cost, for messages.
        keep: Largest share of the unpruned network's cost.
        spent: Returns a network's cost as a share of the unpruned network's.
    """

    what: str
    keep: float
    spent: Callable[[nn.Module], float]

    @classmethod
    def of(cls, config: PruneBudget, unpruned: nn.Module, taps: Mapping[str, Tap], batch: Batch) -> Budget:
        """Return the budget that a recipe gives, measured against the unpruned network."""
        if config.parameters is not None:
            parameters = count_parameters(unpruned)
            return cls("parameters", config.parameters, lambda model: count_parameters(model) / parameters)
        if config.macs is not None:
            inputs = list(batch.inputs.values())
            macs = count_macs(unpruned, inputs)
            return cls("MACs", config.macs, lambda model: count_macs(model, inputs) / macs)
        assert config.latency is not None  # the recipe gives exactly one
        return cls("latency", config.latency, RelativeLatency(unpruned, taps, batch))


def count_parameters(model: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Return the multiply-accumulates of matrix products and convolutions in one inference of the first sample."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*(x[:1] for x in inputs))
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True)
class _Block:
    """The channels of a group between two neighbouring widths, of which ``width`` is the narrower.

    Attributes:
        root: Path of the group's root.
        width: Width of the group without the block.
        price: Importance that is lost, for each unit of cost that is saved where cost counts.
    """

    root: str
    width: int
    price: float


def choose_widths(groups: Sequence[Group], cost: Callable[[Widths], float], budget: float) -> tuple[Widths, float]:
    """Choose the widths that meet a budget at the least loss of importance.

    The channels of a group are removed in blocks of its step, the least important first and never the last. All blocks
    are sorted by price, which is importance lost for cost saved, and the shortest run of them that meets the budget is
    removed. What a block saves is measured on the network without half of its group's blocks; what a run costs is
    measured on the network without it.

    Args:
        groups: Groups of the network as it is.
        cost: Returns the cost of the network with some widths; groups that are not named keep theirs.
        budget: Largest cost, in the unit of ``cost``.

    Returns:
        The widths that change, and the cost of the network with them. Where even the narrowest network costs more than
        the budget, they are that network's.
    """
    full = cost({})
    blocks = sorted((block for group in groups for block in _blocks(group, cost, full)), key=lambda block: block.price)
    costs: dict[int, float] = {}

    def within(count: int) -> bool:
        costs[count] = cost(_without(blocks[:count]))
        return costs[count] <= budget

    count = min(bisect_left(range(len(blocks) + 1), True, key=within), len(blocks))
    return _without(blocks[:count]), costs[count]


def _blocks(group: Group, cost: Callable[[Widths], float], full: float) -> list[_Block]:
    widths = _allowed_widths(group, group.step)
    if len(widths) == 1:
        return []
    half = widths[len(widths) // 2]
    saving = (full - cost({group.root: half})) / (group.width - half)  # for each channel
    blocks = []
    for wide, narrow in pairwise(widths):
        lost = _lost(group, wide, narrow)
        gained = saving * (wide - narrow)
        # A block that saves nothing, or less than the noise of a measured latency, is removed last.
        blocks.append(_Block(group.root, narrow, lost / gained if gained > 0 else float("inf")))
    return blocks


def spare(groups: Sequence[Group], widths: Widths, unpruned: Mapping[str, int], shares: Mapping[str, float]) -> Widths:
    """Return widths with which each branch gives a share of what it would give, rounded down to whole steps.

    Of a branch those steps stay whose channels are the most important.

    Args:
        groups: Groups of the network as it is.
        widths: Widths that the branches would have if they gave all; groups that are not named keep theirs.
        unpruned: Widths of the unpruned network, by the path of a group's root.
        shares: For some branches the share that they give of all that would be gone of the unpruned network.
    """
    kept = {group.root: widths[group.root] for group in groups if group.root in widths and group.branch not in shares}
    for branch in shares:
        own = [group for group in groups if group.branch == branch]
        blocks = sorted((block for group in own for block in _steps(group, widths)), key=lambda block: block.price)
        gone = sum(math.ceil((unpruned[group.root] - group.width) / group.step) for group in own)
        # 1e-9 more, since 3 * (1 / 3) may be a little less than 1 in floating point.
        allowed = int(shares[branch] * (gone + len(blocks)) + 1e-9)
        kept |= _without(blocks[: max(allowed - gone, 0)])
    return kept


def _steps(group: Group, widths: Widths) -> list[_Block]:
    """Return the blocks that a group would give; the price of each is the importance that is lost with it."""
    allowed = _allowed_widths(group, widths.get(group.root, group.width))
    return [_Block(group.root, narrow, _lost(group, wide, narrow)) for wide, narrow in pairwise(allowed)]


def _allowed_widths(group: Group, narrowest: int) -> list[int]:
    """Return the widths that a group may have down to one of them, from wide to narrow."""
    return [*range(narrowest, group.width, group.step), group.width][::-1]


def _lost(group: Group, wide: int, narrow: int) -> float:
    """Return the importance that a group loses from one width to the next."""
    ascending = sorted(group.importance)
    return sum(ascending[(group.width - wide) // group.parts : (group.width - narrow) // group.parts])


def _without(blocks: Sequence[_Block]) -> Widths:
    widths: Widths = {}
    for block in blocks:
        widths[block.root] = min(block.width, widths.get(block.root, block.width))
    return widths
