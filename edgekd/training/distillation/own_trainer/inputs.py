"""What a batch of any training loop says: what the networks are called with, and the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from edgekd.errors import TaskError
from edgekd.training.task.protocol import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from edgekd.training.taps.taps import Arguments

#: The names under which a batch that is a dict has its labels.
_LABELS = ("labels", "label")

#: Other loops hand on what a loss of theirs would take; the networks do not take it.
_NOT_FOR_NETWORKS = ("num_items_in_batch", "return_loss")


@dataclass(frozen=True)
class Inputs:
    """What the networks are called with for a batch, and what is known of it.

    Attributes:
        arguments: What the student is called with: tensors [B, ...] in the order of its arguments, or a dict of them
            by the arguments' names.
        labels: Class indices [B], or :data:`edgekd.UNLABELLED` (-100); of another kind of output what it should be
            [B, ...], and of several outputs a dict of these by name. None where no sample has a label.
        teacher: What the teacher is called with; by default the same.
        present: For each modality that some sample lacks, 1 where a sample has it and 0 where not [B]. No loss compares
            the embeddings of what a sample lacks.
    """

    arguments: Arguments
    labels: Tensor | Mapping[str, Tensor] | None = None
    teacher: Arguments | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)


def read_inputs(batch: object) -> Inputs:
    """Read a batch.

    Args:
        batch: A tuple or list whose last item is the labels, the others the networks' arguments in order, where one
            item may hold all of them; a dict with ``labels``, the others the networks' arguments by name; a
            :class:`Inputs`; or one of edgekd's own batches.

    Raises:
        TaskError: It is something else.
    """
    if isinstance(batch, Inputs):
        return _checked(batch)
    if isinstance(batch, Batch):
        return _checked(Inputs(list(batch.inputs.values()), batch.labels, present=batch.present))
    if isinstance(batch, Mapping):
        return _checked(_by_name(batch))
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return _checked(_in_order(batch))
    raise _unreadable(batch, "a tuple (x, ..., labels), or a dict with 'labels', can be read as it is")


def _by_name(batch: Mapping[str, object]) -> Inputs:
    labels = next((batch[name] for name in _LABELS if batch.get(name) is not None), None)
    left_out = (*_LABELS, *_NOT_FOR_NETWORKS)
    return Inputs(
        {name: x for name, x in batch.items() if name not in left_out and x is not None},  # type: ignore[misc]
        labels,  # type: ignore[arg-type]  # it is checked
    )


def _in_order(batch: Sequence[object]) -> Inputs:
    *arguments, labels = batch
    whole = arguments[0] if len(arguments) == 1 else None
    if isinstance(whole, Mapping):
        return Inputs(dict(whole), labels)  # type: ignore[arg-type]  # they are checked
    return Inputs(list(whole) if isinstance(whole, tuple | list) else arguments, labels)  # type: ignore[arg-type]


def _checked(inputs: Inputs) -> Inputs:
    """Return inputs of which each is a tensor with the same number of samples.

    Raises:
        TaskError: One is not.
    """
    counts: dict[str, int] = {}
    for side in (inputs.arguments, inputs.teacher or {}):
        if not isinstance(side, Mapping | tuple | list):
            raise _unreadable(side, "its arguments must be a list or a dict of tensors")
        named = side.items() if isinstance(side, Mapping) else enumerate(side, 1)
        for name, x in named:
            where = f"'{name}'" if isinstance(side, Mapping) else f"argument {name}"
            counts[where] = _count(where, x)
    if not counts:
        raise TaskError(
            "the batch has nothing for the networks beside the labels; Hugging Face's Trainer removes the columns that "
            "it does not know: give its TrainingArguments remove_unused_columns=False"
        )
    labels = inputs.labels
    if isinstance(labels, Mapping):
        counts |= {f"labels of '{name}'": _count(f"labels of '{name}'", x) for name, x in labels.items()}
    elif labels is not None:
        counts["labels"] = _count("labels", labels)
    counts |= {f"present of '{name}'": _count(f"present of '{name}'", x) for name, x in inputs.present.items()}
    first = next(iter(counts))
    for name, count in counts.items():
        if count != counts[first]:
            raise TaskError(f"the batch has {counts[first]} samples in {first}, but {count} in {name}")
    if not counts[first]:
        raise TaskError("the batch has no samples, and the mean loss of none is no number: leave such batches out")
    return inputs


def _count(where: str, x: object) -> int:
    if not isinstance(x, Tensor) or x.dim() == 0:
        raise _unreadable(x, f"{where} must be a tensor with a row for each sample")
    return len(x)


def _unreadable(given: object, advice: str) -> TaskError:
    kind = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
    return TaskError(
        f"the Distiller cannot read {kind} in a batch: {advice}; of other batches make one by inputs=, a function that "
        "returns edgekd.distillation.Inputs"
    )


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """Return inputs on another device."""

    def move(side: Arguments) -> Arguments:
        if isinstance(side, Mapping):
            return {name: x.to(device) for name, x in side.items()}
        return [x.to(device) for x in side]

    labels = inputs.labels
    return Inputs(
        move(inputs.arguments),
        {name: x.to(device) for name, x in labels.items()}
        if isinstance(labels, Mapping)
        else None
        if labels is None
        else labels.to(device),
        None if inputs.teacher is None else move(inputs.teacher),
        {name: mask.to(device) for name, mask in inputs.present.items()},
    )
