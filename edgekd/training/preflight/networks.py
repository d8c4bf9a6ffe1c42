"""Build both networks as later stages do, anew in each call, and find what two of them hold in common."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.errors import TaskError
from edgekd.training.loop.copies import copy_where_possible
from edgekd.training.loop.weights import returned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence, Set

    from edgekd.stages.progress import StageReporter
    from edgekd.training.task.loading import LoadedTask

#: Attributes in which ``nn.Module`` keeps what is registered; an optimizer and a file of weights know these alone.
_REGISTERED = ("_parameters", "_buffers", "_modules")

_ANEW = "make it anew in each call, with copy.deepcopy where that is slow"


@dataclass(frozen=True)
class BuiltNetwork:
    """A network as the task's function returned it.

    Attributes:
        name: "teacher" or "student".
        model: The network, untrained, as stages work on it.
        returned: What the task's function returned, of which ``model`` is a copy.
    """

    name: str
    model: nn.Module
    returned: nn.Module

    @property
    def title(self) -> str:
        """The network in the words of a message, e.g. "the student, Net"."""
        return f"the {self.name}, {type(self.model).__name__}"


def build_network(name: str, task: LoadedTask, seed: int) -> BuiltNetwork:
    """Call ``teacher()`` or ``student()`` of a task.

    Raises:
        TaskError: It fails, or returns no network that can be trained.
    """
    factory: Callable[[], nn.Module] = getattr(task.task, name)
    with task.running(f"{name}()"):
        network = returned(factory, seed, f"{name}()")
    return BuiltNetwork(name, copy_where_possible(network), network)


def check_apart(
    teacher: BuiltNetwork, student: BuiltNetwork, task: LoadedTask, inputs: Sequence[Tensor], report: StageReporter
) -> None:
    """Check that the student is another network in each call, and holds nothing of the teacher's.

    A parameter of both would be trained by one and overwritten by the other's weights; one that several students hold
    would be cut in all of them. So each gets a copy, where that can be made. Inside one network, parameters may be
    tied.

    Args:
        teacher: The teacher.
        student: The student.
        task: The user's task.
        inputs: A few samples, one batch for each modality.
        report: Receives a warning of what was in two networks before they were copied.

    Raises:
        TaskError: One and the same parameter, or a buffer that training changes, is in two networks all the same.
    """
    again = build_network("student", task, 0)
    shared = _shared(student.model, again.model, inputs)
    if shared:
        raise TaskError(f"student() returns the same '{shared[0][0]}'{_more(shared)} in each call; {_ANEW}")
    in_both = _shared(teacher.model, student.model, inputs)
    if in_both:
        raise TaskError(f"{_said_of_both(in_both)}, so to train one is to change the other; {_ANEW}")
    shared = _shared(student.returned, again.returned, inputs)
    if shared:
        report.warn(
            f"student() returns the same '{shared[0][0]}'{_more(shared)} in each call: every stage works on a copy, "
            "whose first values are these and not the seed's"
        )
    in_both = _shared(teacher.returned, student.returned, inputs)
    if in_both:
        report.warn(
            f"{_said_of_both(in_both)}: each has a copy, so the student's starts from the values that student() "
            "returns, and not from those that the teacher is trained to"
        )


def _said_of_both(shared: Sequence[tuple[str, str]]) -> str:
    of_teacher, of_student = shared[0]
    return f"'{of_student}' of the student and '{of_teacher}' of the teacher are one and the same{_more(shared)}"


def check_members_apart(teacher: BuiltNetwork, task: LoadedTask, inputs: Sequence[Tensor]) -> None:
    """Check that each member of an ensemble of teachers is a network of its own.

    Raises:
        TaskError: One and the same parameter, or a buffer that training changes, is in two of them.
    """
    shared = _shared(teacher.returned, build_network("teacher", task, 1).returned, inputs)
    if shared:
        raise TaskError(
            f"teacher() returns the same '{shared[0][0]}'{_more(shared)} in each call, and [teacher] members asks for "
            f"several; {_ANEW}"
        )


def _more(shared: Sequence[object]) -> str:
    return f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""


def _shared(first: nn.Module, second: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[str, str]]:
    """Return the names in both networks of what they hold in common, without buffers that stay as they are."""
    places = {_place(value): name for name, value in reversed(_tensors(first, inputs).items()) if value.numel()}
    common = {
        name: places[_place(value)]
        for name, value in _tensors(second, inputs).items()
        if value.numel() and _place(value) in places
    }
    buffers = dict(second.named_buffers(remove_duplicate=False))
    changing = _changed_by_training(second, common.keys() & buffers.keys(), inputs)
    return [(known, name) for name, known in common.items() if name not in buffers or name in changing]


def _tensors(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return all parameters and buffers of a network, also those of modules that it runs and has not registered."""
    aside = (
        (f"{path}.{name}", value)
        for path, module in run_unregistered(model, inputs).items()
        for name, value in module.named_parameters()
    )
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(aside),
    }


def _place(value: Tensor) -> int:
    """Return where a tensor's values lie: a slice, or a parameter made of another's data, lies in the same place."""
    return value.untyped_storage().data_ptr()


def run_unregistered(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, nn.Module]:
    """Return the modules that a network runs and has not registered, by their path.

    They lie in a list, a tuple or a dict, or were set past ``nn.Module``: no training changes them, and no file of
    weights has them.
    """
    own = {id(module) for module in model.modules()}
    aside = {
        ".".join(filter(None, (path, where))): held
        for path, module in model.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in _REGISTERED
        for where, held in _modules_in(attribute, value)
        if id(held) not in own
    }
    run: set[str] = set()
    with ExitStack() as stack, torch.no_grad():
        for path, held in aside.items():
            stack.enter_context(held.register_forward_pre_hook(lambda *_, path=path: run.add(path)))
        if aside:
            model(*inputs)
    return {path: held for path, held in aside.items() if path in run}


def _modules_in(where: str, value: object) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in an attribute's value, with their paths."""
    if isinstance(value, nn.Module):
        yield where, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _modules_in(f"{where}[{index}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _modules_in(f"{where}[{key!r}]", item)


def _changed_by_training(model: nn.Module, names: Set[str], inputs: Sequence[Tensor]) -> set[str]:
    """Return those buffers that a forward pass of training changes, as the statistics of BatchNorm."""
    if not names:
        return set()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    with restored(model), torch.no_grad():
        before = {name: buffers[name].clone() for name in names}
        model.train()
        model(*inputs)
        return {name for name in names if not torch.equal(before[name], buffers[name])}


@contextmanager
def restored(*models: nn.Module) -> Iterator[None]:
    """Give networks all that they had back in the end: a task may return the same teacher once more."""
    tensors = [value for model in models for value in (*model.parameters(), *model.buffers())]
    kept = [(value, value.detach().clone(), value.requires_grad) for value in tensors]
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for value, before, trained in kept:
            value.data = before  # of the device and precision that it had, too
            value.grad = None
            value.requires_grad_(trained)
