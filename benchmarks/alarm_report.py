"""The tables of the alarm study that need no gate: areas, single measures at limits from other tasks, small probes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from alarm_measures import FEW
from alarm_stats import SUBSETS, Draw, area, choose_limit, draws, holm, interval, is_harm, members, normal_p

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alarm_cases import Array
    from alarm_measures import Evidence
    from alarm_rates import Judged
    from alarm_stats import Subset

#: What the others are compared with.
BEST = "divergence"
KINDS = ("classes", "regression", "embedding")
#: Measures together: a logistic regression on their logarithms, fitted to the other tasks of the kind.
TOGETHER = {
    "divergence and drift": ("divergence", "drift"),
    "divergence and changed answers": (BEST, "changed answers"),
}
_SMALLEST = 1e-7
_STEPS, _RIDGE = 25, 1e-2
_CONFIDENCE = 0.95
#: A network that lost nothing in clean and more than this with one modality absent.
_ABSENT = 0.05
_MISSING_FLIPS = (0.08, 0.1)


@dataclass(frozen=True)
class Drawn:
    """What one draw says of one network.

    Attributes:
        task: The task.
        kind: What the output is.
        harmed: Whether each drawn variant is harmed [V].
        measures: The measures of each [V].
        inside: Which of them belong to each subset [V].
    """

    task: str
    kind: str
    harmed: Array
    measures: dict[str, Array]
    inside: Mapping[Subset, Array]


def look(evidence: Evidence, draw: Draw) -> Drawn:
    """Evaluate a draw."""
    measures = {name: draw.mean(evidence, name) for name in evidence.measures}
    measures["metric drop on the probe (labels)"] = evidence.told[draw.variants] @ draw.samples
    inside = {subset: members(evidence, draw, subset) for subset in SUBSETS}
    return Drawn(evidence.task, evidence.kind, draw.harmed(evidence), measures, inside)


def base(task: str) -> str:
    """Return a task's name without its configuration: the two are one task where limits come from others."""
    return task.partition(",")[0]


def others(networks: Sequence[Drawn], task: str, kind: str) -> list[Drawn]:
    """Return the networks of the other tasks of a kind."""
    return [each for each in networks if each.kind == kind and base(each.task) != base(task)]


def with_together(networks: Sequence[Drawn]) -> Sequence[Drawn]:
    """Add what measures say together."""
    for name, (first, second) in TOGETHER.items():
        for task in {each.task for each in networks}:
            own = [each for each in networks if each.task == task]
            fitted = others(networks, task, own[0].kind)
            if not fitted or second not in own[0].measures:
                continue
            weights = _fit(
                np.concatenate([_logs(each, first, second) for each in fitted]),
                np.concatenate([each.harmed for each in fitted]),
            )
            for each in own:
                each.measures[name] = _logs(each, first, second) @ weights
    return networks


def _logs(network: Drawn, *names: str) -> Array:
    columns = [np.log(np.maximum(network.measures[name], _SMALLEST)) for name in names]
    return np.stack([*columns, np.ones(len(network.harmed))], 1)


