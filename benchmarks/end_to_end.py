"""What a whole build costs in accuracy and gains in size and speed: the shipped recipes as they are, over seeds.

For each seed the shipped recipe is built for the target ``cpu`` in INT8 (``quantize.precision=int8``: left to itself, a
build ships whatever is fastest); the pruned INT8 engine is compared with the unpruned float student (same seed: paired
differences) and with the float teacher. Latencies are those of the build's own profile, in which teacher, student and
engine take turns at batch 1 in ONNX Runtime with the same threads.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import CACHE, TASKS, arguments, parse, write_result

import edgekd
from edgekd.cli.terminal import choose_observer

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path("build/benchmarks")


def measure(task: str, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """Build one task with one seed and return what came out."""
    overrides, output = (*settings, f"seed={seed}", "quantize.precision=int8"), FOLDER / f"{task}-{seed}"
    with choose_observer(json=False, quiet=False, verbose=False, terminal=False) as observer:
        report = edgekd.build(task, "cpu", overrides=overrides, output=output, cache=CACHE, observer=observer)
    result = report.targets[0]
    rows = {row.stage: row for row in result.ledger.rows}
    p50 = {name: engine.latency.p50 for name in ("teacher", "student", "shipped") if (engine := result.measured(name))}
    gated = {stage: row for stage, row in rows.items() if row.to_reference is not None}
    return {
        "seed": seed,
        "metric": {stage: row.metric for stage, row in rows.items()},
        "drift_bound": {stage: row.to_reference.bound for stage, row in gated.items()},
        "flips": {stage: row.flips for stage, row in gated.items()},
        "drift_to_teacher": {stage: row.to_teacher.mean for stage, row in rows.items() if row.to_teacher},
        "verdict": result.verdict,
        "size_bytes": result.sizes,
        "p50_ms": {name: {"value": q.value_ms, "low": q.low_ms, "high": q.high_ms} for name, q in p50.items()},
        "engine_points_lost": 100 * (rows["student"].metric - rows["device"].metric),
        "times_smaller_than_teacher": result.shrinkage("teacher"),
        "times_faster_than_teacher": result.speedup("teacher"),
        "times_faster_than_student": result.speedup("student"),
        "stage_seconds": {stage.name: stage.seconds for stage in report.stages},
    }


def summarize(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over seeds of the headline figures."""
    names = (
        "engine_points_lost",
        "times_smaller_than_teacher",
        "times_faster_than_teacher",
        "times_faster_than_student",
    )
    values = {name: [run[name] for run in runs] for name in names}
    return {name: {"mean": statistics.fmean(found), "sd": statistics.stdev(found)} for name, found in values.items()}


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--seeds", type=int, default=5, help="two or more")
    options = parse(parser, tasks=["digits"], seeds=2)
    tasks = {}
    for task in options.tasks:
        runs = [measure(task, seed, options.recipe) for seed in range(options.seeds)]
        tasks[task] = {"summary": summarize(runs), "runs": runs}
        for name, figure in tasks[task]["summary"].items():
            print(f"{task}: {name} {figure['mean']:.2f} ± {figure['sd']:.2f}")
    write_result(__file__, {"target": "cpu", "tasks": tasks}, options)


if __name__ == "__main__":
    main()
