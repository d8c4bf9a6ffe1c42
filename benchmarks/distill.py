"""Distillation losses side by side: what each is worth in twelve regimes of four tasks, from real training.

Every method trains the same student from the same initial weights, samples and batches; only the loss differs (or, as
its name says, the length or the student's input). What counts is the last epoch, on test samples that chose nothing.

Fairness: KD's temperature is chosen on the validation split, and each method's share (or DKD's beta, or the dropout's
probability) out of three values in the same way, with a seed that is not among those
that are counted. ``edgekd`` is the recipe's default with no value chosen but the temperature.

A stopped run goes on. ``--only page`` writes docs/explanation/distill.md and its pictures.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from common import arguments, pages_folder, parse, result_path, write_result
from distill_cases import CASES, QUICK, metric_on, pairing
from distill_methods import BY_NAME, METHODS, TEMPERATURES
from distill_page import write_page
from distill_run import Job, load, run_all, summary
from distill_stats import compare, ranks

from edgekd.config.recipe import DEFAULT_EXTRA, extra_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distill_cases import Case
    from distill_methods import Method

#: Of the choice on validation; those that are counted begin at 0.
_TUNING_SEEDS = (100,)
_QUICK_METHODS = ("none", "KD", "KD, modality dropout", "edgekd", "joint", "DKD", "edgekd, shuffled pairs")


def choose_temperatures(cases: Sequence[Case], seeds: Sequence[int], workers: int) -> dict[str, float]:
    """Return for each case the temperature with which KD validates best."""
    jobs = [Job(case.name, "KD", 0.0, t, seed) for case in cases for seed in seeds for t in TEMPERATURES]
    found = run_all(jobs, workers, "temperature")
    return {
        case.name: max(
            TEMPERATURES,
            key=lambda t, case=case: statistics.fmean(  # type: ignore[misc]
                found[Job(case.name, "KD", 0.0, t, seed)].validation for seed in seeds
            ),
        )
        for case in cases
    }


def choose_settings(
    cases: Sequence[Case], methods: Sequence[Method], temperatures: dict[str, float], seeds: Sequence[int], workers: int
) -> dict[tuple[str, str], float]:
    """Return for each case and method the setting that validates best; where there is one, that."""
    wanted = [(case, method) for case in cases for method in methods if len(method.settings) > 1]
    jobs = [
        Job(case.name, method.name, setting, temperatures[case.name], seed)
        for case, method in wanted
        for setting in method.settings
        for seed in seeds
    ]
    found = run_all(jobs, workers, "setting")
    chosen = {(case.name, method.name): method.settings[0] for case in cases for method in methods}
    for case, method in wanted:
        chosen[case.name, method.name] = max(
            method.settings,
            key=lambda setting, case=case, method=method: statistics.fmean(  # type: ignore[misc]
                found[Job(case.name, method.name, setting, temperatures[case.name], seed)].validation for seed in seeds
            ),
        )
    return chosen


def measure(cases: Sequence[Case], methods: Sequence[Method], seeds: int, tuning: Sequence[int], workers: int) -> Any:
    """Choose settings and train every method with every seed."""
    temperatures = choose_temperatures(cases, tuning, workers)
    settings = choose_settings(cases, methods, temperatures, tuning, workers)

    def job(case: Case, method: Method, seed: int) -> Job:
        return Job(case.name, method.name, settings[case.name, method.name], temperatures[case.name], seed)

    found = run_all(
        [job(case, method, seed) for case in cases for seed in range(seeds) for method in methods], workers, "final"
    )
    results = {}
    for case in cases:
        rows = {method.name: summary([found[job(case, method, s)] for s in range(seeds)]) for method in methods}
        metrics = {name: row["metric"] for name, row in rows.items()}
        contest = {name: column for name, column in metrics.items() if BY_NAME[name].group != "control"}
        results[case.name] = {
            "case": asdict(case),
            "temperature": temperatures[case.name],
            "settings": {method.name: settings[case.name, method.name] for method in methods},
            "raw": rows,
            "against_kd": {name: asdict(d) for name, d in compare(metrics, "KD").items()},
            "ranks": ranks(contest),
            "teacher": teacher_facts(case, seeds),
        }
    return results


def teacher_facts(case: Case, seeds: int) -> dict[str, Any]:
    """Return each teacher's metric on the test split, and what the first knows of who belongs to whom."""
    scenes = [load(case.name, seed) for seed in range(seeds)]
    tests = [scene.task.splits["test"] for scene in scenes]
    metrics = [metric_on(s.task, s.teacher, s.taps, test) for s, test in zip(scenes, tests, strict=True)]
    return {"metric": metrics, "pairing": pairing(scenes[0])}


def main() -> None:
    known = {case.name: case for case in (*CASES, QUICK)}
    parser = arguments(__doc__)
    parser.add_argument("--cases", nargs="+", choices=known, default=[case.name for case in CASES])
    parser.add_argument("--methods", nargs="+", choices=list(BY_NAME), default=list(BY_NAME))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--only", choices=("measure", "page"), help="one step [default: both]")
    options = parse(parser, cases=[QUICK.name], methods=_QUICK_METHODS, seeds=2, workers=1)
    result = result_path(__file__, options)
    if options.only != "page":
        cases = [known[name] for name in options.cases]
        methods = [method for method in METHODS if method.name in options.methods]
        results = measure(cases, methods, options.seeds, _TUNING_SEEDS, options.workers)
        report(results)
        kept = json.loads(result.read_text(encoding="utf-8"))["cases"] if result.exists() else {}
        content = {"default": extra_table(DEFAULT_EXTRA), "tuning_seeds": _TUNING_SEEDS, "cases": {**kept, **results}}
        write_result(__file__, content, options)
    if options.only != "measure":
        write_page(json.loads(result.read_text(encoding="utf-8")), pages_folder(options))


def report(results: dict[str, Any]) -> None:
    """Print a table for each case."""
    for name, result in results.items():
        print(f"\n{name}, T = {result['temperature']:g}")
        for method, row in sorted(result["raw"].items(), key=lambda item: -statistics.fmean(item[1]["metric"])):
            against = result["against_kd"].get(method)
            text = "" if against is None else f"{100 * against['mean']:+5.1f} points, p {against['p']:.3f}"
            print(
                f"  {method:24} {statistics.fmean(row['metric']):.3f} ± {statistics.stdev(row['metric']):.3f}  "
                f"{text:24} drift {statistics.fmean(row['drift']):.3f}  missing {statistics.fmean(row['missing']):.3f}"
            )


if __name__ == "__main__":
    main()
