"""What losing or spoiling one modality costs, as a table, a sentence and JSON."""

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
    """Return the metric of every network and engine with each modality dropped, and with each noisy."""
    networks = _networks(report)
    columns = (Column("inputs", right=False), *(Column(name) for name in networks))
    if report.robustness is None:
        return Table(TITLE, columns, (), (f"{report.robustness_reason[0].upper()}{report.robustness_reason[1:]}.",))
    cases = [dict(_cases(found)) if found else {} for found in networks.values()]
    rows = tuple(
        (case, *(number(found[case]) if case in found else "not measured" for found in cases)) for case in cases[0]
    )
    return Table(TITLE, columns, rows, _notes(report, report.robustness.noise))


def _networks(report: BuildReport) -> dict[str, NetworkRobustness | None]:
    """Return the trained networks and each target's engine, by what their column is called."""
    trained = report.robustness.networks if report.robustness else {}
    alone = len(report.targets) == 1
    return {**trained, **{SHIPPED if alone else result.target: result.robustness for result in report.targets}}


def _cases(found: NetworkRobustness) -> Iterator[tuple[str, float]]:
    """Yield what was done to the inputs, in words, and the metric."""
    yield "as they are", found.clean
    yield from ((f"without {name}", metric) for name, metric in found.dropped.items())
    yield from ((f"{name} noisy", metric) for name, metric in found.noisy.items())


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


def describe_worst(found: NetworkRobustness, higher_is_better: bool) -> str:
    """Say which disturbance costs most: ``"worst without image: 0.4125 instead of 0.9750"``."""
    sign = 1 if higher_is_better else -1
    _, *disturbed = _cases(found)
    case, metric = min(disturbed, key=lambda one: -math.inf if math.isnan(one[1]) else sign * one[1])
    return f"worst {case}: {number(metric)} instead of {number(found.clean)}"


def robustness_line(report: BuildReport) -> str:
    """Return one sentence: what costs that engine most which it costs most."""
    measured = {result.target: result.robustness for result in report.targets if result.robustness}
    if not measured:
        return f"{TITLE} {report.robustness_reason}."
    higher = report.targets[0].ledger.limits.higher_is_better
    name = max(measured, key=lambda target: _fall(measured[target], higher))
    where = f" of {name}" if len(measured) > 1 else ""
    metric = metric_name(report.targets[0].ledger.metric)
    return f"{TITLE}{where}: {metric} {describe_worst(measured[name], higher)}."


def _fall(found: NetworkRobustness, higher_is_better: bool) -> float:
    sign = 1 if higher_is_better else -1
    falls = [sign * (found.clean - metric) for metric in (*found.dropped.values(), *found.noisy.values())]
    return max(math.inf if math.isnan(fall) else fall for fall in falls)


def robustness_details(report: BuildReport) -> RobustnessDetails:
    """Return the same figures as they stand in ``report.json``."""
    measured = report.robustness
    if measured is None:
        return RobustnessDetails(None, None, None, report.robustness_reason)
    engines = {result.target: result.robustness for result in report.targets}
    return RobustnessDetails(measured.noise, measured.networks, engines, None)
