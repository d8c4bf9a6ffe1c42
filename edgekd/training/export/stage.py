"""Stage: write the teacher, the student and the pruned student as ONNX, and the samples that later stages need.

From here on nothing needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgekd.errors import ModelError
from edgekd.gram.npz import EMBEDDING_PREFIX, INPUT_PREFIX
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import write_arrays
from edgekd.stages.artifacts import CALIBRATION, TEST, Exported, TaskFacts, onnx_name
from edgekd.training.export.onnx import ExportNetwork, write_onnx
from edgekd.training.loop.evaluate import batches, ground_truth
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.config.recipe import ExportConfig
    from edgekd.stages.progress import StageReporter
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Split

_PARITY_SAMPLES = 64


def run(
    task: LoadedTask,
    networks: Mapping[str, ExportNetwork],
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


def _width(networks: Mapping[str, ExportNetwork], inputs: Mapping[str, Tensor]) -> int:
    """Number of logits, which all networks share."""
    network = next(iter(networks.values()))
    with torch.inference_mode(), TappedModel(network.model, network.taps) as tapped:
        return tapped(list(inputs.values()))[0].shape[1]


def _facts(task: LoadedTask, logits: int) -> TaskFacts:
    inputs: list[dict[str, Any]] = [
        {"name": m.name, "dtype": "float32", "shape": ["batch", *m.shape], "preprocessing": m.description}
        for m in task.task.modalities
    ]
    return TaskFacts(task.metric_name, task.higher_is_better, task.class_names(logits), inputs)


def save_samples(split: Split, path: Path) -> None:
    """Write a split's inputs, ids, labels and groups as ``.npz``."""
    known = ground_truth(split)
    columns: dict[str, list[Any]] = {}
    for batch in batches(split):
        for name, x in batch.inputs.items():
            columns.setdefault(INPUT_PREFIX + name, []).append(x.numpy())
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    if known.groups is not None:
        arrays["groups"] = known.groups
    write_arrays(path, {"ids": known.ids, "labels": known.labels, **arrays})


def _parity(network: ExportNetwork, inputs: Mapping[str, Tensor], path: Path) -> float:
    """Return the largest difference, on all inputs and on the first alone: a graph can be right for one batch only."""
    first = {name: x[:1] for name, x in inputs.items()}
    return float(np.max([_difference(network, feeds, path) for feeds in (inputs, first)]))


def _difference(network: ExportNetwork, inputs: Mapping[str, Tensor], path: Path) -> float:
    with torch.inference_mode(), TappedModel(network.model, network.taps) as tapped:
        logits, embeddings = tapped(list(inputs.values()))
    expected = {"logits": logits, **{EMBEDDING_PREFIX + name: z for name, z in embeddings.items()}}
    with open_engine(path) as session:
        found = session.run({name: x.numpy() for name, x in inputs.items()})
    shares = [
        np.abs(found[name] - value.numpy()).max() / max(value.abs().max().item(), 1e-6)
        for name, value in expected.items()
    ]
    return float(np.max(shares))  # NaN stays NaN, which no tolerance allows
