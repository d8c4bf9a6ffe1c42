"""What the report says of a target: its candidates, the one that ships, and the facts behind them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgekd.devices.base import Absent
from edgekd.pipeline.publish import BUNDLE, REJECTED
from edgekd.report.results import SHIPPED, CandidateResult, TargetResult
from edgekd.runtime.session import open_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.pipeline.target.compile import Compiled
    from edgekd.pipeline.target.context import Context, EvaluatedCandidate
    from edgekd.pipeline.target.select import Choice
    from edgekd.runtime.measure.results import Profile


def candidate_results(
    candidates: Sequence[EvaluatedCandidate], profiled: Profile | None
) -> tuple[CandidateResult, ...]:
    """Join what was measured of each candidate."""
    measured = {engine.name: engine for engine in profiled.engines} if profiled else {}
    results = []
    for candidate in candidates:
        engine, last = measured.get(candidate.name), candidate.ledger.rows[-1]
        results.append(
            CandidateResult(
                name=candidate.name,
                precision=candidate.prepared.candidate.precision,
                verdict=candidate.ledger.verdict,
                metric=last.metric,
                divergence=last.first.divergence if last.first else None,
                bound=last.to_reference.bound if last.to_reference else math.nan,
                flips=last.flips,
                p50=engine.latency.p50 if engine else None,
                size_bytes=candidate.engine.stat().st_size,
                peak_rss_bytes=engine.peak_rss_bytes if engine else None,
            )
        )
    return tuple(results)


def target_result(
    context: Context,
    shipped: EvaluatedCandidate,
    choice: Choice,
    *,
    results: tuple[CandidateResult, ...],
    profiled: Profile | None,
    compiled: Sequence[Compiled],
    facts: tuple[str, ...],
) -> TargetResult:
    """Return a target's part of the report, without what was measured of its robustness.

    Args:
        context: The target.
        shipped: The candidate that ships.
        choice: Why it does.
        results: What was measured of each candidate.
        profiled: Latencies of the float networks and of all candidates, one of them called "shipped"; None where they
            were not measured.
        compiled: What was built ahead of time, for some candidates each.
        facts: Sentences on how the candidates came about.
    """
    with open_arrays(context.validation) as samples:
        chosen_on = len(samples["ids"])
    released = shipped.ledger.released
    return TargetResult(
        target=context.target.name,
        device="no device" if isinstance(context.device, Absent) else context.device.name,
        runtime=context.target.runtime,
        precision=shipped.prepared.candidate.precision,
        ledger=shipped.ledger,
        baselines=context.origin.baselines,
        profile=profiled,
        profile_reason=_no_latency(context, BUNDLE if released else REJECTED),
        sizes={**context.exported.result.sizes, SHIPPED: shipped.engine.stat().st_size},
        bundle=f"{context.target.name}/{BUNDLE}" if released else None,
        budgets=context.target.budgets,
        deploy_logit_error=shipped.deploy_logit_error,
        candidates=results,
        chosen=choice.name,
        choice=choice.reason,
        facts=(*facts, *_not_timed(context), *_facts(context, compiled, shipped)),
        chosen_on=f"{chosen_on} validation samples",
    )


def _no_latency(context: Context, shown: str) -> str | None:
    """Explain why no latency is measured, and what measures that of the bundle in the folder ``shown``."""
    device, target, threads = context.device, context.target, context.recipe.profile.threads
    if isinstance(device, Absent):
        runtime = f" --runtime {context.public_runtime}" if context.runtime.custom else ""
        wanted = f" --threads {threads}" if threads > 1 else ""
        return (
            f"not measured: no device ({device.reason}); with the bundle on one, run: "
            f"edgekd profile {target.name}/{shown}{runtime}{wanted}"
        )
    return device.no_latency


def _not_timed(context: Context) -> list[str]:
    refused = context.exported.result.refused
    return [f"The {name} is compared in torch, and not timed: {reason}." for name, reason in refused.items()]


def _facts(context: Context, compiled: Sequence[Compiled], shipped: EvaluatedCandidate) -> tuple[str, ...]:
    """Return sentences on how what ships was built ahead of time, and on which machine its ledger ends."""
    facts = []
    wanted, name = context.target.compile, shipped.name
    built = next((engines for engines in compiled if name in engines.layers), None)
    if wanted and not built:
        facts.append("Not proved by NVIDIA's parser on this host: TensorRT-RTX is for Linux on x86-64.")
    if built and wanted:
        proof = "is a proof alone; the board builds its own from deploy.onnx, whose size is given"
        what = "ships" if wanted.ship else proof
        gpus = ", ".join(wanted.compute_capabilities)
        facts.append(
            f"{built.library} parsed and built {name} for {gpus} on this host "
            f"({built.layers[name]} layers); that engine {what}."
        )
        facts += [f"{built.library} said of {name}: {line}" for line in built.messages[name]]
    if isinstance(context.device, Absent):
        last = shipped.ledger.rows[-1].stage
        facts.append(f"No device ran the engine: '{last}' is the very same graph in ONNX Runtime on this host.")
    return tuple(facts)
