"""The likelihood of answers that are drawn from a network's own prediction, as the Fisher information needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekd.training.distillation.kinds.class_scores import class_rows
from edgekd.training.distillation.kinds.facts import OutputFacts
from edgekd.training.distillation.kinds.label_scores import label_logits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgekd.gram.output_kind import OutputKind


def drawn_likelihood(
    answers: Mapping[str, Tensor], kinds: Mapping[str, OutputKind], generator: torch.Generator
) -> Tensor:
    """Return the log-likelihood of answers drawn from what a network predicts, summed over a batch.

    Classes and labels are drawn from their probabilities. Any other output is the mean of a normal distribution, of the
    variance that its elements have in the batch: numbers of all scales then count alike.

    Args:
        answers: The network's outputs [B, ...] by name, with gradients.
        kinds: What each is.
        generator: Draws on the CPU.
    """
    return torch.stack([_of_output(answers[name], OutputFacts(kind), generator) for name, kind in kinds.items()]).sum()


def _of_output(output: Tensor, facts: OutputFacts, generator: torch.Generator) -> Tensor:
    if facts.kind.class_axis is not None:
        log_p = class_rows(output, facts).log_softmax(1)
        drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
        return log_p.gather(1, drawn.to(log_p.device)).sum()
    if facts.kind.name == "multilabel":
        logits = label_logits(output, facts)
        holds = torch.bernoulli(logits.detach().sigmoid().cpu(), generator=generator).to(logits.device)
        return (holds * logits - torch.nn.functional.softplus(logits)).sum()
    values = output.float()
    deviation = values.detach().std(correction=0).clamp_min(1e-12)
    noise = torch.randn(values.shape, generator=generator).to(values.device)
    return (values * noise).sum() / deviation
