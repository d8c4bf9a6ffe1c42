"""The check that an opened engine is the one that its bundle's manifest states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.errors import BundleError
from edgekd.gram.output_kind import CLASS_AXES
from edgekd.runtime.manifest import answers_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.files import JsonObject
    from edgekd.runtime.manifest import Manifest, Variant
    from edgekd.runtime.session import Session, TensorSpec

_REMEDY = "copy or build the bundle again"


def check_engine(manifest: Manifest, variant: Variant, session: Session, where: str) -> None:
    """Check that an opened engine has the inputs, outputs and numbers of classes that its manifest states.

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
    missing = {*answers_in(manifest), *(entry["name"] for entry in stated)} - shapes.keys()
    if missing:
        raise BundleError(f"{where}: has no output '{min(missing)}', which the manifest states; {_REMEDY}")
    for entry in stated:
        name, classes = entry["name"], entry["classes"]
        width = shapes[name][CLASS_AXES.get(entry["kind"], -1)]
        if classes and isinstance(width, int) and width != len(classes):
            raise BundleError(
                f"{where}: '{name}' has {width} scores, but the manifest names {len(classes)} classes; {_REMEDY}"
            )


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
