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
from edgekd.training.export.origins import node_origins
from edgekd.training.export.refusal import explain
from edgekd.training.taps.taps import TappedModel, outputs_read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from onnxscript import ir

    from edgekd.config.recipe import Tap
    from edgekd.stages.node_origin import NodeOrigin


#: Path of the user's network in :class:`_WithEmbeddings`.
_PREFIX = "model."


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
    outputs = [*outputs_read(network.taps), *(EMBEDDING_PREFIX + name for name in network.taps)]
    batch = torch.export.Dim("batch", min=1, max=4096)
    # torch prints the graph that it failed on to stderr.
    with TappedModel(network.model, network.taps) as tapped, quiet(), redirect_stderr(StringIO()):
        try:
            program = torch.onnx.export(
                _WithEmbeddings(tapped),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),
                verbose=False,
            )
        except EdgekdError:
            raise
        except Exception as error:  # the user's own code is traced here, and may raise anything
            what = explain(error, network.folder)
            raise ModelError(f"torch cannot export {type(network.model).__name__} to ONNX: {what}") from error
    assert program is not None  # None is what the older exporter returns
    for value in program.model.graph.inputs:
        size = value.shape[0] if value.shape else None
        if isinstance(size, int):
            raise ModelError(
                f"{type(network.model).__name__} works for batches of {size} only: its code fixes the batch, "
                "e.g. by a view() or reshape() to constants; write -1 there"
            )
    _name_layers(program.model)
    origins = node_origins(program.model, _PREFIX, network.folder)
    _strip(program.model)
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)
    return origins


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
