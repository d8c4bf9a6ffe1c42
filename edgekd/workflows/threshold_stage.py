"""Stage alarm: find on the user's own task the limits that tell what lost too much of the metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgekd.stages.artifacts import onnx_name
from edgekd.stages.stage import StageSpec
from edgekd.workflows.thresholds import Alarm, AlarmSamples, measure_alarm

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.pipeline.target.context import Context
    from edgekd.stages.progress import StageReporter


def _describe(alarm: Alarm) -> str:
    return f"{len(alarm.outcomes)} ways of damage"


ALARM: StageSpec[Alarm] = StageSpec(
    "alarm", 4, Alarm, ("onnx", "onnxruntime", "numpy"), "measure which damage costs how much of the metric", _describe
)


def alarm_stage(context: Context) -> Alarm:
    """Damage the ledger's reference network in many ways, and find the limits that tell what lost too much.

    It is measured on the calibration samples: limits that gate a build are not read off the samples that gate it.
    """
    graph = context.exported.folder / onnx_name(context.origin.baselines[-1])

    def run(_folder: Path, report: StageReporter) -> Alarm:
        facts, metric = context.exported.result.facts, context.origin.metric
        samples = AlarmSamples(context.calibration, metric, context.rules.kinds, facts.modalities, facts.stand_ins)
        return measure_alarm(graph, samples, context.limits, report)

    config = {"limits": msgspec.to_builtins(context.limits), "kinds": msgspec.to_builtins(context.rules.kinds)}
    return context.stage(ALARM, config=config, inputs={"exported": context.exported.key}, run=run).result
