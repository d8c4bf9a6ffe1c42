"""How a network is run so that torch-pruning, or a proof, sees all of it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.training.loop.autograd_layers import train_unfrozen
from edgekd.training.loop.copies import copy_network
from edgekd.training.loop.weights import seed_all
from edgekd.training.pruning.recurrent import as_single_nodes
from edgekd.training.pruning.refusals import FAILURES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class Trace:
    """One run of a network, which shows the layers that must lose channels together.

    Attributes:
        inputs: Two samples of each modality.
        training: Whether it is in training mode: some layers, such as an auxiliary head, run in no other.
    """

    inputs: tuple[Tensor, ...]
    training: bool

    @classmethod
    def of(cls, model: nn.Module, inputs: Sequence[Tensor]) -> Trace:
        """Return the run that shows most of a network, which stays as it is."""
        inputs = tuple(x[:2] for x in inputs)
        try:
            network = copy_network(model)
            evaluated = _layers_run(network.eval(), inputs)
            train_unfrozen(network)
            trained = _layers_run(network, inputs)
        except FAILURES:  # two samples may be too few; whether it runs at all is not asked here
            return cls(inputs, training=False)
        return cls(inputs, training=bool(trained - evaluated))

    def run(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> object:
        """Run a network, with torch's own layers in evaluation mode; its buffers and its mode are kept."""
        with as_single_nodes(model), kept_state(model):
            if not self.training:
                return model(*inputs)
            model.train()
            for layer in model.modules():
                if type(layer).__module__.startswith("torch.nn."):
                    layer.training = False
            seed_all(0)
            return model(*inputs)


def _layers_run(model: nn.Module, inputs: tuple[Tensor, ...]) -> set[nn.Module]:
    """Return the layers with parameters of their own that run."""
    run: set[nn.Module] = set()
    handles = [
        layer.register_forward_hook(lambda layer, *_: run.add(layer))
        for layer in model.modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return run


@contextmanager
def kept_state(model: nn.Module) -> Iterator[None]:
    """Give a network its buffers, such as BatchNorm's statistics, and its mode back after the context."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {layer: layer.training for layer in model.modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in before and buffer.shape == before[name].shape:
                    buffer.copy_(before[name])
        for layer, mode in modes.items():
            layer.training = mode
