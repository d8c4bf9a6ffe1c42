"""The gate as a recipe sets it: what judges the ledger of a target judges the attempts at pruning, too."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from edgekd.gram.gate import GateRules, keep_ledger, reference_of
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.jackknife import choosing_groups
from edgekd.gram.metric import LabelledSamples, LedgerMetrics
from edgekd.gram.verdict import GateLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgekd.config.recipe import GateConfig
    from edgekd.gram.answers import Sameness
    from edgekd.gram.gate import Ledger, LedgerRow
    from edgekd.gram.metric import Metric
    from edgekd.gram.nest import Nest
    from edgekd.gram.output_kind import OutputKind
    from edgekd.gram.probe import Probe


def gate_limits(gate: GateConfig, *, higher_is_better: bool) -> GateLimits:
    """Return the limits that a recipe's section gives, for a metric of which larger values are better, or not."""
    return GateLimits(
        tau_pass=gate.tau_pass,
        tau_fail=gate.tau_fail,
        max_flips=gate.max_flips,
        max_metric_drop=gate.max_metric_drop,
        higher_is_better=higher_is_better,
        max_divergence=gate.max_divergence,
        max_missing_flips=gate.max_missing_flips,
        min_learned=gate.min_learned,
        structure=gate.structure,
        undecided=gate.undecided,
    )


def gate_rules(
    gate: GateConfig,
    metric: str,
    kinds: Mapping[str, OutputKind],
    *,
    higher_is_better: bool,
    seed: int,
    same: Sameness | None = None,
) -> GateRules:
    """Return how the rows of a ledger are judged.

    Args:
        gate: The recipe's section.
        metric: Name of the task metric.
        kinds: What each of the network's outputs is, by name, in order.
        higher_is_better: Whether a larger metric is better.
        seed: Seed for drawing the resamples behind a bound.
        same: The task's own word on which share of each sample's answer changed; None to go by the kinds.
    """
    limits = gate_limits(gate, higher_is_better=higher_is_better)
    return GateRules(metric, limits, Bootstrap(gate.confidence, gate.resamples, seed), kinds, same)


def keep_choosing_ledger(
    probes: Mapping[str, Probe],
    targets: Nest | None,
    groups: NDArray[np.generic] | None,
    metric: Metric,
    rules: GateRules,
    known: Iterable[LedgerRow] = (),
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Ledger:
    """Compare networks on the samples on which one of them is chosen, and judge them.

    Args:
        probes: The probe of each row, in the order of the ledger, among them the reference's.
        targets: What the samples are labelled with, a nest of arrays [N, ...]; None where there are no labels.
        groups: Cluster of each sample [N]; None where samples are independent.
        metric: The metric, a function of outputs and targets.
        rules: How the rows are judged.
        known: Rows that another ledger of the same probes has already.
        notes: For some rows what the stage did.
    """
    groups = choosing_groups(groups)
    figures = measure_metrics(probes, targets, groups, metric, rules)
    return keep_ledger(probes, figures, rules, groups, known, notes)


def measure_metrics(
    probes: Mapping[str, Probe],
    targets: Nest | None,
    groups: NDArray[np.generic] | None,
    metric: Metric,
    rules: GateRules,
) -> LedgerMetrics:
    """Return the metric of each row of a ledger, as far as its samples have labels.

    Args:
        probes: The probe of each row, among them the reference's.
        targets: What the samples are labelled with, a nest of arrays [N, ...]; None where there are no labels.
        groups: Cluster of each sample [N]; None where samples are independent.
        metric: The metric, a function of outputs and targets.
        rules: How the rows are judged.
    """
    if targets is None:
        return LedgerMetrics(dict.fromkeys(probes))
    higher_is_better, confidence = rules.limits.higher_is_better, rules.bootstrap.confidence
    samples = LabelledSamples(targets, groups, metric, higher_is_better, confidence, rules.kinds)
    return samples.measure(probes, reference_of(probes))
