"""Read a user's ONNX model and its samples, and write what the stages of a target start from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgekd.compress.graph import save
from edgekd.config.recipe import OutputConfig
from edgekd.errors import ModelError
from edgekd.gram.npz import answers_of, embeddings_of
from edgekd.gram.probe import Probe
from edgekd.pipeline.onnx_import.batch import free_batch, held_batch
from edgekd.pipeline.onnx_import.inputs import batch_inputs, input_specs, states, unbatched, with_batch
from edgekd.pipeline.onnx_import.kind import settle_kinds
from edgekd.pipeline.onnx_import.outputs import choose_outputs, write_outputs
from edgekd.pipeline.onnx_import.parity import compare
from edgekd.pipeline.onnx_import.read import read_model
from edgekd.pipeline.onnx_import.samples import NpzSamples, hold_back, read_samples, shared, split
from edgekd.pipeline.onnx_import.tail import cut_tail, write_tail
from edgekd.pipeline.onnx_import.taps import TensorTap  # noqa: TC001  # the type of a stage's result is looked up when it is read back
from edgekd.pipeline.onnx_import.trial import require_end
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.manifest import POSTPROCESS
from edgekd.runtime.measure.machine import usable_cores
from edgekd.runtime.session import run_rows
from edgekd.stages.artifacts import (
    CALIBRATION,
    PROBE,
    TEST,
    VALIDATION,
    Exported,
    TaskFacts,
    onnx_name,
    validation_probe,
)
from edgekd.stages.labels import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnx import GraphProto

    from edgekd.runtime.session import Array, TensorSpec
    from edgekd.stages.progress import StageReporter

#: Name of the float graph that is written.
NETWORK = "float"

#: The most samples that run at a time.
_BATCH = 64


@dataclass(frozen=True)
class ImportedModel:
    """An imported model: ``float.onnx`` with its own outputs and the embeddings, its samples, and its probes of them.

    Attributes:
        exported: The export, as of a network that was trained here; ``parity`` is against the user's own file.
        modalities: For each modality where its embedding is read.
        notes: Sentences for the user on how model and samples were read.
    """

    exported: Exported
    modalities: dict[str, TensorTap]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class OnnxSource:
    """A trained model and its samples, as a user names them.

    Attributes:
        model: File of the float ONNX model.
        calibration: ``.npz`` of samples, as :func:`~edgekd.pipeline.onnx_import.samples.read_samples` describes it.
        test: ``.npz`` of other samples; None to keep half of ``calibration`` for the test.
        taps: For each modality the tensor that holds its embedding. Where it is empty, the tensors where the data of
            several float inputs meet; where none do, the model's outputs.
        outputs: The outputs that the engine gives, and what each is; empty for all that are float tensors.
        only: What is said of the output of a network that has one, in place of ``outputs``.
    """

    model: Path
    calibration: Path
    test: Path | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, OutputConfig] = field(default_factory=dict)
    only: OutputConfig | None = None


def import_onnx(source: OnnxSource, folder: Path, report: StageReporter, seed: int = 0) -> ImportedModel:
    """Convert a model and its samples to the form from which the stages of a target start.

    Args:
        source: The model and its samples.
        folder: Folder for the files.
        report: Receives progress and warnings.
        seed: Seed for splitting the samples.

    Raises:
        ModelError: No build can start from the model, or the samples do not fit it.
        TaskError: There is no tensor or output of a name that was given, or it is not a float tensor.
    """
    notes: list[str] = []
    model = source.model
    graph = read_model(model, source.taps.values())
    report.advance(1, 4, f"{len(graph.graph.node)} nodes")
    specs, recurrent, held = input_specs(graph, model), states(graph), held_batch(graph)
    specs = with_batch(specs) if held else specs
    calibration_samples, test_samples = _read(source, specs, recurrent, seed, notes)
    report.advance(2, 4, f"{len(calibration_samples.ids)} samples to calibrate with, {len(test_samples.ids)} to test")
    held = 0 if unbatched(specs, calibration_samples.inputs) else held
    if held:
        graph = free_batch(graph, held, calibration_samples, model)
        notes.append(
            f"the model is exported for a batch of {held}; the engine takes any, and gives the same for each sample"
        )
    _batch(graph, specs, calibration_samples, notes)
    for samples in (calibration_samples, test_samples):
        require_end(graph, model, samples.inputs)
    data = [
        name
        for name, x in calibration_samples.inputs.items()
        if x.dtype.kind == "f" and x.ndim > 1 and name not in recurrent
    ]
    tail = cut_tail(graph, list(source.outputs), source.taps.values(), calibration_samples, notes)
    outputs = choose_outputs(graph, source.taps, list(source.outputs), calibration_samples, data, notes)
    modalities = write_outputs(graph, outputs, calibration_samples)
    path = folder / onnx_name(NETWORK)
    save(graph, path)
    report.advance(3, 4, f"taps: {', '.join(f'{name} at {tap.tensor}' for name, tap in modalities.items())}")
    if tail:
        write_tail(tail, outputs.example, folder / POSTPROCESS)
    parity = compare(model, path, folder / POSTPROCESS if tail else None, calibration_samples, held or 1)
    ranges, chosen, said = hold_back(calibration_samples, seed)
    notes.append(said)
    probes = _probe(path, {validation_probe(NETWORK): chosen, PROBE: test_samples}, folder)
    found = {name: probes[validation_probe(NETWORK)].outputs[name] for name in outputs.answers}
    facts = _facts(path, source, found, (calibration_samples, test_samples), notes)
    facts = replace(facts, modalities=[name for name in data if not _has_two_values(calibration_samples.inputs[name])])
    for samples, name in ((ranges, CALIBRATION), (chosen, VALIDATION), (test_samples, TEST)):
        (samples if facts.classes else samples.without_labels()).save(folder / name)
    report.advance(4, 4, f"differs from {model.name} by {parity:.1e}")
    for note in notes:
        report.warn(note)
    exported = Exported({NETWORK: parity}, {NETWORK: path.stat().st_size}, facts)
    return ImportedModel(exported, modalities, tuple(notes))


def _read(
    source: OnnxSource,
    specs: Sequence[TensorSpec],
    recurrent: Sequence[str],
    seed: int,
    notes: list[str],
) -> tuple[NpzSamples, NpzSamples]:
    """Read the samples of both files, or split those of the first into two halves."""
    calibration, test = source.calibration, source.test
    files = [calibration] if test is None else [calibration, test]
    read = [read_samples(path, specs, recurrent) for path in files]
    for path, samples in zip(files, read, strict=True):
        if samples.ignored:
            notes.append(f"{path.name}: the model has no inputs {', '.join(samples.ignored)}; they are ignored")
    if test is None:
        read = list(split(read[0], seed))
        notes.append(
            f"no test samples were given: of those in {calibration.name}, {len(read[0].ids)} are to calibrate with and "
            f"{len(read[1].ids)} other ones to test"
        )
    calibration_samples, test_samples = read
    for name, x in calibration_samples.inputs.items():
        if x.shape[1:] != test_samples.inputs[name].shape[1:]:
            raise ModelError(
                f"{test}: input '{name}' is {list(x.shape[1:])} a sample in {calibration}, but here "
                f"{list(test_samples.inputs[name].shape[1:])}; the model is checked with the size that it is "
                "calibrated for"
            )
    if twice := shared(test_samples, calibration_samples):
        notes.append(
            f"{twice} of the {len(test_samples.ids)} test samples are calibration samples too: the check is kind to "
            "them"
        )
    return calibration_samples, test_samples


def _batch(graph: GraphProto, specs: Sequence[TensorSpec], samples: NpzSamples, notes: list[str]) -> None:
    """Give every input a batch dimension, in place."""
    single = unbatched(specs, samples.inputs)
    if single:
        notes.append(
            f"input {', '.join(single)} has no dimension for a batch: it was given one, of one sample, and the engine "
            "runs one sample at a time"
        )
    batch_inputs(graph, single, samples.inputs)


def _probe(path: Path, samples: Mapping[str, NpzSamples], folder: Path) -> dict[str, Probe]:
    """Run the written graph on some samples, each to the file of a name, and return what it gives."""
    with open_engine(path, usable_cores(), fused=False) as session:
        probes = {}
        for name, part in samples.items():
            outputs = run_rows(session, part.inputs, _BATCH)
            probes[name] = Probe(part.ids, answers_of(outputs), embeddings_of(outputs))
            probes[name].save(folder / name)
        return probes


def _facts(
    path: Path,
    source: OnnxSource,
    outputs: Mapping[str, Array],
    samples: tuple[NpzSamples, NpzSamples],
    notes: list[str],
) -> TaskFacts:
    """Return facts for later stages.

    Args:
        path: The written graph.
        source: What the user says of it.
        outputs: The written graph's answers for some samples.
        samples: All samples, of which some may have labels.
        notes: Sentences for the user are added here.

    Raises:
        ModelError: An output is not of the kind that the user named, or labels are of no class of the output.
    """
    asked, names = source.outputs, list(outputs)
    if source.only is not None and source.only != OutputConfig():
        if len(names) > 1:
            raise ModelError(
                f"[model] kind and threshold are of the only output, and the model has {', '.join(names)}: say what "
                "each is by outputs in [model], or --output NAME=KIND"
            )
        asked = {names[0]: source.only}
    with open_engine(path, fused=False) as session:
        inputs: list[dict[str, str | list[int | str]]] = [
            {
                "name": spec.name,
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "preprocessing": "as the model takes it",
            }
            for spec in session.inputs
        ]
    labelled = any(part.labels is not None for part in samples)
    kinds, said = settle_kinds(asked, outputs, labelled=labelled)
    notes += said
    classes = {
        name: [str(index) for index in range(outputs[name].shape[1])]
        for name, kind in kinds.items()
        if kind.name == "classes"
    }
    if not classes:
        if labelled:
            what = ", ".join(f"'{kind.name}'" for kind in kinds.values())
            notes.append(f"the labels are not used: the output is {what}, and labels are for 'classes'")
        return TaskFacts("metric", True, kinds, {}, inputs)
    width = len(next(iter(classes.values())))
    for part in samples:
        known = () if part.labels is None else part.labels[part.labels != UNLABELLED]
        wrong = [label for label in known if not 0 <= label < width]
        if wrong:
            raise ModelError(f"'labels' holds {wrong[0]}, but the model has classes 0 to {width - 1} only")
    return TaskFacts("accuracy", True, kinds, classes, inputs)


def _has_two_values(x: Array) -> bool:
    """Whether an input is one of two numbers everywhere, as a mask is."""
    return bool(((x == x.min()) | (x == x.max())).all())