def _fit(rows: Array, harmed: Array) -> Array:
    """Fit a logistic regression with a little ridge, by Newton's method."""
    weights = np.zeros(rows.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        hessian = (rows * (p * (1 - p))[:, None]).T @ rows + _RIDGE * np.eye(len(weights))
        weights += np.linalg.solve(hessian, rows.T @ (harmed - p) - _RIDGE * weights)
    return weights


def mean_areas(networks: Sequence[Drawn]) -> dict[tuple[str, str, str], float]:
    """Return the mean area over tasks, by kind, subset and measure."""
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for each in networks:
        for subset, inside in each.inside.items():
            for name, figures in each.measures.items():
                one = area(figures[inside], each.harmed[inside])
                if not math.isnan(one):
                    found.setdefault((each.kind, subset, name), {}).setdefault(each.task, []).append(one)
    return {key: float(np.mean([np.mean(x) for x in tasks.values()])) for key, tasks in found.items()}


def areas(networks: Sequence[Evidence], count: int) -> dict[str, Any]:
    """Return the areas under the ROC, their differences to divergence's, and Holm's p-values over all of these."""
    own = with_together([look(each, Draw.everything(each)) for each in networks])
    known = mean_areas(own)
    drawn = [mean_areas(with_together([look(*each) for each in several])) for several in draws(networks, count)]
    rows: dict[str, Any] = {}
    p_values = {}
    for key, value in known.items():
        kind, subset, name = key
        reference = (kind, subset, BEST)
        moved = np.array([each[key] - each[reference] for each in drawn if key in each and reference in each])
        row = {"area": value, "interval": interval([each[key] for each in drawn if key in each])}
        if name != BEST and len(moved) > 1:
            difference = value - known[reference]
            row |= {"difference": difference, "difference_interval": interval(moved.tolist())}
            p_values[key] = normal_p(difference, moved)
        rows.setdefault(kind, {}).setdefault(subset, {})[name] = row
    for (kind, subset, name), p in holm(p_values).items():
        rows[kind][subset][name]["p_holm"] = p
    by_task: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(each.task for each in own):
        found = mean_areas([each for each in own if each.task == task])
        by_task[task] = {name: value for (_, subset, name), value in found.items() if subset == "all"}
    return {"comparisons": len(p_values), "by_kind": rows, "by_task": by_task}


def small_probes(networks: Sequence[Evidence]) -> dict[str, Any]:
    """Return the mean area on few probe samples, by kind, number and measure."""
    found: dict[str, Any] = {}
    for count in FEW:
        kinds: dict[str, dict[str, dict[str, list[float]]]] = {}
        for each in networks:
            harmed = is_harm(each.drops)
            for name, figures in each.few[count].items():
                values = [area(figures[:, draw], harmed) for draw in range(figures.shape[1])]
                kinds.setdefault(each.kind, {}).setdefault(name, {}).setdefault(each.task, []).extend(values)
        for kind, measures in kinds.items():
            means = {name: float(np.mean([np.nanmean(x) for x in of.values()])) for name, of in measures.items()}
            found.setdefault(kind, {})[str(count)] = means
    return found


def rates_of(networks: Sequence[Drawn], name: str) -> dict[str, dict[str, float]]:
    """Return for each task the limit of a measure from the others of its kind, and whom it misses and refuses."""
    found = {}
    for task in dict.fromkeys(each.task for each in networks):
        own = [each for each in networks if each.task == task]
        elsewhere = [each for each in others(networks, task, own[0].kind) if name in each.measures]
        if not elsewhere or name not in own[0].measures or name in TOGETHER:
            continue
        limit = choose_limit(*_pooled(elsewhere, name))
        harmed = np.concatenate([each.harmed for each in own])
        refused = np.concatenate([each.measures[name] > limit for each in own])
        found[task] = {
            "limit": limit, "missed": float((~refused[harmed]).mean()), "refused": float(refused[~harmed].mean())
        }  # fmt: skip
    return found


def _pooled(networks: Sequence[Drawn], name: str) -> tuple[list[Array], list[Array]]:
    """Return a measure and the harm of each task, its seeds together."""
    tasks = list(dict.fromkeys(each.task for each in networks))
    return tuple(  # type: ignore[return-value]
        [np.concatenate([pick(each) for each in networks if each.task == task]) for task in tasks]
        for pick in (lambda each: each.measures[name], lambda each: each.harmed)
    )


def single_rates(networks: Sequence[Evidence], count: int) -> dict[str, Any]:
    """Return the rates of every measure alone at limits from other tasks, and its limits from all tasks."""
    own = [look(each, Draw.everything(each)) for each in networks]
    names = list(dict.fromkeys(name for each in own for name in each.measures))
    drawn = [[look(*each) for each in several] for several in draws(networks, count)]
    found: dict[str, Any] = {}
    for name in names:
        rates = rates_of(own, name)
        table = {}
        for kind in KINDS:
            tasks = [task for task in rates if any(each.task == task and each.kind == kind for each in own)]
            if not tasks:
                continue
            again = [rates_of([each for each in several if each.kind == kind], name) for several in drawn]
            of_kind = [each for each in own if each.kind == kind]
            table[kind] = {
                "limit_of_all": choose_limit(*_pooled(of_kind, name)),
                **{
                    rate: {
                        "mean": float(np.mean([rates[task][rate] for task in tasks])),
                        "interval": interval([float(np.mean([x[rate] for x in each.values()])) for each in again]),
                    }
                    for rate in ("missed", "refused")
                },
                "by_task": {task: rates[task] for task in tasks},
            }
        found[name] = table
    return found


def surely(evidence: Evidence, count: int = 200) -> tuple[Array, Array]:
    """Return which variants are surely harmed and which surely harmless, by a bootstrap over the units of test."""
    random = np.random.default_rng(0)
    drops = np.stack([evidence.losses @ Draw.of(evidence, random).test for _ in range(count)])
    low, high = np.quantile(drops, [1 - _CONFIDENCE, _CONFIDENCE], axis=0)
    return is_harm(low), ~is_harm(high)


def networks_table(networks: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Return how many variants of each network there are, and how many are harmed."""
    rows = []
    for each in networks:
        harmed, (sure, sound) = is_harm(each.drops), surely(each)
        families = sorted({family for family, _, _ in each.done})
        of = np.array([family for family, _, _ in each.done])
        rows.append(
            {
                "task": each.task, "kind": each.kind, "seed": each.seed, "variants": len(harmed),
                "probe": len(each.units), "probe_units": len(np.unique(each.units)), "test": each.losses.shape[1],
                "harmed": int(harmed.sum()), "surely_harmed": int(sure.sum()), "surely_harmless": int(sound.sum()),
                "by_family": {x: [int((of == x).sum()), int(harmed[of == x].sum())] for x in families},
            }
        )  # fmt: skip
    return rows


def fusion(networks: Sequence[Evidence]) -> dict[str, Any]:
    """Return what damage to the fusion alone does, and what sees it."""
    found = []
    for each in networks:
        at = np.array([where == "fusion" for _, where, _ in each.done])
        if at.any():
            names = ("drift", "divergence", "changed answers")
            figures = {name: each.means(name)[at] for name in names if name in each.measures}
            found.append((each.kind, is_harm(each.drops[at]), figures))
    return {
        kind: {
            "variants": int(sum(len(harm) for k, harm, _ in found if k == kind)),
            "harmed": int(sum(harm.sum() for k, harm, _ in found if k == kind)),
            "largest_drift": float(max(figures["drift"].max() for k, _, figures in found if k == kind)),
        }
        for kind in dict.fromkeys(kind for kind, _, _ in found)
    }


def missing_modality(networks: Sequence[Evidence]) -> dict[str, Any]:
    """Return what finds the classifiers that lost nothing but with one modality absent."""
    rows: dict[str, Any] = {}
    for each in networks:
        if each.absent is None:
            continue
        sound = ~is_harm(each.drops)
        broken = (each.absent.mean(2).max(1) > _ABSENT)[sound]
        row = rows.setdefault(each.task, {"variants": 0, "broken": 0, "areas": {}})
        row["variants"] += len(broken)
        row["broken"] += int(broken.sum())
        for limit in _MISSING_FLIPS:
            alarm = each.means("ablated changed answers")[sound] > limit
            caught, false = row.get(f"{limit:g}", (0, 0))
            row[f"{limit:g}"] = (caught + int((alarm & broken).sum()), false + int((alarm & ~broken).sum()))
        for name in each.measures:
            value = area(each.means(name)[sound], broken)
            if not math.isnan(value):
                row["areas"].setdefault(name, []).append(value)
    for row in rows.values():
        row["areas"] = {name: float(np.mean(values)) for name, values in row["areas"].items()}
    return rows


def raw(judged: Judged) -> dict[str, Any]:
    """Return every variant of one network: loss on test, then measures, in the order of ``columns``."""
    each = judged.evidence
    names = list(each.measures)
    table = np.stack([each.drops, *(each.means(name) for name in names)], 1)
    return {
        "task": each.task,
        "seed": each.seed,
        "columns": ["loss", *names],
        "variants": {
            " · ".join(done): " ".join(f"{x:.4g}" for x in row) for done, row in zip(each.done, table, strict=True)
        },
    }
