"""What a target starts from where its engine library takes the float network in another form alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekd.compress.equivalents import in_forms
from edgekd.compress.graph import save
from edgekd.files import need
from edgekd.gram.npz import INPUT_PREFIX
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import CALIBRATION, Exported, onnx_name
from edgekd.stages.cache import RECORD
from edgekd.stages.stage import Done, StageSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.config.target import Scheme
    from edgekd.gram.metric import Metric
    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Answer, Probe
    from edgekd.pipeline.source import GivenCandidate, JudgingSplit, Origin, QatStudent
    from edgekd.runtime.corruption import Robustness
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Runner
    from edgekd.stages.trained import PruneAttempt

REFORM: StageSpec[Exported] = StageSpec(
    "reform", 1, Exported, ("onnx", "onnxruntime"), "write the fine-tuned network in the form that the target takes"
)


def write_forms(export: Done[Exported], forms: Sequence[str], folder: Path) -> Exported:
    """Write the graphs of an export in other forms, and its other files as they are, into a folder.

    Args:
        export: The export.
        forms: Names of the forms.
        folder: Folder for the files.
    """
    exported, graphs = export.result, {onnx_name(network) for network in export.result.sizes}
    for path in export.folder.iterdir():
        if path.is_file() and path.name not in (*graphs, RECORD):
            _link(path, folder / path.name)
    with open_arrays(export.folder / CALIBRATION) as arrays:
        sample = {key.removeprefix(INPUT_PREFIX): arrays[key][:1] for key in arrays if key.startswith(INPUT_PREFIX)}
    shapes: dict[str, dict[int, int]] = {}
    for name in graphs:
        written = in_forms(need("onnx", "build").load(str(export.folder / name)), forms, sample)
        save(written, folder / name)
        shapes |= _fixed_sizes(written)
    sizes = {network: (folder / onnx_name(network)).stat().st_size for network in exported.sizes}
    inputs = [
        {**spec, "shape": _shape(spec["shape"], shapes.get(str(spec["name"]), {}))} for spec in exported.facts.inputs
    ]
    return replace(exported, sizes=sizes, facts=replace(exported.facts, inputs=inputs))


def _fixed_sizes(model: ModelProto) -> dict[str, dict[int, int]]:
    """Return for each input of a graph the sizes that are fixed, by dimension."""
    return {
        value.name: {
            axis: size.dim_value
            for axis, size in enumerate(value.type.tensor_type.shape.dim)
            if size.HasField("dim_value")
        }
        for value in model.graph.input
    }


def _shape(stated: str | list[int | str], fixed: Mapping[int, int]) -> str | list[int | str]:
    return stated if isinstance(stated, str) else [fixed.get(axis, size) for axis, size in enumerate(stated)]


def _link(source: Path, target: Path) -> None:
    """Let a file be in another folder too; where the disk has no such links, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class AgreedOrigin:
    """An :class:`~edgekd.pipeline.source.Origin` whose graphs are in the form that a target takes.

    Attributes:
        runner: Runs the stages.
        origin: The origin itself.
        forms: Names of the forms.
        exported: The export in these forms.
    """

    runner: Runner
    origin: Origin
    forms: tuple[str, ...]
    exported: Done[Exported]

    @property
    def name(self) -> str:
        """Name of the task in a bundle."""
        return self.origin.name

    @property
    def network(self) -> str:
        """Name of the network that is to ship."""
        return self.origin.network

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the float networks that the engine is compared with."""
        return self.origin.baselines

    def probes(self, split: JudgingSplit) -> Mapping[str, Probe]:
        """Return the probes of the networks as they were before."""
        return self.origin.probes(split)

    @property
    def given(self) -> GivenCandidate | None:
        """The candidate that a model which is built as it is is: it has no other form."""
        return self.origin.given

    @property
    def metric(self) -> Metric:
        """The task's metric."""
        return self.origin.metric

    def same(self, outputs: Answer, reference: Answer) -> Array:
        """Return the task's own word on which answers changed."""
        return self.origin.same(outputs, reference)

    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Return the histories of the networks that were trained here."""
        return self.origin.histories()

    @property
    def pruning(self) -> tuple[PruneAttempt, ...]:
        """The attempts at pruning the network."""
        return self.origin.pruning

    @property
    def robustness(self) -> Done[Robustness] | None:
        """What losing or spoiling a modality costs the trained networks."""
        return self.origin.robustness

    def fine_tune_for_int8(self, scheme: Scheme) -> QatStudent | None:
        """Fine-tune the network with fake quantization, and write it in the same form."""
        student = self.origin.fine_tune_for_int8(scheme)
        if student is None:
            return None
        export = student.exported

        def run(folder: Path, _report: StageReporter) -> Exported:
            return write_forms(export, self.forms, folder)

        config, inputs = {"forms": list(self.forms)}, {"exported": export.key}
        return replace(student, exported=self.runner(REFORM, config=config, inputs=inputs, run=run))
