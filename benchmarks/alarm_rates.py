"""Whom the gate as a whole lets through and refuses, at its defaults and at limits from other tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from alarm_gate import verdicts
from alarm_report import KINDS, base, surely
from alarm_stats import choose_limit, interval, is_harm

from edgekd.config.recipe import GateConfig
from edgekd.gram.output_kind import MAX_DIVERGENCE
from edgekd.gram.verdict import VERDICTS, GateLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alarm_cases import Array
    from alarm_measures import Evidence

    from edgekd.gram.verdict import Measured, Verdict

_GATE = GateConfig()
DEFAULTS = GateLimits(
    tau_pass=_GATE.tau_pass,
    tau_fail=_GATE.tau_fail,
    max_flips=_GATE.max_flips,
    max_metric_drop=_GATE.max_metric_drop,
    max_missing_flips=_GATE.max_missing_flips,
)
#: The rule of before: the drift's bound, and the share of flips.
_OLD_DRIFT, _OLD_FLIPS = 0.02, 0.03
#: The limits of the drift when the study was planned.
_PLANNED = {"tau_pass": 0.005, "tau_fail": 0.02}
_FLIPS = tuple(round(0.01 * step, 2) for step in range(1, 11))
_FAILED = 0.05
_NO_DRIFT = 1e3


@dataclass(frozen=True)
class Judged:
    """One network's variants as the gate measures them.

    Attributes:
        evidence: What is measured besides.
        gate: By the number of probe samples, None for all, what the gate measures of each variant.
    """

    evidence: Evidence
    gate: Mapping[int | None, Sequence[Sequence[Measured]]]

    def judge(self, limits: GateLimits, count: int | None, *, labels: bool) -> list[Verdict]:
        """Return the verdicts."""
        return verdicts(self.gate[count], self.evidence.kind, limits, labels=labels)


def old_rule(judged: Judged, count: int | None) -> list[Verdict]:
    """Return what the rule of before says: "fail" or "pass", without labels."""
    found: list[Verdict] = []
    for row in judged.gate[count]:
        flips = [each.answers.changed.mean for each in row if each.answers.changed and each.answers.kind == "classes"]
        refused = any(each.drift.bound > _OLD_DRIFT for each in row) or any(share > _OLD_FLIPS for share in flips)
        found.append("fail" if refused else "pass")
    return found


def limits_elsewhere(found: Sequence[Judged], task: str, kind: str, count: int | None) -> GateLimits | None:
    """Return the limits that the other tasks of a kind give; None where there is no other."""
    elsewhere = [each for each in found if each.evidence.kind == kind and base(each.evidence.task) != base(task)]
    if not elsewhere:
        return None
    return fitted_limits(elsewhere, count)


def fitted_limits(found: Sequence[Judged], count: int | None) -> GateLimits:
    """Return the limits that these networks give, by the plan's rule."""
    groups: dict[str, list[Judged]] = {}
    for each in found:
        groups.setdefault(each.evidence.task, []).append(each)
    bounds = [np.array([_bound(row) for each in of for row in each.gate[count]]) for of in groups.values()]
    harmed = [np.concatenate([is_harm(each.evidence.drops) for each in of]) for of in groups.values()]
    limits = replace(DEFAULTS, max_divergence=choose_limit(bounds, harmed))
    for share in _FLIPS:
        tried = replace(limits, max_flips=share)
        refused = [
            np.mean([v == "fail" for each in of for v, bad in _pairs(each, tried, count) if not bad])
            for of in groups.values()
        ]
        if np.mean(refused) <= _FAILED:
            return tried
    return tried


def _bound(row: Sequence[Measured]) -> float:
    return max(each.answers.divergence.high for each in row)


def _pairs(judged: Judged, limits: GateLimits, count: int | None) -> list[tuple[Verdict, bool]]:
    said = judged.judge(limits, count, labels=True)
    return list(zip(said, is_harm(judged.evidence.drops).tolist(), strict=True))


def tally(said: Sequence[Verdict], harmed: Array) -> dict[str, Any]:
    """Return the share of harmed and of harmless variants with each verdict, and how many of each there are."""
    table: dict[str, Any] = {}
    for name, of in (("harmed", harmed), ("harmless", ~harmed)):
        counts = Counter(np.array(said)[of].tolist())
        table[name] = {"count": int(of.sum()), **{v: counts[v] / max(1, int(of.sum())) for v in VERDICTS}}
    return table


def gate_rates(found: Sequence[Judged], count: int) -> dict[str, Any]:
    """Return the rates of every rule: by kind, by task, and over all, with intervals of the latter."""
    rules: dict[str, Callable[[Judged], list[Verdict] | None]] = {"old rule": lambda each: old_rule(each, None)}
    elsewhere = {
        each.evidence.task: limits_elsewhere(found, each.evidence.task, each.evidence.kind, None) for each in found
    }
    chosen = {
        "defaults": lambda _: DEFAULTS,
        "limits from other tasks": lambda each: elsewhere[each.evidence.task],
        "defaults, drift not asked": lambda _: replace(DEFAULTS, tau_pass=_NO_DRIFT, tau_fail=_NO_DRIFT),
        "limits from other tasks, drift not asked": lambda each: _without_drift(elsewhere[each.evidence.task]),
    }
    planned = _rule(lambda each: _planned(elsewhere[each.evidence.task]), None, labels=True)
    rules["limits from other tasks, drift as planned"] = planned
    fresh = _rule(lambda each: DEFAULTS if each.evidence.seed else None, None, labels=True)
    rules["defaults, other seeds"] = fresh
    sizes = [size for size in found[0].gate if size is not None]  # of the first seed alone, for their bounds are slow
    for name, pick in chosen.items():
        rules[name] = _rule(pick, None, labels=True)
        rules[f"{name}, no labels"] = _rule(pick, None, labels=False)
        if name == "defaults":
            for size in sizes:
                rules[f"defaults, {size} samples"] = _rule(pick, size, labels=True)
                rules[f"defaults, no labels, {size} samples"] = _rule(pick, size, labels=False)
    fitted = {
        kind: limits_table(fitted_limits([each for each in found if each.evidence.kind == kind], None))
        for kind in KINDS
        if any(each.evidence.kind == kind for each in found)
    }
    return {
        "defaults": default_limits(),
        "limits_of_all_tasks": fitted,
        "by_family": by_family(found),
        "limits_elsewhere": {task: limits and limits_table(limits) for task, limits in elsewhere.items()},
        "rules": {name: _rates(found, rule, count) for name, rule in rules.items()},
    }


