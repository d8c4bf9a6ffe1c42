"""The stage import of a build from ONNX: nothing is trained, the model and its samples are read. It needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgekd.config.recipe import OutputConfig
from edgekd.errors import ModelError
from edgekd.files import sha256_file
from edgekd.gram.gate import AS_IS as AS_IS_ROW
from edgekd.gram.gate import GIVEN
from edgekd.gram.nest import targets_of
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.pipeline.onnx_import.own_metric import load_metric
from edgekd.pipeline.onnx_import.read import weight_files
from edgekd.pipeline.onnx_import.stage import AS_IS, NETWORK, ImportedModel, OnnxSource, import_onnx
from edgekd.pipeline.source import GivenCandidate
from edgekd.pipeline.target.context import OUTPUTS
from edgekd.pipeline.target.outputs import join_probe, probe_variants, run_on_host
from edgekd.plugins import source_file
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import PROBE, TEST, VALIDATION, onnx_name, validation_probe
from edgekd.stages.metrics import default_metric
from edgekd.stages.stage import Done, Runner, StageSpec

if TYPE_CHECKING:
    from edgekd.config.recipe import ModelConfig, Recipe
    from edgekd.config.target import Scheme
    from edgekd.gram.metric import Metric
    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Answer
    from edgekd.pipeline.onnx_import.own_metric import OwnMetric
    from edgekd.pipeline.source import JudgingSplit
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.progress import StageReporter

LIBRARIES = ("onnx", "onnxruntime", "numpy")


def _describe(imported: ImportedModel) -> str:
    taps = ", ".join(f"{name} at {tap.tensor}" for name, tap in imported.modalities.items())
    kinds = imported.exported.facts.outputs
    told = ", ".join(f"{name}: {kind.name} ({imported.reasons[name]})" for name, kind in kinds.items())
    return f"{told}; taps: {taps}"


IMPORT: StageSpec[ImportedModel] = StageSpec(
    "import", 7, ImportedModel, LIBRARIES, "read a trained ONNX model and its samples", _describe
)


@dataclass(frozen=True)
class ImportedOrigin:
    """An imported model: the :class:`~edgekd.pipeline.source.Origin` of a recipe with a model.

    Attributes:
        name: Name of the model's file, without its ending.
        imported: The stage that read the model and its samples.
        own_metric: The user's own metric; None where there is none.
    """

    name: str
    imported: Done[ImportedModel]
    own_metric: OwnMetric | None = None

    robustness = None
    pruning = ()

    @property
    def network(self) -> str:
        """The float network, or a model that is built as it is and has no float reference."""
        return next(iter(self.imported.result.exported.parity))

    @property
    def baselines(self) -> tuple[str, ...]:
        """The same alone: nothing comes before it."""
        return (self.network,)

    @property
    def given(self) -> GivenCandidate | None:
        """The model itself, where it is built as it is; None where candidates are made of it."""
        result = self.imported.result
        if result.given is None:
            return None
        row = AS_IS_ROW if self.network == NETWORK else GIVEN
        place = self.imported.folder / AS_IS
        return GivenCandidate(result.given, place, self.imported.key, row, result.deploy_logit_error)

    @property
    def exported(self) -> Done[Exported]:
        """The float graph and the samples, in a folder."""
        return Done(self.imported.key, self.imported.folder, self.imported.result.exported)

    def probes(self, split: JudgingSplit) -> dict[str, Probe]:
        """Read the probe of the float graph on a split."""
        name = validation_probe(self.network) if split == "validation" else PROBE
        return {self.network: Probe.load(self.imported.folder / name)}

    @property
    def metric(self) -> Metric:
        """The user's own metric, or the accuracy of the first output of classes: labels are of that one."""
        if self.own_metric is not None:
            return self.own_metric
        facts = self.exported.result.facts
        accuracy = default_metric({"": OutputKind()})
        assert accuracy is not None
        named = next(iter(facts.classes), None) if len(facts.outputs) > 1 else None
        if named is None:
            return accuracy.compute
        return lambda answer, targets: accuracy.compute(answer[named], targets)

    def same(self, _outputs: Answer, _reference: Answer) -> Array:
        """Raise: no imported model says itself which answers are the same."""
        raise NotImplementedError

    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Return nothing: no network was trained here."""
        return {}

    def fine_tune_for_int8(self, _scheme: Scheme) -> None:
        """Return None: a model that is imported cannot be trained here."""


def import_model(runner: Runner, recipe: Recipe) -> ImportedOrigin:
    """Run the import, or read its result.

    Raises:
        ModelError: A file is missing, no build can start from the model, or the samples do not fit it.
        TaskError: There is no tensor or output of a name that was given.
    """
    config = recipe.model
    assert config is not None  # the caller has looked
    model, calibration, test, reference = _files(config)
    metric = load_metric(config.metric) if config.metric else None

    def run(folder: Path, report: StageReporter) -> ImportedModel:
        only = OutputConfig(kind=config.kind, threshold=config.threshold)
        source = OnnxSource(model, calibration, test, config.taps, config.asked, only, metric)
        if config.as_is:
            from edgekd.pipeline.onnx_import.as_is import import_as_is

            imported = import_as_is(source, reference, folder, report, recipe.seed)
        else:
            imported = import_onnx(source, folder, report, recipe.seed)
        network = next(iter(imported.exported.parity))
        for samples, name in ((TEST, PROBE), (VALIDATION, validation_probe(network))):
            outputs = run_on_host(folder / onnx_name(network), folder / samples)
            probe = join_probe(outputs, folder / samples)
            probe.save(folder / name)
            if metric is not None:
                _require_number(metric, probe, folder / samples, report)
        return _run_given(model, imported, probe, folder) if config.as_is else imported

    inputs = {
        **{name: sha256_file(path) for name, path in _named(model, calibration, test, reference).items()},
        "weights": [sha256_file(path) for file in (model, reference) if file for path in weight_files(file)],
        "metric": _digest(config.metric),
    }
    settings = {
        "taps": msgspec.to_builtins(config.taps),
        "outputs": msgspec.to_builtins(config.asked),
        "kind": config.kind,
        "threshold": config.threshold,
        "metric": [metric.name, metric.higher_is_better] if metric else None,
        "as_is": config.as_is,
        "seed": recipe.seed,
    }
    return ImportedOrigin(model.stem, runner(IMPORT, config=settings, inputs=inputs, run=run), metric)


def _run_given(model: Path, imported: ImportedModel, reference: Probe, folder: Path) -> ImportedModel:
    """Run a model that is built as it is on the validation samples, and keep its outputs.

    Args:
        model: The user's file, for errors.
        imported: What was imported.
        reference: The probe of the graph that it is compared with, on the same samples.
        folder: Folder of the import.

    Raises:
        ModelError: Its outputs have other shapes than the reference's, or are not finite.
    """
    place, samples = folder / AS_IS, folder / VALIDATION
    probe, error = probe_variants(lambda variant: run_on_host(place / variant, samples), samples, str(model))
    for name, x in probe.outputs.items():
        if x.shape != reference.outputs[name].shape:
            ours, theirs = list(x.shape[1:]), list(reference.outputs[name].shape[1:])
            raise ModelError(f"{model}: its output '{name}' is {ours} a sample, and {theirs} in its float reference")
        rows = np.isfinite(x.reshape(len(x), -1)).all(1) if x.dtype.kind == "f" else np.ones(len(x), bool)
        if not rows.all():
            raise ModelError(f"{model}: its output '{name}' is not finite for sample '{probe.ids[~rows][0]}'")
    probe.save(place / OUTPUTS)
    return replace(imported, deploy_logit_error=error)


def _require_number(metric: OwnMetric, probe: Probe, samples: Path, report: StageReporter) -> None:
    """Compute the user's own metric of the float network on all samples of a split; warn where it is no number.

    Raises:
        TaskError: It fails.
    """
    with open_arrays(samples) as arrays:
        targets = targets_of(arrays)
    if targets is not None and math.isnan(metric(probe.answer, targets)):
        report.warn(f"{metric.where} of the float network on the {samples.stem} samples is not a number")


def _files(config: ModelConfig) -> tuple[Path, Path, Path | None, Path | None]:
    given = {
        "path": config.path,
        "calibration": config.calibration,
        "test": config.test,
        "reference": config.reference,
    }
    for key, name in given.items():
        if not name:
            continue
        try:
            is_file = Path(name).is_file()
        except OSError as error:  # such as a name that is too long for a file
            raise ModelError(f"[model] {key}: {name}: cannot be read: {error.strerror}") from error
        if not is_file:
            raise ModelError(f"[model] {key}: {name}: {'is no file' if Path(name).exists() else 'no such file'}")
    test, reference = (Path(name) if name else None for name in (config.test, config.reference))
    return Path(config.path), Path(config.calibration), test, reference


def _digest(metric: str) -> str | None:
    """Return the SHA-256 of the file that a metric of the user's own is in; None where there is none."""
    source = source_file(metric) if metric else None
    return None if source is None else sha256_file(source)


def _named(model: Path, calibration: Path, test: Path | None, reference: Path | None) -> dict[str, Path]:
    optional = {"test": test, "reference": reference}
    return {"model": model, "calibration": calibration, **{name: path for name, path in optional.items() if path}}
