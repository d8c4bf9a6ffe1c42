"""What training minimises: labels alone, or distillation with losses that hold their share of the gradient."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

from edgekd.plugins import is_plugin
from edgekd.training.distillation.answer_losses import AnswerLosses, losses_at
from edgekd.training.distillation.bound_losses import bind_losses
from edgekd.training.distillation.gathered import gather_batch
from edgekd.training.distillation.gradient_balance import GradientBalance, schedule
from edgekd.training.distillation.outputs import BatchOutputs
from edgekd.training.distillation.references import float_outputs
from edgekd.training.loop import distributed
from edgekd.training.taps.taps import outputs_read
from edgekd.training.task.targets import map_nest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgekd.config.recipe import LossConfig
    from edgekd.stages.progress import StageReporter
    from edgekd.training.distillation.gradient_balance import BalanceState
    from edgekd.training.distillation.loss_taps import LossTaps
    from edgekd.training.distillation.references import Reference
    from edgekd.training.taps.taps import TappedModel
    from edgekd.training.task.protocol import Batch

Figures = dict[str, "Tensor | float"]


class DistillationState(TypedDict):
    """What a resumed run of a :class:`DistillationObjective` needs.

    Attributes:
        balance: State of the weights of the losses.
        extras: For each loss the state of what it learns.
    """

    balance: BalanceState
    extras: dict[str, dict[str, Tensor]]


class SupervisedObjective:
    """The loss of a network's answers and the targets.

    Args:
        tapped: The network that is trained.
        losses: The losses of its outputs; None for those of the kinds of what is read of it.
    """

    def __init__(self, tapped: TappedModel, losses: AnswerLosses | None = None) -> None:
        self.tapped = tapped
        self.losses = losses or AnswerLosses(outputs_read(tapped.taps))

    def __call__(self, batch: Batch, progress: float) -> tuple[Tensor, Figures]:  # noqa: ARG002  (no schedule here)
        """Return the loss, a scalar, and no figures beside it."""
        answers, _ = self.tapped(list(batch.inputs.values()))
        targets = batch.targets
        if distributed.world_size() > 1:
            counts = distributed.sample_counts(len(batch.labels), batch.labels.device)
            answers = {name: distributed.gather(x, counts) for name, x in answers.items()}
            targets = map_nest(lambda x: distributed.gather(x, counts), targets)
        return self.losses.supervised(answers, targets), {}

    def parameters(self) -> list[nn.Parameter]:
        """Return nothing: nothing is learned beside the model."""
        return []

    def state(self) -> dict[str, object]:
        """Return an empty state."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""


