"""Mixed precision: layers of an INT8 network return to float, the one that gains most for its time first."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekd.compress.qdq_map import list_layers
from edgekd.compress.switchboard import restore_float

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from onnx import GraphProto, ModelProto

    from edgekd.compress.partial import Examiner, PartialResult
    from edgekd.gram.blame import Effect
    from edgekd.gram.verdict import Verdict

#: Largest number of moves that each step measures anew. In a network of many layers most moves are never worth it, and
#: measuring all of them at each step would take time quadratic in the layers.
_LOOKED_AT = 12
#: Steps that are tried where the gate asks for none; the layers that hurt most come first.
_WITHOUT_NEED = 12
#: Harm of the fully quantized network, by definition: both of its shares are 1.
ALL_HARM = 2.0


@dataclass(frozen=True)
class RepairStep:
    """One step of a repair: a layer, or the rest of a branch, returns to float.

    Attributes:
        name: The layer or the branch that this step returned.
        layers: All layers returned so far, in the order of the steps.
        effect: Drift, flips and metric of the network then, against the float one, on the calibration samples.
        harm: The harm that is left, as in :func:`repair_steps`; :data:`ALL_HARM` with all layers quantized.
        graph: The QDQ graph after this step.
        verdict: The gate's verdict of it; None where the gate was not asked.
    """

    name: str
    layers: tuple[str, ...]
    effect: Effect
    harm: float
    graph: GraphProto
    verdict: Verdict | None = None


def repair_steps(
    examiner: Examiner, judge: Callable[[ModelProto], Verdict], latency_ms: Mapping[str, float] | None = None
) -> Iterator[RepairStep]:
    """Return layers to float until the gate no longer rejects the graph, or most layers are float.

    Each step returns the layer, or the rest of a branch, that lowers the harm most for its time, given the layers that
    are float already. Errors of layers add up and cancel, so that what one layer gains alone does not hold later; and
    where several layers of a branch clip, none of them alone gains much. Harm is the sum of two shares of the fully
    quantized network's error: its drift, and the RMS error of its logits, since the drift does not see the fusion.

    Args:
        examiner: The network that the gate rejects, on samples that are not the gate's.
        judge: Returns the gate's verdict of a QDQ graph.
        latency_ms: Time in ms that each layer costs in float, by name; a layer that it lacks counts as the dearest.

    Yields:
        Each step. The last verdict is "fail" where more than half of the layers in float do not help.
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
    """Return layers to float beyond what the gate asks for, in the same order; the caller decides where to stop.

    Args:
        examiner: The network, on samples that are not the gate's.
        latency_ms: Time in ms that each layer costs in float, by name; a layer that it lacks counts as the dearest.

    Yields:
        Each step, without a verdict. The last quantized layer stays in INT8.
    """
    layers = _quantized_layers(examiner)
    yield from itertools.islice(_steps(examiner, layers, latency_ms, len(layers) - 1), _WITHOUT_NEED)


def _quantized_layers(examiner: Examiner) -> list[str]:
    return list(dict.fromkeys(layer for item in examiner.board.tensors for layer in item.layers))


def _steps(
    examiner: Examiner, layers: Sequence[str], latency_ms: Mapping[str, float], most: int
) -> Iterator[RepairStep]:
    """Return layers to float, the move of most worth first, until no other fits into ``most`` layers."""
    whole = examiner.measure()
    dearest = max(latency_ms.values(), default=1.0)
    returned: tuple[str, ...] = ()
    harm = _harm(whole, whole)
    worths: dict[str, tuple[float, float]] = {}
    while True:
        moves = [(name, added) for name, added in _moves(examiner, layers, returned) if len(returned + added) <= most]
        if not moves:
            return
        if worths:  # first those of most worth when last measured, until none of the rest was worth more
            moves = sorted(moves, key=lambda move: worths[move[0]], reverse=True)[:_LOOKED_AT]
        measured: list[tuple[tuple[float, float], str, tuple[str, ...], PartialResult]] = []
        for name, added in moves:
            if measured and name in worths and max(move[0] for move in measured) >= worths[name]:
                break
            result = examiner.measure(examiner.tensors_of(returned + added))
            cost_ms = sum(latency_ms.get(layer, dearest) for layer in added)
            worths[name] = _worth(harm - _harm(result, whole), cost_ms)
            measured.append((worths[name], name, added, result))
        _, name, added, result = max(measured, key=lambda move: move[0])
        returned, harm = returned + added, _harm(result, whole)
        graph = restore_float(examiner.qdq, examiner.floats, examiner.tensors_of(returned))
        yield RepairStep(name, returned, result.effect, harm, graph)


def _moves(examiner: Examiner, layers: Sequence[str], returned: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the moves open to one step: each quantized layer, and all quantized layers of each branch together."""
    branches: dict[str, list[str]] = {}
    for layer in list_layers(examiner.floats):
        if layer.name in layers and layer.name not in returned:
            branches.setdefault(layer.branch, []).append(layer.name)
            yield layer.name, (layer.name,)
    for branch, left in branches.items():
        if len(left) > 1:
            yield branch, tuple(left)


def _harm(result: PartialResult, whole: PartialResult) -> float:
    shares = ((result.effect.drift, whole.effect.drift), (result.noise, whole.noise))
    return sum(part / all_of_it for part, all_of_it in shares if all_of_it)


def _worth(gain: float, cost_ms: float) -> tuple[float, float]:
    """Return the sort key of a move: gain per ms, then gain. Moves that cost no time come first, useless ones last."""
    if gain <= 0 or cost_ms > 0:
        return (gain if gain <= 0 else gain / cost_ms), gain
    return math.inf, gain
