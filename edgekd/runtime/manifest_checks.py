"""The check that the values in a manifest are of their types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgekd.files import JsonObject

_TENSOR = {"name": str, "dtype": str, "shape": list}
_INPUT = {**_TENSOR, "preprocessing": str}
_OUTPUT = {**_TENSOR, "variants": list}
_FILE = {"sha256": str, "bytes": int}


def check_values(content: JsonObject, where: str) -> None:
    """Check the values in a manifest's lists and tables.

    Args:
        content: The manifest, whose fields are of their types.
        where: The file's name in errors.

    Raises:
        BundleError: a value is of a wrong type; the message names it.
    """
    for field in ("classes", "reasons"):
        _check_strings(enumerate(content[field]), f"{where}: {field}")
    _check_strings(content["versions"].items(), f"{where}: versions")
    for field, keys in (("inputs", _INPUT), ("outputs", _OUTPUT)):
        for index, entry in enumerate(content[field]):
            _check_entry(entry, keys, f"{where}: {field}.{index}")
            _check_shape(entry["shape"], f"{where}: {field}.{index}.shape")
        names = [entry["name"] for entry in content[field]]
        if len(set(names)) != len(names):
            raise BundleError(f"{where}: {field} names one tensor twice")
    for index, entry in enumerate(content["outputs"]):
        _check_strings(enumerate(entry["variants"]), f"{where}: outputs.{index}.variants")
    for name, entry in content["files"].items():
        _check_entry(entry, _FILE, f"{where}: files.{name}")


def _check_strings(items: Iterable[tuple[object, object]], where: str) -> None:
    for key, value in items:
        if not isinstance(value, str):
            raise BundleError(f"{where}.{key} must be a text, not of type {type(value).__name__}")


def _check_entry(entry: object, keys: Mapping[str, type], where: str) -> None:
    names = ", ".join(f"'{key}'" for key in keys)
    if not isinstance(entry, dict) or entry.keys() != keys.keys():
        raise BundleError(f"{where} must have exactly {names}")
    for key, kind in keys.items():
        if type(entry[key]) is not kind:
            raise BundleError(f"{where}.{key} must be of type {kind.__name__}, not {type(entry[key]).__name__}")


def _check_shape(shape: list[Any], where: str) -> None:
    if not shape:
        raise BundleError(f"{where} must have a batch")
    for axis, size in enumerate(shape):
        if type(size) not in (int, str):
            raise BundleError(f"{where}.{axis} must be a size or a name, not of type {type(size).__name__}")
