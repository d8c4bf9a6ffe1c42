"""The gate over the variants of the alarm study: what it measures is kept, so that any limits can judge it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
from alarm_measures import CONFIGURATIONS, kept_rows
from alarm_record import terms

from edgekd.files import write_text
from edgekd.gram.answers import Answers, changed_answers, compare_outputs
from edgekd.gram.drift import Drift, measure_drift
from edgekd.gram.gate import GateRules, judge
from edgekd.gram.intervals import Bootstrap, Estimate, binomial_upper, estimate_share
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.gram.stats import t_quantile
from edgekd.gram.verdict import GateLimits, Measured, Verdict, worst

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alarm_cases import Array
    from alarm_record import Record

    from edgekd.gram.output_kind import OutputName

_BOOTSTRAP = Bootstrap(resamples=200)
_BLOCKS = 100


def measured(found: Record, configuration: str, count: int | None, folder: Path) -> list[list[Measured]]:
    """Return what the gate measures of each variant, of towers once for each that is compressed; or read it.

    Args:
        found: What the variants said.
        configuration: Which of two towers are compressed; "" of other networks.
        count: Number of probe samples; None for all.
        folder: Folder of what is kept.
    """
    place = folder / f"gate-{found.name}-{configuration}-{found.seed}-{count or 'all'}.json"
    compressed = CONFIGURATIONS.get(configuration, (True, True))
    if not place.is_file():
        total = len(found.arrays["ids"])
        samples = np.arange(total) if count is None else np.sort(np.random.default_rng(1).permutation(total)[:count])
        rows = [_measured(found, configuration, compressed, row, samples) for row in kept_rows(found, compressed)]
        write_text(place, json.dumps(msgspec.to_builtins(rows)))
    kept = json.loads(place.read_text(encoding="utf-8"))
    return [[_read(each) for each in row] for row in kept]


def _read(kept: dict[str, Any]) -> Measured:
    types: dict[str, Any] = {"answers": Answers, "loss": Estimate, "drift": Drift, "missing": dict[str, Estimate]}
    return Measured(**{key: msgspec.convert(kept[key], kind) for key, kind in types.items()})


def _measured(
    found: Record, configuration: str, compressed: tuple[bool, bool], variant: int, samples: Array
) -> list[Measured]:
    ids, units = found.arrays["ids"][samples], found.arrays["units"][samples]
    ours, theirs = ({n: z[samples] for n, z in found.embeddings(row).items()} for row in (variant, 0))
    if configuration == "asymmetric":
        ours[found.modalities[1]] = theirs[found.modalities[1]]
    outputs = [found.arrays["outputs"][row][samples] for row in (variant, 0)]
    parts = [np.split(x, 2, 1) if found.kind == "embedding" else [x] for x in outputs]
    sides = list(zip(*parts, strict=True))[: 1 if configuration == "asymmetric" else None]
    lost = terms(found, "outputs", 0) - terms(found, "outputs", variant, compressed)
    loss, kind = _loss(lost[samples], units), OutputKind(found.kind)
    probes = [(Probe(ids, {"logits": mine}, ours), Probe(ids, {"logits": other}, theirs)) for mine, other in sides]
    drift = measure_drift(*probes[0], units, _BOOTSTRAP)
    missing = _missing(found, variant, samples, units) if found.kind == "classes" else {}
    return [
        Measured(compare_outputs(*pair, {"logits": kind}, units, _BOOTSTRAP), loss, drift, missing) for pair in probes
    ]


def _loss(lost: Array, units: Array) -> Estimate:
    """Bound the mean loss of the metric by the jackknife over blocks of units, as the gate's own does."""
    known, inverse = np.unique(units, return_inverse=True)
    blocks = inverse % min(_BLOCKS, len(known))
    sums, counts = np.bincount(blocks, lost), np.bincount(blocks)
    without = (sums.sum() - sums) / (counts.sum() - counts)
    error = np.sqrt((len(sums) - 1) / len(sums) * ((without - without.mean()) ** 2).sum())
    half = max(t_quantile(0.95, len(sums) - 1) * float(error), binomial_upper(0, len(lost), 0.95))
    return Estimate(float(lost.mean()), float(lost.mean()) - half, float(lost.mean()) + half)


def _missing(found: Record, variant: int, samples: Array, units: Array) -> dict[str, Estimate]:
    shares = {}
    stacked = found.arrays["ablated"]
    counts = np.unique(units, return_counts=True)[1].astype(float)
    inverse = np.unique(units, return_inverse=True)[1]
    for index, name in enumerate(found.modalities):
        pair = (stacked[row][index][samples].astype(np.float64) for row in (variant, 0))
        changed = cast("Array", changed_answers(*pair, OutputKind("classes")))
        shares[name] = estimate_share(np.stack([np.bincount(inverse, changed), counts]), _BOOTSTRAP)
    return shares


def verdicts(
    rows: Sequence[Sequence[Measured]], kind: OutputName, limits: GateLimits, *, labels: bool
) -> list[Verdict]:
    """Return the gate's verdict on each variant; of two outputs the more severe one."""
    rules = GateRules("metric", limits, _BOOTSTRAP, {"logits": OutputKind(kind)})
    if not labels:
        rows = [[replace(each, loss=None) for each in row] for row in rows]
    return [worst(*(judge(each, rules)[0] for each in row)) for row in rows]
