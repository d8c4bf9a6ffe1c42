"""Stage blame: find what breaks an INT8 candidate, and what each part of it costs in float."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from edgekd.compress.blame import blame
from edgekd.compress.switchboard import restore_float
from edgekd.gram.blame import AddedLatency, Blame
from edgekd.pipeline.target.context import LIBRARIES
from edgekd.pipeline.target.repair.examine import open_examiner, time_beside_int8
from edgekd.stages.stage import Done, StageSpec

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.compress.partial import Examiner
    from edgekd.compress.variants import CandidateSpec
    from edgekd.pipeline.target.context import Context, PreparedCandidate
    from edgekd.stages.progress import StageReporter

#: Suspects whose time is measured, the worst first, and layers that are measured: those that are most suspect.
_TIMED, _QUICKLY_TIMED = 24, 8
_QUICKLY_MEASURED = 16


def _describe(blamed: Blame) -> str:
    worst = blamed.of("branch")[0] if blamed.of("branch") else None
    loss = f"divergence {blamed.quantized.divergence:.2g}"
    return loss + (f", of which undoing {worst.name} relieves most" if worst else "")


BLAME: StageSpec[Blame] = StageSpec(
    "blame", 7, Blame, LIBRARIES, "find the layers and branches that break INT8", _describe
)


def blame_candidate(
    context: Context, candidate: PreparedCandidate, label: str = "", *, thorough: bool = True
) -> Done[Blame]:
    """Run stage blame on an INT8 candidate.

    Args:
        context: The target.
        candidate: The candidate.
        label: What tells the stage from that of another candidate; "" for the first.
        thorough: Whether every layer is measured, and not only those that are most suspect on few samples.
    """
    thorough = thorough or candidate.candidate.weight_nodes <= _QUICKLY_MEASURED

    def run(folder: Path, report: StageReporter) -> Blame:
        examiner = open_examiner(context, candidate)

        def time(blamed: Blame) -> dict[str, AddedLatency]:
            return _times(
                context, candidate.spec, examiner, blamed, folder, report, _TIMED if thorough else _QUICKLY_TIMED
            )

        def advance(done: int, total: int) -> None:
            report.advance(done, total, "parts quantized and undone alone")

        return blame(examiner, time if context.timed else None, advance, None if thorough else _QUICKLY_MEASURED)

    config = {
        "device": context.device_identity() if context.timed else None,
        "threads": context.recipe.profile.threads,
        "thorough": thorough,
    }
    inputs = {"candidate": [candidate.key, candidate.name], "calibration": context.exported.key}
    return context.stage(BLAME, label, config=config, inputs=inputs, run=run)


def _times(
    context: Context,
    spec: CandidateSpec,
    examiner: Examiner,
    blamed: Blame,
    folder: Path,
    report: StageReporter,
    most: int,
) -> dict[str, AddedLatency]:
    """Return for the worst suspects, at most so many, how much slower the network is where only they are float."""
    worst = sorted(blamed.suspects, key=lambda suspect: -suspect.relief.value)[:most]
    graphs = {s.name: partial(restore_float, examiner.qdq, examiner.floats, s.tensors) for s in worst}
    timed = time_beside_int8(context, spec, examiner, graphs, folder, report)
    return {
        name: AddedLatency(own.value_ms - int8.value_ms, own.low_ms - int8.high_ms, own.high_ms - int8.low_ms)
        for name, (own, int8) in timed.items()
    }
