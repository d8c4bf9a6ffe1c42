"""Read where the nodes of an exported graph come from, before the exporter's notes on it are removed."""

from __future__ import annotations

from ast import literal_eval
from typing import TYPE_CHECKING

from edgekd.errors import own_line
from edgekd.stages.node_origin import NodeOrigin

if TYPE_CHECKING:
    from pathlib import Path

    from onnxscript import ir

#: The exporter's notes: paths of the modules around a node, the outermost first, and the call's traceback.
_SCOPES, _STACK = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"


def node_origins(model: ir.Model, prefixes: tuple[str, ...], folder: Path | None) -> dict[str, NodeOrigin]:
    """Return the origin of each node, by its name and by those of its outputs, which some libraries name nodes after.

    Args:
        model: The exported model, with the exporter's notes.
        prefixes: Paths that the user's network may have, with a dot at their ends, which are taken off.
        folder: Folder of the user's files.
    """
    origins = {}
    for node in model.graph.all_nodes():
        # The last is the call itself, which is no module.
        scopes = literal_eval(node.metadata_props.get(_SCOPES, "[]"))[:-1]
        modules = [scope.removeprefix(prefix) for scope in scopes for prefix in prefixes if scope.startswith(prefix)]
        line = own_line(RuntimeError(node.metadata_props.get(_STACK, "")), folder)
        origin = NodeOrigin(modules[-1] if modules else "", line or "")
        for name in (node.name, *(value.name for value in node.outputs)):
            if name and str(origin):
                origins[name] = origin
    return origins
