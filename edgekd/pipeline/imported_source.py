"""The stage import of a build from ONNX: nothing is trained, the model and its samples are read. It needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekd.config.recipe import OutputConfig
from edgekd.errors import ModelError
from edgekd.files import sha256_file
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.pipeline.onnx_import.read import weight_files
from edgekd.pipeline.onnx_import.stage import NETWORK, ImportedModel, OnnxSource, import_onnx
from edgekd.stages.artifacts import PROBE, validation_probe
from edgekd.stages.metrics import default_metric
from edgekd.stages.stage import Done, Runner, StageSpec

if TYPE_CHECKING:
    from edgekd.config.recipe import ModelConfig, Recipe
    from edgekd.config.target import Scheme
    from edgekd.gram.metric import Metric
    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Answer
    from edgekd.pipeline.source import JudgingSplit
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.progress import StageReporter

LIBRARIES = ("onnx", "onnxruntime", "numpy")


def _describe(imported: ImportedModel) -> str:
    taps = ", ".join(f"{name} at {tap.tensor}" for name, tap in imported.modalities.items())
    kinds = ", ".join(kind.name for kind in imported.exported.facts.outputs.values())
    return f"{kinds}, taps: {taps}"


IMPORT: StageSpec[ImportedModel] = StageSpec(
    "import", 7, ImportedModel, LIBRARIES, "read a trained ONNX model and its samples", _describe
)


@dataclass(frozen=True)
class ImportedOrigin:
    """An imported model: the :class:`~edgekd.pipeline.source.Origin` of a recipe with a model.

    Attributes:
        name: Name of the model's file, without its ending.
        imported: The stage that read the model and its samples.
    """

    name: str
    imported: Done[ImportedModel]

    network = NETWORK
    robustness = None
    baselines = (NETWORK,)
    pruning = ()

    @property
    def exported(self) -> Done[Exported]:
        """The float graph and the samples, in a folder."""
        return Done(self.imported.key, self.imported.folder, self.imported.result.exported)

    def probes(self, split: JudgingSplit) -> dict[str, Probe]:
        """Read the probe of the float graph on a split."""
        name = validation_probe(NETWORK) if split == "validation" else PROBE
        return {NETWORK: Probe.load(self.imported.folder / name)}

    @property
    def metric(self) -> Metric:
        """The accuracy of the first output of classes: labels are of that one, and without it there are none."""
        facts = self.exported.result.facts
        named = next(iter(facts.classes), None) if len(facts.outputs) > 1 else None
        accuracy = default_metric({"": OutputKind()})
        assert accuracy is not None
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
    model, calibration, test = _files(config)

    def run(folder: Path, report: StageReporter) -> ImportedModel:
        only = OutputConfig(kind=config.kind, threshold=config.threshold)
        source = OnnxSource(model, calibration, test, config.taps, config.asked, only)
        return import_onnx(source, folder, report, recipe.seed)

    inputs = {
        **{name: sha256_file(path) for name, path in _named(model, calibration, test).items()},
        "weights": [sha256_file(path) for path in weight_files(model)],
    }
    settings = {
        "taps": msgspec.to_builtins(config.taps),
        "outputs": msgspec.to_builtins(config.asked),
        "kind": config.kind,
        "threshold": config.threshold,
        "seed": recipe.seed,
    }
    return ImportedOrigin(model.stem, runner(IMPORT, config=settings, inputs=inputs, run=run))


def _files(config: ModelConfig) -> tuple[Path, Path, Path | None]:
    given = {"path": config.path, "calibration": config.calibration, "test": config.test}
    for key, name in given.items():
        if not name:
            continue
        try:
            is_file = Path(name).is_file()
        except OSError as error:  # such as a name that is too long for a file
            raise ModelError(f"[model] {key}: {name}: cannot be read: {error.strerror}") from error
        if not is_file:
            raise ModelError(f"[model] {key}: {name}: {'is no file' if Path(name).exists() else 'no such file'}")
    return Path(config.path), Path(config.calibration), Path(config.test) if config.test else None


def _named(model: Path, calibration: Path, test: Path | None) -> dict[str, Path]:
    return {"model": model, "calibration": calibration, **({"test": test} if test else {})}
