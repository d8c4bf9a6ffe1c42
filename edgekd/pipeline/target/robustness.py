"""Stage robustness_shipped: measure what losing or spoiling one modality costs the graph that ships."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.gram.nest import targets_of
from edgekd.gram.npz import answers_of
from edgekd.gram.probe import answer_of
from edgekd.report.build.robustness import describe_worst
from edgekd.runtime.corruption import NetworkRobustness, count_changes, load_statistics, measure_robustness
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.session import open_arrays, run_rows
from edgekd.stages.artifacts import CHANNELS, DEPLOY
from edgekd.stages.stage import StageSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.pipeline.target.context import Context, EvaluatedCandidate
    from edgekd.runtime.corruption import Array, InputChange
    from edgekd.stages.progress import StageReporter

_BATCH = 256

ROBUSTNESS_SHIPPED: StageSpec[NetworkRobustness] = StageSpec(
    "robustness_shipped", 4, NetworkRobustness, (), "measure what ships with each modality dropped or noisy"
)


def measure_shipped(context: Context, shipped: EvaluatedCandidate) -> NetworkRobustness | None:
    """Run ``deploy.onnx`` of what ships in ONNX Runtime on this host; None where the networks were not measured."""
    networks = context.origin.robustness
    if networks is None:
        return None
    noise, seed = networks.result.noise, context.recipe.seed

    def run(_folder: Path, report: StageReporter) -> NetworkRobustness:
        known = load_statistics(networks.folder / CHANNELS)
        with open_arrays(context.test) as test:
            targets = targets_of(test)
        assert targets is not None  # the task's metric was tried on them
        done = 0
        with context.host_runtime.open(shipped.prepared.folder / DEPLOY) as session:
            feeds = read_feeds(context.test, session.inputs)

            def score(inputs: Mapping[str, Array]) -> float:
                return context.origin.metric(answer_of(answers_of(run_rows(session, inputs, _BATCH))), targets)

            def evaluate(modality: str, change: InputChange) -> float:
                nonlocal done
                done += 1
                report.advance(done, count_changes(known), modality)
                return score(change(feeds))

            return measure_robustness(score(feeds), evaluate, known, noise, seed)

    higher = context.limits.higher_is_better
    spec = replace(ROBUSTNESS_SHIPPED, summary=lambda result: describe_worst(result, higher))
    inputs = {"networks": networks.key, "shipped": [shipped.prepared.key, shipped.name]}
    return context.stage(spec, config={"seed": seed}, inputs=inputs, run=run).result
