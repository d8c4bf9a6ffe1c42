"""Do two runs of ``edgekd profile`` on one engine agree within their own confidence intervals?

Bundles of the shipped tasks are built for ONNX Runtime and OpenVINO; each is profiled many times by the command line,
in turns with the others, so that a run and the next of the same bundle are some seconds apart. Two such runs are a
pair; they agree where the 95 % intervals of a quantile overlap. The goal: p50 in 19 pairs of 20. Intervals that were
absurdly wide would agree as well, so their width is given, and how often one run's interval holds the other's value.

What each run found is kept in ``build/benchmarks/repeatability``, so that a benchmark that was stopped goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import CACHE, TASKS, arguments, keep, kept, parse, write_result

import edgekd
from edgekd.cli.terminal import choose_observer
from edgekd.pipeline.publish import BUNDLE, REJECTED

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path("build/benchmarks/repeatability")
TARGETS = ("cpu", "openvino-cpu")
GOAL = 0.95
LATENCIES, QUANTILES = ("latency", "compute"), ("p50", "p90", "p99")

Run = dict[str, dict[str, dict[str, float]]]


def build(task: str, recipe: Sequence[str]) -> dict[str, Path]:
    """Return the task's bundles by name; they are built once."""
    output = FOLDER / task
    with choose_observer(json=False, quiet=True, verbose=False, terminal=False) as observer:
        edgekd.build(task, TARGETS, overrides=recipe, output=output, cache=CACHE, observer=observer)
    places = {target: output / target for target in TARGETS}
    return {
        f"{task}, {target}": place / (BUNDLE if (place / BUNDLE).exists() else REJECTED)
        for target, place in places.items()
    }


def profile(bundle: Path) -> Run:
    """Profile a bundle as a user does; return value and interval of every quantile, in ms."""
    command = [sys.executable, "-m", "edgekd", "profile", str(bundle), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (engine,) = json.loads(said)["profile"]["engines"]
    return {
        what: {quantile: engine[what][quantile] for quantile in ("p50", "p90", "p99")}
        for what in ("latency", "compute")
    }


def agreement(runs: Sequence[Run], what: str, quantile: str) -> dict[str, Any]:
    """Say how often two runs after one another agree in one figure."""
    found = [run[what][quantile] for run in runs]
    pairs = list(zip(found[::2], found[1::2], strict=False))
    overlap = [a["low_ms"] <= b["high_ms"] and b["low_ms"] <= a["high_ms"] for a, b in pairs]
    holds = [a["low_ms"] <= b["value_ms"] <= a["high_ms"] for pair in pairs for a, b in (pair, pair[::-1])]
    widths = [(one["high_ms"] - one["low_ms"]) / one["value_ms"] for one in found]
    values = np.array([one["value_ms"] for one in found])
    return {
        "figure": f"{what} {quantile}",
        "pairs": len(pairs),
        "agree": float(np.mean(overlap)),
        "holds_the_other": float(np.mean(holds)),
        "median_relative_width": float(np.median(widths)),
        "median_ms": float(np.median(values)),
        "relative_deviation": float(values.std(ddof=1) / values.mean()),
    }


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--pairs", type=int, default=40, help="pairs of runs of each engine")
    options = parse(parser, tasks=["digits"], pairs=1)
    pairs = options.pairs
    bundles = {name: bundle for task in options.tasks for name, bundle in build(task, options.recipe).items()}
    place = FOLDER / "runs.json"
    found: dict[str, list[Run]] = kept(place)
    for index in range(2 * pairs):
        for name, bundle in bundles.items():
            done = found.setdefault(name, [])
            if len(done) <= index:
                done.append(profile(bundle))
                print(f"run {index + 1}/{2 * pairs}, {name}: p50 {done[-1]['latency']['p50']['value_ms']:.4f} ms")
                keep(place, found)
    rows = []
    for name in bundles:
        for what, quantile in product(LATENCIES, QUANTILES):
            row = {"engine": name, **agreement(found[name][: 2 * pairs], what, quantile)}
            rows.append(row)
            print(
                f"{name}, {row['figure']}: {row['agree']:.0%} of {row['pairs']} pairs agree, "
                f"{row['holds_the_other']:.0%} of intervals hold the other's value; width "
                f"{row['median_relative_width']:.1%}, deviation {row['relative_deviation']:.1%}"
            )
    p50 = [row["agree"] for row in rows if row["figure"] == "latency p50"]
    print(f"goal, p50 in {GOAL:.0%} of pairs: {'met' if min(p50) >= GOAL else 'MISSED'}")
    runs = {name: found[name][: 2 * pairs] for name in bundles}
    write_result(__file__, {"goal": GOAL, "met": min(p50) >= GOAL, "rows": rows, "runs": runs}, options)


if __name__ == "__main__":
    main()
