"""Stage robustness_shipped: measure what losing or spoiling one modality costs the graph that ships."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.gram.npz import answers_of
from edgekd.gram.probe import answer_of
from edgekd.report.build.robustness import describe_worst
from edgekd.runtime.corruption import NetworkRobustness, load_statistics, measure_robustness
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.session import read_arrays, run_rows
from edgekd.stages.artifacts import CHANNELS, DEPLOY
from edgekd.stages.stage import StageSpec

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.pipeline.target.context import Context, EvaluatedCandidate
    from edgekd.runtime.corruption import Array, Corruption
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
        labels = read_arrays(context.test, ["labels"])["labels"]
        done = 0
        with context.host_runtime.open(shipped.prepared.folder / DEPLOY) as session:
            feeds = read_feeds(context.test, session.inputs)

            def score(changed: dict[str, Array]) -> float:
                answers = answers_of(run_rows(session, {**feeds, **changed}, _BATCH))
                return context.origin.metric(answer_of(answers), labels)

            def evaluate(modality: str, corruption: Corruption) -> float:
                nonlocal done
                done += 1
                report.advance(done, 2 * len(known), modality)
                return score({modality: corruption(feeds[modality])})

            return measure_robustness(score({}), evaluate, known, noise, seed)

    higher = context.limits.higher_is_better
    spec = replace(ROBUSTNESS_SHIPPED, summary=lambda result: describe_worst(result, higher))
    inputs = {"networks": networks.key, "shipped": [shipped.prepared.key, shipped.name]}
    return context.stage(spec, config={"seed": seed}, inputs=inputs, run=run).result
