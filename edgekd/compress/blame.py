"""Which part of a network INT8 breaks: each part is quantized alone, and returned to float alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.qdq_map import list_layers
from edgekd.gram.blame import SCOPES, Blame, Scope, Series, Suspect, rank
from edgekd.gram.stats import spearman

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgekd.compress.partial import Examiner, PartialResult


@dataclass(frozen=True)
class _SuspectNodes:
    """A suspect, the tensors that it needs quantized, and those of them that no other suspect needs."""

    scope: Scope
    name: str
    needs: frozenset[str]
    owns: frozenset[str]


def blame(
    examiner: Examiner,
    time: Callable[[Blame], Mapping[str, float]] | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Blame:
    """Measure each layer, branch and kind of tensor quantized alone, and returned to float alone.

    Args:
        examiner: The network and its samples.
        time: Given the suspects, returns for each that it timed the ms that returning it to float costs, by name.
        tell: Is called with the number of parts measured so far and the number of all.

    Returns:
        The suspects, those whose return to float relieves most drift first.
    """
    layers = list_layers(examiner.floats)
    everything = frozenset(item.tensor for item in examiner.board.tensors)
    parts = list(_parts(examiner, [layer.name for layer in layers]))
    whole = examiner.measure()
    readings = []
    for number, part in enumerate(parts, 1):
        readings.append((part, examiner.measure(everything - part.needs), examiner.measure(part.owns)))
        if tell:
            tell(number, len(parts))

    def ranked(latency_ms: Mapping[str, float]) -> Blame:
        suspects: list[Suspect] = []
        for scope in SCOPES:
            suspects += _suspects([one for one in readings if one[0].scope == scope], whole, latency_ms)
        of_layers = [suspect for suspect in suspects if suspect.scope == "layer"]
        figures = ([s.alone.drift for s in of_layers], [s.relief.value for s in of_layers])
        agreement = spearman(*map(np.array, figures))
        return Blame(layers, examiner.samples, whole.effect, tuple(suspects), agreement)

    found = ranked({})
    return ranked(time(found)) if time else found


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
    latency_ms: Mapping[str, float],
) -> list[Suspect]:
    """Rank the parts of one scope by the drift that returning each to float relieves, the largest first."""
    relief = {part.name: whole.drift - undone.drift for part, _, undone in readings}
    gain = {
        part.name: undone.metric - whole.metric
        for part, _, undone in readings
        if undone.metric is not None and whole.metric is not None
    }
    ranked, ranked_gain, ranked_per_ms, ranked_gain_per_ms = (
        rank(series) for series in (relief, gain, _per_ms(relief, latency_ms), _per_ms(gain, latency_ms))
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
            latency_ms=latency_ms.get(part.name),
            relief_per_ms=ranked_per_ms.get(part.name),
            gain_per_ms=ranked_gain_per_ms.get(part.name),
        )
        for part, alone, undone in readings
    ]
    return sorted(suspects, key=lambda suspect: -suspect.relief.value)


def _per_ms(series: Mapping[str, Series], latency_ms: Mapping[str, float]) -> dict[str, Series]:
    return {name: item * (1 / latency_ms[name]) for name, item in series.items() if latency_ms.get(name, 0) > 0}
