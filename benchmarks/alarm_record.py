"""Runs every variant of a float network, and keeps all that it says: the alarm study measures these arrays alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from alarm_cases import HELD_OUT, PROBED, load_case, metric
from alarm_variants import export_float, variants

from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import run_rows, write_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alarm_cases import Array, Case

    from edgekd.gram.output_kind import OutputName
    from edgekd.runtime.session import Session

_BATCH = 256


@dataclass(frozen=True)
class Record:
    """All that the variants of one network said; the first variant is the float network itself.

    Attributes:
        name: Name of the task.
        seed: Seed of the network.
        kind: What its output is.
        done: Family, place and name of each variant [V].
        modalities: Names of the modalities.
        arrays: ``ids`` [N], ``units`` [N] and ``targets`` of the probe, ``test_units`` [T], ``test_targets``; for each
            variant ``outputs`` [V, N, C], ``ablated`` [V, M, N, C], ``test`` [V, T, C], ``test_ablated`` [V, M, T, C]
            and ``embedding.<modality>`` [V, N, D].
    """

    name: str
    seed: int
    kind: OutputName
    done: tuple[tuple[str, str, str], ...]
    modalities: tuple[str, ...]
    arrays: Mapping[str, Array]

    def embeddings(self, variant: int) -> dict[str, Array]:
        """Return one variant's embeddings on the probe."""
        return {name: self.arrays[EMBEDDING_PREFIX + name][variant] for name in self.modalities}


def is_kept(name: str, seed: int, folder: Path) -> bool:
    """Return whether what the variants of a network said is kept already."""
    return (folder / f"{name}-{seed}.npz").is_file()


def record(name: str, seed: int, quick: Sequence[str], folder: Path) -> Record:
    """Run all variants of one network, or read what they said."""
    place = folder / f"{name}-{seed}.npz"
    if not place.is_file():
        _write(load_case(name, seed, quick, folder), place, quick=bool(quick))
    with np.load(place) as archive:
        arrays = dict(archive)
    facts = json.loads(str(arrays.pop("facts")))
    done = tuple(tuple(each) for each in facts["done"])
    return Record(name, seed, facts["kind"], done, tuple(facts["modalities"]), arrays)


def _write(case: Case, place: Path, *, quick: bool) -> None:
    probe, test = case.feeds(*PROBED), case.feeds(*HELD_OUT)
    means = {name: x.mean(0, keepdims=True) for name, x in case.feeds("calibration").items()}
    done, found = [("float", "network", "")], []
    with TemporaryDirectory() as scratch:
        work = Path(scratch)
        model = export_float(case, work / "float.onnx")
        found.append(_run(model.SerializeToString(), case, probe, test, means))
        for variant in variants(case, model, work, quick=quick):
            done.append((variant.family, variant.where, variant.name))
            found.append(_run(variant.graph, case, probe, test, means))
    stacked = {key: np.stack([each[key] for each in found]) for key in found[0]}
    facts = {"done": done, "kind": case.kind, "modalities": list(probe)}
    targets = {"targets": case.target(*PROBED), "test_targets": case.target(*HELD_OUT)}
    known = {key: x for key, x in targets.items() if x is not None}
    names = {"ids": case.ids(*PROBED), "units": case.units(*PROBED), "test_units": case.units(*HELD_OUT)}
    write_arrays(place, {"facts": np.array(json.dumps(facts)), **names, **known, **stacked})


def _run(
    graph: bytes, case: Case, probe: dict[str, Array], test: dict[str, Array], means: dict[str, Array]
) -> dict[str, Array]:
    """Run one graph as it is written on probe and test, and with each modality at its mean."""
    with open_engine(graph, fused=False) as session:
        seen = run_rows(session, probe, _BATCH)
        found = {"outputs": seen["logits"], "test": run_rows(session, test, _BATCH)["logits"]}
        if case.kind != "embedding":
            for key, feeds in (("ablated", probe), ("test_ablated", test)):
                found[key] = np.stack([_without(session, feeds, means, name) for name in feeds])
    return found | {key: x for key, x in seen.items() if key.startswith(EMBEDDING_PREFIX)}


def _without(session: Session, feeds: dict[str, Array], means: dict[str, Array], name: str) -> Array:
    absent = np.broadcast_to(means[name], feeds[name].shape).copy()
    return run_rows(session, {**feeds, name: absent}, _BATCH)["logits"]


def terms(found: Record, key: str, variant: int, compressed: Sequence[bool] = (True, True)) -> Array:
    """Return the metric's terms of each sample [N].

    Args:
        found: What the variants said.
        key: "outputs" for the probe, "test" for test.
        variant: Number of the variant.
        compressed: Of towers, whether the query's and the other's are the variant's, or the float network's.
    """
    outputs = found.arrays[key]
    if found.kind != "embedding":
        targets = found.arrays["targets" if key == "outputs" else "test_targets"]
        return metric(found.kind, outputs[variant], targets)
    query, index = (np.split(outputs[variant if new else 0], 2, 1)[side] for side, new in enumerate(compressed))
    return metric(found.kind, query, None, index)
