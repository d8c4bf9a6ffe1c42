"""The oracle of an engine library: it computes what ONNX Runtime computes of the same graph, node by node."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from edgekd.compress.graph import all_nodes, copy, inner_graphs, layer_name, open_at, producers, reads
from edgekd.compress.oracles.deviation import Deviation, deviation, shake, shake_feeds
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from onnx import GraphProto, ModelProto, NodeProto

    from edgekd.compress.oracles.deviation import Arithmetic
    from edgekd.runtime.session import Array, Feeds

    #: Outputs of a graph by name.
    Outputs: TypeAlias = Mapping[str, Array]
    #: Runs a graph and returns its outputs for each batch of the samples.
    Engine: TypeAlias = Callable[[ModelProto], Sequence[Outputs]]

_MISSING = Deviation(math.inf, "is not among the engine's outputs")
#: How often the network is shaken.
_SHAKES = 2
#: How many places of a graph are looked at in one run of the engine.
_CUTS = 6
#: How many nodes are compared one by one in one run of the engine.
_NODES = 48

#: Operators whose values are computed at the magnitude 1, however small they are, and operators that only move values.
_OF_ONE = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Erf", "Sin", "Cos"})
_MOVES = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Concat", "Identity", "Gather", "Split",
     "ReduceMean", "GlobalAveragePool", "Expand", "Pad"}
)  # fmt: skip


@dataclass(frozen=True)
class EngineFault:
    """What of a graph an engine computes otherwise.

    Attributes:
        node: Name of the first node that differs.
        operator: The node's operator.
        reads: The tensors that it reads, each with type and shape, in words.
        reason: How its result differs, as the end of a sentence that begins with the tensor.
        wrong: Whether the node is wrong by itself: given the engine's own inputs, ONNX Runtime computes something else.
            If not, the node turns rounding into another answer, as an ArgMax of two equal numbers does.
        joined: Whether the difference goes away as soon as the tensors about the node are asked for: the engine joins
            the node with others, and the node alone is right.
    """

    node: str
    operator: str
    reads: str
    reason: str
    wrong: bool
    joined: bool = False

    def __str__(self) -> str:
        """Name the node, and say what differs."""
        read = f" of {self.reads}" if self.reads else ""
        return f"node '{self.node}' ({self.operator}){read}: {self.reason}"


@dataclass(frozen=True)
class EngineTrial:
    """An engine library beside ONNX Runtime, on the same few samples.

    Attributes:
        engine: Runs a graph in the library.
        batches: The samples, in batches as the engine takes them.
        arithmetic: The type in which the engine computes.
    """

    engine: Engine
    batches: Sequence[Feeds]
    arithmetic: Arithmetic = "f32"

    def deviations(self, model: ModelProto, original: ModelProto | None = None) -> dict[str, Deviation]:
        """Return for each output of a graph how the engine differs, in the batch in which it does so most.

        Args:
            model: The graph that the engine is given.
            original: The graph that ONNX Runtime is given, of which the other is another form; None for the same.

        Raises:
            ModelError: The engine does not run the graph.
        """
        found, model = self.engine(model), original or model
        names = [value.name for value in model.graph.output]
        exact = self._exact(model, names)
        seen = self._worst(model, found, exact, ())
        if not any(deviation.reason for deviation in seen.values()):
            return seen
        shaken = [self._exact(shake(model, self.arithmetic, seed), names, seed) for seed in range(_SHAKES)]
        return self._worst(model, found, exact, shaken)

    def _worst(
        self, model: ModelProto, found: Sequence[Outputs], exact: Sequence[Outputs], shaken: Sequence[Sequence[Outputs]]
    ) -> dict[str, Deviation]:
        """Return the deviation of each output in the batch in which it is largest."""
        made = producers(model.graph)
        worst: dict[str, Deviation] = {}
        for index, outputs in enumerate(found):
            for name, values in exact[index].items():
                here = _MISSING
                if name in outputs:
                    noisy = [run[index][name] for run in shaken]
                    here = deviation(outputs[name], values, noisy, self.arithmetic, _least(made, name))
                before = worst.get(name)
                if before is None or (bool(here.reason), here.share) > (bool(before.reason), before.share):
                    worst[name] = here
        return worst

    def _exact(self, model: ModelProto, names: Sequence[str], noise: int | None = None) -> list[Outputs]:
        session = open_at(model, names)
        taken = {value.name for value in session.get_inputs()}
        runs: list[Outputs] = []
        for batch in self.batches:
            feeds = batch if noise is None else shake_feeds(batch, self.arithmetic, noise)
            runs.append(
                dict(zip(names, session.run(names, {key: x for key, x in feeds.items() if key in taken}), strict=True))
            )
        return runs


def _least(made: Mapping[str, NodeProto], tensor: str) -> float:
    """Return the magnitude that a tensor was computed at, however small its values are; 0 where nothing says."""
    node = made.get(tensor)
    while node is not None and node.op_type in _MOVES:
        node = next((made[name] for name in node.input if name in made), None)
    return 1.0 if node is not None and node.op_type in _OF_ONE else 0.0


def locate(trial: EngineTrial, model: ModelProto) -> EngineFault | None:
    """Return the first node of a graph that an engine computes otherwise than ONNX Runtime; None where none is found.

    What differs at a node reaches what is read from it, so of the tensors between two parts of the graph one differs
    from the first such node on: that is searched by halves, in the graph's own order.

    Args:
        trial: The engine, and the samples.
        model: The graph, whose nodes are in order, of which an output differs.

    Raises:
        ModelError: The engine does not run the graph.
    """
    search = _NodeSearch(trial, model)
    index, joined = search.first()
    if index is None:
        return None
    fault = search.fault_at(index, joined)
    if fault.wrong or joined:
        return fault
    return search.first_wrong() or fault


class _NodeSearch:
    """The search for a node, in one graph."""

    def __init__(self, trial: EngineTrial, model: ModelProto) -> None:
        self._trial = trial
        self._model = model
        self._nodes = list(model.graph.node)
        self._outputs = [value.name for value in model.graph.output]

    @cached_property
    def _types(self) -> dict[str, int]:
        """The ONNX types of the tensors that can be made outputs, by name."""
        types = need("onnx", "build").TensorProto
        known = {
            "tensor(float)": types.FLOAT, "tensor(double)": types.DOUBLE, "tensor(float16)": types.FLOAT16,
            "tensor(bool)": types.BOOL, "tensor(int32)": types.INT32, "tensor(int64)": types.INT64,
            "tensor(int8)": types.INT8, "tensor(uint8)": types.UINT8,
        }  # fmt: skip
        made = [name for node in self._nodes for name in node.output if name]
        return {
            value.name: known[value.type] for value in open_at(self._model, made).get_outputs() if value.type in known
        }

    def _live(self, index: int) -> list[str]:
        """Return the tensors that nodes up to one make, and later ones, or the user, read."""
        later = {name for node in self._nodes[index + 1 :] for name in reads(node)} | set(self._outputs)
        made = (name for node in self._nodes[: index + 1] for name in node.output)
        return [name for name in made if name in later and name in self._types]

    def _expose(self, names: Iterable[str]) -> ModelProto:
        helper = need("onnx", "build").helper
        exposed = copy(self._model)
        wanted = [name for name in dict.fromkeys(names) if name in self._types and name not in self._outputs]
        exposed.graph.output.extend(helper.make_tensor_value_info(name, self._types[name], None) for name in wanted)
        return exposed

    def first(self) -> tuple[int | None, bool]:
        """Return the place of the first node that differs, and whether looking at it makes the difference go away."""
        right, wrong = -1, len(self._nodes) - 1
        while wrong - right > 1:
            inner = range(right + 1, wrong)
            step = max(1, len(inner) // _CUTS)
            places = list(inner)[step - 1 :: step]
            live = {place: self._live(place) for place in places}
            seen = self._trial.deviations(self._expose(name for names in live.values() for name in names))
            differing = next((place for place, names in live.items() if any(seen[name].reason for name in names)), None)
            if differing is None and not any(seen[name].reason for name in self._outputs):
                return self._joined(live, wrong), True
            right = max((place for place in places if differing is None or place < differing), default=right)
            wrong = differing if differing is not None else wrong
        return wrong, False

    def _joined(self, live: Mapping[int, Sequence[str]], last: int) -> int:
        """Return the place of the node whose result, asked for alone, makes the difference go away; else the last."""
        makers = {name: place for place, node in enumerate(self._nodes) for name in node.output}
        for names in live.values():
            if self._agrees_with(names):
                alone = (name for name in names if len(names) > 1 and self._agrees_with([name]))
                return makers[next(alone, names[-1])]
        return last

    def _agrees_with(self, names: Sequence[str]) -> bool:
        """Whether the outputs agree where some tensors are asked for, too."""
        seen = self._trial.deviations(self._expose(names))
        return not any(seen[name].reason for name in self._outputs)

    def fault_at(self, index: int, joined: bool) -> EngineFault:
        """Describe the difference at a node."""
        node = self._nodes[index]
        if joined:
            reason = "the outputs differ, and no longer where its result is asked for: it is joined with what follows"
            return EngineFault(layer_name(node), node.op_type, "", reason, wrong=True, joined=True)
        faults = self._faults([node])
        seen = self._trial.deviations(self._expose(node.output))
        reason = next(f"'{name}' {seen[name].reason}" for name in node.output if name in seen and seen[name].reason)
        return faults[0] if faults else EngineFault(layer_name(node), node.op_type, "", reason, wrong=False)

    def first_wrong(self) -> EngineFault | None:
        """Return the first node that is wrong by itself, whatever rounding does to others; None where none is."""
        for start in range(0, len(self._nodes), _NODES):
            faults = self._faults(self._nodes[start : start + _NODES])
            if faults:
                return faults[0]
        return None

    def _faults(self, nodes: Sequence[NodeProto]) -> list[EngineFault]:
        """Return which of some nodes are wrong by themselves, given the engine's own inputs."""
        names = [name for node in nodes for name in (*reads(node), *node.output)]
        found = self._trial.engine(self._expose(names))
        faults = []
        for node in nodes:
            for feeds, outputs in zip(self._trial.batches, found, strict=True):
                fault = self._fault_of(node, {**feeds, **outputs})
                if fault:
                    faults.append(fault)
                    break
        return faults

    def _fault_of(self, node: NodeProto, values: Mapping[str, Array]) -> EngineFault | None:
        alone = self._alone(node, values)
        if alone is None:
            return None
        outputs = [name for name in node.output if name in values]
        session = open_at(alone, outputs)
        taken = [value.name for value in session.get_inputs()]
        exact = session.run(outputs, {name: values[name] for name in taken})
        least = _least(producers(self._model.graph), outputs[0])
        for name, expected in zip(outputs, exact, strict=True):
            here = deviation(values[name], expected, (), self._trial.arithmetic, least)
            if here.reason:
                described = (f"'{read}' {values[read].dtype} {list(values[read].shape)}" for read in taken)
                text = f"'{name}' {here.reason}"
                return EngineFault(layer_name(node), node.op_type, ", ".join(described), text, wrong=True)
        return None

    def _alone(self, node: NodeProto, values: Mapping[str, Array]) -> ModelProto | None:
        """Return a graph of one node; None where a value that it reads, or its result, is not at hand."""
        helper = need("onnx", "build").helper
        stored = [tensor for tensor in self._model.graph.initializer if tensor.name in reads(node)]
        constant = {tensor.name for tensor in stored}
        read = [name for name in dict.fromkeys(reads(node)) if name not in constant and name not in _inner(node)]
        if not any(name in values for name in node.output) or any(name not in values for name in read):
            return None
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape)
            for name in read
        ]
        graph: GraphProto = helper.make_graph([node], "alone", inputs, [], stored)
        alone: ModelProto = copy(self._model)
        alone.graph.CopyFrom(graph)
        return alone


def _inner(node: NodeProto) -> set[str]:
    """Return the names of the tensors that graphs inside a node make themselves."""
    names: set[str] = set()
    for graph in inner_graphs(node):
        names.update(value.name for value in graph.input)
        names.update(tensor.name for tensor in graph.initializer)
        names.update(name for deep in all_nodes(graph) for name in deep.output)
    return names
