"""The second moments of each layer's inputs, and how sensitive Gram and prediction are to its outputs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from edgekd.gram.matrix import SOFTNESS, pair_indices, sample_gram, stack
from edgekd.training.distillation.kinds.likelihood import drawn_likelihood
from edgekd.training.loop.autograd_layers import WEIGHTED, has_constant, matrix, output_width, same_slice
from edgekd.training.taps.taps import TappedModel, outputs_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edgekd.config.recipe import Tap
    from edgekd.training.task.protocol import Batch

#: Random directions for each batch of samples. A few suffice: the error averages out over samples and positions.
_DRAWS = 4

#: Largest number of channels of one layer: a matrix of 8192 squared takes 512 MiB.
WIDEST = 8192


@dataclass(frozen=True)
class ImportanceInputs:
    """What an importance is computed from.

    Attributes:
        model: The network, in evaluation mode and with trainable parameters.
        taps: For each modality where its embedding is.
        samples: Batches of training samples on its device; they may be iterated several times.
        seed: Seed of random directions.
    """

    model: nn.Module
    taps: Mapping[str, Tap]
    samples: Iterable[Batch]
    seed: int


@dataclass
class Sensitivity:
    """The sensitivity of one layer, in float64 on the CPU.

    Attributes:
        moment: ``E[x x^T]`` of its inputs over samples and positions [n, n], with columns as in
            :func:`edgekd.training.loop.autograd_layers.matrix`; 0 for two columns that no output reads together.
        gram: The expectation over samples of ``g g^T``, summed over positions [out, out], where g is the derivative of
            one Gram entry by the layer's outputs; summed over the pairs of modalities.
        task: The same where g is the derivative of the log-likelihood of a class, in expectation over the network's own
            prediction: the Fisher information.
    """

    moment: Tensor
    gram: Tensor
    task: Tensor


def sensitivities(given: ImportanceInputs) -> dict[nn.Module, Sensitivity]:
    """Measure every layer with weights that runs in evaluation mode and is not too wide.

    Both expectations are estimated from random directions. For Gram entries the direction is their sum under
    independent random signs, whose squared derivative is in expectation the sum of theirs (Hutchinson, Commun. Stat.
    Simul. Comput. 18(3), 1989): one backward pass serves all pairs and samples. For the prediction it is the
    log-likelihood of classes drawn from it (Theis et al., arXiv 1801.05787).
    """
    generator, kinds = torch.Generator().manual_seed(given.seed), outputs_read(given.taps)
    measured: dict[nn.Module, Sensitivity] = {}
    rows: dict[nn.Module, int] = {}
    samples = 0
    for batch in given.samples:
        with _recorded(given.model) as calls, TappedModel(given.model, given.taps) as tapped:
            answers, embeddings = tapped(list(batch.inputs.values()))
        samples += len(batch.ids)
        for call in calls:
            if call.layer not in measured:
                measured[call.layer] = _zeros(call.layer)
            measured[call.layer].moment += _squares(call.inputs)
            rows[call.layer] = rows.get(call.layer, 0) + len(call.inputs)
        cosines = _pair_cosines(embeddings)
        for _ in range(_DRAWS):
            for call, derivative in _derivatives(calls, _signed(cosines, generator)):
                measured[call.layer].gram += _squares(_rows(call.layer, derivative))
            for call, derivative in _derivatives(calls, drawn_likelihood(answers, kinds, generator)):
                measured[call.layer].task += _squares(_rows(call.layer, derivative))
    for layer, sensitivity in measured.items():
        sensitivity.moment *= same_slice(layer) / rows[layer]
        sensitivity.gram /= samples * _DRAWS
        sensitivity.task /= samples * _DRAWS
    return measured


@dataclass(frozen=True)
class _Call:
    """One call of a layer: its inputs, with a row for each sample and position [N, n], and its outputs."""

    layer: nn.Module
    inputs: Tensor
    outputs: Tensor


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Call]]:
    """Record every call of a layer with weights within the context."""
    calls: list[_Call] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        rows = _rows(layer, inputs[0].detach())
        calls.append(
            _Call(layer, torch.cat([rows, torch.ones_like(rows[:, :1])], 1) if has_constant(layer) else rows, outputs)
        )
        return outputs.clone()  # the next module may work in place

    handles = [
        module.register_forward_hook(hook)
        for module in model.modules()
        if isinstance(module, WEIGHTED) and not is_too_wide(module)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _rows(layer: nn.Module, values: Tensor) -> Tensor:
    """Return a layer's inputs or outputs with one row for each sample and position [N, channels]."""
    channels_last = values if isinstance(layer, nn.Linear) else values.movedim(1, -1)
    return channels_last.flatten(0, -2)


def _squares(rows: Tensor) -> Tensor:
    rows = rows.double()
    return (rows.T @ rows).cpu()


def _zeros(layer: nn.Module) -> Sensitivity:
    outputs, columns, _ = matrix(layer).shape
    return Sensitivity(*(torch.zeros(size, size, dtype=torch.float64) for size in (columns, outputs, outputs)))


def is_too_wide(layer: nn.Module) -> bool:
    """Whether the products of all channels of a layer with weights are too many to be held."""
    inputs = cast("int", layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)
    return max(output_width(layer), inputs + has_constant(layer)) > WIDEST


def _pair_cosines(embeddings: Mapping[str, Tensor]) -> Tensor:
    """Return each sample's Gram entries above the diagonal [B, P], normalised as in training."""
    gram = sample_gram(stack({name: z.float() for name, z in embeddings.items()}, SOFTNESS))
    first, second = pair_indices(len(embeddings))
    entries: Tensor = gram[:, first, second]
    return entries


def _signed(cosines: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, cosines.shape, generator=generator) * 2 - 1
    return (cosines * signs.to(cosines)).sum()


def _derivatives(calls: list[_Call], value: Tensor) -> Iterator[tuple[_Call, Tensor]]:
    outputs = [call.outputs for call in calls]
    derivatives = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return zip(calls, derivatives, strict=True)
