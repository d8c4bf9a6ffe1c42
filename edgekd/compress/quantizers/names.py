"""Names of a float graph that cannot meet those which quantizers and edgekd make of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgekd.compress.graph import all_nodes, rename
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto

#: What is appended to a tensor's name: by ONNX Runtime's quantizer and calibrator, and by edgekd's own rewrites.
_SUFFIXES = (
    "_quantized", "_scale", "_zero_point", "_QuantizeLinear", "_DequantizeLinear", "_QuantizeLinear_Input",
    "_QuantizeLinear_Output", "_DequantizeLinear_Output", "_ReduceMin", "_ReduceMax", "_ReduceMin_Reshape",
    "_ReduceMax_Reshape", "_dequantized", "_half", "_float", "_cast", ":on", ":scale", ":zero_point",
    ":float", ":rounded", ":changed", ":unread",
)  # fmt: skip
#: What NNCF puts before a tensor's name; it appends a number.
_NUMBERED = re.compile(r"(?:QuantizeLinear|DequantizeLinear|scale|zero_point|q_output|dq_output)_(.+)_\d+")


class Names:
    """The names of a graph's tensors and nodes, with those of graphs inside its nodes.

    Args:
        graph: The graph; what is renamed is renamed in place.
    """

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._nodes = {node.name for node in all_nodes(graph)}
        self._tensors = {name for node in all_nodes(graph) for name in (*node.input, *node.output) if name}
        self._tensors.update(item.name for item in (*graph.input, *graph.output, *graph.initializer))

    def tensor(self, stem: str) -> str:
        """Return a name for a tensor that none has yet and that no quantizer makes, which begins with ``stem``."""
        return _unique(stem, self._tensors)

    def node(self, stem: str) -> str:
        """Return a name for a node that none has yet, which begins with ``stem``."""
        return _unique(stem, self._nodes)

    def name_nodes(self) -> None:
        """Give each node a name of its own that no quantizer gives: they are told by it which ones to leave alone."""
        seen = {""}
        for node in self._graph.node:
            if node.name in seen or not self._tensors.isdisjoint(_stems(node.name)):
                node.name = _unique(node.name or next(filter(None, node.output)), self._nodes)
            seen.add(node.name)

    def vacate(self) -> None:
        """Rename every tensor whose name a quantizer would give to what it makes of another.

        Of two names that users know, inputs or outputs, neither can change: the graph then computes with a copy of the
        tensor, which has another name.
        """
        fixed = {item.name for item in (*self._graph.input, *self._graph.output)}
        tensors = frozenset(self._tensors)
        moved: set[str] = set()
        for name in sorted(tensors):
            for stem in sorted(tensors.intersection(_stems(name))):
                if moved.isdisjoint((name, stem)):
                    mover = stem if name in fixed else name
                    moved.add(mover)
                    (self._copy if mover in fixed else self._rename)(mover)

    def _rename(self, old: str) -> None:
        new = self.tensor(f"{old}_of_model")
        rename(self._graph, old, new)
        for item in (*self._graph.initializer, *self._graph.value_info):
            item.name = new if item.name == old else item.name

    def _copy(self, name: str) -> None:
        copied, is_input = self.tensor(f"{name}_copy"), any(item.name == name for item in self._graph.input)
        rename(self._graph, name, copied)
        ends = (name, copied) if is_input else (copied, name)
        node = need("onnx", "build").helper.make_node("Identity", ends[:1], ends[1:], name=_unique(copied, self._nodes))
        self._graph.node.insert(0 if is_input else len(self._graph.node), node)


def _unique(stem: str, used: set[str]) -> str:
    name = stem
    while name in used or any(True for _ in _stems(name)):
        name += "_"
    used.add(name)
    return name


def _stems(name: str) -> Iterator[str]:
    """Yield each name of which a quantizer could make this one."""
    ahead = [name]
    while ahead:
        made = ahead.pop()
        numbered = _NUMBERED.fullmatch(made)
        stems = [made.removesuffix(suffix) for suffix in _SUFFIXES if made.endswith(suffix)]
        stems += [numbered[1]] if numbered else []
        yield from stems
        ahead += filter(None, stems)
