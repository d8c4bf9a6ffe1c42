"""Read a user's ONNX model and its samples, and write what the stages of a target start from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.candidate import Candidate  # noqa: TC001  # the type of a stage's result, too
from edgekd.compress.graph import save
from edgekd.config.recipe import OutputConfig
from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.gram.gate import GIVEN
from edgekd.gram.nest import take_rows
from edgekd.gram.probe import answer_of
from edgekd.pipeline.onnx_import.graph import keep_tensors
from edgekd.pipeline.onnx_import.inputs import batch_inputs, input_specs, states, unbatched
from edgekd.pipeline.onnx_import.kind import settle_kinds
from edgekd.pipeline.onnx_import.last_operator import last_operators
from edgekd.pipeline.onnx_import.observe import observe
from edgekd.pipeline.onnx_import.outputs import choose_outputs, write_outputs
from edgekd.pipeline.onnx_import.read import read_model
from edgekd.pipeline.onnx_import.samples import NpzSamples, hold_back, read_samples, shared, split
from edgekd.pipeline.onnx_import.single import has_half
from edgekd.pipeline.onnx_import.taps import TensorTap  # noqa: TC001  # the type of a stage's result is looked up when it is read back
from edgekd.pipeline.onnx_import.trial import require_end
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import run_rows
from edgekd.stages.artifacts import CALIBRATION, TEST, VALIDATION, Exported, TaskFacts, onnx_name
from edgekd.stages.labels import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnx import GraphProto

    from edgekd.pipeline.onnx_import.own_metric import OwnMetric
    from edgekd.runtime.session import Array, TensorSpec
    from edgekd.stages.progress import StageReporter

#: Name of the float graph that is written.
NETWORK = "float"

#: Name of the candidate that a model is which stays as it is, and of the folder of its graphs.
AS_IS = "as-is"

#: Largest |written - user's| that is allowed, as a share of the output's largest magnitude.
_TOLERANCE = 1e-3

#: The same where the user's model rounds all that it computes to float16.
_HALF_TOLERANCE = 0.05

#: The most samples by which the output's kind is told, and how many of them run at a time.
_LOOKED_AT, _BATCH = 256, 64


@dataclass(frozen=True)
class ImportedModel:
    """An imported model: ``float.onnx`` with its own outputs and the embeddings, ``test.npz`` and ``calibration.npz``.

    Attributes:
        exported: The export, as of a network that was trained here; ``parity`` is against the user's own file.
        modalities: For each modality where its embedding is read.
        notes: Sentences for the user on how model and samples were read.
        reasons: Why each output is taken for its kind, as a phrase.
        given: The candidate that a model which stays as it is is; None for a model that is quantized here.
        deploy_logit_error: Largest |difference| of an output between the two variants of that candidate.
    """

    exported: Exported
    modalities: dict[str, TensorTap]
    notes: tuple[str, ...]
    reasons: dict[str, str]
    given: Candidate | None = None
    deploy_logit_error: float = 0.0


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
        metric: The user's own metric; None to measure the accuracy, where there are labels of classes.
        as_is: Whether the model stays in its own precision, which may be of integers.
    """

    model: Path
    calibration: Path
    test: Path | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, OutputConfig] = field(default_factory=dict)
    only: OutputConfig | None = None
    metric: OwnMetric | None = None
    as_is: bool = False

    @property
    def network(self) -> str:
        """Name of the graph that is written, as the ledger's row of it is called."""
        return GIVEN if self.as_is else NETWORK


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
    graph = read_model(model, source.taps.values(), notes, as_is=source.as_is)
    report.advance(1, 4, f"{len(graph.graph.node)} nodes")
    specs, recurrent = input_specs(graph, model), states(graph)
    calibration_samples, test_samples = _read(source, specs, recurrent, seed, notes)
    report.advance(2, 4, f"{len(calibration_samples.ids)} samples to calibrate with, {len(test_samples.ids)} to test")
    _batch(graph, specs, calibration_samples, notes)
    for samples in (calibration_samples, test_samples):
        require_end(graph, model, samples.inputs)
    data = [
        name
        for name, x in calibration_samples.inputs.items()
        if x.dtype.kind == "f" and x.ndim > 1 and name not in recurrent
    ]
    outputs = choose_outputs(graph, source.taps, list(source.outputs), calibration_samples, data, notes)
    modalities = write_outputs(graph, outputs, calibration_samples)
    path = folder / onnx_name(source.network)
    save(graph, path)
    report.advance(3, 4, f"taps: {', '.join(f'{name} at {tap.tensor}' for name, tap in modalities.items())}")
    parity = _parity(model, path, outputs.answers, calibration_samples)
    facts, reasons = _facts(path, source, outputs.answers, (calibration_samples, test_samples), notes)
    facts = replace(facts, modalities=[name for name in data if not _has_two_values(calibration_samples.inputs[name])])
    calibration_samples, test_samples = _as_labelled((calibration_samples, test_samples), facts, source.metric)
    if source.metric is not None:
        _try_metric(source.metric, path, outputs.answers, (calibration_samples, test_samples))
    ranges, chosen, said = hold_back(calibration_samples, seed)
    notes.append(said)
    ranges.save(folder / CALIBRATION)
    chosen.save(folder / VALIDATION)
    test_samples.save(folder / TEST)
    report.advance(4, 4, f"differs from {model.name} by {parity:.1e}")
    for note in notes:
        report.warn(note)
    sizes = {} if source.as_is else {NETWORK: path.stat().st_size}  # as it is, it is timed as what ships alone
    exported = Exported({source.network: parity}, sizes, facts)
    return ImportedModel(exported, modalities, tuple(notes), reasons)


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
    read = [read_samples(path, specs, recurrent, metric=source.metric is not None) for path in files]
    if source.metric is not None and all(samples.known is None for samples in read):
        raise ModelError(
            f"{files[-1]}: has nothing that the metric could hold the outputs against: no array 'labels', and none "
            "under a name of your own"
        )
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


