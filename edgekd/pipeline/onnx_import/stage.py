"""Read a user's ONNX model and its samples, and write what the stages of a target start from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.compress.graph import save
from edgekd.errors import ModelError
from edgekd.gram.npz import INPUT_PREFIX, answers_of, embeddings_of
from edgekd.gram.probe import Probe
from edgekd.pipeline.onnx_import.answers.facts import as_labelled, has_two_values, read_facts, try_metric
from edgekd.pipeline.onnx_import.batch import free_batch, held_batch
from edgekd.pipeline.onnx_import.file.fixed import fix_inputs, fixed_values, require_fixed, settle_branches
from edgekd.pipeline.onnx_import.file.read import read_model
from edgekd.pipeline.onnx_import.file.trial import require_end
from edgekd.pipeline.onnx_import.inputs import batch_inputs, input_specs, states, unbatched, with_batch
from edgekd.pipeline.onnx_import.outputs import choose_outputs, write_outputs
from edgekd.pipeline.onnx_import.parity import compare
from edgekd.pipeline.onnx_import.samples import NpzSamples, hold_back, read_samples, shared, split
from edgekd.pipeline.onnx_import.source import NETWORK, ImportedModel, OnnxSource
from edgekd.pipeline.onnx_import.states import carry, describe_states, find_states, fix_sizes, keep_constant
from edgekd.pipeline.onnx_import.tail import cut_tail, write_tail
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.manifest import POSTPROCESS
from edgekd.runtime.measure.machine import usable_cores
from edgekd.runtime.sequences import run_feeds, sequences_of
from edgekd.stages.artifacts import CALIBRATION, PROBE, TEST, VALIDATION, Exported, onnx_name, validation_probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.runtime.session import Array, TensorSpec
    from edgekd.stages.progress import StageReporter

#: The most samples that run at a time.
_BATCH = 64


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
    graph, constants = _read_graph(source, notes)
    report.advance(1, 4, f"{len(graph.graph.node)} nodes")
    specs, pairs, held = input_specs(graph, source.model), find_states(graph, source.states), held_batch(graph)
    specs = with_batch(specs) if held else specs
    recurrent = [*pairs, *states(graph)]
    calibration, test = _read(source, specs, recurrent, pairs, seed, notes)
    report.advance(2, 4, f"{len(calibration.ids)} samples to calibrate with, {len(test.ids)} to test")
    held = 0 if unbatched(specs, calibration.inputs) else held
    graph = _with_free_batch(graph, held, specs, calibration, source, notes)
    for samples in (calibration, test):
        require_end(graph, source.model, samples.inputs)
    data = [
        name for name, x in calibration.inputs.items() if x.dtype.kind == "f" and x.ndim > 1 and name not in recurrent
    ]
    fix_sizes(graph, pairs, calibration)
    tail = cut_tail(graph, list(source.outputs), source.taps.values(), calibration, notes)
    outputs = choose_outputs(
        graph, source.taps, list(source.outputs), calibration, data, notes, states=list(pairs.values())
    )
    pairs = keep_constant(pairs, calibration, outputs.example, source.states is not None, notes)
    notes += describe_states(pairs, (calibration, test))
    modalities = write_outputs(graph, outputs, calibration)
    path, behind = folder / onnx_name(source.network), folder / POSTPROCESS if tail else None
    save(graph, path)
    if tail and behind:
        write_tail(tail, outputs.example, behind)
    calibration, test = carry(path, calibration), carry(path, test)
    report.advance(3, 4, f"taps: {', '.join(f'{name} at {tap.tensor}' for name, tap in modalities.items())}")
    parity = compare(source.model, path, behind, calibration, held or 1, constants)
    ranges, chosen, said = hold_back(calibration, seed)
    judging = validation_probe(source.network)
    probes, written = _probe(path, {judging: chosen, PROBE: test}, folder)
    judged = [name for name in outputs.answers if name not in pairs.values() or name in source.outputs]
    found = {name: probes[judging].outputs[name] for name in judged}
    facts, reasons = read_facts(graph, written, source, found, chosen, test, notes)
    inputs = [name for name in data if not has_two_values(calibration.inputs[name])]
    facts = replace(facts, states=pairs, modalities=inputs)
    notes.append(said)
    ranges, chosen, test = as_labelled((ranges, chosen, test), facts, source.metric)
    for samples, name in ((ranges, CALIBRATION), (chosen, VALIDATION), (test, TEST)):
        samples.save(folder / name)
    if source.metric is not None:
        notes += try_metric(source.metric, ((chosen, probes[judging]), (test, probes[PROBE])))
    report.advance(4, 4, f"differs from {source.model.name} by {parity:.1e}")
    for note in notes:
        report.warn(note)
    sizes = {} if source.as_is else {NETWORK: path.stat().st_size}  # as it is, it is timed as what ships alone
    return ImportedModel(Exported({source.network: parity}, sizes, facts), modalities, tuple(notes), reasons)


def _read_graph(source: OnnxSource, notes: list[str]) -> tuple[ModelProto, dict[str, Array]]:
    """Return the model with the inputs that never change as constants, and these."""
    graph = read_model(source.model, source.taps.values(), notes, as_is=source.as_is)
    constants = fixed_values(graph, source.fixed, source.model)
    for path in filter(None, (source.calibration, source.test)):
        require_fixed(path, constants)
    return fix_inputs(graph, constants, source.taps.values()), constants


def _with_free_batch(
    graph: ModelProto,
    held: int,
    specs: Sequence[TensorSpec],
    samples: NpzSamples,
    source: OnnxSource,
    notes: list[str],
) -> ModelProto:
    """Return the model with a batch dimension in every input, of any size where ``held`` says that it was fixed."""
    if held:
        graph = free_batch(graph, held, samples, source.model)
        notes.append(
            f"the model is exported for a batch of {held}; the engine takes any, and gives the same for each sample"
        )
    _batch(graph, specs, samples, notes)
    return settle_branches(graph, samples, source.taps.values(), notes)


def _probe(
    path: Path, samples: Mapping[str, NpzSamples], folder: Path
) -> tuple[dict[str, Probe], tuple[TensorSpec, ...]]:
    """Run the written graph on some samples, each to the file of a name; return what it gives, and its inputs."""
    probes = {}
    with open_engine(path, usable_cores(), fused=False) as session:
        for name, part in samples.items():
            sequences = sequences_of(part.carried, part.groups, len(part.ids)) if part.carried else None
            outputs = run_feeds(session, part.inputs, sequences, _BATCH)
            probes[name] = Probe(part.ids, answers_of(outputs), embeddings_of(outputs))
            probes[name].save(folder / name)
        return probes, session.inputs


def _read(
    source: OnnxSource,
    specs: Sequence[TensorSpec],
    recurrent: Sequence[str],
    pairs: Mapping[str, str],
    seed: int,
    notes: list[str],
) -> tuple[NpzSamples, NpzSamples]:
    """Read the samples of both files, or split those of the first into two halves."""
    calibration, test = source.calibration, source.test
    files = [calibration] if test is None else [calibration, test]
    read = [read_samples(path, specs, recurrent, pairs, metric=source.metric is not None) for path in files]
    if source.metric is not None and all(samples.known is None for samples in read):
        raise ModelError(
            f"{files[-1]}: has nothing that the metric could hold the outputs against: no array 'labels', and none "
            "under a name of your own"
        )
    for path, samples in zip(files, read, strict=True):
        ignored = [name for name in samples.ignored if name.removeprefix(INPUT_PREFIX) not in source.fixed]
        if ignored:
            notes.append(f"{path.name}: the model has no inputs {', '.join(ignored)}; they are ignored")
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


def _batch(graph: ModelProto, specs: Sequence[TensorSpec], samples: NpzSamples, notes: list[str]) -> None:
    """Give every input a batch dimension, in place."""
    single = unbatched(specs, samples.inputs)
    if single:
        notes.append(
            f"input {', '.join(single)} has no dimension for a batch: it was given one, of one sample, and the engine "
            "runs one sample at a time"
        )
    batch_inputs(graph, single, samples.inputs)
