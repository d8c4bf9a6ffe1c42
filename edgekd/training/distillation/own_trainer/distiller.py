"""A module that gives the distillation loss of a batch, for training loops of the user's own."""

from __future__ import annotations

import math
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from edgekd.config.loading import loss_config
from edgekd.config.recipe import LossConfig
from edgekd.errors import TaskError
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.progress import Silent, StageReporter
from edgekd.training.distillation.gathered import gather_batch
from edgekd.training.distillation.loss_taps import LossTaps, taps_with_losses
from edgekd.training.distillation.objective import DistillationObjective
from edgekd.training.distillation.outputs import BatchOutputs
from edgekd.training.distillation.own_trainer.gradients import of_whole_batch
from edgekd.training.distillation.own_trainer.inputs import Inputs, moved, read_inputs
from edgekd.training.distillation.own_trainer.networks import check_networks, evaluating, named_side, own_taps
from edgekd.training.distillation.references import LiveReference, combine_outputs, float_outputs
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekd.config.recipe import Tap
    from edgekd.training.distillation.outputs import NetworkOutputs
    from edgekd.training.distillation.references import ReferenceOutputs
    from edgekd.training.taps.taps import Arguments

#: A training that took more steps than it was said to stays at its end.
_LAST = 1 - 1e-9


class DistillerOutput(dict[str, Any]):
    """What a :class:`Distiller` gives for a batch: a dict, as other trainers expect it.

    Its items are ``loss``, a scalar with a gradient, and the student's own answer for the batch, ``logits`` [B, C].
    """

    @property
    def loss(self) -> Tensor:
        """The loss, a scalar."""
        return cast("Tensor", self["loss"])


class _Warns(Silent):
    """Receives what the user should know."""

    def warn(self, stage: str, message: str) -> None:  # noqa: ARG002  (there is one)
        warnings.warn(message, UserWarning, stacklevel=2)


