"""What each layer reads, and how much the modality Gram and the prediction feel what it gives."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.errors import ModelError
from edgekd.gram.matrix import SOFTNESS, pair_indices, sample_gram, stack
from edgekd.training.loop.autograd_layers import WEIGHTED, has_constant, matrix, same_slice
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edgekd.config.recipe import Tap
    from edgekd.training.task.protocol import Batch

#: Random directions for each batch of samples. Few, since a direction's error averages out over samples and positions.
_DRAWS = 4

#: Channels of one layer: a matrix of 8192 squared takes 512 MiB.
_LARGEST = 8192


@dataclass(frozen=True)
class ImportanceInputs:
    """What a measure of importance may look at.

    Attributes:
        model: the network, in evaluation mode, its parameters trainable.
        taps: where its embeddings are.
        samples: batches of training samples on its device; may be gone through several times.
        seed: of what is drawn at random.
    """

    model: nn.Module
    taps: Mapping[str, Tap]
    samples: Iterable[Batch]
    seed: int


@dataclass
class Sensitivity:
    """Of one layer, in float64 on the processor.

    Attributes:
        moment: ``E[x x^T]`` over samples and positions of what it reads, as
            :func:`edgekd.training.loop.autograd_layers.matrix` counts its columns [n, n]; 0 between
            columns that no output reads both of.
        gram: of its outputs, the expectation over samples of ``g g^T`` summed over positions, g being the derivative of
            one Gram entry, summed over the pairs of modalities [out, out].
        task: the same with g the derivative of the log-likelihood of a class, in expectation over the network's own
            prediction: the Fisher information.
    """

    moment: Tensor
    gram: Tensor
    task: Tensor


def sensitivities(evidence: ImportanceInputs) -> dict[nn.Module, Sensitivity]:
    """Measure every layer with weights.

    Both expectations are estimated from random directions. Of Gram entries it is their sum under independent random
    signs, whose squared derivative is the sum of theirs in expectation (Hutchinson, Commun. Stat. Simul. Comput. 18(3),
    1989): one backward pass serves all pairs and samples. Of the prediction it is the log-likelihood of classes drawn
    from it (Theis et al., arXiv 1801.05787).

    Raises:
        ModelError: a layer is too wide.
    """
    generator = torch.Generator().manual_seed(evidence.seed)
    found: dict[nn.Module, Sensitivity] = {}
    rows: dict[nn.Module, int] = {}
    samples = 0
    for batch in evidence.samples:
        with _recorded(evidence.model) as calls, TappedModel(evidence.model, evidence.taps) as tapped:
            logits, embeddings = tapped(list(batch.inputs.values()))
        samples += len(logits)
        for call in calls:
            if call.layer not in found:
                found[call.layer] = _nothing(call.layer)
            found[call.layer].moment += _squares(call.inputs)
            rows[call.layer] = rows.get(call.layer, 0) + len(call.inputs)
        cosines, log_p = _pair_cosines(embeddings), logits.float().log_softmax(1)
        for _ in range(_DRAWS):
            for call, derivative in _derivatives(calls, _signed(cosines, generator)):
                found[call.layer].gram += _squares(_rows(call.layer, derivative))
            for call, derivative in _derivatives(calls, _likelihood(log_p, generator)):
                found[call.layer].task += _squares(_rows(call.layer, derivative))
    for layer, known in found.items():
        known.moment *= same_slice(layer) / rows[layer]
        known.gram /= samples * _DRAWS
        known.task /= samples * _DRAWS
    return found


@dataclass(frozen=True)
class _Call:
    """One call of a layer: what it read, a row for each sample and position [N, n], and what it gave."""

    layer: nn.Module
    inputs: Tensor
    outputs: Tensor


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Call]]:
    """Record every call of a layer with weights, for as long as it holds."""
    calls: list[_Call] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        rows = _rows(layer, inputs[0].detach())
        calls.append(
            _Call(layer, torch.cat([rows, torch.ones_like(rows[:, :1])], 1) if has_constant(layer) else rows, outputs)
        )
        return outputs.clone()  # what comes next may work in place

    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, WEIGHTED)]
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


def _nothing(layer: nn.Module) -> Sensitivity:
    outputs, columns, _ = matrix(layer).shape
    if max(outputs, columns) > _LARGEST:
        raise ModelError(
            f"[prune] importance = 'gram' holds the products of all channels of a layer, and {layer} has more than "
            f"{_LARGEST}: pool before it, or choose another importance"
        )
    return Sensitivity(*(torch.zeros(size, size, dtype=torch.float64) for size in (columns, outputs, outputs)))


def _pair_cosines(embeddings: Mapping[str, Tensor]) -> Tensor:
    """Return each sample's Gram entries above the diagonal [B, P], normalised as in training."""
    gram = sample_gram(stack({name: z.float() for name, z in embeddings.items()}, SOFTNESS))
    first, second = pair_indices(len(embeddings))
    entries: Tensor = gram[:, first, second]
    return entries


def _signed(cosines: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, cosines.shape, generator=generator) * 2 - 1
    return (cosines * signs.to(cosines)).sum()


def _likelihood(log_p: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
    return log_p.gather(1, drawn.to(log_p.device)).sum()


def _derivatives(calls: list[_Call], value: Tensor) -> Iterator[tuple[_Call, Tensor]]:
    outputs = [call.outputs for call in calls]
    derivatives = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return zip(calls, derivatives, strict=True)
