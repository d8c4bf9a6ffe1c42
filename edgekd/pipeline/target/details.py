"""Stage details: find the classes, groups and samples of the test split that what ships gets wrong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.nest import targets_of
from edgekd.gram.probe import Probe
from edgekd.report.details.compared import ComparedOutput
from edgekd.report.details.content import OutputDetails  # noqa: TC001 - msgspec reads the annotation of Detailed
from edgekd.report.details.make import output_details
from edgekd.report.details.pictures import read_pictures
from edgekd.report.results import SHIPPED
from edgekd.runtime.session import open_arrays
from edgekd.stages.stage import StageSpec

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.gram.nest import Nest
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind
    from edgekd.pipeline.target.context import Context, EvaluatedCandidate
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done


@dataclass(frozen=True)
class Detailed:
    """The details of what ships, on the test samples.

    Attributes:
        outputs: What stands behind the quality of each output, by its name.
    """

    outputs: dict[str, OutputDetails]


def _describe(detailed: Detailed) -> str:
    changed = [output.changes for output in detailed.outputs.values() if output.changes.count is not None]
    told = f"{sum(changes.count or 0 for changes in changed)} answers changed" if changed else "no decisions"
    broken = sum(changes.broken for changes in changed)
    return f"{told}, {broken} for the worse" if broken else told


DETAILS: StageSpec[Detailed] = StageSpec(
    "details", 1, Detailed, ("numpy",), "find the classes and samples that what ships gets wrong", _describe
)


def detail_shipped(context: Context, shipped: EvaluatedCandidate) -> Done[Detailed]:
    """Compare what ships with the reference, the teacher and the labels, class by class and sample by sample.

    Args:
        context: The target.
        shipped: The candidate that ships, judged on the test samples.
    """
    facts, shown = context.exported.result.facts, context.recipe.report.samples

    def run(_folder: Path, _report: StageReporter) -> Detailed:
        with open_arrays(context.test) as test:
            targets, groups = targets_of(test), test.get("groups")
        before, ours = context.origin.probes("test"), Probe.load(shipped.outputs)
        reference = shipped.ledger.reference
        compared = {SHIPPED: ours, reference: before[reference]}
        if "teacher" in before and reference != "teacher":
            compared["teacher"] = before["teacher"]
        pictures = partial(read_pictures, context.test) if shown else None
        details = {}
        for name, kind in facts.outputs.items():
            # Embeddings of another width search among themselves; other outputs are compared number by number.
            like = {model for model, probe in compared.items() if _shape(probe, name) == _shape(ours, name)}
            fits = set(compared) if kind.name == "embedding" else like
            output = ComparedOutput(
                kind=kind,
                outputs={model: probe.outputs[name] for model, probe in compared.items() if model in fits},
                reference=reference,
                ids=ours.ids,
                targets=_target(targets, name, kind, alone=len(facts.outputs) == 1),
                groups=groups,
                classes=facts.classes.get(name, ()),
            )
            details[name] = output_details(output, pictures)
        return Detailed(details)

    return context.stage(DETAILS, config={"samples": shown}, inputs={"shipped": [*shipped.keys]}, run=run)


def _target(targets: Nest | None, output: str, kind: OutputKind, *, alone: bool) -> Array | None:
    """Return what is true of one output; None where that is not known, or is nothing of its kind, as boxes or texts."""
    target = targets.get(output) if isinstance(targets, dict) and not alone else targets
    numbers = "iu" if kind.class_axis is not None else "biuf"
    return target if isinstance(target, np.ndarray) and target.dtype.kind in numbers else None


def _shape(probe: Probe, output: str) -> tuple[int, ...] | None:
    return probe.shapes.get(output)
