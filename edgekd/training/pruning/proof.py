"""Prove a cut: without some channels a network must compute what it computes where these channels are absent."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.training.loop.autograd_layers import train_unfrozen
from edgekd.training.loop.copies import copy_network
from edgekd.training.loop.weights import seed_all
from edgekd.training.pruning.absent import AbsentValues
from edgekd.training.pruning.groups import copy_without
from edgekd.training.pruning.refusals import FAILURES, calling_line, described
from edgekd.training.pruning.tracing import kept_state
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgekd.config.recipe import Tap
    from edgekd.training.pruning.groups import Group, History
    from edgekd.training.pruning.refusals import Refusal
    from edgekd.training.pruning.tracing import Trace

#: Samples that both networks are run on.
SAMPLES = 8

#: Largest difference, as a share of the largest value: sums of fewer terms are rounded otherwise, by about 1e-6.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Ends:
    """What a network is called with, and where its embeddings are.

    Attributes:
        taps: For each modality where its embedding is.
        trace: How torch-pruning sees the network.
        inputs: Samples of each modality, in order.
    """

    taps: Mapping[str, Tap]
    trace: Trace
    inputs: Sequence[Tensor]


class Proof:
    """Compares cut networks with the network that they were cut from, on real samples, in both of its modes.

    In the uncut network the removed channels are absent (:mod:`edgekd.training.pruning.absent`) where they are made,
    and it is the network that says what each layer then reads. Of all that its modules put out, what is not absent must
    be, value by value, what those of the cut network do; that network must also run backwards in training mode. Which
    columns torch-pruning takes for those that read the channels does not enter.

    Args:
        model: The uncut network.
        ends: What it is called with, and where its embeddings are.
    """

    def __init__(self, model: nn.Module, ends: Ends) -> None:
        self._model, self._ends = model, ends
        self._samples = [x[:SAMPLES] for x in ends.inputs]

    def refusals(self, groups: Sequence[Group], removed: History) -> list[Refusal]:
        """Return the groups of which the removed channels cannot be removed, and why.

        Args:
            groups: The groups of the network.
            removed: The channels that are to be removed; of each group at most one entry.
        """
        by_root = {group.root: group for group in groups}
        refusals: list[Refusal] = []
        self._halve([], removed, by_root, refusals)
        return refusals

    def _halve(
        self, proven: History, removed: History, groups: Mapping[str, Group], refusals: list[Refusal]
    ) -> History:
        """Return the entries that can be removed beside those proven; where all cannot, look for it in each half."""
        problem = self._problem([*proven, *removed], groups) if removed else None
        if problem is None:
            return removed
        if len(removed) == 1:
            refusals.append(groups[removed[0][0]].refusal(problem))
            return []
        half = len(removed) // 2
        first = self._halve(proven, removed[:half], groups, refusals)
        return first + self._halve(proven + first, removed[half:], groups, refusals)

    def _problem(self, removed: History, groups: Mapping[str, Group]) -> str | None:
        """Return why some channels cannot be removed together, or None where they can."""
        try:
            cut = copy_without(self._model, self._ends.trace, removed)
            uncut = copy_network(self._model)
        except FAILURES as error:
            return f"without some of them the network fails: {described(error)}"
        absent = _absent(removed, groups)
        return self._difference(uncut, cut, absent) or self._difference(uncut, cut, absent, training=True)

    def _difference(
        self, uncut: nn.Module, cut: nn.Module, absent: Mapping[str, list[int]], training: bool = False
    ) -> str | None:
        """Return in which way the cut network is not the uncut one, or None where it is."""
        try:
            expected = self._run(uncut, training, absent)
        except FAILURES as error:
            # A network that cannot be trained as it is is no matter of pruning.
            return None if training else f"the network cannot be compared without them: {described(error)}"
        try:
            given = self._run(cut, training, {})
        except FAILURES as error:
            mode = "in training mode " if training else ""
            return f"without some of them {mode}the network fails: {described(error)}"
        return _first_difference(expected, given)

    def _run(self, model: nn.Module, training: bool, absent: Mapping[str, list[int]]) -> list[_TracedOutput]:
        """Run a network and return what its modules put out, then its outputs and embeddings.

        Where nothing is absent and it is in training mode it runs backwards, too.
        """
        if training:
            train_unfrozen(model)
        else:
            model.eval()
        seed_all(0)
        taps = TappedModel(model, self._ends.taps)
        with kept_state(model), _recorded(model, absent) as outputs, torch.enable_grad(), AbsentValues(), taps:
            reading = taps.read(self._samples)
            if training and not absent:
                _run_backwards(outputs)
        ends = {**reading.answers, **reading.embeddings}
        return outputs + [_TracedOutput(f"the {name}", "", [x], end=True) for name, x in ends.items()]


@dataclass(frozen=True)
class _TracedOutput:
    """What one call of a module put out.

    Attributes:
        name: The module.
        line: Where it is called, or "".
        values: The tensors.
        end: Whether it must keep its width.
    """

    name: str
    line: str
    values: list[Tensor]
    end: bool = False


def _absent(removed: History, groups: Mapping[str, Group]) -> dict[str, list[int]]:
    """Return which output channels of which layers are absent once some are removed."""
    absent: dict[str, list[int]] = {}
    for root, _, channels in removed:
        gone = set(channels)
        for maker in groups[root].makers:
            absent.setdefault(maker.path, []).extend(
                channel for channel, of in zip(maker.channels, maker.roots, strict=True) if of in gone
            )
    return absent


@contextmanager
def _recorded(model: nn.Module, absent: Mapping[str, list[int]]) -> Iterator[list[_TracedOutput]]:
    """Make some channels absent within the context, and record what each module without modules in it puts out."""
    outputs: list[_TracedOutput] = []

    def hook(path: str) -> Callable[[nn.Module, object, object], object]:
        def record(layer: nn.Module, _inputs: object, output: object) -> object:
            if path in absent and isinstance(output, Tensor):
                dim = -1 if isinstance(layer, nn.Linear | nn.Embedding) else 1
                output = output.index_fill(dim, torch.tensor(absent[path], device=output.device), torch.nan)
            outputs.append(_TracedOutput(f"'{path}'", calling_line(sys._getframe()), _floats(output)))
            return output

        return record

    handles = [
        layer.register_forward_hook(hook(path)) for path, layer in model.named_modules() if not any(layer.children())
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _floats(output: object) -> list[Tensor]:
    """Return the tensors in a module's output, as they are now: the next module may work in place."""
    if isinstance(output, Tensor):
        return [output.clone()] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return [x for part in parts for x in _floats(part)]


