"""What a manifest states: that its values are of their types, and that an opened engine is the one that it states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgekd.files import JsonObject
    from edgekd.runtime.manifest import Manifest, Variant
    from edgekd.runtime.session import Session, TensorSpec

_TENSOR = {"name": str, "dtype": str, "shape": list}
_INPUT = {**_TENSOR, "preprocessing": str}
_OUTPUT = {**_TENSOR, "variants": list}
_FILE = {"sha256": str, "bytes": int}
_REMEDY = "copy or build the bundle again"


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


def check_engine(manifest: Manifest, variant: Variant, session: Session, where: str) -> None:
    """Check that an opened engine has the inputs, outputs and number of classes that its manifest states.

    A size is compared where both are fixed: an engine may be built for one sample at a time, or tell no sizes before it
    runs. An input that nothing in the graph reads may be absent, since some engine libraries drop it.

    Args:
        manifest: The bundle's manifest.
        variant: The variant that was opened.
        session: The opened engine.
        where: The engine's name in errors.

    Raises:
        BundleError: they differ.
    """
    stated = [entry for entry in manifest.outputs if variant in entry["variants"]]
    _compare("input", manifest.inputs, session.inputs, where)
    _compare("output", stated, session.outputs, where)
    shapes = {spec.name: spec.shape for spec in session.outputs}
    missing = {"logits", *(entry["name"] for entry in stated)} - shapes.keys()
    if missing:
        raise BundleError(f"{where}: has no output '{min(missing)}', which the manifest states; {_REMEDY}")
    width, classes = shapes["logits"][-1], manifest.classes
    if classes and isinstance(width, int) and width != len(classes):
        raise BundleError(f"{where}: gives {width} logits, but the manifest names {len(classes)} classes; {_REMEDY}")


def _compare(kind: str, stated: Sequence[JsonObject], actual: Sequence[TensorSpec], where: str) -> None:
    known = {entry["name"]: entry for entry in stated}
    for spec in actual:
        entry = known.get(spec.name)
        if entry is None:
            raise BundleError(f"{where}: has an {kind} '{spec.name}', which the manifest does not state; {_REMEDY}")
        if entry["dtype"] != spec.dtype or not _fits(entry["shape"], spec.shape):
            described = f"{entry['dtype']} [{', '.join(map(str, entry['shape']))}]"
            raise BundleError(f"{where}: its {kind} '{spec.name}' is {spec}, but the manifest states {described}; "
                              f"{_REMEDY}")  # fmt: skip


def _fits(stated: Sequence[int | str], actual: Sequence[int | str]) -> bool:
    return len(stated) == len(actual) and all(
        size == other or isinstance(size, str) or isinstance(other, str)
        for size, other in zip(stated, actual, strict=True)
    )