class DistillationObjective:
    """``ce * CE + kd * T^2 * KL(teacher || student) + sum over extras of weight * loss(anchor, student)``.

    In place of cross entropy and KL, outputs of other kinds than classes, and tasks, have losses of their own.

    Args:
        student: The network that is trained, with the taps of
            :func:`edgekd.training.distillation.loss_taps.taps_with_losses`.
        teacher: The reference that gives the answers.
        anchor: The reference that gives the embeddings which the student is aligned with: the teacher in distillation,
            the unpruned student in the fine-tune of what was pruned from it.
        config: Weights, temperature, losses.
        taps: Where the losses may read the networks.
        report: Receives a warning where a weight vanishes.
        transform: Makes of each training batch the one that the student is given, and says which modalities are
            present in it; None to give it the batch itself.

    Raises:
        TaskError: A loss names a modality or a pair that the task does not have, or the user's own is not to be found.
        RecipeError: A loss is told what it does not take.
    """

    def __init__(
        self,
        student: TappedModel,
        teacher: Reference,
        anchor: Reference,
        config: LossConfig,
        taps: LossTaps,
        report: StageReporter,
        transform: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.student, self.teacher, self.anchor = student, teacher, anchor
        self.config, self.report, self.transform = config, report, transform
        self.modalities, self.losses = taps.modalities, losses_at(taps.answers, taps.student)
        self.extras = bind_losses(config, taps)
        self.balance = GradientBalance({name: extra.term for name, extra in self.extras.items()})
        self._warned: set[str] = set()

    @property
    def reads_maps(self) -> bool:
        """Whether any loss reads what modules put out before it is pooled."""
        return any(extra.loss.kind == "maps" for extra in self.extras.values())

    def prepare(self, batch: Batch, seed: int) -> DistillationObjective:
        """Make what losses learn beside the student, such as projections between widths, which a batch shows.

        Args:
            batch: A few samples, on the student's device.
            seed: Seed of the initial weights; the process's own generators are left as they are.
        """
        with self._evaluating(), torch.no_grad(), torch.random.fork_rng():
            self.prepare_for(self._outputs(batch)[0], seed)
        return self

    def prepare_for(self, outputs: BatchOutputs, seed: int) -> None:
        """Make what losses learn, as :meth:`prepare` does, of outputs that are known already."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for extra in self.extras.values():
                extra.prepare(outputs)

    def try_own_losses(self, batch: Batch) -> None:
        """Compute the losses of the user's own once, on an objective that was prepared.

        Args:
            batch: A few samples, on the student's device.

        Raises:
            TaskError: One fails, or returns something other than a scalar.
        """
        own = [extra for extra in self.extras.values() if is_plugin(extra.term.loss or extra.name)]
        if own:
            with self._evaluating(), torch.random.fork_rng():
                outputs = self._outputs(batch)[0]
                for extra in own:
                    extra(outputs)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.student.model.training
        self.student.model.eval()
        try:
            yield
        finally:
            self.student.model.train(was_training)

    def __call__(self, batch: Batch, progress: float) -> tuple[Tensor, Figures]:
        """Return the loss, a scalar, and the figures to log.

        Args:
            batch: A batch on the student's device.
            progress: Share of all steps that are done, in [0, 1).
        """
        return self.combine(*self._outputs(batch), progress)

    def combine(
        self, outputs: BatchOutputs, tapped: Mapping[str, Tensor], progress: float, *, measure: bool = True
    ) -> tuple[Tensor, Figures]:
        """Return the loss of outputs, a scalar, and the figures to log.

        Args:
            outputs: What the losses see, of the whole batch.
            tapped: What the student's tapped modules put out of this process's share of it.
            progress: Share of all steps that are done, in [0, 1).
            measure: Whether to measure gradients and move the losses' weights by them, as a step of training does.
        """
        ce = self.losses.supervised(outputs.student.answers, outputs.targets)
        kd = self.losses.distilled(outputs.student.answers, outputs.teacher, self.config.temperature)
        base = self.config.ce * ce + self.config.kd * kd
        with torch.autocast(outputs.labels.device.type, enabled=False):  # it would round the gradients, too
            losses = {name: extra(outputs) for name, extra in self.extras.items()}
            if measure:
                on = {name: [tapped[tap] for tap in extra.student_taps] for name, extra in self.extras.items()}
                self.balance.update(base, losses, on)
        self._warn_of_vanished()
        scales = {name: schedule(extra.term, progress) for name, extra in self.extras.items()}
        total = base
        for name, loss in losses.items():
            total = total + self.balance.weights[name] * scales[name] * loss
        figures: Figures = {"ce": ce.detach(), "kd": kd.detach()}
        figures |= {f"loss.{name}": loss.detach() for name, loss in losses.items()}
        figures |= {f"weight.{name}": weight for name, weight in self.balance.weights.items()}
        figures |= {f"share.{name}": share * scales[name] for name, share in self.balance.shares().items()}
        return total, figures

    def _outputs(self, batch: Batch) -> tuple[BatchOutputs, Mapping[str, Tensor]]:
        """Return what losses see of a batch, and what the student's tapped modules put out of this process's share."""
        reference = self.teacher(batch)
        anchors = reference.networks if self.anchor is self.teacher else self.anchor(batch).networks
        given = self.transform(batch) if self.transform and self.student.model.training else batch
        tapped = self.student.read(list(given.inputs.values()))
        outputs = BatchOutputs(
            float_outputs(tapped), reference.answers, anchors, batch.labels, given.present, batch.targets
        )
        return gather_batch(outputs, self.modalities, self.reads_maps), tapped.outputs

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

    def state(self) -> DistillationState:
        """Return what a resumed run needs."""
        return {
            "balance": self.balance.state(),
            "extras": {name: extra.state_dict() for name, extra in self.extras.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a run that ended."""
        self.balance.restore(state["balance"])
        for name, extra in self.extras.items():
            extra.load_state_dict(state["extras"][name])
