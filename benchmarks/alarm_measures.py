"""What can be measured of a compressed network beside its float one, and what it lost on other samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from alarm_record import terms

from edgekd.gram.answers import changed_answers, sample_divergences
from edgekd.gram.drift import sample_drifts
from edgekd.gram.matrix import normalize
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.stats import debiased_cka
from edgekd.gram.streaming import hash_names
from edgekd.gram.within import anchor_cosines, choose_anchors
from edgekd.runtime.session import write_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alarm_cases import Array
    from alarm_record import Record

    from edgekd.gram.output_kind import OutputName

#: Numbers of probe samples beside all, and how many draws of each.
FEW, _DRAWS = (8, 32, 128), 4
_CKA_ROWS, _CROSS = 256, 64
#: Of two towers, which are compressed.
CONFIGURATIONS = {"asymmetric": (True, False), "both": (True, True)}


@dataclass(frozen=True)
class Evidence:
    """What was measured of all variants of one float network.

    Attributes:
        task: Name of the task; of towers with the configuration.
        kind: What the output is.
        seed: Seed of the network.
        done: Family, place and name of each variant [V].
        measures: By name for each variant and probe sample [V, N]; of CKA, which is no mean, for each variant [V, 1].
        few: The measures' means of so many probe samples, by number and name [V, draws].
        losses: What the metric's terms lost on test [V, T].
        absent: For classifiers the same with one modality at its mean [V, M, T].
        told: What the metric's terms lost on the probe [V, N], with labels.
        units: Unit of each probe sample [N].
        test_units: Unit of each test sample [T].
    """

    task: str
    kind: OutputName
    seed: int
    done: tuple[tuple[str, str, str], ...]
    measures: Mapping[str, Array]
    few: Mapping[int, Mapping[str, Array]]
    losses: Array
    absent: Array | None
    told: Array
    units: Array
    test_units: Array

    @property
    def drops(self) -> Array:
        """How much of the metric each variant lost on test [V]."""
        return self.losses.mean(1)

    def means(self, name: str) -> Array:
        """Return a measure of each variant [V]."""
        return self.measures[name].mean(1)


def kept_rows(found: Record, compressed: Sequence[bool]) -> list[int]:
    """Return the variants that a configuration can tell from the float network."""
    untouched = [] if found.kind != "embedding" or all(compressed) else list(found.modalities[1:])
    return [row for row, (_, where, _) in enumerate(found.done) if row and where not in untouched]


def gather(found: Record, configuration: str, folder: Path) -> Evidence:
    """Measure all variants of one network, or read what was measured."""
    place = folder / f"measured-{found.name}-{configuration}-{found.seed}.npz"
    compressed = CONFIGURATIONS.get(configuration, (True, True))
    rows = kept_rows(found, compressed)
    if not place.is_file():
        write_arrays(place, _measure(found, configuration, compressed, rows))
    with np.load(place) as archive:
        arrays = dict(archive)
    few: dict[int, dict[str, Array]] = {count: {} for count in FEW}
    for key in [key for key in arrays if key.startswith("few/")]:
        _, count, name = key.split("/")
        few[int(count)][name] = arrays[key]
    return Evidence(
        task=f"{found.name}, {configuration}" if configuration else found.name,
        kind=found.kind,
        seed=found.seed,
        done=tuple(found.done[row] for row in rows),
        measures={key.removeprefix("measure/"): x for key, x in arrays.items() if key.startswith("measure/")},
        few=few,
        losses=arrays["losses"],
        absent=arrays.get("absent"),
        told=arrays["told"],
        units=found.arrays["units"],
        test_units=found.arrays["test_units"],
    )


def _measure(found: Record, configuration: str, compressed: tuple[bool, bool], rows: list[int]) -> dict[str, Array]:
    count = len(found.arrays["ids"])
    everything = np.arange(count)
    measured = [measure(found, configuration, row, everything) for row in rows]
    arrays = {f"measure/{name}": np.stack([each[name] for each in measured]) for name in measured[0]}
    random = np.random.default_rng(0)
    for few in FEW:
        draws = [np.sort(random.permutation(count)[:few]) for _ in range(_DRAWS)]
        means = [[measure(found, configuration, row, draw) for draw in draws] for row in rows]
        for name in measured[0]:
            arrays[f"few/{few}/{name}"] = np.array([[x[name].mean() for x in draws_of] for draws_of in means])
    before, told = terms(found, "test", 0), terms(found, "outputs", 0)
    arrays["losses"] = np.stack([before - terms(found, "test", row, compressed) for row in rows])
    arrays["told"] = np.stack([told - terms(found, "outputs", row, compressed) for row in rows])
    if found.kind == "classes":
        right = found.arrays["test_ablated"].argmax(-1) == found.arrays["test_targets"]
        arrays["absent"] = right[0].astype(np.float64) - right[rows]
    return arrays


def measure(found: Record, configuration: str, variant: int, samples: Array) -> dict[str, Array]:
    """Return all measures of one variant on some probe samples: each sample's [n], or one figure [1]."""
    ids = found.arrays["ids"][samples]
    ours, theirs = (
        {name: z[samples].astype(np.float64) for name, z in found.embeddings(row).items()} for row in (variant, 0)
    )
    if configuration == "asymmetric":
        ours[found.modalities[1]] = theirs[found.modalities[1]]
    outputs = [found.arrays["outputs"][row][samples].astype(np.float64) for row in (variant, 0)]
    towers = found.kind == "embedding"
    parts = [np.split(x, 2, 1) for x in outputs] if towers else [[x] for x in outputs]
    sides = list(zip(*parts, strict=True))[: 1 if configuration == "asymmetric" else None]
    figures = [_of_output(found, mine, other) for mine, other in sides]
    worst = {name: max((each[name] for each in figures), key=np.mean) for name in figures[0]}
    return {
        **worst,
        "1 - cosine": np.mean([1 - (normalize(ours[n]) * normalize(theirs[n])).sum(1) for n in ours], 0),
        "1 - CKA": np.array([np.mean([_unlike(ours[n], theirs[n]) for n in ours])]),
        "drift": sample_drifts(ours, theirs),
        "drift within": _within(ours, theirs, ids),
        "cross-Gram": _cross(ours, theirs, configuration),
        **_ablated(found, variant, samples),
    }


