"""Write one network as ONNX, with its embeddings as outputs."""

from __future__ import annotations

import itertools
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.errors import EdgekdError, ModelError
from edgekd.files import atomic_path, quiet
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.training.export.exportable import exportable
from edgekd.training.export.origins import node_origins
from edgekd.training.export.refusal import explain
from edgekd.training.taps.taps import TappedModel, outputs_read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from onnxscript import ir

    from edgekd.config.recipe import Tap
    from edgekd.stages.node_origin import NodeOrigin


#: Bytes that a file of ONNX can hold beside its nodes.
_LARGEST = 2**31 - 2**24

#: Path of the user's network in :class:`_WithEmbeddings`, and how the exporter names it where it reads code.
_PREFIX, _READ_PREFIX = "model.", "_tapped.model."


@dataclass(frozen=True)
class ExportNetwork:
    """A network to export.

    Attributes:
        model: The network.
        taps: For each modality where its embedding is.
        optional: Whether a build can do without it.
        folder: Folder of the user's files, a line of which an error names; None where there is none.
    """

    model: nn.Module
    taps: Mapping[str, Tap]
    optional: bool = False
    folder: Path | None = None


class _WithEmbeddings(nn.Module):
    """A network whose forward pass returns every output and every embedding."""

    def __init__(self, tapped: TappedModel) -> None:
        super().__init__()
        self.model = tapped.model
        self._tapped = tapped

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        answers, embeddings = self._tapped(list(inputs))
        return *answers.values(), *embeddings.values()


def write_onnx(network: ExportNetwork, inputs: Mapping[str, Tensor], opset: int, path: Path) -> dict[str, NodeOrigin]:
    """Export one network with a dynamic batch and its own outputs and ``embedding.<modality>``.

    Returns:
        The origin of each node, by its name and by those of its outputs.

    Raises:
        ModelError: Torch cannot export it, or not for any number of samples.
    """
    network.model.eval().cpu()
    # torch prints the graph that it failed on to stderr.
    tapping = TappedModel(network.model, network.taps)
    with tapping as tapped, exportable(network.model), quiet(), redirect_stderr(StringIO()):
        program = _export(network, tapped, inputs, opset)
    _name_layers(program.model)
    origins = node_origins(program.model, (_PREFIX, _READ_PREFIX), network.folder)
    _strip(program.model)
    stored = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)
    if stored > _LARGEST:
        raise ModelError(f"{type(network.model).__name__} has {stored / 1e9:.1f} GB of weights; an ONNX file holds 2")
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)
    return origins


def _export(
    network: ExportNetwork, tapped: TappedModel, inputs: Mapping[str, Tensor], opset: int
) -> torch.onnx.ONNXProgram:
    """Run torch's exporter, which runs the user's code; where that fixes the number of samples, the code is read.

    Reading it, which takes some ten times as long, tells that the number ``len(x)`` is the number of samples.

    Raises:
        ModelError: Torch cannot export the network, or not for any number of samples.
    """
    outputs = [*outputs_read(network.taps), *(EMBEDDING_PREFIX + name for name in network.taps)]
    kind, model = type(network.model).__name__, _WithEmbeddings(tapped)
    try:
        program = _run_exporter(model, inputs, outputs, opset)
    except EdgekdError:
        raise
    except Exception as error:  # the user's own code is traced here, and may raise anything
        raise ModelError(f"torch cannot export {kind} to ONNX: {explain(error, network.folder)}") from error
    fixed = _fixed_batch(program)
    if fixed is None:
        return program
    refusal = (
        f"{kind} works for batches of {fixed} only: its code fixes the batch, e.g. by a view() or reshape() to "
        "constants; write -1 there"
    )
    try:
        graph = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=_free_batch(inputs), strict=True)
        program = _run_exporter(graph, inputs, outputs, opset)
    except Exception as error:
        raise ModelError(refusal) from error
    if _fixed_batch(program) is not None:
        raise ModelError(refusal)
    return program


def _run_exporter(
    model: nn.Module | torch.export.ExportedProgram, inputs: Mapping[str, Tensor], outputs: list[str], opset: int
) -> torch.onnx.ONNXProgram:
    program = torch.onnx.export(
        model,
        tuple(inputs.values()),
        dynamo=True,
        opset_version=opset,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=_free_batch(inputs),
        verbose=False,
    )
    assert program is not None  # None is what the older exporter returns
    return program


def _free_batch(inputs: Mapping[str, Tensor]) -> tuple[tuple[dict[int, torch.export.Dim], ...]]:
    batch = torch.export.Dim("batch", min=1, max=4096)
    return (tuple({0: batch} for _ in inputs),)


def _fixed_batch(program: torch.onnx.ONNXProgram) -> int | None:
    """Return the number of samples that a graph is for; None where it is for any number."""
    sizes = [value.shape[0] for value in program.model.graph.inputs if value.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def _strip(model: ir.Model) -> None:
    """Remove the exporter's debugging notes: for each node its stack, with lines of source and this machine's paths.

    Otherwise a bundle would carry them to every device; in a small INT8 graph they are half of the file.
    """
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    nodes = list(graph.all_nodes())
    for node in nodes:
        node.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values(), *(value for node in nodes for value in node.outputs)):
        value.metadata_props.clear()


def _name_layers(model: ir.Model) -> None:
    """Name each node that reads a module's weight after the module's path: the exporter's own names are numbers."""
    suffix = ".weight"  # of torch's layers
    names: set[str] = set()
    for node in model.graph.all_nodes():
        weights = (value.name or "" for value in node.inputs if value is not None and value.is_initializer())
        weight = next((name for name in weights if name.startswith(_PREFIX) and name.endswith(suffix)), None)
        if weight is None:
            continue
        path = weight.removeprefix(_PREFIX).removesuffix(suffix)
        calls = (path if call == 1 else f"{path}:{call}" for call in itertools.count(1))
        node.name = next(name for name in calls if name not in names)
        names.add(node.name)
