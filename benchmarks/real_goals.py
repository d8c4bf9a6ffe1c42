"""Whether edgekd is what it is to be on published networks: judged from the results of one processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contestants import FLOAT, PEERS
from peers.quantize import DYNAMIC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Found = Mapping[str, Any]

OURS, QUICK = "edgekd", "edgekd, quick"
#: The share of the networks on which any peer manages it where edgekd must ship INT8 that is faster than float.
SHIPS_SHARE = 0.8
#: Divergences that differ by this share of the limit are the same up to rounding.
_SAME = 1e-3
#: Of seconds: edgekd's quantizing at its quickest over the fastest peer's, and a whole build as it is. Of memory: so
#: many models, and bytes beside.
QUICK_RATIO, BUILD_S = 1.0, 300.0
MEMORY_MODELS, MEMORY_BYTES = 4, 500e6


@dataclass(frozen=True)
class Goal:
    """One goal on one network: ``met`` is None where it was not measured or does not apply; ``found`` says more."""

    met: bool | None
    found: str


def row_of(found: Found, name: str) -> dict[str, Any] | None:
    """Return what was measured of a contestant; None where it failed, or did not run."""
    row: dict[str, Any] | None = found["contestants"].get(name)
    return None if row is None or "failed" in row else row


def p50_us(found: Found, name: str) -> float | None:
    """Return a contestant's p50; None where it was not measured of the very engine that the results are of."""
    row, latency = row_of(found, name), found.get("latency")
    if row is None or latency is None or latency["engine_sha256"].get(name) != row["engine_sha256"]:
        return None
    p50: float = latency["contestants"][name]["p50_us"]
    return p50


def ratio(found: Found, name: str, other: str) -> dict[str, float] | None:
    """Return a contestant's p50 over another's, with the 95 % interval; None where it was not measured."""
    if p50_us(found, name) is None or p50_us(found, other) is None:
        return None
    between: dict[str, float] = found["latency"]["p50_ratios"][name][other]
    return between


def peers_of(found: Found) -> list[str]:
    """Return the peers that quantized something."""
    rows = ((name, row_of(found, name)) for name in PEERS)
    return [name for name, row in rows if row is not None and row["quantized_layers"] != 0]


def is_faster(found: Found, name: str) -> bool:
    """Return whether a contestant is faster than float beyond noise."""
    between = ratio(found, name, FLOAT)
    return between is not None and between["high"] < 1


def able_peers(found: Found) -> list[str]:
    """Return the peers whose result is faster than float beyond noise and diverges within its kind's limit, best first.

    That limit is what edgekd's own gate holds its INT8 to.
    """
    able = [name for name in peers_of(found) if is_faster(found, name) and _divergence(found, name) <= 1]
    return sorted(able, key=lambda name: p50_us(found, name) or 0)


def _divergence(found: Found, name: str) -> float:
    divergence: float = found["contestants"][name]["divergence_limits"]
    return divergence


def ships(found: Found) -> Goal:
    """Judge whether edgekd ships INT8, or INT8 and float mixed, faster than float, where any peer manages that."""
    row = row_of(found, OURS)
    if row is None or p50_us(found, OURS) is None:
        return Goal(None, "not measured")
    able = able_peers(found)
    does = row["released"] and row["precision"] != FLOAT and is_faster(found, OURS)
    said = f"ships {row['precision']}" if row["released"] else f"{row['precision']}, rejected"
    if not able:
        return Goal(None, f"{said}; no peer is faster than float within the limit")
    return Goal(does, f"{said}; {able[0]} is")


def closest(found: Found) -> Goal:
    """Judge whether no peer that is as fast diverges less than what edgekd ships."""
    row = row_of(found, OURS)
    if row is None or p50_us(found, OURS) is None:
        return Goal(None, "not measured")
    if row["precision"] == FLOAT:
        return Goal(None, "ships float32")
    as_fast = [name for name in peers_of(found) if (between := ratio(found, OURS, name)) and between["high"] >= 1]
    if not as_fast:
        return Goal(True, "no peer is as fast")
    best = min(as_fast, key=lambda name: _divergence(found, name))
    mine, theirs = row["divergence_limits"], _divergence(found, best)
    return Goal(mine <= theirs + _SAME, f"{mine:.3f} of the limit; {best} {theirs:.3f}")


def seconds(found: Found) -> Goal:
    """Judge edgekd's seconds of quantizing at its quickest by those of the fastest peer that calibrates."""
    row = row_of(found, QUICK)
    spent = {name: row_of(found, name)["seconds"] for name in peers_of(found) if PEERS[name][1] != DYNAMIC}  # type: ignore[index]
    if row is None or not spent:
        return Goal(None, "not measured")
    fastest = min(spent, key=lambda name: spent[name])
    between = row["seconds"] / spent[fastest]
    return Goal(between <= QUICK_RATIO, f"{row['seconds']:.1f} s, {between:.2f} of {fastest}")


def whole_build(found: Found) -> Goal:
    """Judge how long a whole build takes, by default."""
    row = row_of(found, OURS)
    return Goal(None, "not measured") if row is None else Goal(row["wall_s"] <= BUILD_S, f"{row['wall_s']:.0f} s")


def memory(found: Found) -> Goal:
    """Judge the memory of a whole build, by default and at its quickest, whichever took more."""
    rows = [row for name in (OURS, QUICK) if (row := row_of(found, name)) is not None]
    reference = row_of(found, FLOAT)
    if not rows or reference is None:
        return Goal(None, "not measured")
    peak = max(row["peak_tree_bytes"] for row in rows)
    most = MEMORY_MODELS * reference["size_bytes"] + MEMORY_BYTES
    return Goal(peak <= most, f"{peak / 1e6:.0f} of {most / 1e6:.0f} MB")


#: The goals by what the page calls them, and the share of the networks that must meet each.
GOALS: dict[str, tuple[Callable[[Found], Goal], float]] = {
    "INT8 ships and is faster than float": (ships, SHIPS_SHARE),
    "no peer as fast is closer": (closest, 1.0),
    "quantizing at its quickest, against the fastest peer": (seconds, 1.0),
    "a whole build, at most 5 minutes": (whole_build, 1.0),
    "memory, at most 4 models and 500 MB": (memory, 1.0),
}
