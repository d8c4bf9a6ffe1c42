"""Stage alarm: measure on the user's own task which drift costs how much of the metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgekd.stages.artifacts import onnx_name
from edgekd.stages.stage import library_versions
from edgekd.workflows.thresholds import Alarm, measure_alarm

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.pipeline.target.context import Context
    from edgekd.stages.progress import StageReporter


def measure_alarm_stage(context: Context) -> Alarm:
    """Damage the ledger's reference network in many ways, and measure how well drift predicts the loss of the metric.

    It is measured on the calibration samples: limits that gate a build are not read off the samples that gate it.
    """
    graph = context.exported.folder / onnx_name(context.origin.baselines[-1])

    def run(_folder: Path, report: StageReporter) -> Alarm:
        return measure_alarm(graph, context.calibration, context.origin.metric, context.limits, report)

    depends = {
        "exported": context.exported.key,
        "limits": msgspec.to_builtins(context.limits),
        "versions": library_versions(["onnx", "onnxruntime", "numpy"], "build"),
    }
    alarm: Alarm = context.stage("alarm", "", depends, Alarm, run, _describe).result
    return alarm


def _describe(alarm: Alarm) -> str:
    return f"{len(alarm.outcomes)} ways of damage"
