"""Find a tensor in the output of a module, which may be a tensor, a tuple, a dict or an object with attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor

from edgekd.errors import TaskError, nearest

#: Name of the encoders' output tokens in the transformers library.
_TOKENS = "last_hidden_state"


def select_tensor(output: object, key: int | str | None, where: str) -> Tensor:
    """Return the tensor of a module's output that is its embedding.

    Args:
        output: Output of the module.
        key: Index in a sequence (from the end where it is negative), or name of an item or attribute. None takes a
            tensor itself, the first of a sequence, ``last_hidden_state`` where there is one, or the only tensor that
            has a name.
        where: The tap that is read, for error messages.

    Raises:
        TaskError: The output has no such part, the part is no tensor, or without a key it is not clear which is meant.
    """
    if key is None:
        return _by_default(output, where)
    parts = named_parts(output)
    # A namedtuple has names and places, and so have the outputs of transformers.
    sequence = output if isinstance(output, tuple | list) else list(parts.values())
    if isinstance(key, str) and key in parts:
        part = parts[key]
    elif isinstance(key, int) and -len(sequence) <= key < len(sequence):
        part = sequence[key]
    elif parts:
        raise TaskError(f"{where}: the module's output has no '{key}'{nearest(str(key), parts)}")
    else:
        raise TaskError(f"{where}: output = {key!r}, but the module gives {describe_output(output)}")
    if not isinstance(part, Tensor):
        raise TaskError(
            f"{where}: '{key}' of the module's output is {describe_output(part)}, not a tensor; tap a module inside it"
        )
    return part


def _by_default(output: object, where: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list):
        if output and isinstance(output[0], Tensor):
            return output[0]
        raise TaskError(f"{where}: the module gives {describe_output(output)}; say which is meant, e.g. output = 1")
    tensors = {name: part for name, part in named_parts(output).items() if isinstance(part, Tensor)}
    if _TOKENS in tensors:
        return tensors[_TOKENS]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    given = describe_output(output)
    if not tensors:
        raise TaskError(f"{where}: the module gives {given}, not a tensor; tap a module inside it")
    raise TaskError(f"{where}: the module gives {given}; say which is meant, e.g. output = '{next(iter(tensors))}'")


def named_parts(output: object) -> dict[str, object]:
    """Return the parts of an output that have a name."""
    if isinstance(output, Mapping):
        return {str(name): part for name, part in output.items()}
    if isinstance(output, tuple):
        return dict(zip(getattr(output, "_fields", ()), output, strict=False))
    if is_dataclass(output) and not hasattr(output, "__dict__"):  # it has slots
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {} if isinstance(output, Tensor) else dict(getattr(output, "__dict__", {}))


def describe_output(output: object) -> str:
    """Describe an output and what is in it, for error messages."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    kind = type(output).__name__
    named = named_parts(output)
    parts = named.values() if named or not isinstance(output, tuple | list) else output
    names = [f"'{name}' " for name in named] or [""] * len(parts)
    inside = ", ".join(name + _brief(part) for name, part in zip(names, parts, strict=True))
    return f"a {kind} of {inside}" if inside else f"a {kind}"


def _brief(part: object) -> str:
    return str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__
