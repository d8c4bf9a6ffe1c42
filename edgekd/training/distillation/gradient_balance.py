"""Weights of losses, which are held at a stated share of the gradient and scheduled over the training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

import torch

from edgekd.training.loop import distributed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from edgekd.config.recipe import Term


class BalanceState(TypedDict):
    """What a resumed run of a :class:`GradientBalance` needs.

    Attributes:
        step: Number of steps done.
        bases: For each loss the mean gradient norm of the base loss on the same tensors.
        norms: For each loss the mean norm of its own gradient.
        weights: For each loss its weight.
    """

    step: int
    bases: dict[str, float]
    norms: dict[str, float]
    weights: dict[str, float]


def schedule(term: Term, progress: float) -> float:
    """Return the factor, in [0, 1], on a loss's weight.

    Args:
        term: The recipe's warm-up and decay of the loss.
        progress: Share of all steps that are done, in [0, 1).
    """
    if progress < term.warm_up:
        return progress / term.warm_up
    left = (1 - progress) / (1 - term.warm_up) if term.warm_up < 1 else 1.0
    match term.decay:
        case "linear":
            return left
        case "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        case _:
            return 1.0


class GradientBalance:
    """Weights that hold each loss at a stated multiple of a base loss's gradient norm.

    A fixed weight does not carry over between normalisations, batch sizes or models; a share of the gradient does.
    Norms are taken on the embeddings, where both gradients are cheap, and averaged over steps.
    """

    #: Norms are measured at each of the first steps and then at every tenth, since they change slowly.
    FIRST, EVERY = 50, 10
    MOMENTUM = 0.9
    #: A Gram that already matches has no gradient; without a bound its weight would grow without limit.
    LARGEST = 1e4
    SMALLEST = 1e-6
    #: Steps after which a weight that is still close to 0 has vanished for good.
    SETTLED = 10

    def __init__(self, terms: Mapping[str, Term]) -> None:
        self._terms = terms
        self._step = 0
        self._bases: dict[str, float] = {}
        self._norms: dict[str, float] = {}
        self.weights = {name: 0.0 if term.weight == "auto" else float(term.weight) for name, term in terms.items()}

    def update(self, base: Tensor, losses: Mapping[str, Tensor], on: Mapping[str, Sequence[Tensor]]) -> None:
        """Measure the gradient norms if it is time to, and set the weights that are not fixed.

        Args:
            base: The loss whose gradient is the measure.
            losses: The other losses, by name.
            on: For each loss the tensors on which its norm and the base's are compared: what the modules at its taps
                put out, before it was pooled.
        """
        due = self._step < self.FIRST or self._step % self.EVERY == 0
        self._step += 1
        if not due:
            return
        bases: dict[tuple[int, ...], float] = {}
        for name, loss in losses.items():
            where = tuple(id(tensor) for tensor in on[name])
            if where not in bases:
                bases[where] = _gradient_norm(base, on[name])
            norm = _gradient_norm(loss, on[name])
            if not math.isfinite(bases[where] + norm):
                continue  # a step that the user's loop may leave out; in an average it would stay for ever
            self._average(self._bases, name, bases[where])
            self._average(self._norms, name, norm)
            term = self._terms[name]
            if term.weight == "auto":
                weight = term.share * self._bases[name] / max(self._norms[name], 1e-12)
                self.weights[name] = min(weight, self.LARGEST)

    def _average(self, norms: dict[str, float], name: str, norm: float) -> None:
        norms[name] = self.MOMENTUM * norms.get(name, norm) + (1 - self.MOMENTUM) * norm

    def shares(self) -> dict[str, float]:
        """Return for each loss its weighted gradient's norm as a multiple of the base's; none where that is 0."""
        return {
            name: self.weights[name] * norm / self._bases[name]
            for name, norm in self._norms.items()
            if self._bases[name] > 0
        }

    def vanished(self) -> list[str]:
        """Return the losses whose weight is held at a share and has fallen to 0."""
        return [
            name
            for name, term in self._terms.items()
            if term.weight == "auto" and self._step > self.SETTLED and not self.weights[name] > self.SMALLEST
        ]

    def state(self) -> BalanceState:
        """Return what a resumed run needs."""
        return {
            "step": self._step,
            "bases": dict(self._bases),
            "norms": dict(self._norms),
            "weights": dict(self.weights),
        }

    def restore(self, state: BalanceState) -> None:
        """Take up the state of a run that ended."""
        self._step, self.weights = state["step"], dict(state["weights"])
        self._bases, self._norms = dict(state["bases"]), dict(state["norms"])


def _gradient_norm(loss: Tensor, tensors: Sequence[Tensor]) -> float:
    # A tap may lie beside the path to the logits, whose losses then have no gradient there, or behind frozen layers.
    free = [tensor for tensor in tensors if tensor.requires_grad]
    if not free or not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, free, retain_graph=True, allow_unused=True, materialize_grads=True)
    return float(distributed.all_reduce(torch.stack([g.float().square().sum() for g in gradients]).sum()).sqrt())
