"""Choose which of a target's candidates ships: the fastest one that the gate lets through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.config.target import Budgets
    from edgekd.report.results import CandidateResult
    from edgekd.runtime.measure.results import Quantile


@dataclass(frozen=True)
class Choice:
    """The candidate that ships.

    Attributes:
        name: Its name.
        reason: Why it ships, as a phrase.
    """

    name: str
    reason: str


def choose(
    candidates: Sequence[CandidateResult], budgets: Budgets, slack: float = 0, *, undecided_ships: bool = True
) -> Choice:
    """Choose among a target's candidates.

    Candidates that the gate rejects are out, and, where it would not release them and does release others, those that
    are undecided. Of the others, those remain that keep most of the target's budgets; of
    these, the fastest one and all that are not clearly slower, which they are where the intervals of p50 are apart; of
    these, the first precision in the target's order, and of that precision the candidate whose output diverges least
    from the reference's, by its bound.

    Args:
        candidates: One or more candidates, in the target's order of preference.
        budgets: Limits of the target.
        slack: How much slower than the fastest, as a share of its p50, counts as equally fast.
        undecided_ships: Whether the gate releases what is undecided.
    """
    released = [c for c in candidates if c.verdict != "fail"]
    if not undecided_ships:
        released = [c for c in released if c.verdict != "undecided"] or released
    if not released:
        return Choice(candidates[0].name, "the gate rejects every candidate")
    if len(candidates) == 1:
        return Choice(candidates[0].name, "the only candidate")
    most = max(_kept(c, budgets) for c in released)
    fitting = [c for c in released if _kept(c, budgets) == most]
    level = _not_clearly_slower(fitting, slack)
    same = [c for c in level if c.precision == level[0].precision]
    chosen = min(same, key=lambda c: c.divergence.high if c.divergence else math.inf)
    return Choice(chosen.name, _reason(chosen, candidates, released, fitting, level, slack))


def _kept(candidate: CandidateResult, budgets: Budgets) -> int:
    limits = (
        (budgets.latency_ms, candidate.p50.value_ms if candidate.p50 else None),
        (budgets.size_mb, candidate.size_bytes / 1e6),
        (budgets.memory_mb, candidate.peak_rss_bytes / 1e6 if candidate.peak_rss_bytes else None),
    )
    return sum(limit is not None and value is not None and value <= limit for limit, value in limits)


def _not_clearly_slower(candidates: list[CandidateResult], slack: float) -> list[CandidateResult]:
    timed: list[tuple[CandidateResult, Quantile]] = [(c, c.p50) for c in candidates if c.p50]
    if len(timed) < len(candidates):
        return candidates
    fastest = min((p50 for _, p50 in timed), key=lambda p50: p50.value_ms)
    return [c for c, p50 in timed if p50.low_ms <= fastest.high_ms * (1 + slack)]


def _reason(
    chosen: CandidateResult,
    candidates: Sequence[CandidateResult],
    released: list[CandidateResult],
    fitting: list[CandidateResult],
    level: list[CandidateResult],
    slack: float,
) -> str:
    """Explain what decided, and which candidates were out before."""
    slower = [f"{c.p50.value_ms:.3g} ms ({c.name})" for c in fitting if c.p50 and c not in level]
    rivals = [c for c in level if c is not chosen]
    alike = [c for c in rivals if c.precision == chosen.precision]
    over = [c.name for c in released if c not in fitting]
    unclear = [c.name for c in candidates if c.verdict == "undecided" and c not in released]
    rejected = [c.name for c in candidates if c.verdict == "fail"]
    parts = []
    if chosen.p50 and slower:
        parts.append(f"{chosen.p50.value_ms:.3g} ms against {', '.join(slower)}")
    if chosen.p50 and rivals:
        preferred = ", and the target prefers it" if len(alike) < len(rivals) else ""
        slower_by = f"more than {slack:.0%} " if slack else ""
        parts.append(f"not clearly {slower_by}slower than {', '.join(c.name for c in rivals)}{preferred}")
    elif rivals:
        parts.append("the target's first choice, since no latency was measured")
    if alike:
        parts.append(f"of the {chosen.precision} ones its output diverges least")
    parts = parts or ["the only one left"]
    if over:
        parts.append(f"it keeps more of the budgets than {', '.join(over)}")
    if unclear:
        parts.append(f"undecided, which gate.undecided rejects: {', '.join(unclear)}")
    if rejected:
        parts.append(f"the gate rejects {', '.join(rejected)}")
    return "; ".join(parts)
