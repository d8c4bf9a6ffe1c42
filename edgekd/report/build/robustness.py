"""The cost of losing or spoiling one modality, as a table, a sentence and JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgekd.report.format import number
from edgekd.report.results import SHIPPED
from edgekd.report.schema import RobustnessDetails
from edgekd.report.table import Column, Table, metric_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.report.results import BuildReport
    from edgekd.runtime.corruption import NetworkRobustness

TITLE = "Robustness"


def robustness_table(report: BuildReport) -> Table:
    """Return the table of the metric of every network and engine with each modality dropped, and with each noisy."""
    networks = _networks(report)
    columns = (Column("inputs", right=False), *(Column(name) for name in networks))
    if report.robustness is None:
        return Table(TITLE, columns, (), (f"{report.robustness_reason[0].upper()}{report.robustness_reason[1:]}.",))
    cases = [dict(_cases(measured)) if measured else {} for measured in networks.values()]
    rows = tuple(
        (case, *(number(measured[case]) if case in measured else "not measured" for measured in cases))
        for case in cases[0]
    )
    return Table(TITLE, columns, rows, _notes(report, report.robustness.noise))


def _networks(report: BuildReport) -> dict[str, NetworkRobustness | None]:
    """Return the figures of the trained networks and of each target's engine, by the name of their column."""
    trained = report.robustness.networks if report.robustness else {}
    alone = len(report.targets) == 1
    return {**trained, **{SHIPPED if alone else result.target: result.robustness for result in report.targets}}


def _cases(measured: NetworkRobustness) -> Iterator[tuple[str, float]]:
    """Yield each change of the inputs in words, with the metric under it."""
    yield "as they are", measured.clean
    yield from ((f"without {name}", metric) for name, metric in measured.dropped.items())
    yield from ((f"{name} noisy", metric) for name, metric in measured.noisy.items())


def _notes(report: BuildReport, noise: float) -> tuple[str, ...]:
    first = report.targets[0]
    better = "higher" if first.ledger.limits.higher_is_better else "lower"
    return (
        f"{first.ledger.metric}, {better} is better, on {first.samples} test samples.",
        "Without: replaced by the training mean of each channel, which says nothing to a network that standardises. "
        f"Noisy: Gaussian noise of {noise:g} training standard deviation{'s' * (noise != 1)} of each channel is added, "
        "the same for all networks.",
        "Engines: their deploy.onnx in ONNX Runtime on the building host.",
    )


def describe_worst(measured: NetworkRobustness, higher_is_better: bool) -> str:
    """Return which change of the inputs costs most: ``"worst without image: 0.4125 instead of 0.9750"``."""
    sign = 1 if higher_is_better else -1
    _, *disturbed = _cases(measured)
    case, metric = min(disturbed, key=lambda one: -math.inf if math.isnan(one[1]) else sign * one[1])
    return f"worst {case}: {number(metric)} instead of {number(measured.clean)}"


def robustness_line(report: BuildReport) -> str:
    """Return one sentence on the change of the inputs that costs most, and on the engine that it costs most."""
    measured = {result.target: result.robustness for result in report.targets if result.robustness}
    if not measured:
        return f"{TITLE} {report.robustness_reason}."
    higher = report.targets[0].ledger.limits.higher_is_better
    name = max(measured, key=lambda target: _fall(measured[target], higher))
    where = f" of {name}" if len(measured) > 1 else ""
    metric = metric_name(report.targets[0].ledger.metric)
    return f"{TITLE}{where}: {metric} {describe_worst(measured[name], higher)}."


def _fall(measured: NetworkRobustness, higher_is_better: bool) -> float:
    sign = 1 if higher_is_better else -1
    falls = [sign * (measured.clean - metric) for metric in (*measured.dropped.values(), *measured.noisy.values())]
    return max(math.inf if math.isnan(fall) else fall for fall in falls)


def robustness_details(report: BuildReport) -> RobustnessDetails:
    """Return the figures of :func:`robustness_table` as they stand in ``report.json``."""
    measured = report.robustness
    if measured is None:
        return RobustnessDetails(None, None, None, report.robustness_reason)
    engines = {result.target: result.robustness for result in report.targets}
    return RobustnessDetails(measured.noise, measured.networks, engines, None)
