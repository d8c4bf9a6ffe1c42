"""Stage: write the teacher, the student and the pruned student as ONNX, and the samples that later stages need.

From here on nothing needs torch.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.errors import ModelError
from edgekd.files import atomic_path, quiet
from edgekd.learn.evaluate import batches, truth
from edgekd.learn.result import CALIBRATION, TEST, Exported, TaskFacts, onnx_name
from edgekd.learn.taps import Tapped
from edgekd.runtime.ort import open_engine
from edgekd.runtime.session import EMBEDDING_PREFIX, INPUT_PREFIX, write_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.learn.task import LoadedTask, Split
    from edgekd.progress import StageReporter
    from edgekd.recipe import ExportConfig, Tap

_PARITY_SAMPLES = 64


@dataclass(frozen=True)
class Network:
    """A network to export, and where its embeddings are."""

    model: nn.Module
    taps: Mapping[str, Tap]


def run(
    task: LoadedTask,
    networks: Mapping[str, Network],
    config: ExportConfig,
    opset: int,
    folder: Path,
    report: StageReporter,
) -> Exported:
    """Export every network into ``folder`` and check it against torch in ONNX Runtime.

    Raises:
        ModelError: torch cannot export a network, or the exported one disagrees with it.
    """
    save_samples(task.splits["test"], folder / TEST)
    save_samples(task.splits["calibration"], folder / CALIBRATION)
    examples = next(iter(batches(task.splits["test"]))).inputs
    inputs = {name: x[:_PARITY_SAMPLES] for name, x in examples.items()}
    parity = {}
    for done, (name, network) in enumerate(networks.items(), 1):
        path = folder / onnx_name(name)
        write_onnx(network, inputs, opset, path)
        parity[name] = _parity(network, inputs, path)
        if not parity[name] <= config.tolerance:
            raise ModelError(
                f"{name}: the exported ONNX differs from torch by {parity[name]:.2g} of the output's magnitude, more "
                f"than export.tolerance = {config.tolerance:g}; see {path}"
            )
        report.advance(done, len(networks), f"{name}: differs from torch by {parity[name]:.1e}")
    return Exported(
        parity,
        {name: (folder / onnx_name(name)).stat().st_size for name in networks},
        _facts(task, _width(networks, inputs)),
    )


def _width(networks: Mapping[str, Network], inputs: Mapping[str, Tensor]) -> int:
    """Number of logits, which all networks share."""
    network = next(iter(networks.values()))
    with torch.inference_mode(), Tapped(network.model, network.taps) as tapped:
        return tapped(list(inputs.values()))[0].shape[1]


def _facts(task: LoadedTask, logits: int) -> TaskFacts:
    inputs: list[dict[str, Any]] = [
        {"name": m.name, "dtype": "float32", "shape": ["batch", *m.shape], "preprocessing": m.description}
        for m in task.task.modalities
    ]
    return TaskFacts(task.metric_name, task.higher_is_better, task.class_names(logits), inputs)


def save_samples(split: Split, path: Path) -> None:
    """Write a split's inputs, ids, labels and groups as ``.npz``."""
    known = truth(split)
    columns: dict[str, list[Any]] = {}
    for batch in batches(split):
        for name, x in batch.inputs.items():
            columns.setdefault(INPUT_PREFIX + name, []).append(x.numpy())
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    if known.groups is not None:
        arrays["groups"] = known.groups
    write_arrays(path, {"ids": known.ids, "labels": known.labels, **arrays})


class _WithEmbeddings(nn.Module):
    """A network whose forward pass returns logits and every embedding."""

    def __init__(self, tapped: Tapped) -> None:
        super().__init__()
        self.model = tapped.model
        self._tapped = tapped

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        logits, embeddings = self._tapped(list(inputs))
        return logits, *embeddings.values()


def write_onnx(network: Network, inputs: Mapping[str, Tensor], opset: int, path: Path) -> None:
    """Export one network with a dynamic batch and the outputs ``logits`` and ``embedding.<modality>``.

    Raises:
        ModelError: torch cannot export it, or not for any number of samples.
    """
    network.model.eval().cpu()
    outputs = ["logits", *(EMBEDDING_PREFIX + name for name in network.taps)]
    batch = torch.export.Dim("batch", min=1, max=4096)
    # torch prints the graph that it failed on to stderr.
    with Tapped(network.model, network.taps) as tapped, quiet(), redirect_stderr(StringIO()):
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
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            # torch's own message is a page of advice for its developers; its cause says what is wrong.
            what = str(error.__cause__ or error).strip().partition("\n")[0]
            raise ModelError(f"torch cannot export {type(network.model).__name__} to ONNX: {what}") from error
    assert program is not None  # None is what the older exporter returns
    for value in program.model.graph.inputs:
        size = value.shape[0] if value.shape else None
        if isinstance(size, int):
            raise ModelError(
                f"{type(network.model).__name__} works for batches of {size} only: its code fixes the batch, "
                "e.g. by a view() or reshape() to constants; write -1 there"
            )
    _strip(program.model)
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)


def _strip(model: Any) -> None:
    """Remove what the exporter notes for debugging: for each node its stack, with lines of source and paths of here.

    A bundle would carry them to every device; in a small INT8 graph they are half of the file.
    """
    graph = model.graph
    nodes = list(graph.all_nodes())
    values = (*graph.inputs, *graph.initializers.values(), *(value for node in nodes for value in node.outputs))
    for noted in (model, graph, *nodes, *values):
        noted.metadata_props.clear()


def _parity(network: Network, inputs: Mapping[str, Tensor], path: Path) -> float:
    """Return the largest difference, on all inputs and on the first alone: a graph can be right for one batch only."""
    first = {name: x[:1] for name, x in inputs.items()}
    return float(np.max([_difference(network, feeds, path) for feeds in (inputs, first)]))


def _difference(network: Network, inputs: Mapping[str, Tensor], path: Path) -> float:
    with torch.inference_mode(), Tapped(network.model, network.taps) as tapped:
        logits, embeddings = tapped(list(inputs.values()))
    expected = {"logits": logits, **{EMBEDDING_PREFIX + name: z for name, z in embeddings.items()}}
    with open_engine(path) as session:
        found = session.run({name: x.numpy() for name, x in inputs.items()})
    shares = [
        np.abs(found[name] - value.numpy()).max() / max(value.abs().max().item(), 1e-6)
        for name, value in expected.items()
    ]
    return float(np.max(shares))  # NaN stays NaN, which no tolerance allows