def _of_output(found: Record, ours: Array, theirs: Array) -> dict[str, Array]:
    kind, difference = OutputKind(found.kind), ours - theirs
    floor = 0.1 * np.sqrt((theirs**2).sum(1).mean())
    figures = {
        "divergence": sample_divergences(ours, theirs, kind),
        "relative error": np.linalg.norm(difference, axis=1) / np.maximum(np.linalg.norm(theirs, axis=1), floor),
        "noise over signal": (difference**2).sum(1) / (theirs**2).sum(1).mean(),
    }
    changed = changed_answers(ours, theirs, kind)
    return figures if changed is None else {**figures, "changed answers": changed}


def _ablated(found: Record, variant: int, samples: Array) -> dict[str, Array]:
    if "ablated" not in found.arrays:
        return {}
    kind, stacked = OutputKind(found.kind), found.arrays["ablated"]
    pairs = [(stacked[variant][m][samples], stacked[0][m][samples]) for m in range(len(found.modalities))]
    figures = {"ablated divergence": [sample_divergences(a, b, kind) for a, b in pairs]}
    if found.kind == "classes":
        figures["ablated changed answers"] = [cast("Array", changed_answers(a, b, kind)) for a, b in pairs]
    return {name: max(found_of, key=np.mean) for name, found_of in figures.items()}


def _unlike(ours: Array, theirs: Array) -> float:
    cka = debiased_cka(normalize(ours[:_CKA_ROWS]), normalize(theirs[:_CKA_ROWS]))
    return 1.0 if cka is None else 1 - cka


def _within(ours: Mapping[str, Array], theirs: Mapping[str, Array], ids: Array) -> Array:
    sides: list[dict[str, Any]] = [
        {"ids": ids, **{EMBEDDING_PREFIX + name: z for name, z in side.items()}} for side in (ours, theirs)
    ]
    anchors = choose_anchors([(sides[0], sides[1])], list(ours))
    moved = np.abs(anchor_cosines(ours, anchors.embeddings) - anchor_cosines(theirs, anchors.reference)).mean(1)
    counted = anchors.others(hash_names(ids))
    return cast("Array", (moved * counted).sum(1) / counted.sum(1))


def _cross(ours: Mapping[str, Array], theirs: Mapping[str, Array], configuration: str) -> Array:
    """Return how the cosines to other modalities' float embeddings moved, over up to 64 samples."""
    names = list(ours)
    pairs = [(a, b) for a in names for b in names if a != b]
    if configuration == "asymmetric":
        pairs = [(names[0], names[1])]
    moved = []
    for a, b in pairs:
        index = normalize(theirs[b][:_CROSS]).T
        moved.append(np.abs(normalize(ours[a]) @ index - normalize(theirs[a]) @ index).mean(1))
    return cast("Array", np.mean(moved, 0))
