"""The second half of a build, for one target: quantize, run on the device, check, profile, bundle. Needs no torch."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekd.compress import quantize
from edgekd.compress.graph import drop_outputs
from edgekd.errors import ModelError
from edgekd.gram.drift import Bootstrap
from edgekd.gram.gate import Ledger, Limits, keep_ledger
from edgekd.gram.probe import Probe
from edgekd.learn.result import CALIBRATION, TEST, onnx_name
from edgekd.publish import BUNDLE, LATENCY, REJECTED, Files, files_below
from edgekd.report.result import TargetResult
from edgekd.runtime.bundle import write_bundle, write_reference
from edgekd.runtime.manifest import null_not_finite
from edgekd.runtime.measure import Profile
from edgekd.runtime.ort import open_engine
from edgekd.runtime.session import read_feeds, run_rows
from edgekd.stages import Done, Runner, Stage, library_versions
from edgekd.target import load_calibration

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.devices.local import LocalDevice
    from edgekd.learning import Learning
    from edgekd.progress import StageReporter
    from edgekd.project import Project
    from edgekd.recipe import Recipe
    from edgekd.target import Target

STAGES = ("quantize", "engine", "check", "profile", "bundle")
LIBRARIES = ("onnx", "onnxruntime", "numpy")
VERSIONS = {**dict.fromkeys(STAGES, 1), "engine": 2}

_OUTPUTS, _LEDGER, _BUNDLE = "outputs.npz", "ledger.json", "bundle"
_REFERENCES = 16
_BATCH = 256

#: Largest |deploy - engine| logit, as a share of the largest logit: the two are one network and differ by how the
#: runtime rounds where an extra output keeps it from fusing.
_DEPLOY_TOLERANCE = 0.01


@dataclass(frozen=True)
class Ran:
    """The engine ran on the device; its outputs lie in the stage's folder.

    Attributes:
        deploy_logit_error: largest |difference| of a logit between ``deploy.onnx`` and ``engine.onnx``.
    """

    deploy_logit_error: float


@dataclass(frozen=True)
class Bundled:
    """A bundle lies in the stage's folder; its manifest and all its files are part of the result's digests."""

    size_bytes: int


@dataclass(frozen=True)
class Shipped:
    """What to report of a target, and what to show in the output: files by folder."""

    result: TargetResult
    shown: dict[str, Files]


@dataclass(frozen=True)
class Shipper:
    """Runs the second half of a recipe for one target."""

    runner: Runner
    project: Project
    recipe: Recipe
    target: Target
    learning: Learning
    device: LocalDevice

    def run(self) -> Shipped:
        """Run or read every stage."""
        quantized = self._quantize()
        ran = self._engine(quantized)
        ledger = self._check(quantized, ran)
        profile = self._profile(quantized)
        bundled = self._bundle(quantized, ran, ledger, profile)
        released = ledger.result.verdict != "fail"
        result = TargetResult(
            target=self.target.name,
            device=self.device.name,
            runtime=self.target.runtime,
            precision="int8",
            ledger=ledger.result,
            profile=profile.result,
            profile_reason=None,
            sizes={**self.learning.exported.result.sizes, "engine": quantized.result.sizes[quantize.DEPLOY]},
            bundle=f"{self.target.name}/{BUNDLE}" if released else None,
            budgets=self.target.budgets,
            deploy_logit_error=ran.result.deploy_logit_error,
        )
        raw = {engine.raw_file: profile.folder / engine.raw_file for engine in profile.result.engines}
        shown = BUNDLE if released else REJECTED
        return Shipped(result, {shown: files_below(bundled.folder / _BUNDLE), LATENCY: raw})

    @property
    def _exported(self) -> Path:
        return self.learning.exported.folder

    def _stage(self, name: str, depends: dict[str, Any], result: Any, run: Any, summary: Any) -> Done[Any]:
        return self.runner(Stage(f"{name} {self.target.name}", VERSIONS[name], depends, result, run, summary))

    def _quantize(self) -> Done[quantize.Quantized]:
        calibration = load_calibration(self.recipe.quantize.calibration)

        def run(folder: Path, _report: StageReporter) -> quantize.Quantized:
            done = quantize.run(
                self._exported / onnx_name("pruned"),
                self._exported / CALIBRATION,
                self.target.scheme,
                calibration,
                folder,
            )
            _run_engine(folder / quantize.ENGINE, self._exported / TEST).save(folder / _OUTPUTS)
            return done

        depends = {
            "scheme": msgspec.to_builtins(self.target.scheme),
            "calibration": msgspec.to_builtins(calibration),
            "exported": self.learning.exported.key,
            "versions": library_versions(["onnx", "onnxruntime"], "build"),
        }
        return self._stage("quantize", depends, quantize.Quantized, run, _describe_quantized)

    def _engine(self, quantized: Done[quantize.Quantized]) -> Done[Ran]:
        def run(folder: Path, report: StageReporter) -> Ran:
            found = {}
            for done, name in enumerate((quantize.ENGINE, quantize.DEPLOY), 1):
                outputs = folder / f"{name}.npz"
                self.device.evaluate(
                    quantized.folder / name, self._exported / TEST, outputs, self.recipe.profile.threads
                )
                found[name] = _read_outputs(outputs)
                report.advance(done, 2, name)
            engine, deploy = found[quantize.ENGINE], found[quantize.DEPLOY]["logits"]
            ids = np.load(self._exported / TEST)["ids"]
            # Deploy's logits, since they are what a user gets; only the other variant gives embeddings.
            _probe(ids, {**engine, "logits": deploy}).save(folder / _OUTPUTS)
            error = float(np.abs(deploy - engine["logits"]).max())
            if not error <= _DEPLOY_TOLERANCE * float(np.abs(deploy).max()):
                raise ModelError(f"{quantized.folder}: deploy.onnx and engine.onnx disagree by {error:.3g} in a logit")
            return Ran(error)

        depends = {"quantized": quantized.key, "device": self.device.describe(), "threads": self.recipe.profile.threads}
        return self._stage(
            "engine", depends, Ran, run, lambda ran: f"deploy variant within {ran.deploy_logit_error:.1e}"
        )

    def _check(self, quantized: Done[quantize.Quantized], ran: Done[Ran]) -> Done[Ledger]:
        gate = self.recipe.gate

        def run(_folder: Path, _report: StageReporter) -> Ledger:
            probes = {
                **self.learning.probes(),
                "quantized": Probe.load(quantized.folder / _OUTPUTS),
                "engine": Probe.load(ran.folder / _OUTPUTS),
            }
            with np.load(self._exported / TEST, allow_pickle=False) as test:
                labels, groups = test["labels"], test["groups"] if "groups" in test.files else None
            metrics = {name: self.project.loaded.metric(probe.logits, labels) for name, probe in probes.items()}
            facts = self.learning.exported.result.facts
            limits = Limits(gate.tau_pass, gate.tau_fail, gate.max_flips, gate.max_metric_drop, facts.higher_is_better)
            bootstrap = Bootstrap(gate.confidence, gate.resamples, self.recipe.seed)
            return keep_ledger(probes, metrics, facts.metric, groups, limits, bootstrap)

        depends = {**msgspec.to_builtins(gate), "seed": self.recipe.seed, "quantized": quantized.key, "engine": ran.key}
        return self._stage("check", depends, Ledger, run, _describe_ledger)

    def _profile(self, quantized: Done[quantize.Quantized]) -> Done[Profile]:
        config = self.recipe.profile

        def run(folder: Path, report: StageReporter) -> Profile:
            engines = {}
            for name in ("teacher", "student"):
                engines[name] = folder / f"{name}.deploy.onnx"
                drop_outputs(self._exported / onnx_name(name), ("logits",), engines[name])
            engines["engine"] = quantized.folder / quantize.DEPLOY
            return self.device.profile(engines, self._exported / TEST, folder, config, report.advance)

        depends = {
            **msgspec.to_builtins(config),
            "device": self.device.describe(),
            "quantized": quantized.key,
            "versions": library_versions(["onnxruntime", "numpy"], "build"),
        }
        return self._stage("profile", depends, Profile, run, _describe_profile)

    def _bundle(
        self, quantized: Done[quantize.Quantized], ran: Done[Ran], ledger: Done[Ledger], profile: Done[Profile]
    ) -> Done[Bundled]:
        def run(folder: Path, _report: StageReporter) -> Bundled:
            bundle = folder / _BUNDLE
            bundle.mkdir()
            for name in (quantize.ENGINE, quantize.DEPLOY):
                shutil.copyfile(quantized.folder / name, bundle / name)
            _write_references(self._exported / TEST, Probe.load(ran.folder / _OUTPUTS), bundle / "reference.npz")
            plain = msgspec.to_builtins(ledger.result)
            text = json.dumps(null_not_finite(plain), indent=1, allow_nan=False)
            (bundle / _LEDGER).write_text(text, encoding="utf-8")
            facts = self.learning.exported.result.facts
            engine = ledger.result.row("engine")
            write_bundle(
                bundle,
                target=self.target.name,
                runtime=self.target.runtime,
                task={"name": self.recipe.task.name.rpartition("/")[2], "metric": facts.metric},
                inputs=[dict(spec) for spec in facts.inputs],
                classes=facts.classes,
                verdict=ledger.result.verdict,
                reasons=list(ledger.result.reasons),
                versions=library_versions(LIBRARIES, "build"),
                measurements={facts.metric: engine.metric, "profile": msgspec.to_builtins(profile.result)},
            )
            return Bundled(sum(path.stat().st_size for path in bundle.iterdir()))

        depends = {
            "check": ledger.key,
            "profile": profile.key,
            "task": self.recipe.task.name.rpartition("/")[2],
            "target": self.target.name,
            "runtime": self.target.runtime,
        }
        return self._stage("bundle", depends, Bundled, run, lambda bundled: f"{bundled.size_bytes / 1e3:.0f} kB")


def _run_engine(engine: Path, samples: Path) -> Probe:
    with open_engine(engine) as session:
        outputs = run_rows(session, read_feeds(samples, session.inputs), _BATCH)
    return _probe(np.load(samples)["ids"], outputs)


def _read_outputs(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path, allow_pickle=False) as outputs:
        return {name: outputs[name] for name in outputs.files}


def _probe(ids: np.ndarray[Any, Any], outputs: dict[str, np.ndarray[Any, Any]]) -> Probe:
    prefix = "embedding."
    embeddings = {name.removeprefix(prefix): z for name, z in outputs.items() if name.startswith(prefix)}
    return Probe(ids, outputs["logits"], embeddings)


def _write_references(samples: Path, engine: Probe, path: Path) -> None:
    """Take the samples that the engine is surest of, from every class: others may flip by rounding alone elsewhere."""
    ordered = np.sort(engine.logits, axis=1)
    by_margin = np.argsort(ordered[:, -2] - ordered[:, -1], kind="stable")
    predicted = engine.predictions[by_margin]
    each = -(-_REFERENCES // len(np.unique(predicted)))
    surest = np.concatenate([by_margin[predicted == label][:each] for label in np.unique(predicted)])[:_REFERENCES]
    with np.load(samples, allow_pickle=False) as arrays:
        inputs = {key.removeprefix("input."): arrays[key][surest] for key in arrays.files if key.startswith("input.")}
    outputs = {f"embedding.{name}": z[surest] for name, z in engine.embeddings.items()}
    write_reference(path, engine.ids[surest], inputs, {"logits": engine.logits[surest], **outputs})


def _describe_quantized(result: quantize.Quantized) -> str:
    return f"{result.quantized_nodes}/{result.weight_nodes} layers INT8, {result.sizes[quantize.DEPLOY] / 1e3:.0f} kB"


def _describe_ledger(ledger: Ledger) -> str:
    drift = ledger.row("engine").to_student
    return ledger.verdict if drift is None else f"{ledger.verdict}: engine's Gram drift at most {drift.bound:.4f}"


def _describe_profile(profile: Profile) -> str:
    p50 = {e.name: e.latency.p50 for e in profile.engines}
    return ", ".join(f"{name} {q.value_ms:.3f} ms" for name, q in p50.items() if q is not None)
