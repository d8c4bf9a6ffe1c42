"""What edgekd's sessions cost on top of the bare library: named numpy arrays in, numpy arrays out that the caller owns.

For each runtime, shipped task and graph (the pruned student, float and INT8) one process opens the very same file with
edgekd, and bare, with the same options and one thread; the sessions take turns of 50 inferences at batch 1. The bare
library is called as its documentation does; OpenVINO also in the fastest way that we found. What it costs to refuse
inputs that are not finite, and to let any thread use a session, is measured by sessions that do not. The goal: p50 at
most 3 % or 10 us above the bare library's, whichever is more, by the upper end of the interval.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from common import TASKS, arguments, export, parse, write_result
from side_by_side import (
    BLOCK,
    LEAD_IN,
    OPENVINO_OPTIONS,
    THREADS,
    compare_p50,
    open_edgekd,
    open_onnxruntime,
    open_openvino,
    open_openvino_default,
    open_unchecked,
    open_unshared,
    summarize,
    take_turns,
)

import edgekd
from edgekd.compress import quantize
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.runtime.backends.registry import Runtime
from edgekd.stages.artifacts import CALIBRATION, DEPLOY, TEST, onnx_name

if TYPE_CHECKING:
    from side_by_side import Nanoseconds

TARGETS = ("cpu", "openvino-cpu")
OURS, UNCHECKED, UNSHARED = "edgekd", "edgekd, check_finite=False", "edgekd, for one thread alone"
BARE = {
    "onnxruntime": {"session.run(None, feeds)": open_onnxruntime},
    "openvino": {
        "request, tensors filled": partial(open_openvino, options=OPENVINO_OPTIONS),
        "compiled(feeds)": partial(open_openvino_default, options=OPENVINO_OPTIONS),
    },
}
WAYS = (CandidateSpec("float32", None), CandidateSpec("int8", "qdq"))
GOAL_US, GOAL_SHARE = 10.0, 0.03


def measure(engine: Path, samples: Path, runtime: Runtime, rounds: int, calls: int) -> dict[str, Any]:
    """Compare edgekd's session with the bare ones."""
    bare = {name: partial(opener, engine) for name, opener in BARE[runtime.name].items()}
    ours = {
        OURS: partial(open_edgekd, engine, runtime),
        UNCHECKED: partial(open_unchecked, engine, runtime),
        UNSHARED: partial(open_unshared, engine, runtime),
    }
    times = take_turns([{**ours, **bare}], samples, rounds, calls)
    over = {}
    for name in bare:
        cost = _cost(times[OURS], times[name])
        allowed_us = max(GOAL_US, GOAL_SHARE * float(np.median(times[name])) / 1e3)
        over[name] = {
            **cost,
            "allowed_us": allowed_us,
            "met": cost["extra_us"]["high"] <= allowed_us,
        }
    costs = {
        "check_finite": _cost(times[OURS], times[UNCHECKED]),
        "any_thread": _cost(times[UNCHECKED], times[UNSHARED]),
    }
    return {"over": over, "costs": costs, "sessions": {name: summarize(found) for name, found in times.items()}}


def _cost(times: Nanoseconds, without: Nanoseconds) -> dict[str, Any]:
    return {
        "extra_us": compare_p50(times, without, lambda ours, theirs: ours - theirs),
        "extra_percent": compare_p50(times, without, lambda ours, theirs: 100 * (ours / theirs - 1)),
    }


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--rounds", type=int, default=10, help="fresh processes")
    parser.add_argument("--calls", type=int, default=2000, help="inferences of each session in a process")
    options = parse(parser, tasks=["digits"], rounds=1, calls=100)
    rows = []
    for task in options.tasks:
        exported = export(task, settings=options.recipe)[1].folder
        for target in map(edgekd.load_target, TARGETS):
            runtime = Runtime(target.runtime, target.options)
            with TemporaryDirectory() as scratch:
                model, samples = exported / onnx_name("pruned"), exported / CALIBRATION
                for way in WAYS:
                    quantize.run(way, model, samples, target.scheme, load_calibration("minmax"), Path(scratch))
                    engine = Path(scratch) / way.name / DEPLOY
                    found = measure(engine, exported / TEST, runtime, options.rounds, options.calls)
                    rows.append({"task": task, "runtime": runtime.name, "graph": way.name, **found})
                    for name, over in found["over"].items():
                        us, share, ours = over["extra_us"], over["extra_percent"], found["sessions"][OURS]["p50_us"]
                        print(
                            f"{task}, {runtime.name}, {way.name}: {ours:.1f} us; over {name}: {us['value']:+.1f} us "
                            f"({us['low']:+.1f} to {us['high']:+.1f}), {share['value']:+.1f} %, "
                            f"{'met' if over['met'] else 'MISSED'}"
                        )
                    for name, cost in found["costs"].items():
                        us, share = cost["extra_us"], cost["extra_percent"]
                        print(
                            f"  {name}: {us['value']:+.2f} us ({us['low']:+.2f} to {us['high']:+.2f}), "
                            f"{share['value']:+.1f} %"
                        )
    settings = {"threads": THREADS, "batch": 1, "block": BLOCK, "lead_in": LEAD_IN, "rounds": options.rounds}
    settings["calls"] = options.calls
    write_result(__file__, {**settings, "openvino_options": OPENVINO_OPTIONS, "rows": rows}, options)


if __name__ == "__main__":
    main()
