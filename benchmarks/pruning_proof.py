"""What it costs that every cut is proven before it is made: seconds of a build, and their share of it.

Each is a whole build of a shipped recipe with a fresh cache, in this process, in which the proofs are timed: all that
compares a cut network with the one it is cut from, and the run that shows which layers training alone has.
"""

from __future__ import annotations

import time
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock

from common import TASKS, arguments, parse, write_result

import edgekd
from edgekd.training.pruning.proof import Proof
from edgekd.training.pruning.tracing import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return a function that adds the seconds of each of its calls."""

    @wraps(function)
    def run(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            seconds.append(time.perf_counter() - start)

    return run


def build(task: str, settings: Sequence[str]) -> dict[str, Any]:
    """Build a shipped task in a fresh cache; return the seconds of the build, of its stage ``prune``, and of proofs."""
    proofs: list[float] = []
    traces: list[float] = []
    with (
        TemporaryDirectory() as scratch,
        mock.patch.object(Proof, "refusals", timed(Proof.refusals, proofs)),
        mock.patch.object(Trace, "of", timed(Trace.of, traces)),
    ):
        folder = Path(scratch)
        start = time.perf_counter()
        report = edgekd.build(task, overrides=settings, output=folder / "output", cache=folder / "cache")
        wall = time.perf_counter() - start
    prune = next(stage.seconds for stage in report.stages if stage.name == "prune")
    proof = sum(proofs) + sum(traces)
    return {"build_s": wall, "prune_s": prune, "proof_s": proof, "proofs": len(proofs), "share": proof / wall}


def main() -> None:
    options = parse(arguments(__doc__, TASKS), tasks=["digits"])
    tasks = {}
    for task in options.tasks:
        found = tasks[task] = build(task, options.recipe)
        print(
            f"{task}: {found['proofs']} proofs took {found['proof_s']:.2f} s of the build's {found['build_s']:.0f} s "
            f"({found['share']:.2%})"
        )
    write_result(__file__, {"tasks": tasks}, options)


if __name__ == "__main__":
    main()
