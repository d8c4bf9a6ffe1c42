"""INT8 by edgekd and by its peers, from one float network and the same calibration samples.

The networks are the pruned students of the shipped tasks, and real ONNX models on lines of real handwritten digits. The
contestants are what ``edgekd build`` ships and its INT8, ONNX Runtime's ``quantize_static``, NNCF, Olive and NVIDIA
ModelOpt, each at its defaults and at its best (:mod:`peers.quantize`); what fails says why. Each quantizes in a process
of its own, whose peak memory is taken, libraries included; edgekd's time is that of its stages that write INT8.

All are run in ONNX Runtime on this machine, on the test samples. The Gram drift is against the float network. It is
read before any Q/DQ that rounds nothing but the output itself, in all alike, since some peers write such and some do
not. Logits, and with them metric, flips and SNR, are those of the graph as it was written. For latency all contestants
of a network take turns of 50 inferences, at batch 1 and one thread, each in a process of its own.

``--only latency`` measures latency alone, on a quiet machine; ``--only page`` writes docs/explanation/compress.md.
Results join those that are there already, as long as these are of the same float network.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import arguments, pages_folder, parse, result_path, write_result
from compress_cases import FOLDER, MODELS, TASKS, load_case
from compress_contest import CONTESTANTS, contest, gains, place_of
from compress_goals import OURS
from compress_page import write_page
from contestants import FLOAT
from side_by_side import BLOCK, LEAD_IN, THREADS, compare_p50, open_onnxruntime, summarize, take_turns

from edgekd.files import sha256_file
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import DEPLOY

if TYPE_CHECKING:
    from compress_cases import Case
    from side_by_side import Opener

#: Inferences of each contestant in a round; a real model takes a hundred times as long as a shipped task's.
CALLS = {"task": 2000, "model": 100}
#: Of a quick run: edgekd, and a peer whose packages a build has anyway.
_QUICK_CONTESTANTS = ("edgekd, INT8", "ONNX Runtime, default")


def quantize(case: Case, results: dict[str, Any], contestants: list[str], venv: Path) -> None:
    """Let contestants quantize a network, and add what came out to the results."""
    facts = case.context.exported.result.facts
    model = results.setdefault(case.name, {"runs": {}})
    with open_arrays(case.context.test) as arrays:
        model |= {"metric": facts.metric, "higher_is_better": facts.higher_is_better, "samples": len(arrays["ids"])}
    run = model["runs"].get(str(case.seed), {})
    if run.get("float_sha256") != case.digest:
        run = {"float_sha256": case.digest, "contestants": {}}
    model["runs"][str(case.seed)] = run
    case.write_samples()
    for name in dict.fromkeys((FLOAT, *contestants)):
        row = run["contestants"][name] = contest(case, name, venv)
        print(f"{case.name} {case.seed}, {name}: {row.get('failed') or _say(row)}", flush=True)
    run["metric_gains"] = gains(case)


def _say(row: dict[str, Any]) -> str:
    metric = "" if row["metric"] is None else f", metric {row['metric']:.4f}"
    return f"{row['quantized_layers']} of {row['layers']} layers, drift {row['drift']:.5f}{metric}"


def time_all(case: Case, rows: dict[str, Any], rounds: int, calls: int) -> dict[str, Any]:
    """Let all contestants whose graphs could be measured take turns."""
    engines = {name: place_of(case, name) / DEPLOY for name, row in rows.items() if "failed" not in row}
    openers: list[dict[str, Opener]] = [{name: partial(open_onnxruntime, path)} for name, path in engines.items()]
    times = take_turns(openers, case.context.test, rounds, calls)
    ratios = {
        ours: {
            name: compare_p50(times[ours], other, lambda mine, theirs: mine / theirs)
            for name, other in times.items()
            if name != ours
        }
        for ours in OURS
        if ours in times
    }
    for name, found in times.items():
        print(f"{case.name}, {name}: p50 {summarize(found)['p50_us']:.1f} us", flush=True)
    return {
        "deploy_sha256": {name: sha256_file(path) for name, path in engines.items()},
        "rounds": rounds,
        "calls": calls,
        "contestants": {name: summarize(found) for name, found in times.items()},
        "p50_ratios": ratios,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="shipped tasks and ONNX models")
    parser.add_argument("--seeds", type=int, default=5, help="of each shipped task; latency is that of the first")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, help="who quantizes")
    parser.add_argument("--only", choices=("quantize", "latency", "page"), help="one step [default: all]")
    parser.add_argument("--rounds", type=int, default=5, help="of latency: how often all start in fresh processes")
    parser.add_argument("--venv", type=Path, default=FOLDER / "venv", help="of Olive and ModelOpt; made if missing")
    options = parse(parser, models=["digits"], seeds=1, rounds=1, contestants=_QUICK_CONTESTANTS)
    result = result_path(__file__, options)
    results = json.loads(result.read_text(encoding="utf-8"))["models"] if result.exists() else {}
    steps = (options.only,) if options.only else ("quantize", "latency", "page")
    for name in options.models if steps != ("page",) else ():
        for seed in range(options.seeds if name in TASKS else 1):
            if "quantize" in steps:
                quantize(load_case(name, seed, options.recipe), results, options.contestants, options.venv)
        if "latency" in steps:
            calls = BLOCK if options.quick else CALLS["task" if name in TASKS else "model"]
            rows = results[name]["runs"]["0"]["contestants"]
            results[name]["latency"] = time_all(load_case(name, 0, options.recipe), rows, options.rounds, calls)
        settings = {"target": "cpu", "threads": THREADS, "batch": 1, "block": BLOCK, "lead_in": LEAD_IN}
        write_result(__file__, {**settings, "models": results}, options)
    if "page" in steps:
        write_page(json.loads(result.read_text(encoding="utf-8")), pages_folder(options))


if __name__ == "__main__":
    main()
