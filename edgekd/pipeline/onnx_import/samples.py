"""Samples of a user's model: read, checked against its inputs, and split where there is only one file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError, nearest
from edgekd.gram.nest import TARGET, unflatten
from edgekd.gram.npz import CARRIED_PREFIX, INPUT_PREFIX
from edgekd.pipeline.onnx_import.answers.targets import read_targets
from edgekd.pipeline.onnx_import.inputs import state_shape
from edgekd.runtime.session import open_arrays, write_arrays
from edgekd.stages.labels import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edgekd.gram.nest import Nest
    from edgekd.runtime.session import Array, TensorSpec

_EXTRAS = ("ids", "labels", "groups")

#: Of fewer calibration samples none are kept apart.
_FEWEST_TO_HALVE = 64


@dataclass(frozen=True)
class NpzSamples:
    """Samples of one file.

    Attributes:
        inputs: For each input of the graph its array [N, ...].
        ids: Names of the samples [N], all different.
        labels: Classes [N], :data:`UNLABELLED` for a sample without one; None where no sample has one.
        groups: Subject, clip or the like that each sample belongs to [N]; None where all are independent.
        ignored: Names of arrays of the file that the model has no input for.
        carried: For each state that the file does not give, and that begins at zero with each group, the output that
            holds it after a step. The samples of a group are the steps of a sequence, in their order.
        targets: What the user's own metric is given, each array [N, ...] under the name that it is stored with; empty
            where there is no such metric, or ``labels`` are all that it is given.
    """

    inputs: Mapping[str, Array]
    ids: Array
    labels: Array | None
    groups: Array | None
    ignored: tuple[str, ...] = ()
    carried: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, Array] = field(default_factory=dict)

    @property
    def known(self) -> Nest | None:
        """What is known of the samples, as a metric is given it; None where nothing is."""
        return unflatten(self.targets, TARGET) if self.targets else self.labels

    def take(self, rows: Array) -> NpzSamples:
        """Return the samples of these rows."""
        labels = None if self.labels is None else _any_labels(self.labels[rows])
        groups = None if self.groups is None else self.groups[rows]
        inputs, targets = ({name: x[rows] for name, x in table.items()} for table in (self.inputs, self.targets))
        return NpzSamples(inputs, self.ids[rows], labels, groups, carried=self.carried, targets=targets)

    def without_labels(self, metric: bool = False) -> NpzSamples:
        """Return the same samples without labels, which a ``metric`` of the user's own is given all the same."""
        targets = {TARGET: self.labels} if metric and self.labels is not None and not self.targets else self.targets
        return replace(self, labels=None, targets=targets)

    def first(self, count: int) -> dict[str, Array]:
        """Return the inputs of the first ``count`` samples."""
        return {name: x[:count] for name, x in self.inputs.items()}

    @property
    def every_label(self) -> Array:
        """The class of each sample [N], :data:`UNLABELLED` of those that have none."""
        return np.full(len(self.ids), UNLABELLED) if self.labels is None else self.labels

    def row(self, row: int) -> dict[str, Array]:
        """Return the inputs of one sample, as a batch of one."""
        return {name: x[row : row + 1] for name, x in self.inputs.items()}

    def save(self, path: Path) -> None:
        """Write the samples as every later stage reads them."""
        extras = {"ids": self.ids, "labels": self.labels, "groups": self.groups}
        inputs = {INPUT_PREFIX + name: x for name, x in self.inputs.items()}
        carried = {CARRIED_PREFIX + name: np.array(output) for name, output in self.carried.items()}
        known = {key: array for key, array in extras.items() if array is not None}
        write_arrays(path, {**known, **self.targets, **inputs, **carried})


def read_samples(
    path: Path,
    specs: Sequence[TensorSpec],
    states: Sequence[str],
    pairs: Mapping[str, str] = MappingProxyType({}),
    *,
    metric: bool = False,
) -> NpzSamples:
    """Read samples from an ``.npz``.

    Args:
        path: File with an array [N, ...] for each input, under the input's name with or without ``input.`` before it;
            and optionally ``ids``, ``labels`` and ``groups`` [N].
        specs: Inputs of the graph, as the graph states them. An array has the input's rank, its first dimension being
            the batch; or one dimension more, where the graph takes one sample at a time without a batch dimension.
        states: Inputs that look like a state, for the error that says that one is missing.
        pairs: For inputs that are states the outputs that hold them after a step. One without an array begins at zero.
        metric: Whether a metric of the user's own is given whatever the file holds besides.

    Raises:
        ModelError: The file is no ``.npz``, lacks an input or has fewer than two samples; or an array has another type
            or shape than its input, is not finite, or has another number of samples than the others. Or a state is
            carried, and there are no ``groups`` that say in which sequence.
    """
    with open_arrays(path) as arrays:
        carried = {
            name: output for name, output in pairs.items() if name not in arrays and INPUT_PREFIX + name not in arrays
        }
        given = [spec for spec in specs if spec.name not in carried]
        keys = {spec.name: _key(path, spec, arrays, spec.name in states) for spec in given}
        inputs = {spec.name: _fitting(path, spec, arrays[keys[spec.name]]) for spec in given}
        extra = {key: arrays[key] for key in _EXTRAS if key in arrays and key not in keys.values()}
        others = [key for key in arrays if key not in (*keys.values(), *extra)]
        targets = read_targets(path, arrays, others, extra) if metric else {}
    labels = _labels(path, extra.get("labels"))
    for key, array in extra.items():
        if array.ndim != 1 or array.dtype.kind not in "biufUS":
            is_now = f"{array.dtype} {list(array.shape)}"
            raise ModelError(f"{path}: '{key}' must be numbers or texts, one a sample, but is {is_now}")
    counts = {name: len(x) for name, x in (inputs | extra | targets).items()}
    if len(set(counts.values())) != 1 or min(counts.values()) < 2:
        raise ModelError(f"{path}: every array needs the same number of samples, at least two, but has {counts}")
    count = next(iter(counts.values()))
    ids = extra.get("ids", np.arange(count)).astype(str)
    if len(np.unique(ids)) < count:
        raise ModelError(f"{path}: 'ids' names some samples alike; give each a name of its own")
    if carried and "groups" not in extra:
        raise ModelError(
            f"{path}: the model carries a state, {', '.join(carried)}, so samples are the steps of sequences; add "
            "'groups', the sequence that each sample is a step of, in their order, e.g. np.repeat(np.arange(20), 100) "
            f"of 20 recordings of 100 steps; or give {', '.join(carried)} before each sample"
        )
    inputs |= {
        spec.name: np.zeros((count, *state_shape(path, spec)), spec.dtype) for spec in specs if spec.name in carried
    }
    ignored = () if metric else tuple(sorted(others))
    return NpzSamples(inputs, ids, labels, extra.get("groups"), ignored, carried, targets)


