"""Samples for a bundle from a file that a user made: what can be mended safely is, and said; the rest is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError, nearest
from edgekd.gram.npz import INPUT_PREFIX, OUTPUT_PREFIX
from edgekd.runtime.session import open_arrays

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from edgekd.runtime.session import Array, TensorSpec

#: The beginnings of files that hold a picture.
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")

#: Other arrays that a file of samples may hold; they are no inputs.
_BESIDE = ("ids", "labels", "groups", "gram")
_BESIDE_PREFIXES = ("present.", "target", OUTPUT_PREFIX)


@dataclass(frozen=True)
class SampleFile:
    """Samples that fit a bundle.

    Attributes:
        feeds: The inputs by name, a row for each sample.
        ids: Names of the samples.
        notes: What was done to them, in sentences.
        groups: The sequence that each sample is a step of [N]; None where the file does not say.
    """

    feeds: dict[str, Array]
    ids: tuple[str, ...]
    notes: tuple[str, ...]
    groups: Array | None = None


def read_samples(
    path: Path, specs: Sequence[TensorSpec], preprocessing: Mapping[str, str], states: Collection[str] = ()
) -> SampleFile:
    """Read samples for a bundle.

    A lone ``.npy`` is taken for the input of a bundle that has only one. Numbers of another type are converted where
    nothing is lost but float64's last digits; a sample without a batch becomes a batch of one.

    Args:
        path: An ``.npz`` with an array for each input, called ``NAME`` or ``input.NAME``.
        specs: The bundle's inputs.
        preprocessing: For inputs how a raw sample becomes them, in words.
        states: Inputs that the file may lack: then samples are steps of sequences.

    Raises:
        ModelError: It is no such file, does not fit, or is not finite; the message says what was expected.
    """
    always = [spec for spec in specs if spec.name not in states]
    arrays = _read(path, always, preprocessing)
    specs = [spec for spec in specs if spec in always or {spec.name, INPUT_PREFIX + spec.name} & arrays.keys()]
    notes: list[str] = []
    inputs = _named(path, arrays, specs, notes)
    for spec in specs:
        inputs[spec.name] = _typed(path, inputs[spec.name], spec, preprocessing.get(spec.name, ""), notes)
    inputs = _batched(path, inputs, specs, notes)
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise ModelError(f"{path}: every input needs a row for each sample, but they have different numbers: {told}")
    count = next(iter(counts.values()))
    if not count:
        raise ModelError(f"{path}: has no samples, its arrays have no rows")
    _require_finite(path, inputs)
    ids = arrays.get("ids")
    named = ids is not None and ids.shape == (count,)
    groups = arrays.get("groups")
    if carried := [name for name in states if name not in inputs]:
        groups = groups if groups is not None and groups.shape == (count,) else None
        what = "one sequence" if groups is None else f"{len(np.unique(groups))} sequences, which 'groups' names"
        notes.append(
            f"The samples were run as the steps of {what}, in their order: {', '.join(carried)} began at zero."
        )
    return SampleFile(
        inputs, tuple(map(str, ids.tolist() if named and ids is not None else range(count))), tuple(notes), groups
    )


def _read(path: Path, specs: Sequence[TensorSpec], preprocessing: Mapping[str, str]) -> dict[str, Array]:
    """Return the arrays of a file by name."""
    if not path.exists():
        raise ModelError(f"{path}: no such file; give an .npz with {_wanted(specs)}")
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; give an .npz with {_wanted(specs)}")
    with path.open("rb") as stream:
        head = stream.read(8)
    if head.startswith(_IMAGES):
        how = "; ".join(f"'{name}': {words}" for name, words in preprocessing.items() if words)
        raise ModelError(
            f"{path}: is a picture or a recording, and edgekd decodes none; write an .npz with {_wanted(specs)}"
            f"{f' (its maker says of them: {how})' if how else ''}"
        )
    if head.startswith(b"\x93NUMPY"):
        if len(specs) > 1:
            names = ", ".join(f"{spec.name}=..." for spec in specs)
            raise ModelError(
                f"{path}: is a single array, and the bundle has {len(specs)} inputs; np.savez(FILE, {names})"
            )
        try:
            return {specs[0].name: np.load(path, allow_pickle=False)}
        except ValueError as error:
            raise ModelError(f"{path}: cannot be read as a plain array: {error}") from error
    if not head.startswith(b"PK"):
        raise ModelError(f"{path}: is no .npz; write one with np.savez, with {_wanted(specs)}")
    with open_arrays(path) as archive:
        return {name: archive[name] for name in archive}


def _wanted(specs: Sequence[TensorSpec]) -> str:
    return "; ".join(f"'{spec.name}', {spec}" for spec in specs)


def _named(path: Path, arrays: Mapping[str, Array], specs: Sequence[TensorSpec], notes: list[str]) -> dict[str, Array]:
    """Return the inputs by their names."""
    found = {}
    keys = {spec.name: (spec.name, INPUT_PREFIX + spec.name) for spec in specs}
    used = [key for own in keys.values() for key in own if key in arrays]
    others = [
        name for name in arrays if name not in used and name not in _BESIDE and not name.startswith(_BESIDE_PREFIXES)
    ]
    for spec in specs:
        present = [key for key in keys[spec.name] if key in arrays]
        if not present:
            # Of one input, and of an array that is called as numpy does where no name is given, there is no doubt.
            if len(specs) == 1 and others == ["arr_0"]:
                notes.append(f"'arr_0' was taken for the input '{spec.name}'.")
                present = others = ["arr_0"]
            else:
                known = ", ".join(f"'{name}'" for name in arrays) or "nothing"
                hint = nearest(spec.name, [name.removeprefix(INPUT_PREFIX) for name in others]) if others else ""
                raise ModelError(f"{path}: has no array '{spec.name}', {spec}{hint}; it has {known}")
        found[spec.name] = arrays[present[0]]
    left = [name for name in others if name != "arr_0" or "arr_0" in used]
    if left:
        notes.append(f"Not read: {', '.join(repr(name) for name in left)}.")
    return found


def _typed(path: Path, array: Array, spec: TensorSpec, preprocessing: str, notes: list[str]) -> Array:
    """Return an array of the input's type, where nothing is lost by that."""
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted and array.dtype.isnative:
        return array
    kinds = array.dtype.kind, wanted.kind
    same_kind = kinds in (("f", "f"), ("i", "i"), ("u", "u"), ("u", "i"), ("i", "u"), ("b", "b"))
    if not same_kind:
        raise ModelError(
            f"{path}: input '{spec.name}' must be {spec}, but is {array.dtype}{_scaling(array, preprocessing)}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted)
    lost = np.isfinite(array) & ~np.isfinite(cast) if wanted.kind == "f" else cast.astype(array.dtype) != array
    if np.any(lost):
        place = [int(index) for index in np.argwhere(lost)[0]]
        raise ModelError(
            f"{path}: input '{spec.name}' is {array.dtype}, and {array[tuple(place)]} at {place} is no {wanted}"
        )
    notes.append(f"'{spec.name}' was {array.dtype} and was converted to {wanted}.")
    return np.asarray(cast)


def _scaling(array: Array, preprocessing: str) -> str:
    """Say what to do about an array of another kind of number, which is often a picture in bytes."""
    how = f" (its maker says: {preprocessing})" if preprocessing else ""
    if array.dtype.kind in "iub":
        return f"; scale it as the network was trained{how}, and store that type"
    return f"; store it as that type{how}"


def _batched(path: Path, inputs: dict[str, Array], specs: Sequence[TensorSpec], notes: list[str]) -> dict[str, Array]:
    """Return the inputs with a batch, a sample alone as a batch of one."""
    whole = {spec.name: _fits(inputs[spec.name].shape, spec.shape) for spec in specs}
    alone = {spec.name: _fits(inputs[spec.name].shape, spec.shape[1:]) for spec in specs}
    if not all(whole.values()) and all(alone.values()):
        notes.append("The arrays were taken for one sample: they have no dimension of a batch.")
        return {name: array[None] for name, array in inputs.items()}
    for spec in specs:
        if not whole[spec.name]:
            raise ModelError(
                f"{path}: input '{spec.name}' must be {spec}, but has the shape {list(inputs[spec.name].shape)}"
                f"{_shape_hint(inputs[spec.name], spec, alone[spec.name])}"
            )
    return inputs


def _require_finite(path: Path, inputs: Mapping[str, Array]) -> None:
    for name, array in inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            place = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
            raise ModelError(
                f"{path}: input '{name}' of sample {place[0]} is not finite: it has {array[tuple(place)]} at {place}; "
                "an engine would give a plausible answer to it, and a wrong one"
            )


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    """Whether a shape is what is wanted; a batch of one at a time may be of any number of samples."""
    pairs = enumerate(zip(shape, wanted, strict=True)) if len(shape) == len(wanted) else None
    return pairs is not None and all(
        isinstance(size, str) or size == given or (axis == 0 and size == 1 and given > 0)
        for axis, (given, size) in pairs
    )


def _shape_hint(array: Array, spec: TensorSpec, alone: bool) -> str:
    if alone:
        return "; it has no batch, and other inputs do: give all of them a row for each sample"
    sample = [size for size in spec.shape[1:] if isinstance(size, int)]
    rows = array.shape[1:] if array.ndim == len(spec.shape) else array.shape
    if len(sample) == len(spec.shape) - 1 == len(rows) > 1 and sorted(rows) == sorted(sample):
        order = [int(axis) for axis in _axes(list(rows), sample)]
        if array.ndim == len(spec.shape):
            order = [0, *(axis + 1 for axis in order)]
        return f"; its axes are in another order, np.transpose(array, {order}) changes that"
    return ""


def _axes(rows: list[int], sample: list[int]) -> list[int]:
    """Return for each size of a sample the axis that has it."""
    left = list(range(len(rows)))
    order = []
    for size in sample:
        axis = next(at for at in left if rows[at] == size)
        left.remove(axis)
        order.append(axis)
    return order
