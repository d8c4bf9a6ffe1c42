"""Return layers of an INT8 network to float, the one that mends most for its time first."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgekd.compress.qdq_map import list_layers
from edgekd.compress.switchboard import undo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgekd.compress.partial import Examiner, PartialResult
    from edgekd.gram.blame import Effect
    from edgekd.gram.gate import Verdict

#: Moves that each step measures anew at most: in a network of many layers most are never worth it, and measuring all of
#: them at each step takes time quadratic in the layers.
_LOOKED_AT = 12
#: Steps that are looked at where the gate asks for none: what hurts most comes first.
_WITHOUT_NEED = 12
#: Harm of a network that is quantized throughout: two shares of what it has itself.
ALL_HARM = 2.0


@dataclass(frozen=True)
class RepairStep:
    """One layer more in float, or what is left of a branch.

    Attributes:
        name: the layer or the branch.
        layers: those returned so far, in the order of the steps.
        effect: what the network then is on the calibration samples, against the float one.
        harm: as in :func:`repair_steps`; :data:`ALL_HARM` with all quantized.
        graph: its QDQ ``ModelProto``.
        verdict: the gate's; None where nobody asked.
    """

    name: str
    layers: tuple[str, ...]
    effect: Effect
    harm: float
    graph: Any
    verdict: Verdict | None = None


def repair_steps(
    examiner: Examiner, judge: Callable[[Any], Verdict], latency_ms: Mapping[str, float] | None = None
) -> Iterator[RepairStep]:
    """Return layers to float until the gate no longer rejects the graph, or most layers are float.

    Each step returns the layer, or all that is left of a branch, that mends most for its time, given what is float by
    then: errors of layers add up and cancel, so what was found for one alone does not hold later, and where several
    layers of a branch clip, none of them alone mends much. What is mended is harm, the sum of two shares of what the
    network has with all quantized: that of the drift, and that of the logits' RMS error, since the drift does not see
    the fusion.

    Args:
        examiner: the network that the gate rejects, on samples that are not the gate's.
        judge: what the gate says of a QDQ graph.
        latency_ms: for layers by name how much time each costs in float; one that it lacks counts as the dearest.

    Yields:
        Each step. The last one's verdict is "fail" where more than half of the layers in float do not help.
    """
    layers, quantized = list_layers(examiner.floats), _quantized_layers(examiner)
    already = len(layers) - len(quantized)
    most = len(layers) // 2 + 1 - already
    for step in _steps(examiner, quantized, latency_ms or {}, most):
        judged = replace(step, verdict=judge(step.graph))
        yield judged
        if judged.verdict != "fail":
            return


def spare_steps(examiner: Examiner, latency_ms: Mapping[str, float]) -> Iterator[RepairStep]:
    """Return layers to float that nobody asks for, in the same order: the caller decides how far that is worth it.

    Args:
        examiner: the network, on samples that are not the gate's.
        latency_ms: for layers by name how much time each costs in float; one that it lacks counts as the dearest.

    Yields:
        Each step, not judged. The last quantized layer stays.
    """
    layers = _quantized_layers(examiner)
    yield from itertools.islice(_steps(examiner, layers, latency_ms, len(layers) - 1), _WITHOUT_NEED)


def _quantized_layers(examiner: Examiner) -> list[str]:
    return list(dict.fromkeys(layer for item in examiner.board.tensors for layer in item.layers))


def _steps(
    examiner: Examiner, layers: Sequence[str], latency_ms: Mapping[str, float], most: int
) -> Iterator[RepairStep]:
    """Return layers to float, the worthiest move first, until no other fits into ``most`` layers."""
    whole = examiner.measure()
    dearest = max(latency_ms.values(), default=1.0)
    returned: tuple[str, ...] = ()
    harm = _harm(whole, whole)
    worths: dict[str, tuple[float, float]] = {}
    while True:
        moves = [(name, added) for name, added in _moves(examiner, layers, returned) if len(returned + added) <= most]
        if not moves:
            return
        if worths:  # those that were worth most when they were last measured, until none left was worth more
            moves = sorted(moves, key=lambda move: worths[move[0]], reverse=True)[:_LOOKED_AT]
        found: list[tuple[tuple[float, float], str, tuple[str, ...], PartialResult]] = []
        for name, added in moves:
            if found and name in worths and max(move[0] for move in found) >= worths[name]:
                break
            reading = examiner.measure(examiner.tensors_of(returned + added))
            cost_ms = sum(latency_ms.get(layer, dearest) for layer in added)
            worths[name] = _worth(harm - _harm(reading, whole), cost_ms)
            found.append((worths[name], name, added, reading))
        _, name, added, reading = max(found, key=lambda move: move[0])
        returned, harm = returned + added, _harm(reading, whole)
        graph = undo(examiner.qdq, examiner.floats, examiner.tensors_of(returned))
        yield RepairStep(name, returned, reading.effect, harm, graph)


def _moves(examiner: Examiner, layers: Sequence[str], returned: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what one step may return: each layer, and of each branch all layers that are left."""
    branches: dict[str, list[str]] = {}
    for layer in list_layers(examiner.floats):
        if layer.name in layers and layer.name not in returned:
            branches.setdefault(layer.branch, []).append(layer.name)
            yield layer.name, (layer.name,)
    for branch, left in branches.items():
        if len(left) > 1:
            yield branch, tuple(left)


def _harm(reading: PartialResult, whole: PartialResult) -> float:
    shares = ((reading.effect.drift, whole.effect.drift), (reading.noise, whole.noise))
    return sum(part / all_of_it for part, all_of_it in shares if all_of_it)


def _worth(gain: float, cost_ms: float) -> tuple[float, float]:
    """Return what orders layers: gain per time, of those that cost none the gain; one that gains nothing is last."""
    if gain <= 0 or cost_ms > 0:
        return (gain if gain <= 0 else gain / cost_ms), gain
    return math.inf, gain
