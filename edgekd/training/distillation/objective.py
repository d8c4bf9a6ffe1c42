"""What training minimises: labels alone, or distillation with losses that hold their share of the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekd.training.distillation.gathered import whole
from edgekd.training.distillation.gradient_balance import Balance, schedule
from edgekd.training.distillation.losses.logits import cross_entropy, kd_loss
from edgekd.training.distillation.references import side
from edgekd.training.distillation.terms import Seen, make_extras
from edgekd.training.loop import distributed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekd.config.recipe import LossConfig
    from edgekd.stages.progress import StageReporter
    from edgekd.training.distillation.references import Reference
    from edgekd.training.distillation.terms import Where
    from edgekd.training.taps.taps import TappedModel
    from edgekd.training.task.protocol import Batch

Figures = dict[str, "Tensor | float"]


class Supervised:
    """Cross entropy with the labels."""

    def __init__(self, tapped: TappedModel) -> None:
        self.tapped = tapped

    def __call__(self, batch: Batch, progress: float) -> tuple[Tensor, Figures]:  # noqa: ARG002  (no schedule here)
        """Return the loss and the figures to log."""
        logits, _ = self.tapped(list(batch.inputs.values()))
        labels = batch.labels
        if distributed.size() > 1:
            counts = distributed.sizes(len(labels), labels.device)
            logits, labels = (distributed.gather(x, counts) for x in (logits, labels))
        return cross_entropy(logits, labels), {}

    def parameters(self) -> list[nn.Parameter]:
        """Nothing is learned beside the model."""
        return []

    def state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


class Distillation:
    """``ce * CE + kd * T^2 * KL(teacher || student) + sum over extras of weight * loss(anchor, student)``.

    Args:
        student: what is trained, read at the :func:`edgekd.training.distillation.terms.places` of the losses.
        teacher: gives the logits.
        anchor: gives the embeddings that the student is aligned with: the teacher when distilling, the unpruned student
            when fine-tuning what was pruned from it.
        config: weights, temperature, losses.
        where: what the losses may look at.
        report: hears of a weight that vanishes.
        spoil: makes of each training batch what the student is given in its stead, and says what of it is present;
            None for the batch itself.

    Raises:
        TaskError: a loss names a modality or a pair that the task does not have.
    """

    def __init__(
        self,
        student: TappedModel,
        teacher: Reference,
        anchor: Reference,
        config: LossConfig,
        where: Where,
        report: StageReporter,
        spoil: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.student, self.teacher, self.anchor = student, teacher, anchor
        self.config, self.report, self.spoil = config, report, spoil
        self.extras = make_extras(config, where)
        self.balance = Balance(config.terms)
        self._maps = any(term.loss == "ickd" for term in config.terms.values())
        self._warned: set[str] = set()

    def prepare(self, batch: Batch, seed: int) -> Distillation:
        """Make what losses learn beside the student, e.g. projections between widths, which a batch shows.

        Args:
            batch: a few samples, on the student's device.
            seed: of the initial weights; no generator of others is moved.
        """
        was_training = self.student.model.training
        self.student.model.eval()
        with torch.no_grad(), torch.random.fork_rng():
            seen = self._see(batch)[0]
            torch.manual_seed(seed)
            for extra in self.extras.values():
                extra.prepare(seen)
        self.student.model.train(was_training)
        return self

    def __call__(self, batch: Batch, progress: float) -> tuple[Tensor, Figures]:
        """Return the loss and the figures to log.

        Args:
            batch: on the student's device.
            progress: share of all steps that are done, in [0, 1).
        """
        seen, outputs = self._see(batch)
        ce = cross_entropy(seen.student.logits, seen.labels)
        kd = kd_loss(seen.student.logits, seen.teacher, self.config.temperature)
        base = self.config.ce * ce + self.config.kd * kd
        with torch.autocast(batch.labels.device.type, enabled=False):  # it would round the gradients, too
            losses = {name: extra(seen) for name, extra in self.extras.items()}
            self.balance.update(base, losses, {n: [outputs[place] for place in e.on] for n, e in self.extras.items()})
        self._warn_of_vanished()
        total = base
        for name, loss in losses.items():
            total = total + self.balance.weights[name] * schedule(self.extras[name].term, progress) * loss
        figures: Figures = {"ce": ce.detach(), "kd": kd.detach()}
        figures |= {f"loss.{name}": loss.detach() for name, loss in losses.items()}
        figures |= {f"weight.{name}": weight for name, weight in self.balance.weights.items()}
        figures |= {
            f"share.{name}": share * schedule(self.extras[name].term, progress)
            for name, share in self.balance.shares().items()
        }
        return total, figures

    def _see(self, batch: Batch) -> tuple[Seen, Mapping[str, Tensor]]:
        known = self.teacher(batch)
        anchors = known.sides if self.anchor is self.teacher else self.anchor(batch).sides
        given = self.spoil(batch) if self.spoil and self.student.model.training else batch
        reading = self.student.read(list(given.inputs.values()))
        seen = Seen(side(reading), known.logits, anchors, batch.labels, given.present)
        return whole(seen, list(batch.inputs), self._maps), reading.outputs

    def _warn_of_vanished(self) -> None:
        for name in set(self.balance.vanished()) - self._warned:
            self._warned.add(name)
            self.report.warn(
                f"the weight of the loss '{name}' fell to 0 and it trains nothing: no gradient of the logit losses "
                "reaches the embeddings that it is measured against"
            )

    def parameters(self) -> Sequence[nn.Parameter]:
        """Return what is learned beside the student."""
        return [parameter for extra in self.extras.values() for parameter in extra.parameters()]

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "balance": self.balance.state(),
            "extras": {name: extra.state_dict() for name, extra in self.extras.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.balance.restore(state["balance"])
        for name, extra in self.extras.items():
            extra.load_state_dict(state["extras"][name])
