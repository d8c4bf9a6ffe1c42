"""Importance "gram": Optimal Brain Surgeon on the modality Gram. The weights that stay make up for removed channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.training.loop.autograd_layers import matrix, set_matrix
from edgekd.training.pruning.curvature import sensitivities
from edgekd.training.pruning.groups import members

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from edgekd.training.pruning.curvature import ImportanceInputs
    from edgekd.training.pruning.groups import PruningGroup

#: Share of the second moments' diagonal that is added to it: from few samples they are not of full rank.
_DAMPING = 1e-3
#: Share of the largest value that is added to the diagonal, for channels that are always 0.
_FLOOR = 1e-9


class GramImportance:
    """Measures how far the modality Gram and the prediction move when a channel goes and the others make up for it.

    Removing channels zeroes the weights that read them, and a layer's output is linear in its weights. At the unpruned
    student the drift is at its minimum, so its first-order (Taylor) term is 0 and says nothing; the second-order term
    of a change dW of a layer's weights is the mean square of the Gram's derivative along it, and for the prediction the
    same in the metric of its Fisher information (:mod:`edgekd.training.pruning.curvature`). With what the layer reads,
    x, taken as independent of the derivative by its outputs, g (K-FAC: Martens & Grosse, arXiv 1503.05671), that is
    ``tr(G dW S dW^T)`` with ``S = E[x x^T]`` and ``G = E[g g^T]``. So the best change of the other weights is the
    regression of the lost channel on those that stay, and the remaining loss is Optimal Brain Surgeon's
    ``tr((W^T G W)_cc (S^-1)_cc^-1)``, c being all columns that read the channel (Hassibi & Stork, NIPS 1992; for
    channels: van der Ouderaa et al., arXiv 2312.17244).

    Each group's channels are removed one by one, the cheapest first, and each is as important as the most expensive one
    up to it: of two channels that carry the same information, the second is needed once the first is removed. Drift and
    prediction are each divided by their mean over all channels, and added.

    Args:
        given: What the importance is computed from.
        groups: All groups that are compared.
    """

    def __init__(self, given: ImportanceInputs, groups: Iterable[PruningGroup]) -> None:
        self._known = sensitivities(given)
        self._groups = {_root(group): _Members.of(group, self._known) for group in groups}
        alone = [self._alone(own) for own in self._groups.values()] or [torch.ones(2, 1)]
        self._means = torch.cat(alone, 1).mean(1).clamp_min(1e-30)

    def __call__(self, group: PruningGroup) -> Tensor:
        """Return the importance [N] of a dependency group's channels."""
        own = self._groups[_root(group)]
        if not own.readers:
            return (self._alone(own) / self._means[:, None]).sum(0)
        return _one_by_one([self._reader(reads) for reads in own.readers], own.width)

    def compensate(self, removed: Iterable[tuple[nn.Module, list[int]]]) -> None:
        """Change, in place, the weights of the channels that stay, so that they make up for those that are removed.

        Args:
            removed: For each group, by its root, the channels that are removed.
        """
        lost: dict[nn.Module, list[int]] = {}
        for root, channels in removed:
            for reads in self._groups[root].readers:
                chosen = torch.isin(reads.roots, torch.tensor(channels))
                lost.setdefault(reads.layer, []).extend(reads.columns[chosen].tolist())
        for layer, columns in lost.items():
            _regress(layer, self._known[layer].moment, columns)

    def _alone(self, own: _Members) -> Tensor:
        """Return the loss of Gram and of prediction with each channel where nothing makes up for it [2, N].

        It is computed at the weights that read the channel or, where there are none, at those that make it.
        """
        total = torch.zeros(2, own.width, dtype=torch.float64)
        for part in own.readers or own.makers:
            known, weight = self._known[part.layer], matrix(part.layer)
            for row, outputs in zip(total, (known.gram, known.task), strict=True):
                if own.readers:
                    roots, blocks = part.blocks()
                    row.index_add_(0, roots, (_read(weight, outputs)[blocks] * known.moment[blocks]).sum((1, 2)))
                else:
                    lost = outputs.diagonal() * torch.einsum("oik,ij,ojk->o", weight, known.moment, weight)
                    row.index_add_(0, part.roots, lost[part.columns])
        return total

    def _reader(self, reads: _GroupSlice) -> _GroupReader:
        known = self._known[reads.layer]
        outputs = known.gram / self._means[0] + known.task / self._means[1]
        return _GroupReader(reads, _read(matrix(reads.layer), outputs), torch.linalg.inv(_damped(known.moment)))


