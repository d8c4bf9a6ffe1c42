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
    """Write a graph with only some of its outputs, and without the nodes that nothing needs any more."""
    onnx = need("onnx", "build")
    model = onnx.load(str(source))
    kept = [output for output in model.graph.output if output.name in keep]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    needed = {output.name for output in kept}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    _keep(model.graph.node, lambda node: bool(needed.intersection(node.output)))
    _keep(model.graph.initializer, lambda tensor: tensor.name in needed)
    save(model, target)


def unquantize_outputs(model: Any) -> None:
    """Let each graph output take its float tensor instead of that tensor quantized and dequantized, in place.

    Rounding a graph output costs about 3 dB and saves nothing. Other readers of the tensor keep reading it quantized.
    """
    producer = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        dequantize = producer.get(output.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        float_name = producer[dequantize.input[0]].input[0]
        renamed = {output.name: f"{output.name}_dequantized", float_name: output.name}
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
    _drop_unread(model)


def _drop_unread(model: Any) -> None:
    """Remove nodes whose outputs nobody reads."""
    while True:
        read = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
        before = len(model.graph.node)
        _keep(model.graph.node, lambda node, read=read: any(name in read for name in node.output))
        if len(model.graph.node) == before:
            return


def _keep(repeated: Any, wanted: Any) -> None:
    kept = [item for item in repeated if wanted(item)]
    del repeated[:]
    repeated.extend(kept)