def default_limits() -> dict[str, Any]:
    """Return the limits that a recipe has where it says nothing."""
    names = ("tau_pass", "tau_fail", "max_flips", "max_missing_flips", "max_metric_drop")
    return {"max_divergence": MAX_DIVERGENCE, **{name: getattr(DEFAULTS, name) for name in names}}


def by_family(found: Sequence[Judged]) -> dict[str, list[dict[str, int]]]:
    """Return how often the gate at its defaults says what of the harmed and of the harmless, by what was done."""
    counts: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for each in found:
        said = each.judge(DEFAULTS, None, labels=True)
        for (family, _, _), verdict, bad in zip(each.evidence.done, said, is_harm(each.evidence.drops), strict=True):
            counts.setdefault(family, (Counter(), Counter()))[0 if bad else 1][verdict] += 1
    return {family: [{v: of[v] for v in VERDICTS} for of in both] for family, both in counts.items()}


def _without_drift(limits: GateLimits | None) -> GateLimits | None:
    return limits and replace(limits, tau_pass=_NO_DRIFT, tau_fail=_NO_DRIFT)


def _planned(limits: GateLimits | None) -> GateLimits | None:
    return limits and replace(limits, **_PLANNED)


def limits_table(limits: GateLimits) -> dict[str, float | None]:
    """Return the two limits that are chosen."""
    return {"max_divergence": limits.max_divergence, "max_flips": limits.max_flips}


def _rule(
    pick: Callable[[Judged], GateLimits | None], size: int | None, *, labels: bool
) -> Callable[[Judged], list[Verdict] | None]:
    def rule(each: Judged) -> list[Verdict] | None:
        limits = pick(each)
        return each.judge(limits, size, labels=labels) if limits and size in each.gate else None

    return rule


def _rates(found: Sequence[Judged], rule: Callable[[Judged], list[Verdict] | None], count: int) -> dict[str, Any]:
    """Return the tallies of a rule, and the rates over tasks of the same weight with intervals."""
    said = [(each.evidence, verdict) for each in found if (verdict := rule(each)) is not None]
    if not said:
        return {}
    groups: dict[str, list[tuple[Array, Array]]] = {}
    for evidence, verdict in said:
        groups.setdefault(evidence.task, []).append((np.array(verdict), is_harm(evidence.drops)))
    kinds = {evidence.task: evidence.kind for evidence, _ in said}
    random = np.random.default_rng(0)
    drawn = [
        summary(
            {task: [_again(of[i], random) for i in random.integers(0, len(of), len(of))] for task, of in groups.items()}
        )
        for _ in range(count)
    ]
    over_all = {
        name: {"mean": value, "interval": interval([each[name] for each in drawn])}
        for name, value in summary(groups).items()
    }
    by_kind = {
        kind: summary({task: of for task, of in groups.items() if kinds[task] == kind})
        for kind in dict.fromkeys(kinds.values())
    }
    sure = summary(
        {
            task: [_sure(each.evidence, rule(each)) for each in found if each.evidence.task == task and rule(each)]
            for task in groups
        }
    )
    by_task = {task: tally(*map(np.concatenate, zip(*of, strict=True))) for task, of in groups.items()}
    return {"all": over_all, "surely": sure, "by_kind": by_kind, "by_task": by_task}


def _sure(evidence: Evidence, said: Sequence[Verdict] | None) -> tuple[Array, Array]:
    """Return the verdicts on those that are surely harmed or surely harmless, and whether they are harmed."""
    harmed, harmless = surely(evidence)
    chosen = harmed | harmless
    return np.array(said)[chosen], harmed[chosen]


def _again(network: tuple[Array, Array], random: np.random.Generator) -> tuple[Array, Array]:
    said, harmed = network
    rows = random.integers(0, len(said), len(said))
    return said[rows], harmed[rows]


def summary(groups: Mapping[str, Sequence[tuple[Array, Array]]]) -> dict[str, float]:
    """Return the rates over tasks of the same weight.

    ``passed``: harmed and "pass". ``released``: harmed and not "fail". ``refused``: harmless and "fail". ``objected``:
    harmless and not "pass". ``undecided``: harmless and "undecided".
    """
    rows = []
    for of in groups.values():
        said, harmed = (np.concatenate(column) for column in zip(*of, strict=True))
        bad, sound = said[harmed], said[~harmed]
        rows.append(
            {
                "passed": float((bad == "pass").mean()) if len(bad) else np.nan,
                "warned": float((bad == "warn").mean()) if len(bad) else np.nan,
                "left_undecided": float((bad == "undecided").mean()) if len(bad) else np.nan,
                "released": float((bad != "fail").mean()) if len(bad) else np.nan,
                "refused": float((sound == "fail").mean()) if len(sound) else np.nan,
                "objected": float((sound != "pass").mean()) if len(sound) else np.nan,
                "undecided": float((sound == "undecided").mean()) if len(sound) else np.nan,
            }
        )
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
