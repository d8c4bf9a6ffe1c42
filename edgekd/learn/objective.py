"""What training minimises: labels alone, or distillation whose Gram terms hold their share of the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgekd.learn.losses import cross_entropy, gram_losses, kd_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from edgekd.learn.taps import Tapped
    from edgekd.learn.task import Batch
    from edgekd.progress import StageReporter
    from edgekd.recipe import LossConfig, Scope


class Supervised:
    """Cross entropy with the labels."""

    def __init__(self, tapped: Tapped) -> None:
        self.tapped = tapped

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the loss and the figures to log."""
        logits, _ = self.tapped(list(batch.inputs.values()))
        return cross_entropy(logits, batch.labels), {}

    def state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


class Balance:
    """Weights that hold each extra loss at a stated multiple of a base loss's gradient norm.

    A fixed weight does not carry over between normalisations, batch sizes or models; a share of the gradient does.
    Norms are taken on the embeddings, where both gradients are cheap, and averaged over steps.
    """

    #: Norms are measured at each of the first steps, then only now and then: they change slowly.
    FIRST, EVERY = 50, 10
    MOMENTUM = 0.9
    #: A Gram that already matches has no gradient; without a bound its weight would grow without limit.
    LARGEST = 1e4
    SMALLEST = 1e-6
    #: Steps after which a weight that is still nothing is no accident.
    SETTLED = 10

    def __init__(self, shares: Mapping[Scope, float]) -> None:
        self.shares = {scope: share for scope, share in shares.items() if share > 0}
        self._step = 0
        self._norms: dict[str, float] = {}
        self.weights = dict.fromkeys(self.shares, 0.0)

    def update(self, base: Tensor, extra: Mapping[Scope, Tensor], embeddings: Sequence[Tensor]) -> None:
        """Measure the gradient norms if it is time to, and set the weights.

        Args:
            base: the loss whose gradient is the measure.
            extra: for each scope its loss.
            embeddings: tensors that all the losses are functions of: the taps' outputs before they are pooled.
        """
        due = self._step < self.FIRST or self._step % self.EVERY == 0
        self._step += 1
        if not due:
            return
        for name, loss in [("base", base), *extra.items()]:
            norm = _gradient_norm(loss, embeddings)
            self._norms[name] = self.MOMENTUM * self._norms.get(name, norm) + (1 - self.MOMENTUM) * norm
        for name, share in self.shares.items():
            self.weights[name] = min(share * self._norms["base"] / max(self._norms[name], 1e-12), self.LARGEST)

    def vanished(self) -> list[Scope]:
        """Return the losses whose weight has fallen to nothing."""
        return [
            name for name, weight in self.weights.items() if self._step > self.SETTLED and not weight > self.SMALLEST
        ]

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"step": self._step, "norms": dict(self._norms), "weights": dict(self.weights)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._step, self._norms, self.weights = state["step"], dict(state["norms"]), dict(state["weights"])


def _gradient_norm(loss: Tensor, embeddings: Sequence[Tensor]) -> float:
    # A tap may lie beside the way to the logits, whose losses then have no gradient there.
    gradients = torch.autograd.grad(loss, embeddings, retain_graph=True, allow_unused=True, materialize_grads=True)
    return float(torch.stack([g.float().square().sum() for g in gradients]).sum().sqrt())


class Distillation:
    """``ce * CE + kd * T^2 * KL(teacher || student) + sum over scopes of weight * Gram(anchor, student)``.

    Args:
        student: what is trained.
        teacher: gives the logits.
        anchor: gives the embeddings whose Gram is to be kept: the teacher when distilling, the unpruned student when
            fine-tuning what was pruned from it.
        config: weights, temperature, Gram scopes.
        report: hears of a weight that vanishes.
    """

    def __init__(
        self, student: Tapped, teacher: Tapped, anchor: Tapped, config: LossConfig, report: StageReporter
    ) -> None:
        self.student, self.teacher, self.anchor = student, teacher, anchor
        self.config, self.report = config, report
        self.balance = Balance(config.gram)
        self._warned: set[str] = set()
        for reference in {id(t): t for t in (teacher, anchor)}.values():
            _freeze(reference.model)

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the loss and the figures to log."""
        inputs = list(batch.inputs.values())
        with torch.no_grad():
            teacher_logits, teacher_embeddings = self.teacher(inputs)
            anchor = teacher_embeddings if self.anchor is self.teacher else self.anchor(inputs)[1]
        student = self.student.read(inputs)
        ce = cross_entropy(student.logits, batch.labels)
        kd = kd_loss(student.logits, teacher_logits, self.config.temperature)
        base = self.config.ce * ce + self.config.kd * kd
        grams = gram_losses(student.embeddings, anchor, self.balance.shares) if self.balance.shares else {}
        if grams:
            self.balance.update(base, grams, list(student.outputs.values()))
            self._warn_of_vanished()
        total = base
        for scope, loss in grams.items():
            total = total + self.balance.weights[scope] * loss
        figures: dict[str, Tensor | float] = {"ce": ce.detach(), "kd": kd.detach()}
        figures |= {f"gram.{name}": loss.detach() for name, loss in grams.items()}
        figures |= {f"weight.{name}": weight for name, weight in self.balance.weights.items()}
        return total, figures

    def _warn_of_vanished(self) -> None:
        for name in set(self.balance.vanished()) - self._warned:
            self._warned.add(name)
            self.report.warn(
                f"the weight of Gram scope '{name}' fell to 0 and it trains nothing: no gradient of the logit losses "
                "reaches the embeddings that it is measured against"
            )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return self.balance.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.balance.restore(state)


def _freeze(model: nn.Module) -> None:
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
