"""Stage: write the teacher, the student and the pruned student as ONNX, and the samples that later stages need.

The stages after this one need no torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from torch import Tensor

from edgekd.errors import ModelError
from edgekd.files import write_text
from edgekd.gram.nest import TARGET, flatten
from edgekd.gram.npz import EMBEDDING_PREFIX, INPUT_PREFIX, PRESENT_PREFIX
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import write_arrays
from edgekd.stages.artifacts import (
    CALIBRATION,
    TEST,
    VALIDATION,
    Exported,
    TaskFacts,
    onnx_name,
    origins_name,
    validation_probe,
)
from edgekd.training.export.onnx import write_onnx
from edgekd.training.loop.evaluate import batches, ground_truth, probe
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.config.recipe import ExportConfig
    from edgekd.stages.progress import StageReporter
    from edgekd.training.export.onnx import ExportNetwork
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.modality import Modality
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
        ModelError: Torch cannot export a network that the build needs, or the exported one disagrees with it.
    """
    save_samples(task.splits["test"], folder / TEST)
    save_samples(task.splits["val"], folder / VALIDATION)
    save_samples(task.splits["calibration"], folder / CALIBRATION)
    for name, network in networks.items():
        probe(network.model, network.taps, task.splits["val"]).save(folder / validation_probe(name))
    examples = next(iter(batches(task.splits["test"]))).inputs
    inputs = {name: x[:_PARITY_SAMPLES] for name, x in examples.items()}
    parity: dict[str, float] = {}
    refused: dict[str, str] = {}
    for done, (name, network) in enumerate(networks.items(), 1):
        path = folder / onnx_name(name)
        try:
            parity[name] = _write(replace(network, folder=task.folder), name, inputs, config, opset, path)
        except ModelError as error:
            if not network.optional:
                raise
            path.unlink(missing_ok=True)
            refused[name] = str(error)
            report.warn(f"the {name} is not exported, so it is compared in torch, and not timed: {error}")
            continue
        report.advance(done, len(networks), f"{name}: differs from torch by {parity[name]:.1e}")
    return Exported(
        parity,
        {name: (folder / onnx_name(name)).stat().st_size for name in parity},
        _facts(task, _widths(task, networks, inputs)),
        refused,
    )


def _write(
    network: ExportNetwork, name: str, inputs: Mapping[str, Tensor], config: ExportConfig, opset: int, path: Path
) -> float:
    """Export one network, and return how far it is from torch.

    Raises:
        ModelError: Torch cannot export it, or the exported one disagrees with it.
    """
    origins = write_onnx(network, inputs, opset, path)
    write_text(path.parent / origins_name(name), json.dumps(msgspec.to_builtins(origins)))
    parity = _parity(network, inputs, path)
    if not parity <= config.tolerance:
        raise ModelError(
            f"{name}: the exported ONNX differs from torch by {parity:.2g} of the output's magnitude, more than "
            f"export.tolerance = {config.tolerance:g}; see {path}"
        )
    return parity


def _widths(task: LoadedTask, networks: Mapping[str, ExportNetwork], inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of classes or labels of each output that has such; it is the same for all networks."""
    network = next(iter(networks.values()))
    with torch.inference_mode(), TappedModel(network.model, network.taps) as tapped:
        answers, _ = tapped(list(inputs.values()))
    axes = {name: 1 if kind.name == "multilabel" else kind.class_axis for name, kind in task.outputs.items()}
    return {name: answers[name].shape[axis] for name, axis in axes.items() if axis is not None}


def _facts(task: LoadedTask, widths: Mapping[str, int]) -> TaskFacts:
    inputs: list[dict[str, str | list[int | str]]] = [
        {"name": m.name, "dtype": m.dtype, "shape": ["batch", *m.shape], "preprocessing": m.description}
        for m in task.task.modalities
    ]
    return TaskFacts(
        task.metric_name,
        task.higher_is_better,
        task.outputs,
        {name: task.class_names(name, count) for name, count in widths.items()},
        inputs,
        modalities=task.modalities,
        stand_ins=_stand_ins(task.task.modalities),
        own_same=task.own_same is not None,
    )


def _stand_ins(inputs: Sequence[Modality]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for one in inputs:
        number = one.absent if one.of else one.stand_in
        if number is not None:
            found.setdefault(one.of or one.name, {})[one.name] = number
    return found


def save_samples(split: Split, path: Path) -> None:
    """Write a split's inputs, ids, labels, groups and targets as ``.npz``, and which samples lack a modality."""
    truth = ground_truth(split)
    columns: dict[str, list[NDArray[np.generic]]] = {}
    for batch in batches(split):
        for name, x in batch.inputs.items():
            columns.setdefault(INPUT_PREFIX + name, []).append(x.numpy())
            present = batch.present[name].numpy() > 0 if name in batch.present else np.ones(len(x), bool)
            columns.setdefault(PRESENT_PREFIX + name, []).append(present)
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    for name in [name for name, x in arrays.items() if name.startswith(PRESENT_PREFIX) and x.all()]:
        del arrays[name]
    if truth.groups is not None:
        arrays["groups"] = truth.groups
    if truth.has_targets:
        arrays |= flatten(truth.targets, TARGET)
    write_arrays(path, {"ids": truth.ids, "labels": truth.labels, **arrays})


def _parity(network: ExportNetwork, inputs: Mapping[str, Tensor], path: Path) -> float:
    """Return the largest difference for all inputs and for the first alone: a graph may fit one batch size only."""
    first = {name: x[:1] for name, x in inputs.items()}
    return float(np.max([_difference(network, feeds, path) for feeds in (inputs, first)]))


def _difference(network: ExportNetwork, inputs: Mapping[str, Tensor], path: Path) -> float:
    with torch.inference_mode(), TappedModel(network.model, network.taps) as tapped:
        answers, embeddings = tapped(list(inputs.values()))
    expected = {**answers, **{EMBEDDING_PREFIX + name: z for name, z in embeddings.items()}}
    with open_engine(path, fused=False) as session:
        outputs = session.run({name: x.numpy() for name, x in inputs.items()})
    if any(outputs[name].shape != value.shape for name, value in expected.items()):
        return math.inf
    shares = [
        np.abs(outputs[name] - value.numpy()).max() / max(value.abs().max().item(), 1e-6)
        for name, value in expected.items()
    ]
    return float(np.max(shares))  # NaN stays NaN, which no tolerance allows
