"""What more targets cost: a build for four targets against one for the processor alone.

Each is a whole ``edgekd build`` of the shipped ``gestures`` recipe, a process with a fresh cache, one after the other;
the pruned widths are fixed, so that both train the same student. All that comes before ``quantize`` knows nothing of
targets and must run once. The goal: a ratio of wall times of at most 1.5.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from common import arguments, parse, write_result

from edgekd.pipeline.trained_source import DISTILL, EXPORT, PRUNE, TEACHER
from edgekd.stages.stage import library_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

ONE = ("cpu",)
MANY = ("cpu", "openvino-cpu", "jetson-orin", "nvidia-rtx")
GOAL = 1.5
#: Stages that run once for all targets.
SHARED = tuple(spec.name for spec in (TEACHER, DISTILL, PRUNE, EXPORT))
#: Exit codes of a build that was made: released, or rejected by the gate.
_BUILT = (0, 20)


def build(task: str, targets: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    """Build in a fresh cache; return its wall time and the seconds of each stage."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "edgekd", "build", "--recipe", task, "--quiet"]
        command += [word for setting in (*settings, "prune.round_to=8") for word in ("--set", setting)]
        command += [word for target in targets for word in ("--target", target)]
        command += ["--output", str(folder / "output"), "--cache", str(folder / "cache")]
        start = time.perf_counter()
        done = subprocess.run(command, check=False)
        wall = time.perf_counter() - start
        if done.returncode not in _BUILT:
            raise SystemExit(done.returncode)
        report = json.loads((folder / "output" / "report.json").read_text(encoding="utf-8"))
        made = {kind: len([*(folder / "cache").glob(f"{kind}-*/")]) for kind in SHARED}
    return {
        "targets": targets,
        "wall_s": wall,
        "exit_code": done.returncode,
        "stage_s": {stage["name"]: stage["seconds"] for stage in report["stages"]},
        "runs_of_shared_stages": made,
    }


def main() -> None:
    parser = arguments(__doc__, ["gestures"])
    parser.add_argument("--runs", type=int, default=1, help="pairs of builds, whose order alternates")
    parser.add_argument("--targets", nargs="+", default=MANY, help="of the larger build")
    options = parse(parser, tasks=["digits"], targets=MANY[:2])
    tasks, many = {}, tuple(options.targets)
    for task in options.tasks:
        pairs = []
        for index in range(options.runs):
            order = (ONE, many) if index % 2 == 0 else (many, ONE)
            found = {len(targets): build(task, targets, options.recipe) for targets in order}
            pairs.append({"one": found[len(ONE)], "many": found[len(many)]})
        ratios = [pair["many"]["wall_s"] / pair["one"]["wall_s"] for pair in pairs]
        once = all(set(run["runs_of_shared_stages"].values()) == {1} for pair in pairs for run in pair.values())
        ratio = statistics.fmean(ratios)
        tasks[task] = {"ratio": ratio, "met": ratio <= GOAL, "shared_stages_ran_once": once, "pairs": pairs}
        print(
            f"{task}: {len(many)} targets take {ratio:.2f} times as long as one "
            f"({pairs[0]['many']['wall_s']:.0f} s, {pairs[0]['one']['wall_s']:.0f} s); "
            f"what knows no targets ran {'once' if once else 'MORE THAN ONCE'}"
        )
    versions = library_versions(["openvino", "nncf", "tensorrt-rtx-cu12-bindings"], "build")
    write_result(__file__, {"also": versions, "tasks": tasks}, options)


if __name__ == "__main__":
    main()
