"""Activations of a graph, stage after stage: each node computes once, as far as what is kept between stages fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import initializers, reads
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from onnx import ModelProto, NodeProto
    from onnxruntime import InferenceSession

    from edgekd.runtime.session import Array, Feeds


class Walk:
    """A graph on some samples, computed from one stage's tensors to the next's.

    Between two stages the tensors that later ones need are kept. Where they are too large, the nodes behind those that
    were kept last are computed again instead. Between two stages the caller may change what the graph stores for nodes
    that no stage has needed so far.
    """

    def __init__(
        self, model: ModelProto, samples: Iterable[Feeds], stages: Sequence[Collection[str]], most_bytes: int
    ) -> None:
        """Take what is to be computed.

        Args:
            model: The graph, read anew for each stage.
            samples: The samples in chunks, read again in each stage as long as nothing is kept.
            stages: For each stage the tensors that are wanted; none may depend on one of a later stage.
            most_bytes: Largest size of what is kept.
        """
        self._model, self._samples, self._most_bytes = model, samples, most_bytes
        self._stages = stages
        self._kept: list[dict[str, Array]] = []

    def __iter__(self) -> Iterator[Iterator[dict[str, Array]]]:
        """Yield for each stage its tensors, chunk by chunk; a stage must be read to its end before the next."""
        for index, wanted in enumerate(self._stages):
            yield self._stage(wanted, {name for stage in self._stages[index + 1 :] for name in stage})

    def _stage(self, wanted: Collection[str], later: Collection[str]) -> Iterator[dict[str, Array]]:
        graph = self._model.graph
        known = {*self._kept[0]} if self._kept else {value.name for value in graph.input} - initializers(graph).keys()
        nodes = _nodes_to(wanted, graph.node, known)
        known.update(name for node in nodes for name in node.output if name)
        ahead = _nodes_to(later, graph.node, known)
        needed = known.intersection(later, ()) | known.intersection(name for node in ahead for name in reads(node))
        names = sorted(needed.union(wanted))
        session: InferenceSession | None = None
        kept: list[dict[str, Array]] = []
        left: float = self._most_bytes
        for feeds in self._kept or self._samples:
            values = {name: feeds[name] for name in names if name in feeds}
            computed = [name for name in names if name not in feeds]
            if computed:
                session = session or _open(self._model, nodes, feeds, computed)
                read = {value.name: feeds[value.name] for value in session.get_inputs()}
                values |= zip(computed, session.run(computed, read), strict=True)
            left -= sum(_bytes(values[name]) for name in needed) if left >= 0 else 0
            kept = [*kept, {name: values[name] for name in needed}] if left >= 0 else []
            yield {name: values[name] for name in wanted}
        self._kept = kept or self._kept


def _bytes(value: object) -> float:
    """Return the size of a value; infinity where it is no array, such as a sequence, and cannot be kept."""
    return value.nbytes if isinstance(value, np.ndarray) else float("inf")


def _nodes_to(wanted: Collection[str], nodes: Sequence[NodeProto], known: Collection[str]) -> list[NodeProto]:
    """Return the nodes that compute the wanted tensors from those that are known, in their order."""
    needed = set(wanted).difference(known)
    found = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            found.append(node)
            needed.update(name for name in reads(node) if name not in known)
    return found[::-1]


def _open(
    model: ModelProto, nodes: Sequence[NodeProto], feeds: Mapping[str, Array], outputs: Sequence[str]
) -> InferenceSession:
    """Return an ONNX Runtime session of some nodes, without optimizers, on all cores."""
    onnx, ort = need("onnx", "build"), need("onnxruntime", "build")
    helper, stored = onnx.helper, initializers(model.graph)
    names = dict.fromkeys(name for node in nodes for name in reads(node))
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(feeds[name].dtype), None)
        for name in names
        if name in feeds
    ]
    ends = [helper.make_empty_tensor_value_info(name) for name in outputs]
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    weights = [stored[name] for name in names if name in stored and name not in feeds]
    part.graph.CopyFrom(helper.make_graph(nodes, "stage", inputs, ends, weights))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