def _key(path: Path, spec: TensorSpec, arrays: Mapping[str, Array], is_state: bool) -> str:
    for key in (INPUT_PREFIX + spec.name, spec.name):
        if key in arrays:
            return key
    advice = nearest(spec.name, [key for key in arrays if key not in _EXTRAS])
    if is_state:  # then no other array is meant
        advice = (
            f"; it looks like a state: --state {spec.name}=OUTPUT says which output holds it after a step, to have it "
            "carried; or give what it holds before each sample"
        )
    raise ModelError(f"{path}: has no array for the model's input '{spec.name}', {spec}{advice}")


def _fitting(path: Path, spec: TensorSpec, array: Array) -> Array:
    where = f"{path}: input '{spec.name}'"
    if array.dtype != np.dtype(spec.dtype):
        raise ModelError(
            f"{where} must be {spec.dtype}, but its array is {array.dtype}; edgekd does not convert it, since you know "
            f"better what that would lose: .astype('{spec.dtype}')"
        )
    has_batch = bool(spec.shape) and (spec.shape[0] == 1 or isinstance(spec.shape[0], str))
    sample = spec.shape[1:] if has_batch else spec.shape
    if array.ndim == 0 or not any(_agrees(shape, array.shape[1:]) for shape in (sample, spec.shape)):
        expected = ", ".join(["samples", *map(str, sample)])
        raise ModelError(f"{where} is {spec}, so its array must be [{expected}], but is {list(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))[0])
        raise ModelError(f"{where} of sample {row} is not finite")
    return array


def _agrees(stated: Sequence[int | str], actual_shape: Sequence[int]) -> bool:
    return len(stated) == len(actual_shape) and all(
        isinstance(size, str) or size == actual for size, actual in zip(stated, actual_shape, strict=True)
    )


def _labels(path: Path, labels: Array | None) -> Array | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ModelError(
            f"{path}: 'labels' must be whole numbers, one a sample, {UNLABELLED} for none, but is {labels.dtype} "
            f"{list(labels.shape)}"
        )
    return _any_labels(labels.astype(np.int64))


def _any_labels(labels: Array) -> Array | None:
    return labels if (labels != UNLABELLED).any() else None


def shared(samples: NpzSamples, others: NpzSamples) -> int:
    """Return how many of the samples are among ``others``, with exactly the same inputs."""
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(samples))


def _digests(samples: NpzSamples) -> Iterator[bytes]:
    for row in range(len(samples.ids)):
        digest = hashlib.sha256()
        for name in sorted(samples.inputs):
            digest.update(samples.inputs[name][row].tobytes())
        yield digest.digest()


def hold_back(samples: NpzSamples, seed: int) -> tuple[NpzSamples, NpzSamples, str]:
    """Keep half of the calibration samples apart, to choose among candidates on samples that they were not made with.

    Returns:
        The samples to calibrate with, those to choose on, which are the same where there are too few, and a sentence
        for the user.
    """
    count = len(samples.ids)
    units = count if samples.groups is None else len(np.unique(samples.groups))
    if count < _FEWEST_TO_HALVE or units < 2:
        few = f"{count} calibration samples are too few to keep some apart"
        return samples, samples, f"{few}: candidates are chosen on the very samples that they are calibrated with"
    ranges, chosen = split(samples, seed)
    said = (
        f"of the {count} calibration samples, {len(ranges.ids)} are for ranges and {len(chosen.ids)} others to choose"
    )
    return ranges, chosen, f"{said} among candidates; the test samples judge what was chosen, and only that"


def split(samples: NpzSamples, seed: int) -> tuple[NpzSamples, NpzSamples]:
    """Split samples into two halves, for calibration and for the test; a group is never divided.

    Raises:
        ModelError: All samples belong to one group.
    """
    member = (
        np.arange(len(samples.ids)) if samples.groups is None else np.unique(samples.groups, return_inverse=True)[1]
    )
    units = member.max() + 1
    if units < 2:
        raise ModelError("all samples are of one group, so none can be kept apart for the test; give them with --test")
    # RandomState, since its stream is frozen: a Generator's may change with numpy's version.
    first = np.random.RandomState(seed).permutation(units)[: units // 2]
    chosen = np.isin(member, first)
    return samples.take(np.flatnonzero(chosen)), samples.take(np.flatnonzero(~chosen))