@dataclass(frozen=True)
class _GroupSlice:
    """The channels of a layer that belong to a group: the column of each, and the group's channel (its root)."""

    layer: nn.Module
    columns: Tensor
    roots: Tensor

    def blocks(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the roots [R], and the index of the rows and columns of each in a layer's matrix [R, k, k].

        k is more than 1 where the layer reads the flattened positions of a channel.
        """
        roots = torch.tensor(sorted(set(self.roots.tolist())))
        columns = self.columns[self.roots.argsort(stable=True)].view(len(roots), -1)
        return roots, (columns[:, :, None], columns[:, None])


@dataclass(frozen=True)
class _Members:
    """The layers of a group that read its channels, and those that make them.

    Attributes:
        width: Number of the group's channels.
        readers: The layers that read them.
        makers: The layers that make them.
    """

    width: int
    readers: list[_GroupSlice] = field(default_factory=list)
    makers: list[_GroupSlice] = field(default_factory=list)

    @classmethod
    def of(cls, group: PruningGroup, known: Container[nn.Module]) -> _Members:
        """Return the layers of a group of which something is known; an auxiliary head runs in training alone."""
        found = cls(len(group[0].idxs))
        for layer, item, makes in members(group):
            if layer in known:
                part = _GroupSlice(layer, torch.tensor(item.idxs), torch.tensor(item.root_idxs))
                # A depthwise convolution both reads and makes channels: it counts as a maker.
                (found.makers if makes else found.readers).append(part)
        return found


def _root(group: PruningGroup) -> nn.Module:
    root: nn.Module = group[0].dep.target.module
    return root


class _GroupReader:
    """A layer that reads a group, while channels are removed from it one by one.

    Args:
        part: The columns of the layer that belong to the group.
        read: ``W^T G W`` [n, n].
        inverse: ``S^-1`` [n, n].
    """

    def __init__(self, part: _GroupSlice, read: Tensor, inverse: Tensor) -> None:
        self._part, self._read, self._inverse = part, read, inverse
        self._roots, self._blocks = part.blocks()

    def costs(self, width: int) -> Tensor:
        """Return the loss with each of the group's channels [width]; it is 0 for one that is removed already."""
        lost = torch.linalg.solve(self._inverse[self._blocks], self._read[self._blocks])
        return torch.zeros(width, dtype=lost.dtype).index_add_(0, self._roots, torch.einsum("rkk->r", lost))

    def remove(self, root: int) -> None:
        """Remove one of the group's channels: the other weights become ``W - W_c (S^-1)_cc^-1 (S^-1)_c``."""
        removed = self._part.columns[self._part.roots == root]
        shares = torch.linalg.solve(self._inverse[removed][:, removed], self._inverse[removed])
        crossed = shares.T @ self._read[removed]
        self._read = self._read - crossed - crossed.T + shares.T @ self._read[removed][:, removed] @ shares
        self._inverse = self._inverse - self._inverse[:, removed] @ shares
        self._read[removed], self._read[:, removed] = 0, 0
        self._inverse[removed, removed] = 1


def _one_by_one(readers: list[_GroupReader], width: int) -> Tensor:
    importance = torch.zeros(width, dtype=torch.float64)
    left = torch.ones(width, dtype=torch.bool)
    highest = torch.zeros((), dtype=torch.float64)
    for _ in range(width):
        costs = torch.stack([reader.costs(width) for reader in readers]).sum(0)
        cheapest = int(costs.where(left, torch.inf).argmin())
        highest = torch.maximum(highest, costs[cheapest])
        importance[cheapest] = highest
        left[cheapest] = False
        for reader in readers:
            reader.remove(cheapest)
    return importance


def _regress(layer: nn.Module, moment: Tensor, removed: list[int]) -> None:
    """Add to the columns that stay the regression of the removed columns on them."""
    weight, within = matrix(layer), _damped(moment)
    stay = torch.ones(len(within), dtype=torch.bool)
    stay[removed] = False
    shares = torch.linalg.solve(within[stay][:, stay], within[stay][:, ~stay])
    weight[:, stay] += torch.einsum("ogk,sg->osk", weight[:, ~stay], shares)
    set_matrix(layer, weight)


def _damped(moment: Tensor) -> Tensor:
    power = moment.diagonal()
    return moment + torch.diag(_DAMPING * power + _FLOOR * power.max())


def _read(weight: Tensor, outputs: Tensor) -> Tensor:
    """Return ``W^T G W`` [n, n], summed over the kernel."""
    return torch.einsum("oik,op,pjk->ij", weight, outputs, weight)