class Distiller(nn.Module):
    """Gives the distillation loss of a batch. Any loop trains it like any module, and so the student that is in it.

    The teacher is frozen, stays in evaluation mode, and is no part of ``parameters()`` or ``state_dict()``; it goes
    with this module to another device. What losses learn, such as projections between widths, are parameters of this
    module. ``student.state_dict()`` is at any time the student's alone.

    In several processes wrap this module in ``DistributedDataParallel``, not the student. The loss of a step is then
    that of the batches of all processes together, and its gradient, averaged over them as it is done there, is that of
    one process with the whole batch. In evaluation mode each process has the loss of its own samples.

    Args:
        teacher: The trained teacher, or several, from which the student learns together. Their weights are frozen in
            place.
        student: The network that is trained. Like the teacher it gives logits [B, C]: a tensor, the first of a tuple,
            or ``logits`` of a dict or an object.
        taps: For each modality where its embedding is: the path of a module or a :class:`edgekd.Tap`, or a pair of
            these, the teacher's and the student's.
        losses: The table ``[distill.loss]`` of a recipe, as in ``{"kd": 0.9, "ce": 0.1, "extra": {"intra": 3.0}}``; by
            default that of a recipe that has none.
        inputs: Makes of a batch what :class:`Inputs` describes. By default a batch is a tuple ``(x, ..., labels)``, or
            a dict with ``labels`` whose other items are the networks' arguments by name.
        example: A batch of any size, two samples at least. With it all that is wrong is said at once; losses that
            learn a projection need it, since its widths are seen there.
        steps: Number of batches of the whole training, which losses with ``warm_up`` or ``decay`` need.

    Attributes:
        student: The student.
        figures: Of the last batch the parts of the loss, their weights, and their shares of the gradient, to log.

    Raises:
        TaskError: A tap is wrong, the networks hold a parameter in common, a network is wrapped or compiled, or the
            example cannot be read or computed.
        ModelError: The teacher's weights are not finite.
        RecipeError: The losses are not valid.
    """

    #: Read by Hugging Face's Trainer: it is to divide the loss, a mean over the batch, by its accumulation steps.
    accepts_loss_kwargs = False

    def __init__(
        self,
        teacher: nn.Module | Sequence[nn.Module],
        student: nn.Module,
        taps: Mapping[str, str | Tap | tuple[str | Tap, str | Tap]],
        losses: LossConfig | Mapping[str, Any] | None = None,
        *,
        inputs: Callable[[Any], object] | None = None,
        example: object = None,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
        check_networks(teachers, student)
        config = losses if isinstance(losses, LossConfig) else loss_config(losses or {}, "losses")
        both = own_taps(taps)
        self.student = student
        self.figures: dict[str, Tensor | float] = {}
        self._inputs, self._steps, self._done = inputs, steps, 0
        self._modalities, self._prepared = list(taps), False
        device = next(student.parameters()).device
        with named_side("student"):
            tapped = TappedModel(student, taps_with_losses(both.student, config, "student"))
        with named_side("teacher"):
            read = taps_with_losses(both.teacher, config, "teacher")
            self._teacher = LiveReference(*(TappedModel(network.to(device), read) for network in teachers))
        where = LossTaps(self._modalities, both.student, both.teacher, "teacher")
        report = StageReporter(_Warns(), "distill")
        self._objective = DistillationObjective(tapped, self._teacher, self._teacher, config, where, report)
        self.losses = nn.ModuleList(self._objective.extras.values())  # by number: a recipe's names may hold dots
        self._check_complete(example is not None)
        if example is not None:
            self._look_at(example, device)

    def _check_complete(self, has_example: bool) -> None:
        for name, extra in self._objective.extras.items():
            if not self._steps and (extra.term.warm_up or extra.term.decay != "none"):
                raise TaskError(
                    f"the loss '{name}' has a schedule over the whole training: say by steps= how many batches that is"
                )
            if extra.loss.projection is not None and not has_example:
                raise TaskError(
                    f"the loss '{name}' learns a projection between the networks' widths, which a batch shows: give "
                    "one by example=, so that an optimizer finds its weights"
                )

    def _look_at(self, example: object, device: torch.device) -> None:
        """Make what losses learn, and compute all losses of an example once."""
        given = moved(self._read(self._inputs(example) if self._inputs else example), device)
        with torch.random.fork_rng(), evaluating(self), torch.no_grad():
            outputs, tapped = self._run(given)
            self._prepare(outputs)
            self.losses.eval()  # what they learn was made just now
            self._objective.combine(outputs, tapped, 0.0, measure=False)
        self.losses.train()

    def _prepare(self, outputs: BatchOutputs) -> None:
        """Look closely at a batch, what is wrong with which is wrong with all, and make what losses learn of it."""
        logits, labels = outputs.student.answers["logits"], outputs.labels
        wrong = labels[(labels != UNLABELLED) & ((labels < 0) | (labels >= logits.shape[1]))]
        if len(wrong):
            raise TaskError(f"the batch has label {int(wrong[0])}, but the networks give {logits.shape[1]} logits")
        if not torch.isfinite(outputs.teacher["logits"]).all():
            raise TaskError("the teacher's logits are not finite: what is it fed with, and is it trained?")
        self._objective.prepare_for(outputs, torch.initial_seed())
        self._prepared = True

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # inside a compiled network no tap has a gradient
    def forward(self, batch: object = None, /, labels: object = None, **columns: object) -> DistillerOutput:
        """Return the loss of a batch, and the student's answer for it.

        In training mode, with gradients enabled, it also counts the step and measures by what weights the losses hold
        their shares of the gradient.

        Args:
            batch: The batch; or its items by name, as Hugging Face's Trainer gives them.
            labels: The batch's labels, where it is given by name.
            columns: Its other items.

        Raises:
            TaskError: The batch cannot be read, a tap gives nothing that could be an embedding, or a loss cannot be
                computed of what the networks give.
        """
        if getattr(self, "_is_replica", False):
            raise TaskError(
                "nn.DataParallel gives each device a part of the batch, and losses of a batch need all of it: start "
                "one process for each GPU with torchrun, or show a single GPU by CUDA_VISIBLE_DEVICES"
            )
        if batch is not None and (columns or labels is not None):
            raise TaskError("the Distiller is given a batch, or its items by name, not both")
        learning = self.training and torch.is_grad_enabled()
        whole = {"labels": labels, **columns} if batch is None else batch
        outputs, tapped = self._run(self._read(self._inputs(whole) if self._inputs else whole))
        answer = outputs.student.answers["logits"]
        if learning:
            if not self._done:
                self._check_reached(tapped)
            outputs = gather_batch(of_whole_batch(outputs), self._modalities, self._objective.reads_maps)
        if not self._prepared:
            self._prepare(outputs)
        progress = min(self._done / self._steps, _LAST) if self._steps else 0.0
        loss, figures = self._objective.combine(outputs, tapped, progress, measure=learning)
        self.figures = {"loss": loss.detach(), **figures}
        self._done += learning
        return DistillerOutput(loss=loss, logits=answer)

    def _read(self, batch: object) -> Inputs:
        given = read_inputs(batch)
        if given.labels is None and self._objective.config.ce:
            raise TaskError(
                "the batch has no labels, which cross entropy reads: give them as 'labels', or set ce = 0 in the "
                "losses to learn from the teacher alone"
            )
        for name in given.present:
            if name not in self._modalities:
                raise TaskError(f"present names '{name}', which is no modality: it has no tap")
        return given

    def _run(self, given: Inputs) -> tuple[BatchOutputs, Mapping[str, Tensor]]:
        """Return what losses see of a batch of this process, and what the student's tapped modules put out."""
        with ExitStack() as stack, named_side("student"):
            tapped = stack.enter_context(self._objective.student).read(given.arguments)
        reference = self._read_teachers(given.arguments if given.teacher is None else given.teacher)
        student = float_outputs(tapped)
        ours, theirs = (tuple(side.answers["logits"].shape) for side in (student, reference))
        if ours != theirs:
            raise TaskError(f"teacher and student disagree: their logits are {theirs} and {ours}")
        labels = given.labels
        if labels is None:
            labels = student.answers["logits"].new_full(ours[:1], UNLABELLED, dtype=torch.int64)
        present = {name: mask.float() for name, mask in given.present.items()}
        outputs = BatchOutputs(student, reference.answers, reference.networks, labels.long(), present, labels.long())
        return outputs, tapped.outputs

    def _read_teachers(self, arguments: Arguments) -> ReferenceOutputs:
        outputs: list[NetworkOutputs] = []
        for network in self._teacher.networks:
            if any(module.training for module in network.model.modules()):  # somebody called its train()
                network.model.eval()
            with network, named_side("teacher"), torch.no_grad():
                outputs.append(float_outputs(network.read(arguments)))
        return combine_outputs(outputs, self._teacher.kinds)

    def _check_reached(self, tapped: Mapping[str, Tensor]) -> None:
        """Check that each loss of embeddings can train something."""
        for name, extra in self._objective.extras.items():
            on = [tapped[tap] for tap in extra.student_taps]
            if extra.loss.kind != "logits" and not any(output.requires_grad for output in on):
                raise TaskError(
                    f"the loss '{name}' can train nothing: no gradient reaches what it reads of the student; its taps "
                    "lie behind frozen layers alone, or in layers under torch.utils.checkpoint with use_reentrant=True"
                )

    def get_extra_state(self) -> Tensor:
        """Return how far the training is and the weights of the losses, as a tensor, which every file format takes."""
        state = self._objective.balance.state()
        tables = (state["bases"], state["norms"], state["weights"])
        values = [table.get(name, math.nan) for name in self._objective.extras for table in tables]
        return torch.tensor([self._done, state["step"], *values], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up what :meth:`get_extra_state` returned.

        Raises:
            TaskError: It is of other losses.
        """
        names = list(self._objective.extras)
        if state.numel() != 2 + 3 * len(names):
            raise TaskError(f"the state is not of a Distiller with the losses {', '.join(names) or 'ce and kd'}")
        done, step, *values = state.tolist()
        tables = [
            {name: value for name, value in zip(names, values[index::3], strict=True) if not math.isnan(value)}
            for index in range(3)
        ]
        self._done = int(done)
        self._objective.balance.restore(
            {"step": int(step), "bases": tables[0], "norms": tables[1], "weights": tables[2]}
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        """Let the teacher go along to another device or type; losses are of float32 whatever the networks are of."""
        for network in self._teacher.networks:
            network.model._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.losses.float()
        return self
