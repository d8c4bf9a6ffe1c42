"""Does the drift of the Gram, measured without labels, tell of lost accuracy? The float students, damaged, over seeds.

The grid of ``edgekd check --suggest-limits`` is applied to the float student of each seed. Limits are suggested from
the calibration split, as that command does, and from the test split, on which all else is measured: nothing is decided
by it here. The seed floor is the drift between students that differ by their seed alone. ``--only picture``
draws docs/explanation/alarm.svg from the result alone.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from common import CACHE, TASKS, arguments, drawing, pages_folder, parse, result_path, write_result

import edgekd
from edgekd.cli.terminal import choose_observer
from edgekd.compress.perturb import NETWORK, perturbations_of
from edgekd.config.recipe import GateConfig
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.limits import has_lost
from edgekd.gram.stats import spearman
from edgekd.gram.verdict import GateLimits
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.stages.artifacts import CALIBRATION, TEST, onnx_name
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Silent, StageReporter
from edgekd.stages.stage import Runner
from edgekd.workflows.thresholds import Alarm, measure_alarm, summarize

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.gram.probe import Probe
    from edgekd.workflows.thresholds import Outcome

PICTURE = "alarm.svg"
_GATE = GateConfig()
_COLOURS = {"noise": "#999999", "pruning": "#ee7733", "rounding": "#0077bb"}
_INK = "#808080"  # on white and on black alike
_MOST = 20  # points of accuracy; larger losses are drawn there


@dataclass(frozen=True)
class Student:
    """The alarm of one seed's student on both splits, and what the student says of the test split."""

    seed: int
    test: Alarm
    calibration: Alarm
    probe: Probe


def measure(task: str, seed: int, limits: GateLimits, options: Namespace) -> Student:
    """Train the teacher and the student of one seed, or read them from the cache, and perturb the student."""
    recipe = edgekd.load_recipe(task, (*options.recipe, f"seed={seed}", "prune.ratio=0"))
    project = Project(recipe.task, CACHE)
    with choose_observer(json=False, quiet=True, verbose=False, terminal=False) as observer:
        learned = TrainingStages(Runner(Cache(CACHE), observer), project, recipe, edgekd.load_target("cpu").opset).run()
    folder, report = learned.exported.folder, StageReporter(Silent(), "alarm")
    graph = folder / onnx_name("student")
    grid = perturbations_of(onnx.load(str(graph)))[:: options.every]
    alarms = {
        split: measure_alarm(graph, folder / split, project.loaded.metric, limits, report, grid)
        for split in (TEST, CALIBRATION)
    }
    print(f"{task} {seed}: {len(alarms[TEST].outcomes)} perturbations, metric {alarms[TEST].metric:.4f}")
    return Student(seed, alarms[TEST], alarms[CALIBRATION], learned.probes()["student"])


def columns(outcomes: Sequence[Outcome]) -> tuple[np.ndarray[Any, Any], ...]:
    """Return drifts, flips and losses."""
    names = ("drift", "flips", "loss")
    return tuple(np.array([getattr(outcome, name) for outcome in outcomes]) for name in names)


def figures(alarm: Alarm) -> dict[str, float | None]:
    """Return how well drift tells of loss on one student.

    ``network`` are the perturbations of the whole network whose drift is at least the gate's tau_pass: those of which
    the gate says anything.
    """
    drifts, flipped, losses = columns(alarm.outcomes)
    lost = has_lost(losses, alarm.max_loss)
    whole = np.array([outcome.perturbation.where == NETWORK for outcome in alarm.outcomes]) & (drifts >= _GATE.tau_pass)
    edges = np.sort(drifts)
    informedness = [(drifts[lost] > tau).mean() - (drifts[~lost] > tau).mean() for tau in edges]
    return {
        "metric": alarm.metric,
        "drift_to_loss": alarm.drift_to_loss,
        "drift_to_flips": alarm.drift_to_flips,
        "network_drift_to_loss": spearman(drifts[whole], losses[whole]),
        "network_drift_to_flips": spearman(drifts[whole], flipped[whole]),
        "auc": area(drifts, lost),
        "best_threshold": float(edges[int(np.argmax(informedness))]),
        "lost_below_tau_pass": share(lost[drifts <= _GATE.tau_pass]),
        "lost_between": share(lost[(drifts > _GATE.tau_pass) & (drifts <= _GATE.tau_fail)]),
        "lost_above_tau_fail": share(lost[drifts > _GATE.tau_fail]),
    }


def area(drifts: np.ndarray[Any, Any], lost: np.ndarray[Any, Any]) -> float:
    """Return the area under the ROC: how often one that lost drifted further than one that did not; ties count half."""
    differences = drifts[lost][:, None] - drifts[~lost][None]
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def share(lost: np.ndarray[Any, Any]) -> float | None:
    """Return the share that lost, None of none."""
    return float(lost.mean()) if len(lost) else None


def blind(students: Sequence[Student], limits: GateLimits) -> dict[str, float]:
    """Return what perturbing the fusion alone does, which drift does not see, and what flips and metric catch of it."""
    drifts, flipped, losses = columns([outcome for student in students for outcome in student.test.fusion])
    lost = has_lost(losses, limits.max_metric_drop)
    return {
        "perturbations": len(drifts),
        "largest_drift": float(drifts.max()),
        "lost": int(lost.sum()),
        "lost_and_flips_above_limit": int((lost & (flipped > limits.max_flips)).sum()),
    }


def limits_by_seed(students: Sequence[Student], split: str) -> dict[str, list[float | None]]:
    """Return each seed's suggested limits; None where they are not decided."""
    alarms = [getattr(student, split) for student in students]
    return {name: [getattr(alarm, name).tau for alarm in alarms] for name in ("tau_pass", "tau_fail")}


