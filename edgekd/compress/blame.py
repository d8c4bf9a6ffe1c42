"""Which part of a network INT8 breaks: each part is quantized alone, and returned to float alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.qdq_map import list_layers
from edgekd.gram.blame import SCOPES, AddedLatency, Blame, Scope, Suspect, rank
from edgekd.gram.stats import spearman

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgekd.compress.partial import Examiner, PartialResult
    from edgekd.gram.jackknife import Series

#: Samples of the first look at many layers: eight find a part that is broken by itself (benchmarks/blame_hits.py).
_LOOK = 8


@dataclass(frozen=True)
class _SuspectNodes:
    """A suspect, the tensors that it needs quantized, and those of them that no other suspect needs."""

    scope: Scope
    name: str
    needs: frozenset[str]
    owns: frozenset[str]


def blame(
    examiner: Examiner,
    time: Callable[[Blame], Mapping[str, AddedLatency]] | None = None,
    tell: Callable[[int, int], None] | None = None,
    most_layers: int | None = None,
) -> Blame:
    """Measure each layer, branch and kind of tensor quantized alone, and returned to float alone.

    Args:
        examiner: The network and its samples.
        time: Given the suspects, returns for each that it timed what returning it to float costs, by name.
        tell: Is called with the number of steps so far and the number of all.
        most_layers: Of more layers than these only so many are measured, which relieve most where they are undone on
            few samples; None measures all.

    Returns:
        The suspects, those first whose return to float takes away most of what the output loses.
    """
    layers = list_layers(examiner.floats)
    everything = frozenset(item.tensor for item in examiner.board.tensors)
    parts = list(_parts(examiner, [layer.name for layer in layers]))
    looked = [part for part in parts if part.scope == "layer"]
    looked = looked if most_layers is not None and len(looked) > most_layers else []
    total = len(parts) + (most_layers or 0 if looked else 0)
    done = itertools.count(1)

    def advance() -> None:
        if tell:
            tell(next(done), total)

    if looked:
        kept = _worst(examiner.on_first(_LOOK), looked, most_layers or 0, advance)
        parts = [part for part in parts if part.scope != "layer" or part in kept]
    whole = examiner.measure()
    readings = []
    for part in parts:
        readings.append((part, examiner.measure(everything - part.needs), examiner.measure(part.owns)))
        advance()

    of_layers = [(alone, undone) for part, alone, undone in readings if part.scope == "layer"]
    lost = np.array([alone.loss(whole).value for alone, _ in of_layers])
    left = np.array([undone.loss(whole).value for _, undone in of_layers])
    agreement = spearman(lost, -left)

    kind = next(iter(examiner.kinds.values())).name

    def ranked(latencies: Mapping[str, AddedLatency]) -> Blame:
        suspects: list[Suspect] = []
        for scope in SCOPES:
            suspects += _suspects([one for one in readings if one[0].scope == scope], whole, latencies)
        return Blame(layers, kind, examiner.samples, whole.effect, tuple(suspects), agreement)

    found = ranked({})
    return ranked(time(found)) if time else found


def _worst(
    few: Examiner, parts: Sequence[_SuspectNodes], count: int, advance: Callable[[], None]
) -> list[_SuspectNodes]:
    """Return the parts that take away most of the output's loss where each is undone alone."""
    whole, left = few.measure(), {}
    for part in parts:
        left[part.name] = few.measure(part.owns).loss(whole).value
        advance()
    return sorted(parts, key=lambda part: left[part.name])[:count]


def _parts(examiner: Examiner, layers: Sequence[str]) -> Iterator[_SuspectNodes]:
    tensors = examiner.board.tensors
    for layer in layers:
        needs = frozenset(item.tensor for item in tensors if layer in item.layers)
        if needs:
            yield _SuspectNodes("layer", layer, needs, examiner.tensors_of([layer]))
    for branch in dict.fromkeys(item.branch for item in tensors):
        owns = frozenset(item.tensor for item in tensors if item.branch == branch)
        yield _SuspectNodes("branch", branch, owns, owns)
    activations = frozenset(item.tensor for item in tensors if item.kind == "activation")
    stored = frozenset(item.tensor for item in tensors) - activations
    for name, owns in (("weights", stored), ("activations", activations)):
        yield _SuspectNodes("kind", name, owns, owns)


def _suspects(
    readings: Sequence[tuple[_SuspectNodes, PartialResult, PartialResult]],
    whole: PartialResult,
    latencies: Mapping[str, AddedLatency],
) -> list[Suspect]:
    """Rank the parts of one scope by what returning each to float takes away of the output's loss, the most first."""
    loss = whole.loss(whole)
    relief = {part.name: loss - undone.loss(whole) for part, _, undone in readings}
    gain = {
        part.name: undone.metric - whole.metric
        for part, _, undone in readings
        if undone.metric is not None and whole.metric is not None
    }
    ranked, ranked_gain, ranked_per_ms, ranked_gain_per_ms = (
        rank(series) for series in (relief, gain, _per_ms(relief, latencies), _per_ms(gain, latencies))
    )
    suspects = [
        Suspect(
            scope=part.scope,
            name=part.name,
            tensors=tuple(sorted(part.owns)),
            alone=alone.effect,
            undone=undone.effect,
            relief=ranked[part.name],
            gain=ranked_gain.get(part.name),
            latency=latencies.get(part.name),
            relief_per_ms=ranked_per_ms.get(part.name),
            gain_per_ms=ranked_gain_per_ms.get(part.name),
        )
        for part, alone, undone in readings
    ]
    return sorted(suspects, key=lambda suspect: -suspect.relief.value)


def _per_ms(series: Mapping[str, Series], latencies: Mapping[str, AddedLatency]) -> dict[str, Series]:
    costly = {name: latency for name, latency in latencies.items() if latency.told_apart}
    return {name: item * (1 / costly[name].value_ms) for name, item in series.items() if name in costly}
