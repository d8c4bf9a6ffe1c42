"""Files of weights: reading them without running code, and saying what is wrong with one for a network."""

from __future__ import annotations

import pickle
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from edgekd.errors import ModelError
from edgekd.files import need, quiet

if TYPE_CHECKING:
    from pathlib import Path

#: Errors that torch's reader of plain values raises on a damaged or foreign file; it documents none.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    struct.error,
)

#: How torch's reader calls what a file wants to have imported, e.g. "GLOBAL task.Net was not an allowed global".
_WANTED = re.compile(r"GLOBAL (\S+) was not an allowed global")

_KEEP = "torch.save(model.state_dict(), ...) or as safetensors"


def read_state(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a state dict: a file ``.safetensors``, or what ``torch.save`` wrote.

    Args:
        path: The file.
        expected: State dict of the network that it is for; it only decides what an error advises.

    Raises:
        ModelError: The file cannot be read, or is no state dict.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    state = _load(path, torch.device("cpu"))
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: not a plain state dict of tensors; {_advise_item(path, state, expected)}")
    return {str(key): value for key, value in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = need("safetensors", "build")
    try:
        with safetensors.safe_open(str(path), framework="pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  (not a dict)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file: {error}") from error


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what a training keeps to be resumed. Every byte of it is checked: PyTorch writes checksums and reads none.

    Raises:
        ModelError: The file is damaged.
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    except (BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise ModelError(f"{path}: is damaged: {error}") from error
    if damaged is not None:
        raise ModelError(f"{path}: is damaged: the checksum of {damaged} is wrong")
    state = _load(path, device)
    if not isinstance(state, dict):
        raise ModelError(f"{path}: is no checkpoint")
    return cast("dict[str, Any]", state)


def _load(path: Path, device: torch.device) -> object:
    """Load tensors and plain values that ``torch.save`` wrote; no code in the file is executed."""
    try:
        with quiet():
            content: object = torch.load(path, map_location=device, weights_only=True)
    except _UNREADABLE as error:
        wanted = _WANTED.search(str(error))
        if wanted is None:
            raise ModelError(
                f"{path}: is damaged or not a plain state dict; files that hold code are refused. Save it with {_KEEP}"
            ) from error
        raise ModelError(
            f"{path}: is not a plain state dict; files that hold code are refused, and this one holds '{wanted[1]}'. "
            f"If you trust it, load it in Python with torch.load(..., weights_only=False), and save its weights by "
            f"{_KEEP}"
        ) from error
    return content


def check_state(path: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that weights are those of a network, and numbers.

    Args:
        path: Their file, for messages.
        state: The weights.
        model: The network.

    Raises:
        ModelError: Names, shapes or types differ from the network's, or a value is NaN or infinite.
    """
    expected = model.state_dict()
    # A tensor that has several names is often in a file under one of them only.
    given = {value.data_ptr() for key, value in expected.items() if key in state}
    foreign = [key for key in state if key not in expected]
    problems = [
        f"lacks '{key}'{_like(key, foreign)}"
        for key, value in expected.items()
        if key not in state and value.data_ptr() not in given
    ]
    problems += [f"has '{key}', which the network does not" for key in state if key not in expected]
    problems += [_difference(key, state[key], value) for key, value in expected.items() if key in state]
    problems = list(filter(None, problems))
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        advice = _advise_names(path, "", state, expected) if problems[0].startswith(("lacks", "has")) else ""
        raise ModelError(
            f"{path}: not the weights of {type(model).__name__}: {'; '.join(problems[:3])}{more}"
            + (f". {advice}" if advice else "")
        )
    for key, value in state.items():
        if kind := not_finite(value, expected[key]):
            raise ModelError(f"{path}: '{key}' holds {kind}: train or convert the network again, or give other weights")


def _like(key: str, foreign: list[str]) -> str:
    """Return a word on the name in a file that is most like one that it lacks; "" where none is."""
    close = get_close_matches(key, foreign, n=1, cutoff=0.6)
    return f" (is it its '{close[0]}'?)" if close else ""


def _difference(key: str, given: Tensor, expected: Tensor) -> str:
    if given.shape != expected.shape:
        return f"'{key}' is {tuple(given.shape)}, the network's is {tuple(expected.shape)}"
    if given.is_floating_point() != expected.is_floating_point() or given.is_complex() != expected.is_complex():
        return f"'{key}' is {given.dtype}, the network's is {expected.dtype}"
    return ""


def not_finite(given: Tensor, expected: Tensor | None = None) -> str:
    """Return "NaN" or "an infinite value" where a tensor holds one in the type of the network's; "" where it does not.

    Infinite values that the untrained network has at the same places, as those of a mask, are as they should be.
    """
    if not given.is_floating_point():
        return ""
    values = given if expected is None else given.to(expected.device, expected.dtype)
    wrong = ~torch.isfinite(values)
    if expected is not None:
        wrong &= values != expected
    if not wrong.any():
        return ""
    return "NaN" if values.isnan().any() else "an infinite value"


def _advise_item(path: Path, content: object, expected: Mapping[str, Tensor]) -> str:
    """Return how to get at the weights in a whole checkpoint, as Lightning and others write it."""
    items = content if isinstance(content, Mapping) else {}
    for item, value in items.items():
        if isinstance(value, Mapping) and value and all(isinstance(tensor, Tensor) for tensor in value.values()):
            advice = _advise_names(path, f"[{item!r}]", {str(key): tensor for key, tensor in value.items()}, expected)
            if advice:
                return f"the weights are its item '{item}'. {advice}"
    return "save it with torch.save(model.state_dict(), ...)"


def _advise_names(path: Path, item: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return the line of Python that gives weights the names of a network, "" where no prefix makes them these.

    Nothing is renamed unasked: names that only look alike may be of another network.
    """
    renaming = _find_renaming(state, expected)
    if renaming is None:
        return ""
    if path.suffix == ".safetensors":
        load = f"safetensors.torch.load_file({path.name!r})"
    else:
        load = f"torch.load({path.name!r}, weights_only=True){item}"
    return f"{renaming.reason}rewrite it in Python: state = {load}; torch.save({renaming.code}, 'weights.pt')"


@dataclass(frozen=True)
class _Renaming:
    """What makes a file's names those of a network.

    Attributes:
        prefix: What stands before the names of one of the two; "" where they are the same.
        in_file: Whether it is the file whose names have it.
    """

    prefix: str
    in_file: bool = True

    @property
    def reason(self) -> str:
        if not self.prefix:
            return "To keep them alone, "
        where = "begin with" if self.in_file else "lack"
        return f"Its names {where} '{self.prefix}', unlike the network's; if it is the same network, "

    @property
    def code(self) -> str:
        """Python that renames the items of ``state``."""
        if not self.prefix:
            return "state"
        if not self.in_file:
            return f"{{{self.prefix!r} + k: v for k, v in state.items()}}"
        return f"{{k.removeprefix({self.prefix!r}): v for k, v in state.items() if k.startswith({self.prefix!r})}}"


def _find_renaming(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> _Renaming | None:
    first, own = next(iter(expected), ""), next(iter(state), "")
    for prefix in (key.removesuffix(first) for key in state if key.endswith(first)):
        if prefix[-1:] in ("", ".") and all(f"{prefix}{key}" in state for key in expected):
            return _Renaming(prefix)
    for prefix in (key.removesuffix(own) for key in expected if key.endswith(own)):
        if prefix.endswith(".") and {f"{prefix}{key}" for key in state} == set(expected):
            return _Renaming(prefix, in_file=False)
    return None
