"""The first half of a build from ONNX: nothing is trained, the model and its samples are read. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekd.errors import ModelError
from edgekd.files import sha256_file
from edgekd.gram.probe import Probe
from edgekd.pipeline.onnx_import.read import weight_files
from edgekd.pipeline.onnx_import.stage import NETWORK, VERSION, Brought, bring
from edgekd.pipeline.target.outputs import join_probe, run_on_host
from edgekd.stages.artifacts import PROBE, TEST, onnx_name
from edgekd.stages.labels import accuracy
from edgekd.stages.stage import Done, Runner, Stage, library_versions

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

    from edgekd.config.recipe import ModelConfig, Recipe
    from edgekd.config.target import Scheme
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.progress import StageReporter

STAGES = ("import",)
LIBRARIES = ("onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Imported:
    """A model that was read: the :class:`~edgekd.pipeline.source.Origin` of a recipe with a model."""

    name: str
    brought: Done[Brought]

    network = NETWORK
    robustness = None
    baselines = (NETWORK,)

    @property
    def exported(self) -> Done[Exported]:
        """The float graph and the samples, in a folder."""
        return Done(self.brought.key, self.brought.folder, self.brought.result.exported)

    def probes(self) -> dict[str, Probe]:
        """Read what the float graph said of the test samples."""
        return {NETWORK: Probe.load(self.brought.folder / PROBE)}

    def metric(self, logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
        """Return the accuracy."""
        return accuracy(logits, labels)

    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Nothing was trained here."""
        return {}

    def tune(self, _scheme: Scheme) -> None:
        """Nothing can be trained here."""


def bring_model(runner: Runner, recipe: Recipe) -> Imported:
    """Run or read the import.

    Raises:
        ModelError: a file is missing, no build can start from the model, or the samples do not fit it.
        TaskError: there is no tensor or output of a name that was given.
    """
    config = recipe.model
    assert config is not None  # the caller has looked
    model, calibration, test = _files(config)

    def run(folder: Path, report: StageReporter) -> Brought:
        brought = bring(
            model, calibration, test, config.taps, folder, report, output=config.output or None, seed=recipe.seed
        )
        probe = join_probe(run_on_host(folder / onnx_name(NETWORK), folder / TEST), folder / TEST)
        probe.save(folder / PROBE)
        return brought

    depends = {
        **{name: sha256_file(path) for name, path in _named(model, calibration, test).items()},
        "weights": [sha256_file(path) for path in weight_files(model)],
        "taps": msgspec.to_builtins(config.taps),
        "output": config.output,
        "seed": recipe.seed,
        "versions": library_versions(LIBRARIES, "build"),
    }
    return Imported(model.stem, runner(Stage("import", VERSION, depends, Brought, run, _describe)))


def _files(config: ModelConfig) -> tuple[Path, Path, Path | None]:
    given = {"path": config.path, "calibration": config.calibration, "test": config.test}
    for key, name in given.items():
        if name and not Path(name).is_file():
            raise ModelError(f"[model] {key}: {name}: no such file")
    return Path(config.path), Path(config.calibration), Path(config.test) if config.test else None


def _named(model: Path, calibration: Path, test: Path | None) -> dict[str, Path]:
    return {"model": model, "calibration": calibration, **({"test": test} if test else {})}


def _describe(brought: Brought) -> str:
    taps = ", ".join(f"{name} at {tap.tensor}" for name, tap in brought.modalities.items())
    return f"{brought.exported.facts.metric}, taps: {taps}"