def summary(students: Sequence[Student], limits: GateLimits) -> dict[str, Any]:
    """Return one task's figures over its seeds."""
    by_seed = [figures(student.test) for student in students]
    spread = {}
    for name in by_seed[0]:
        found = [figure for seed in by_seed if (figure := seed[name]) is not None]
        spread[name] = {"mean": statistics.fmean(found), "sd": statistics.stdev(found)}
    every = [outcome for student in students for outcome in (*student.test.outcomes, *student.test.fusion)]
    pooled = summarize(every, limits, spread["metric"]["mean"], students[0].test.samples)
    floor = [
        measure_drift(a.probe, b.probe, None, Bootstrap(resamples=1)).mean
        for a, b in itertools.combinations(students, 2)
    ]
    return {
        "samples": {"test": students[0].test.samples, "calibration": students[0].calibration.samples},
        "over_seeds": spread,
        "by_seed": by_seed,
        "bins": [{"low": b.low, "high": b.high, "count": b.count, "lost": b.lost} for b in pooled.bins],
        "limits": {
            "pooled_test": {"tau_pass": pooled.tau_pass.tau, "tau_fail": pooled.tau_fail.tau},
            **{f"by_seed_{split}": limits_by_seed(students, split) for split in ("test", "calibration")},
        },
        "fusion": blind(students, limits),
        "drift_between_seeds": {"mean": statistics.fmean(floor), "low": min(floor), "high": max(floor)},
        "raw": [raw(student) for student in students],
    }


def raw(student: Student) -> dict[str, Any]:
    """Return every outcome of one seed on the test split: "drift flips loss", by what was done."""
    outcomes = {}
    for outcome in (*student.test.outcomes, *student.test.fusion):
        done = outcome.perturbation
        key = f"{done.where} {done.kind} {done.strength:g} {done.seed}"
        outcomes[key] = f"{outcome.drift:.5f} {outcome.flips:.5f} {outcome.loss:.5f}"
    return {"seed": student.seed, "drift_flips_loss": outcomes}


def whole_networks(task: dict[str, Any], kind: str) -> np.ndarray[Any, Any]:
    """Return drift and loss [2, N] of one kind of perturbation of whole networks, all seeds of a task's result."""
    outcomes = [item for seed in task["raw"] for item in seed["drift_flips_loss"].items()]
    found = [text.split() for done, text in outcomes if done.startswith(f"{NETWORK} {kind} ")]
    return np.array(found, float)[:, [0, 2]].T


def draw(result: dict[str, Any], picture: Path) -> None:
    """Draw drift against loss for the perturbations of whole networks, from a result."""
    inked = {f"{name}color": _INK for name in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.")}
    with drawing(**{"svg.fonttype": "none", "font.family": "sans-serif", **inked}):
        _draw(result["tasks"], picture)
    svg = picture.read_text(encoding="utf-8")
    picture.write_text(re.sub(r"(\d+\.\d{2})\d{2,}", r"\1", svg), encoding="utf-8")  # half the size
    print(f"wrote {picture}")


def _draw(tasks: dict[str, Any], picture: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tasks), figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (name, task) in zip(np.atleast_1d(axes), tasks.items(), strict=True):
        for kind, colour in _COLOURS.items():
            drifts, losses = whole_networks(task, kind)
            shown = np.minimum(100 * losses, _MOST)
            axis.plot(drifts, shown, "o", markersize=2.5, markeredgewidth=0, color=colour, label=kind)
        for tau, limit in ((_GATE.tau_pass, "pass"), (_GATE.tau_fail, "fail")):
            axis.axvline(tau, color=_INK, linewidth=0.8, linestyle="--")
            axis.text(tau * 0.93, _MOST, f"tau_{limit} {tau:g}", rotation=90, ha="right", va="top", fontsize=8)
        axis.axhline(100 * _GATE.max_metric_drop, color=_INK, linewidth=0.8)
        axis.set(xscale="log", xlim=(3e-4, 0.5), ylim=(-6, _MOST + 1), title=name, xlabel="drift of the modality Gram")
        axis.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].set_ylabel(f"points of accuracy lost, up to {_MOST}")
    np.atleast_1d(axes)[0].legend(loc="upper left", frameon=False, fontsize=8, markerscale=2)
    figure.savefig(picture, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--seeds", type=int, default=5, help="two or more")
    parser.add_argument("--only", choices=("measure", "picture"), help="one step [default: both]")
    parser.add_argument("--every", type=int, default=1, help="take one perturbation of so many")
    options = parse(parser, tasks=["digits"], seeds=2, every=4)
    if options.only != "picture":
        measure_all(options)
    if options.only != "measure":
        result = json.loads(result_path(__file__, options).read_text(encoding="utf-8"))
        draw(result, pages_folder(options) / PICTURE)


def measure_all(options: Namespace) -> None:
    """Measure all tasks with all seeds, and write the result."""
    limits = GateLimits(_GATE.tau_pass, _GATE.tau_fail, _GATE.max_flips, _GATE.max_metric_drop)
    tasks = {task: [measure(task, seed, limits, options) for seed in range(options.seeds)] for task in options.tasks}
    found = {task: summary(students, limits) for task, students in tasks.items()}
    for task, result in found.items():
        for name, figure in result["over_seeds"].items():
            print(f"{task}: {name} {figure['mean']:.4f} ± {figure['sd']:.4f}")
    defaults = {"tau_pass": _GATE.tau_pass, "tau_fail": _GATE.tau_fail, "max_metric_drop": _GATE.max_metric_drop}
    write_result(__file__, {"gate": defaults, "tasks": found}, options)


if __name__ == "__main__":
    main()
