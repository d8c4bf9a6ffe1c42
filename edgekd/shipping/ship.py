"""The second half of a build, for one target: write candidates, run them, check, profile, choose, bundle. No torch."""

from __future__ import annotations

import json
import math
import platform
import shutil
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from edgekd.compress import quantize
from edgekd.compress.graph import drop_outputs
from edgekd.compress.quantize import DEPLOY, ENGINE, Candidate
from edgekd.devices.choose import Absent
from edgekd.devices.local import LocalDevice
from edgekd.errors import ModelError
from edgekd.evidence import probe_variants, run_on_host, write_references
from edgekd.gram.drift import Bootstrap
from edgekd.gram.gate import Ledger, Limits, Row, keep_ledger
from edgekd.gram.probe import Probe
from edgekd.learn.result import CALIBRATION, TEST, onnx_name
from edgekd.publish import BUNDLE, LATENCY, REJECTED, Files, files_below
from edgekd.report.figures import size
from edgekd.report.result import ENGINE as SHIPPED
from edgekd.report.result import CandidateResult, TargetResult
from edgekd.runtime.bundle import write_bundle
from edgekd.runtime.manifest import null_not_finite
from edgekd.runtime.measure import Profile
from edgekd.runtime.registry import PACKAGES, Runtime
from edgekd.runtime.session import open_arrays
from edgekd.selection import Choice, choose
from edgekd.stages import Done, Runner, Stage, library_versions
from edgekd.target import load_calibration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.devices.device import Device
    from edgekd.learning import Learning
    from edgekd.progress import StageReporter
    from edgekd.project import Project
    from edgekd.recipe import Recipe
    from edgekd.target import Target

LIBRARIES = ("onnx", "onnxruntime", "numpy")
VERSIONS = {"quantize": 3, "compile": 2, "engine": 4, "check": 2, "profile": 2, "bundle": 2}

_OUTPUTS, _LEDGER, _BUNDLE, _LAYERS = "outputs.npz", "ledger.json", "bundle", "layers.json"


@dataclass(frozen=True)
class Written:
    """The candidates' graphs lie in folders of their names, each with what ONNX Runtime made of it on this host.

    Attributes:
        candidates: in the target's order of preference.
        deploy_logit_error: for each candidate the largest |difference| of a logit between its two variants.
        refused: for each way in which the network could not be written, why not.
    """

    candidates: tuple[Candidate, ...]
    deploy_logit_error: dict[str, float]
    refused: dict[str, str]


@dataclass(frozen=True)
class Compiled:
    """Engines that were built ahead of time; they and their layers lie in folders of the candidates' names.

    Attributes:
        library: which library built them, with its version.
        layers: for each candidate the number of layers of ``deploy``.
        sizes: for each candidate the bytes of ``deploy.plan``.
        messages: for each candidate what the library warned of.
    """

    library: str
    layers: dict[str, int]
    sizes: dict[str, int]
    messages: dict[str, list[str]]


@dataclass(frozen=True)
class Ran:
    """The candidates ran on the device; their outputs lie in folders of their names.

    Attributes:
        deploy_logit_error: for each candidate the largest |difference| of a logit between its two variants.
        refused: for each candidate that the device could not run, why not.
    """

    deploy_logit_error: dict[str, float]
    refused: dict[str, str]


@dataclass(frozen=True)
class Checked:
    """One ledger for each candidate."""

    ledgers: dict[str, Ledger]


@dataclass(frozen=True)
class Bundled:
    """A bundle lies in the stage's folder; its manifest and all its files are part of the result's digests."""

    size_bytes: int


@dataclass(frozen=True)
class Shipped:
    """What to report of a target, and what to show in the output: files by folder."""

    result: TargetResult
    shown: dict[str, Files]


def compiles(target: Target) -> bool:
    """Whether engines are built ahead of time here: a mere proof is done without where the library cannot be had."""
    if target.compile is None:
        return False
    return target.compile.ship or (sys.platform, platform.machine()) == ("linux", "x86_64")


def stages(target: Target, device: Device | Absent) -> tuple[str, ...]:
    """Return the kinds of the stages that a target runs, in order."""
    present = not isinstance(device, Absent)
    wanted = {
        "quantize": True,
        "compile": compiles(target),
        "engine": present,
        "check": True,
        "profile": not isinstance(device, Absent) and device.no_latency is None,
        "bundle": True,
    }
    return tuple(name for name, needed in wanted.items() if needed)


