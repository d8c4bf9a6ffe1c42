"""Small edits of ONNX graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.files import atomic_path, need

if TYPE_CHECKING:
    from pathlib import Path


def save(model: Any, path: Path) -> None:
    """Check an ONNX model and write it atomically."""
    onnx = need("onnx", "build")
    onnx.checker.check_model(model)
    with atomic_path(path) as temporary:
        onnx.save(model, str(temporary))


def drop_outputs(source: Path, keep: tuple[str, ...], target: Path) -> None:
    """Write a graph with only some of its outputs, and without what nothing needs any more."""
    onnx = need("onnx", "build")
    model = onnx.load(str(source))
    _keep(model.graph.output, lambda output: output.name in keep)
    _drop_unread(model.graph)
    save(model, target)


def unquantize_outputs(model: Any) -> None:
    """Let each graph output take its float tensor instead of that tensor quantized and dequantized, in place.

    Rounding a graph output costs about 3 dB and saves nothing. Other readers of the tensor keep reading it quantized.
    """
    graph = model.graph
    producer = {name: node for node in graph.node for name in node.output}
    fixed = {value.name for value in (*graph.input, *graph.output)}
    for output in graph.output:
        dequantize = producer.get(output.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        source = producer[dequantize.input[0]].input[0]
        _rename(graph, output.name, f"{output.name}_dequantized")
        if source in fixed:  # an input, or another output: its name must stay
            graph.node.append(need("onnx", "build").helper.make_node("Identity", [source], [output.name]))
        else:
            _rename(graph, source, output.name)
            producer[output.name] = producer[source]
    _drop_unread(graph)


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def _drop_unread(graph: Any) -> None:
    """Remove nodes whose outputs nobody needs, and the constants and shapes of what is gone."""
    needed = {output.name for output in graph.output}
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    _keep(graph.node, lambda node: bool(needed.intersection(node.output)))
    _keep(graph.initializer, lambda tensor: tensor.name in needed)
    _keep(graph.value_info, lambda value: value.name in needed)


def _keep(repeated: Any, wanted: Any) -> None:
    kept = [item for item in repeated if wanted(item)]
    del repeated[:]
    repeated.extend(kept)
