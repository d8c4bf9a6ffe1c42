"""Mixed precision: layers of an INT8 network return to float, the one that gains most for its time first."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekd.compress.qdq_map import list_layers
from edgekd.compress.switchboard import restore_float

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onnx import GraphProto, ModelProto

    from edgekd.compress.partial import Examiner, PartialResult
    from edgekd.gram.blame import Effect, Suspect
    from edgekd.gram.verdict import Verdict

#: Largest number of moves that each step measures anew. In a network of many layers most moves are never worth it, and
#: measuring all of them at each step would take time quadratic in the layers.
_LOOKED_AT = 12
#: Steps that are tried where the gate asks for none; the layers that hurt most come first.
_WITHOUT_NEED = 12
#: Harm of the fully quantized network, by definition: its shares are all 1.
ALL_HARM = 1.0
#: Share of the drift in the harm; the rest is the output's. It decides where the output hardly depends on what breaks.
_DRIFT = 0.2
#: Beyond half of the layers, up to this share of them, a repair goes on as long as a step takes this much harm away.
_MOST, _STILL_GAINS = 0.75, 0.05


@dataclass(frozen=True)
class RepairStep:
    """One step of a repair: a layer, or the rest of a branch, returns to float.

    Attributes:
        name: The layer or the branch that this step returned.
        layers: All layers returned so far, in the order of the steps.
        effect: Divergence, drift and metric of the network then, against the float one, on the calibration samples.
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
    examiner: Examiner, judge: Callable[[ModelProto], Verdict], suspects: Sequence[Suspect] = ()
) -> Iterator[RepairStep]:
    """Return layers to float until the gate no longer rejects the graph, or most layers are float.

    Each step returns the layer, or the rest of a branch, that lowers the harm most for its time, given the layers that
    are float already. Errors of layers add up and cancel, so that what one layer gains alone does not hold later; and
    where several layers of a branch clip, none of them alone gains much. Harm is what is left of the fully quantized
    network's loss, as in :meth:`PartialResult.loss`, and, with a small weight, of its drift.

    Args:
        examiner: The network that the gate rejects, on samples that are not the gate's.
        judge: Returns the gate's verdict of a QDQ graph.
        suspects: What the blame found of the same network: which layers are worth to be measured first, and what each
            costs in float. A layer whose time is not known counts as the dearest.

    Yields:
        Each step. The last verdict is "fail" where half of the layers in float do not help, nor more of them.
    """
    layers, quantized = list_layers(examiner.floats), _quantized_layers(examiner)
    already = len(layers) - len(quantized)
    half = len(layers) // 2 + 1
    most = max(half, int(_MOST * len(layers)))
    harm = ALL_HARM
    for step in _steps(examiner, quantized, suspects, [half - already, most - already]):
        if already + len(step.layers) > half and harm - step.harm < _STILL_GAINS:
            return
        judged = replace(step, verdict=judge(step.graph))
        yield judged
        if judged.verdict != "fail":
            return
        harm = step.harm


def spare_steps(examiner: Examiner, suspects: Sequence[Suspect] = ()) -> Iterator[RepairStep]:
    """Return layers to float beyond what the gate asks for, in the same order; the caller decides where to stop.

    Args:
        examiner: The network, on samples that are not the gate's.
        suspects: What the blame found of it, as for :func:`repair_steps`.

    Yields:
        Each step, without a verdict. The last quantized layer stays in INT8.
    """
    layers = _quantized_layers(examiner)
    yield from itertools.islice(_steps(examiner, layers, suspects, [len(layers) - 1]), _WITHOUT_NEED)


def _quantized_layers(examiner: Examiner) -> list[str]:
    return list(dict.fromkeys(layer for item in examiner.board.tensors for layer in item.layers))


def _steps(
    examiner: Examiner, layers: Sequence[str], suspects: Sequence[Suspect], limits: Sequence[int]
) -> Iterator[RepairStep]:
    """Return layers to float, the move of most worth first; none goes beyond a limit as long as one stays within."""
    whole = examiner.measure()
    costs = _Costs(suspects)
    returned: tuple[str, ...] = ()
    harm = _harm(whole.loss(whole).value, whole.effect, whole.effect)
    worths = {
        suspect.name: costs.worth(harm - _harm(1 - suspect.relief.value, suspect.undone, whole.effect), [suspect.name])
        for suspect in suspects
    }
    while True:
        every = list(_moves(examiner, layers, returned))
        within = ([move for move in every if len(returned + move[1]) <= limit] for limit in limits)
        moves = next((moves for moves in within if moves), None)
        if not moves:
            return
        if worths:  # first those of most worth when last measured, until none of the rest was worth more
            moves = sorted(moves, key=lambda move: worths.get(move[0], 0.0), reverse=True)[:_LOOKED_AT]
        measured: list[tuple[float, str, tuple[str, ...], PartialResult]] = []
        for name, added in moves:
            if measured and name in worths and max(move[0] for move in measured) >= worths[name]:
                break
            result = examiner.measure(examiner.tensors_of(returned + added))
            worths[name] = costs.worth(harm - _harm_of(result, whole), added)
            measured.append((worths[name], name, added, result))
        _, name, added, result = max(measured, key=lambda move: move[0])
        returned, harm = returned + added, _harm_of(result, whole)
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


def _harm_of(result: PartialResult, whole: PartialResult) -> float:
    return _harm(result.loss(whole).value, result.effect, whole.effect)


def _harm(loss: float, effect: Effect, whole: Effect) -> float:
    """Return what is left of the harm of the network that is quantized throughout, from what is left of its loss."""
    if not whole.drift:
        return loss if whole.error else ALL_HARM
    drift = effect.drift / whole.drift
    return (1 - _DRIFT) * loss + _DRIFT * drift if whole.error else drift


class _Costs:
    """What layers cost in float, as far as it can be told apart: noise of the timing decides no order."""

    def __init__(self, suspects: Sequence[Suspect]) -> None:
        latencies = {suspect.name: suspect.latency for suspect in suspects if suspect.latency}
        self._ms: dict[str, float] = {}
        level, reach = 0.0, 0.0  # INT8 itself
        for name, latency in sorted(latencies.items(), key=lambda item: item[1].value_ms):
            if latency.low_ms > reach:
                level, reach = latency.value_ms, latency.high_ms
            self._ms[name] = level
        self._dearest = max(self._ms.values(), default=0.0)
        self._typical = statistics.median([ms for ms in self._ms.values() if ms > 0] or [1.0])

    def worth(self, gain: float, names: Sequence[str]) -> float:
        """Return the harm that a move takes away for its time; a useless move is worth what it gains.

        What layers typically cost is added to the time: one that costs nothing would come first, whatever it gains.
        """
        cost_ms = sum(self._ms.get(name, self._dearest) for name in names)
        return gain if gain <= 0 else gain / (self._typical + cost_ms)