def _run_backwards(outputs: list[_TracedOutput]) -> None:
    trained = [x.sum() for output in outputs for x in output.values if x.requires_grad]
    if trained:
        torch.autograd.backward(torch.stack(trained).sum())


def _first_difference(expected: list[_TracedOutput], given: list[_TracedOutput]) -> str | None:
    """Return, in words, the first output of the uncut network which is not that of the cut one."""
    for ours, theirs in zip_longest(expected, given):
        if ours is None or theirs is None or ours.name != theirs.name:
            return "without some of them the network runs other layers"
        if ours.end and any(bool(x.isnan().any()) for x in ours.values):
            return f"they reach {ours.name}, which must keep its width"
        if len(ours.values) != len(theirs.values) or not all(map(_same, ours.values, theirs.values)):
            return (
                f"without some of them {ours.name}{ours.line} does not give what it gives where they are absent; they "
                "are reordered, divided or mixed on the way there"
            )
    return None


def _same(expected: Tensor, given: Tensor) -> bool:
    """Whether one tensor is another without its absent values."""
    present, given = expected.detach()[~expected.isnan()], given.detach().flatten()
    if len(present) != len(given):
        return False
    finite = present[present.isfinite()].abs()
    bound = _TOLERANCE * float(finite.max()) if len(finite) else 0.0
    return bool(((present == given) | ((present - given).abs() <= bound)).all())
