"""Change one modality's input and see what of a network changes: which embeddings, and whether the answer does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgekd.training.preflight.answers import answers_of, read
from edgekd.training.preflight.networks import restored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from edgekd.config.recipe import Tap
    from edgekd.training.preflight.networks import BuiltNetwork
    from edgekd.training.taps.taps import TapOutputs
    from edgekd.training.task.loading import LoadedTask

#: Share of a parameter's spread by which it is moved, and what its spread is taken for where it has none.
_MOVED, _SPREAD = 0.1, 0.1


@dataclass(frozen=True)
class Reactions:
    """What of a network changes with each modality.

    Attributes:
        embeddings: For each modality, those whose inputs change its embedding.
        answers: The modalities whose inputs change an answer.
        unknown: The modalities whose inputs could not be changed.
    """

    embeddings: Mapping[str, Sequence[str]]
    answers: Sequence[str]
    unknown: Sequence[str]


def find_reactions(
    network: BuiltNetwork, taps: Mapping[str, Tap], task: LoadedTask, inputs: Sequence[Tensor]
) -> Reactions:
    """Give a network other samples' inputs of one modality after the other.

    What a modality does not reach stays the same to the last bit, so every change counts, however small it is beside
    what other modalities make. The weights are moved a little meanwhile: a gate or a scale that begins at zero lets
    nothing through, and will when it was trained.

    Args:
        network: The network.
        taps: Where its embeddings are.
        task: The user's task.
        inputs: A few samples, one batch for each input.
    """
    modalities, embeddings = task.modalities, dict[str, list[str]]()
    answers: list[str] = []
    unknown: list[str] = []
    with restored(network.model), torch.no_grad():
        _move(network.model)
        before, again = (read(network, taps, task, inputs) for _ in range(2))
        if not (_same(answers_of(before), answers_of(again)) and _same(_values(before), _values(again))):
            # It draws random numbers, which is said elsewhere, or its sums come in no order.
            return Reactions({name: [] for name in taps}, [], modalities)
        for name in modalities:
            changed = _changed(task, inputs, name)
            if changed is None:
                unknown.append(name)
                continue
            after = read(network, taps, task, changed)
            for other, z in after.embeddings.items():
                if not torch.equal(before.embeddings[other], z):
                    embeddings.setdefault(other, []).append(name)
            if not _same(answers_of(before), answers_of(after)):
                answers.append(name)
    return Reactions({name: embeddings.get(name, []) for name in taps}, answers, unknown)


def describe_taps(network: BuiltNetwork, taps: Mapping[str, Tap], found: Reactions) -> Iterator[str]:
    """Yield a sentence for each tap that reads what it should not, or nothing."""
    said: set[str] = set()
    for name, tap in taps.items():
        reacts = [other for other in found.embeddings[name] if other not in found.unknown]
        if name in found.unknown or reacts == [name] or name in said:
            continue
        where = f"the {network.name}'s tap of '{name}', '{tap.module}',"
        others = " and ".join(f"'{other}'" for other in reacts if other != name)
        if not reacts:
            yield f"{where} gives the same for all samples, whatever is put in: is it a layer that nothing reaches?"
        elif name in reacts:
            yield (
                f"{where} changes with the input of {others} too: it lies behind the fusion, where embeddings are "
                f"mixtures and their Gram says little; tap the encoder of '{name}' before it"
            )
        elif len(reacts) == 1 and list(found.embeddings[reacts[0]]) == [name]:
            said.add(reacts[0])
            yield (
                f"the {network.name}'s taps of '{name}' and '{reacts[0]}' are swapped: '{tap.module}' changes with the "
                f"input of '{reacts[0]}' alone, and '{taps[reacts[0]].module}' with that of '{name}'"
            )
        else:
            yield f"{where} changes with the input of {others} and not with that of '{name}': it is another's"


def describe_ignored(network: BuiltNetwork, found: Reactions, modalities: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each modality that no answer of a network depends on."""
    if not found.answers and not found.unknown:
        yield f"{network.title}, answers the same whatever is put in: no training will change that"
        return
    for name in modalities:
        if name not in found.answers and name not in found.unknown:
            yield (
                f"{network.title}, answers the same whatever the input of '{name}' is, and no training will change "
                "that: is it left out where the modalities are fused?"
            )


def _move(model: nn.Module) -> None:
    """Move every weight a little, always by the same."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel():
            spread = float(parameter.std(correction=0))
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
            parameter.add_(noise * (_MOVED * spread if spread > 0 else _SPREAD * _MOVED))


def _changed(task: LoadedTask, inputs: Sequence[Tensor], name: str) -> list[Tensor] | None:
    """Return the samples with the next one's input of a modality in place of their own; None where all are the same.

    What belongs to it, as its mask, goes along.
    """
    own = [index for index, each in enumerate(task.task.modalities) if name in (each.name, getattr(each, "of", ""))]
    changed = list(inputs)
    for index in own:
        changed[index] = torch.roll(inputs[index], 1, 0)
    if all(torch.equal(changed[index], inputs[index]) for index in own):
        noisy = [index for index in own if inputs[index].is_floating_point()]
        generator = torch.Generator().manual_seed(0)
        for index in noisy:
            x = inputs[index]
            scale = float(x.std(correction=0)) or 1.0
            changed[index] = x + scale * torch.randn(x.shape, generator=generator).to(x)
        return changed if noisy else None
    return changed


def _values(reading: TapOutputs) -> list[Tensor]:
    return list(reading.embeddings.values())


def _same(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether tensors are the same to the last bit."""
    return all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