def _parity(model: Path, path: Path, names: Sequence[str], samples: NpzSamples) -> float:
    """Return the largest |written - user's| of the first sample, as a share of the output's largest magnitude.

    Raises:
        ModelError: An output is empty or not finite, or they disagree: edgekd has altered what the model computes.
    """
    original = need("onnx", "build").load(str(model))
    keep_tensors(original.graph)
    specs = input_specs(original, model)
    single = unbatched(specs, samples.inputs)
    feeds = {name: np.asarray(x[0]) if name in single else x[:1] for name, x in samples.inputs.items()}
    tolerance = _HALF_TOLERANCE if has_half(original.graph) else _TOLERANCE
    exact = observe(original, names, feeds)
    with open_engine(path, fused=False) as session:
        found = session.run(samples.first(1))
    parities = []
    for name, expected in exact.items():
        if not (np.isfinite(expected).all() and expected.size):
            what = "is empty" if not expected.size else "is not finite"
            raise ModelError(
                f"{model}: its output '{name}' {what} for the first sample, so there is nothing to compare; --output "
                "names those that matter"
            )
        written = found[name].reshape(expected.shape).astype(np.float64)
        parity = float(np.abs(written - expected).max()) / max(float(np.abs(expected.astype(np.float64)).max()), 1e-6)
        if not parity <= tolerance:
            raise ModelError(
                f"{model}: as edgekd wrote it, at {path}, it gives another result for the first sample: '{name}' "
                f"differs by {parity:.2g} of its magnitude"
            )
        parities.append(parity)
    return max(parities)


def _facts(
    path: Path, source: OnnxSource, names: Sequence[str], samples: tuple[NpzSamples, NpzSamples], notes: list[str]
) -> tuple[TaskFacts, dict[str, str]]:
    """Return facts for later stages, and why each output is taken for its kind.

    Raises:
        ModelError: An output is not of the kind that the user named, or labels are of no class of the output.
    """
    asked = source.outputs
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
        found = run_rows(session, samples[0].first(_LOOKED_AT), _BATCH)
    labelled = any(part.labels is not None for part in samples)
    outputs = {name: found[name] for name in names}
    last = last_operators(need("onnx", "build").load(str(path)).graph)
    settled = settle_kinds(asked, outputs, last, samples[0].first_labels(_LOOKED_AT) if labelled else None)
    kinds, reasons = settled.kinds, settled.reasons
    notes += settled.notes
    classes = {
        name: [str(index) for index in range(outputs[name].shape[1])]
        for name, kind in kinds.items()
        if kind.name == "classes"
    }
    if labelled and not classes and source.metric is None:
        what = ", ".join(f"'{kind.name}'" for kind in kinds.values())
        notes.append(f"the labels are not used: the output is {what}, and labels are for 'classes'")
    metric = source.metric
    default = "accuracy" if classes else "metric"
    name, better = (metric.name, metric.higher_is_better) if metric else (default, True)
    return TaskFacts(name, better, kinds, classes, inputs), reasons


def _as_labelled(
    samples: tuple[NpzSamples, NpzSamples], facts: TaskFacts, metric: OwnMetric | None
) -> tuple[NpzSamples, ...]:
    """Return samples with labels only where they are of an output's classes; a metric of one's own gets others.

    Raises:
        ModelError: They are of no class of the output, and there is no such metric.
    """
    width = len(next(iter(facts.classes.values()), ()))
    for part in samples if width else ():
        known = () if part.labels is None else part.labels[part.labels != UNLABELLED]
        wrong = next((label for label in known if not 0 <= label < width), None)
        if wrong is not None and metric is None:
            raise ModelError(f"'labels' holds {wrong}, but the model has classes 0 to {width - 1} only")
        width = width if wrong is None else 0
    return samples if width else tuple(part.without_labels(metric is not None) for part in samples)


def _try_metric(metric: OwnMetric, path: Path, names: Sequence[str], samples: Sequence[NpzSamples]) -> None:
    """Compute the user's own metric of a few samples, before anything takes long.

    Raises:
        TaskError: It fails, or gives no number.
    """
    part = next(part for part in samples if part.known is not None)
    assert part.known is not None  # it is the one that has targets
    few = part.take(np.arange(min(len(part.ids), _BATCH)))
    with open_engine(path, fused=False) as session:
        found = run_rows(session, few.inputs, _BATCH)
    metric(answer_of({name: found[name] for name in names}), take_rows(part.known, slice(len(few.ids))))


def _has_two_values(x: Array) -> bool:
    """Whether an input is one of two numbers everywhere, as a mask is."""
    return bool(((x == x.min()) | (x == x.max())).all())
