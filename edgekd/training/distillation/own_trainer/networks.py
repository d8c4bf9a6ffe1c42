"""Checks of a teacher and a student that come from a training loop of the user's own, and of their taps."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekd.errors import ModelError, TaskError
from edgekd.training.loop.weights_file import not_finite
from edgekd.training.taps.taps import Taps, resolve_taps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgekd.config.recipe import Tap

#: Wrappers whose module is meant, and what to do with it.
_WRAPPERS = {
    "OptimizedModule": "give the network as it was before torch.compile: what a compiled one computes inside, where "
    "the taps are, cannot be read",
    "ScriptModule": "give the nn.Module that the TorchScript was made of",
    "DataParallel": "give its 'module', and wrap the Distiller in DistributedDataParallel",
    "DistributedDataParallel": "give its 'module', and wrap the Distiller",
    "FullyShardedDataParallel": "give the network itself, and wrap the Distiller in DistributedDataParallel",
}


def check_networks(teachers: Sequence[nn.Module], student: nn.Module) -> None:
    """Check that networks can be read at taps, and that training the student leaves the teachers as they are.

    Raises:
        TaskError: A network is none, is wrapped or compiled, a teacher shares a parameter with the student that is
            trained, or the student has nothing to train.
        ModelError: A teacher's weights are not finite.
    """
    if not teachers:
        raise TaskError("the Distiller needs a teacher, but is given none")
    for role, network in (*(("teacher", teacher) for teacher in teachers), ("student", student)):
        _check_readable(role, network)
    for teacher in teachers:
        for name, value in teacher.state_dict().items():
            if isinstance(value, Tensor) and (kind := not_finite(value)) == "NaN":
                raise ModelError(f"'{name}' of the teacher holds {kind}: train it again, or load other weights")
        _check_apart(teacher, student)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise TaskError("the student has no trainable parameter: unfreeze its head at least")


def _check_readable(role: str, network: object) -> None:
    if not isinstance(network, nn.Module):
        raise TaskError(f"the {role} is a {type(network).__name__}, must be an nn.Module")
    for path, module in network.named_modules():
        where = f"'{path}' of the {role}" if path else f"the {role}"
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                raise TaskError(f"{where} is a {type(module).__name__}: {_WRAPPERS[kind.__name__]}")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise TaskError(f"{where} is compiled in place: {_WRAPPERS['OptimizedModule']}")


def _check_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Check that no training of the student changes the teacher; a frozen stem may be that of both."""
    if teacher is student:
        raise TaskError("teacher and student are one network; give the student a copy by copy.deepcopy")
    theirs = {value.untyped_storage().data_ptr(): name for name, value in _tensors(teacher) if value.numel()}
    for name, value in _tensors(student):
        known = theirs.get(value.untyped_storage().data_ptr()) if value.numel() else None
        if known is not None and (value.requires_grad or not isinstance(value, nn.Parameter)):
            raise TaskError(
                f"'{name}' of the student and '{known}' of the teacher are one and the same, so to train the student "
                "changes the teacher: give the student a copy by copy.deepcopy"
            )


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a network, and the buffers that training may change, such as BatchNorm's statistics."""
    yield from network.named_parameters(remove_duplicate=False)
    for name, buffer in network.named_buffers(remove_duplicate=False):
        if buffer.is_floating_point():
            yield name, buffer


def own_taps(taps: Mapping[str, str | Tap | tuple[str | Tap, str | Tap]]) -> Taps:
    """Return the taps of both networks.

    Args:
        taps: For each modality a tap, or a pair of taps: the teacher's and the student's.

    Raises:
        TaskError: There are none, or one is not valid.
    """
    if not taps:
        raise TaskError('the Distiller needs taps: for each modality where its embedding is, as in {"image": "vision"}')
    pairs = {}
    for modality, tap in taps.items():
        pair = tuple(tap) if isinstance(tap, tuple | list) else (tap, tap)
        if len(pair) != 2:
            raise TaskError(
                f"the tap of '{modality}' is {len(pair)} places, must be one, or two: the teacher's and the student's"
            )
        pairs[modality] = pair
    names = list(pairs)
    teacher, student = (
        resolve_taps(kind, {}, {name: pair[index] for name, pair in pairs.items()}, names)
        for index, kind in enumerate(("teacher", "student"))
    )
    return Taps(teacher, student)


@contextmanager
def named_side(role: str) -> Iterator[None]:
    """Say of a tap's error which network's it is, since both may have taps of one name and be of one class."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"{role}: {error}") from error


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode, and each of their modules back into the mode that it had."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
