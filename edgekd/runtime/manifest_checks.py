"""The check that the values in a manifest are of their types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from edgekd.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgekd.files import JsonObject

#: A value's type, or the types that it may have.
_Types: TypeAlias = "type | tuple[type, ...]"

_TENSOR: dict[str, _Types] = {"name": str, "dtype": str, "shape": list}
_INPUT: dict[str, _Types] = {**_TENSOR, "preprocessing": str}
_OUTPUT: dict[str, _Types] = {
    **_TENSOR,
    "variants": list,
    "kind": str,
    "probabilities": bool,
    "threshold": (float, int, type(None)),
    "blank": (int, type(None)),
    "classes": list,
}
_STATE: dict[str, _Types] = {"input": str, "output": str, "initial": str}
_FILE: dict[str, _Types] = {"sha256": str, "bytes": int}


def check_values(content: JsonObject, where: str) -> None:
    """Check the values in a manifest's lists and tables.

    Args:
        content: The manifest, whose fields are of their types.
        where: The file's name in errors.

    Raises:
        BundleError: a value is of a wrong type; the message names it.
    """
    _check_strings(enumerate(content["reasons"]), f"{where}: reasons")
    _check_strings(content["versions"].items(), f"{where}: versions")
    for field, keys in (("inputs", _INPUT), ("outputs", _OUTPUT)):
        for index, entry in enumerate(content[field]):
            _check_entry(entry, keys, f"{where}: {field}.{index}")
            _check_shape(entry["shape"], f"{where}: {field}.{index}.shape")
        names = [entry["name"] for entry in content[field]]
        if len(set(names)) != len(names):
            raise BundleError(f"{where}: {field} names one tensor twice")
    for index, entry in enumerate(content["outputs"]):
        for field in ("variants", "classes"):
            _check_strings(enumerate(entry[field]), f"{where}: outputs.{index}.{field}")
    _check_states(content, where)
    for name, entry in content["files"].items():
        _check_entry(entry, _FILE, f"{where}: files.{name}")


def _check_states(content: JsonObject, where: str) -> None:
    for index, entry in enumerate(content["states"]):
        _check_entry(entry, _STATE, f"{where}: states.{index}")
        for field, listed in (("input", "inputs"), ("output", "outputs")):
            names = [tensor["name"] for tensor in content[listed]]
            if entry[field] not in names:
                raise BundleError(f"{where}: states.{index}.{field} '{entry[field]}' is none of the {listed}")
        if entry["initial"] != "zeros":
            raise BundleError(f"{where}: states.{index}.initial must be 'zeros', not '{entry['initial']}'")


def _check_strings(items: Iterable[tuple[object, object]], where: str) -> None:
    for key, value in items:
        if not isinstance(value, str):
            raise BundleError(f"{where}.{key} must be a text, not of type {type(value).__name__}")


def _check_entry(entry: object, keys: Mapping[str, _Types], where: str) -> None:
    names = ", ".join(f"'{key}'" for key in keys)
    if not isinstance(entry, dict) or entry.keys() != keys.keys():
        raise BundleError(f"{where} must have exactly {names}")
    for key, kind in keys.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(entry[key]) not in kinds:
            names = " or ".join(one.__name__ for one in kinds)
            raise BundleError(f"{where}.{key} must be of type {names}, not {type(entry[key]).__name__}")


def _check_shape(shape: list[Any], where: str) -> None:
    if not shape:
        raise BundleError(f"{where} must have a batch")
    for axis, size in enumerate(shape):
        if type(size) not in (int, str):
            raise BundleError(f"{where}.{axis} must be a size or a name, not of type {type(size).__name__}")