@dataclass(frozen=True)
class Shipper:
    """Runs the second half of a recipe for one target."""

    runner: Runner
    project: Project
    recipe: Recipe
    target: Target
    learning: Learning
    device: Device | Absent

    def run(self) -> Shipped:
        """Run or read every stage."""
        written = self._quantize()
        compiled = self._compile(written) if "compile" in self.stages else None
        ran = self._engine(written, compiled) if "engine" in self.stages else None
        checked = self._check(written, ran)
        profile = self._profile(written, compiled, ran) if "profile" in self.stages else None
        files = {c.name: c.sizes[DEPLOY] for c in written.result.candidates}
        if compiled and self._ships_plans:
            files = compiled.result.sizes
        candidates = _results(written.result, checked.result, profile.result if profile else None, files)
        choice = choose(candidates, self.target.budgets)
        bundled = self._bundle(choice, written, compiled, ran, checked, profile)
        ledger = checked.result.ledgers[choice.name]
        released = ledger.verdict != "fail"
        shown = BUNDLE if released else REJECTED
        chosen = next(c for c in candidates if c.name == choice.name)
        errors = ran.result.deploy_logit_error if ran else written.result.deploy_logit_error
        refused = {**written.result.refused, **(ran.result.refused if ran else {})}
        result = TargetResult(
            target=self.target.name,
            device="no device" if isinstance(self.device, Absent) else self.device.name,
            runtime=self.target.runtime,
            precision=chosen.precision,
            ledger=ledger,
            profile=_named(profile.result, choice.name) if profile else None,
            profile_reason=self._no_latency(shown),
            sizes={**self.learning.exported.result.sizes, SHIPPED: chosen.size_bytes},
            bundle=f"{self.target.name}/{BUNDLE}" if released else None,
            budgets=self.target.budgets,
            deploy_logit_error=errors[choice.name],
            candidates=candidates,
            chosen=choice.name,
            choice=choice.reason,
            facts=(
                *(f"{name} was left out: {reason}" for name, reason in refused.items()),
                *self._facts(compiled.result if compiled else None, choice, ledger),
            ),
        )
        raw = {e.raw_file: profile.folder / e.raw_file for e in profile.result.engines} if profile else {}
        return Shipped(result, {shown: files_below(bundled.folder / _BUNDLE), LATENCY: raw})

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The kinds of the stages that run here."""
        return stages(self.target, self.device)

    @property
    def runtime(self) -> Runtime:
        """The library that runs the engines."""
        return Runtime(self.target.runtime, self.target.options)

    @property
    def _exported(self) -> Path:
        return self.learning.exported.folder

    def _no_latency(self, shown: str) -> str | None:
        """Say why no latency is measured, and what measures that of the bundle in the folder ``shown``."""
        if isinstance(self.device, Absent):
            runtime = f" --runtime {self._public_runtime}" if self.runtime.custom else ""
            threads = f" --threads {self.recipe.profile.threads}" if self.recipe.profile.threads > 1 else ""
            return (
                f"not measured: no device ({self.device.reason}); with the bundle on one, run: "
                f"edgekd profile {self.target.name}/{shown}{runtime}{threads}"
            )
        return self.device.no_latency

    def _stage(self, name: str, depends: dict[str, Any], result: Any, run: Any, summary: Any) -> Done[Any]:
        return self.runner(Stage(f"{name} {self.target.name}", VERSIONS[name], depends, result, run, summary))

    def _quantize(self) -> Done[Written]:
        calibration = load_calibration(self.recipe.quantize.calibration)
        ways = self._ways

        def run(folder: Path, report: StageReporter) -> Written:
            candidates, errors, refused = [], {}, {}
            for done, way in enumerate(ways, 1):
                try:
                    candidate = quantize.run(
                        way,
                        self._exported / onnx_name("pruned"),
                        self._exported / CALIBRATION,
                        self.target.scheme,
                        calibration,
                        folder,
                    )
                    place = folder / way.name
                    probe, errors[way.name] = probe_variants(
                        lambda name, place=place: run_on_host(place / name, self._exported / TEST),  # type: ignore[misc]
                        self._exported / TEST,
                        str(place),
                    )
                except ModelError as error:
                    refused[way.name] = self._leave_out(way.name, error, self._exported, report)
                    continue
                probe.save(place / _OUTPUTS)
                candidates.append(candidate)
                report.advance(done, len(ways), way.name)
            return Written(tuple(candidates), errors, refused)

        packages = ["onnx", "onnxruntime", *(["nncf"] if any(way.quantizer == "nncf" for way in ways) else [])]
        depends = {
            "ways": [way.name for way in ways],
            "scheme": msgspec.to_builtins(self.target.scheme),
            "calibration": msgspec.to_builtins(calibration),
            "exported": self.learning.exported.key,
            "versions": library_versions(packages, "build"),
        }
        return self._stage("quantize", depends, Written, run, _describe_written)

    @property
    def _ways(self) -> tuple[quantize.Way, ...]:
        return quantize.ways(self.target, self.recipe.quantize.precision)

    def _leave_out(self, name: str, error: ModelError, folder: Path, report: StageReporter) -> str:
        """Warn that a candidate is left out, and return why, without the path of a folder of the cache.

        Only a second way to a precision may be lacking: for a first one the error is raised again.
        """
        first = {way.precision: way.name for way in reversed(self._ways)}
        if name in first.values():
            raise error
        reason = str(error).replace(f"{folder}/", "")
        report.warn(f"{name} is left out: {reason}")
        return reason

    def _compile(self, written: Done[Written]) -> Done[Compiled]:
        wanted = self.target.compile
        assert wanted is not None  # the caller has looked
        # A DLA is the board's: what is proved here is the graph.
        told = {name: value for name, value in self.target.options.items() if name != "dla"}
        options = {**told, "compute_capabilities": wanted.compute_capabilities}

        def run(folder: Path, report: StageReporter) -> Compiled:
            layers, sizes, messages, library = {}, {}, {}, ""
            jobs = [(c.name, variant) for c in written.result.candidates for variant in (ENGINE, DEPLOY)]
            for done, (name, variant) in enumerate(jobs, 1):
                place = folder / name
                place.mkdir(exist_ok=True)
                plan = (place / variant).with_suffix(".plan")
                built = LocalDevice().compile(
                    written.folder / name / variant, plan, place / _LAYERS, wanted.library, options
                )
                library, layers[name], messages[name] = built["library"], built["layers"], built["messages"]
                sizes[name] = plan.stat().st_size
                report.advance(done, len(jobs), f"{name}: {built['layers']} layers")
            return Compiled(library, layers, sizes, messages)

        depends = {
            "compile": msgspec.to_builtins(wanted),
            "options": options,
            "written": written.key,
            "versions": library_versions(PACKAGES[wanted.library], "build"),
        }
        return self._stage("compile", depends, Compiled, run, _describe_compiled)

    def _engine(self, written: Done[Written], compiled: Done[Compiled] | None) -> Done[Ran]:
        device = self._present

        def run(folder: Path, report: StageReporter) -> Ran:
            errors, refused = {}, {}
            for done, candidate in enumerate(written.result.candidates, 1):
                place = folder / candidate.name
                place.mkdir()

                def on_device(variant: str, name: str = candidate.name, place: Path = place) -> Mapping[str, Any]:
                    outputs = place / f"{variant}.npz"
                    engine = self._engine_file(name, variant, written, compiled)
                    device.evaluate(engine, self.runtime, self._exported / TEST, outputs, self.recipe.profile.threads)
                    with open_arrays(outputs) as arrays:
                        return {key: arrays[key] for key in arrays}

                try:
                    probe, errors[candidate.name] = probe_variants(on_device, self._exported / TEST, str(place))
                except ModelError as error:
                    refused[candidate.name] = self._leave_out(candidate.name, error, written.folder, report)
                    continue
                probe.save(place / _OUTPUTS)
                report.advance(done, len(written.result.candidates), candidate.name)
            return Ran(errors, refused)

        depends = {
            **self._where(device),
            "written": written.key,
            "compiled": compiled.key if compiled else None,
            "threads": self.recipe.profile.threads,
        }
        return self._stage("engine", depends, Ran, run, _describe_ran)

    def _check(self, written: Done[Written], ran: Done[Ran] | None) -> Done[Checked]:
        gate = self.recipe.gate

        def run(_folder: Path, report: StageReporter) -> Checked:
            with open_arrays(self._exported / TEST) as test:
                labels, groups = test["labels"], test.get("groups")
            facts = self.learning.exported.result.facts
            limits = Limits(gate.tau_pass, gate.tau_fail, gate.max_flips, gate.max_metric_drop, facts.higher_is_better)
            bootstrap = Bootstrap(gate.confidence, gate.resamples, self.recipe.seed)
            ledgers: dict[str, Ledger] = {}
            trained = self.learning.probes()
            common: list[Row] = []
            running = _running(written, ran)
            for done, candidate in enumerate(running, 1):
                host = "quantized" if candidate.precision == "int8" else "exported"
                probes = {**trained, host: Probe.load(written.folder / candidate.name / _OUTPUTS)}
                if ran:
                    probes["engine"] = Probe.load(ran.folder / candidate.name / _OUTPUTS)
                metrics = {name: self.project.loaded.metric(probe.logits, labels) for name, probe in probes.items()}
                ledger = keep_ledger(probes, metrics, facts.metric, groups, limits, bootstrap, common)
                common = [row for row in ledger.rows if row.stage in trained]
                ledgers[candidate.name] = ledger
                report.advance(done, len(running), candidate.name)
            return Checked(ledgers)

        depends = {
            **msgspec.to_builtins(gate),
            "seed": self.recipe.seed,
            "written": written.key,
            "engine": ran.key if ran else None,
        }
        return self._stage("check", depends, Checked, run, _describe_checked)

    def _profile(self, written: Done[Written], compiled: Done[Compiled] | None, ran: Done[Ran] | None) -> Done[Profile]:
        config, device = self.recipe.profile, self._present

        def run(folder: Path, report: StageReporter) -> Profile:
            engines = {}
            for name in ("teacher", "student"):
                engines[name] = folder / f"{name}.deploy.onnx"
                drop_outputs(self._exported / onnx_name(name), ("logits",), engines[name])
            for candidate in _running(written, ran):
                engines[candidate.name] = self._engine_file(candidate.name, DEPLOY, written, compiled)
            return device.profile(engines, self.runtime, self._exported / TEST, folder, config, report.advance)

        depends = {
            **msgspec.to_builtins(config),
            **self._where(device),
            "written": written.key,
            "engine": ran.key if ran else None,
            "compiled": compiled.key if compiled else None,
            "versions": library_versions(["numpy"], "build"),
        }
        return self._stage("profile", depends, Profile, run, _describe_profile)

    def _bundle(
        self,
        choice: Choice,
        written: Done[Written],
        compiled: Done[Compiled] | None,
        ran: Done[Ran] | None,
        checked: Done[Checked],
        profile: Done[Profile] | None,
    ) -> Done[Bundled]:
        ledger = checked.result.ledgers[choice.name]

        def run(folder: Path, _report: StageReporter) -> Bundled:
            bundle = folder / _BUNDLE
            bundle.mkdir()
            for name in (ENGINE, DEPLOY):
                shutil.copyfile(written.folder / choice.name / name, bundle / name)
            if compiled:
                shutil.copyfile(compiled.folder / choice.name / _LAYERS, bundle / _LAYERS)
            if compiled and self._ships_plans:
                for plan in (compiled.folder / choice.name).glob("*.plan"):
                    shutil.copyfile(plan, bundle / plan.name)
            found = Probe.load((ran or written).folder / choice.name / _OUTPUTS)
            write_references(self._exported / TEST, found, bundle / "reference.npz")
            text = json.dumps(null_not_finite(msgspec.to_builtins(ledger)), indent=1, allow_nan=False)
            (bundle / _LEDGER).write_text(text, encoding="utf-8")
            facts = self.learning.exported.result.facts
            write_bundle(
                bundle,
                target=self.target.name,
                runtime=Runtime(self._public_runtime, self.target.options),
                precision=next(c.precision for c in written.result.candidates if c.name == choice.name),
                task={"name": self.recipe.task.name.rpartition("/")[2], "metric": facts.metric},
                inputs=[dict(spec) for spec in facts.inputs],
                classes=facts.classes,
                verdict=ledger.verdict,
                reasons=list(ledger.reasons),
                versions=library_versions(LIBRARIES, "build"),
                measurements={
                    facts.metric: ledger.rows[-1].metric,
                    "profile": msgspec.to_builtins(_named(profile.result, choice.name)) if profile else None,
                },
            )
            return Bundled(sum(path.stat().st_size for path in bundle.iterdir()))

        depends = {
            "choice": choice.name,
            "written": written.key,
            "compiled": compiled.key if compiled else None,
            "check": checked.key,
            "profile": profile.key if profile else None,
            "task": self.recipe.task.name.rpartition("/")[2],
            "target": self.target.name,
            "runtime": [self._public_runtime, self.target.options],
        }
        return self._stage("bundle", depends, Bundled, run, lambda bundled: size(bundled.size_bytes))

    def _engine_file(
        self, candidate: str, variant: str, written: Done[Written], compiled: Done[Compiled] | None
    ) -> Path:
        """The file that the runtime is given: an engine that was built ahead of time, or ONNX."""
        if compiled and self._ships_plans:
            return (compiled.folder / candidate / variant).with_suffix(".plan")
        return written.folder / candidate / variant

    @property
    def _ships_plans(self) -> bool:
        return self.target.compile is not None and self.target.compile.ship

    @property
    def _public_runtime(self) -> str:
        """The runtime as a bundle names it: without this machine's path to a user's own file."""
        return self.target.runtime.rpartition("/")[2]

    @property
    def _present(self) -> Device:
        assert not isinstance(self.device, Absent)  # the callers have looked
        return self.device

    def _where(self, device: Device) -> dict[str, Any]:
        """What the results of a device depend on."""
        return {
            "device": device.describe(self.runtime),
            "runtime": [self._public_runtime, self.target.options],
            "source": self.runtime.digest(),
        }

    def _facts(self, compiled: Compiled | None, choice: Choice, ledger: Ledger) -> tuple[str, ...]:
        facts = []
        wanted = self.target.compile
        if wanted and not compiled:
            facts.append("Not proved by NVIDIA's parser on this host: TensorRT-RTX is for Linux on x86-64.")
        if compiled and wanted:
            proof = "is a proof alone; the board builds its own from deploy.onnx, whose size is given"
            what = "ships" if wanted.ship else proof
            gpus = ", ".join(wanted.compute_capabilities)
            facts.append(
                f"{compiled.library} parsed and built {choice.name} for {gpus} on this host "
                f"({compiled.layers[choice.name]} layers); that engine {what}."
            )
            facts += [f"{compiled.library} said of {choice.name}: {line}" for line in compiled.messages[choice.name]]
        if isinstance(self.device, Absent):
            last = ledger.rows[-1].stage
            facts.append(f"No device ran the engine: '{last}' is the very same graph in ONNX Runtime on this host.")
        return tuple(facts)


def _running(written: Done[Written], ran: Done[Ran] | None) -> list[Candidate]:
    """Return the candidates that the device could run; all, where there is no device."""
    return [c for c in written.result.candidates if ran is None or c.name in ran.result.deploy_logit_error]


def _results(
    written: Written, checked: Checked, profile: Profile | None, sizes: Mapping[str, int]
) -> tuple[CandidateResult, ...]:
    """Join what is known of each candidate; ``sizes`` are those of the files that would run."""
    measured = {engine.name: engine for engine in profile.engines} if profile else {}
    results = []
    for candidate in (c for c in written.candidates if c.name in checked.ledgers):
        ledger, engine = checked.ledgers[candidate.name], measured.get(candidate.name)
        last = ledger.rows[-1]
        results.append(
            CandidateResult(
                name=candidate.name,
                precision=candidate.precision,
                verdict=ledger.verdict,
                metric=last.metric,
                bound=last.to_student.bound if last.to_student else math.nan,
                flips=math.nan if last.flips is None else last.flips,
                p50=engine.latency.p50 if engine else None,
                size_bytes=sizes[candidate.name],
                peak_rss_bytes=engine.peak_rss_bytes if engine else None,
            )
        )
    return tuple(results)


def _named(profile: Profile, chosen: str) -> Profile:
    """Return a profile in which the candidate that ships is called "engine"."""
    engines = (replace(engine, name=SHIPPED) if engine.name == chosen else engine for engine in profile.engines)
    return replace(profile, engines=tuple(engines))


def _describe_written(written: Written) -> str:
    return ", ".join(
        f"{c.name} {c.sizes[DEPLOY] / 1e3:.0f} kB"
        + (f" ({c.quantized_nodes}/{c.weight_nodes} layers)" if c.quantized_nodes else "")
        for c in written.candidates
    )


def _describe_compiled(compiled: Compiled) -> str:
    counts = ", ".join(f"{name} {layers} layers" for name, layers in compiled.layers.items())
    return f"{compiled.library}: {counts}"


def _describe_ran(ran: Ran) -> str:
    return ", ".join(f"{name} deploy within {error:.1g} of engine" for name, error in ran.deploy_logit_error.items())


def _describe_checked(checked: Checked) -> str:
    told = []
    for name, ledger in checked.ledgers.items():
        drift = ledger.rows[-1].to_student
        told.append(f"{name} {ledger.verdict}" + (f", drift ≤ {drift.bound:.4f}" if drift else ""))
    return "; ".join(told)


def _describe_profile(profile: Profile) -> str:
    p50 = {e.name: e.latency.p50 for e in profile.engines}
    return ", ".join(f"{name} {q.value_ms:.3f} ms" for name, q in p50.items() if q is not None)
