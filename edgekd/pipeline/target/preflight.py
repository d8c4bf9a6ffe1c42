"""Stage preflight_target: let a target's quantizer, engine library and device take the untrained student."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from edgekd.compress import quantize
from edgekd.compress.variants import CandidateSpec
from edgekd.config.recipe import GateConfig
from edgekd.config.target import Calibration
from edgekd.devices.base import Absent
from edgekd.errors import ModelError
from edgekd.files import scratch_folder
from edgekd.pipeline.refusal import in_users_terms, name_node, read_origins
from edgekd.pipeline.target.agree.stage import agree
from edgekd.pipeline.target.compile import build_ahead, compiles
from edgekd.pipeline.target.context import OUTPUTS, Context
from edgekd.pipeline.target.details import detail_shipped
from edgekd.pipeline.target.evaluate import evaluate
from edgekd.pipeline.target.judge import judge_shipped
from edgekd.pipeline.target.outputs import run_on_host
from edgekd.pipeline.target.package import bundle
from edgekd.pipeline.target.quantize import write_candidates
from edgekd.pipeline.target.repair.blame import blame_candidate
from edgekd.pipeline.target.repair.stage import return_layers
from edgekd.pipeline.target.robustness import measure_shipped
from edgekd.pipeline.target.verify import verify
from edgekd.pipeline.tried_target import PREFLIGHT_TARGET, TriedTarget
from edgekd.runtime.backends.registry import ORT, Runtime, find_backend
from edgekd.stages.artifacts import CALIBRATION, DEPLOY, TEST, onnx_name, origins_name
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Silent
from edgekd.stages.stage import Runner, library_versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.pipeline.source import Origin
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done

#: Enough to see whether a graph can be quantized; how well is nothing that an untrained network could tell.
_RANGES: Final = "minmax"
_CALIBRATION = Calibration(description="", ranges=_RANGES, samples=4, chunk=4)


@dataclass(frozen=True)
class UntrainedTarget:
    """A target before anything is trained.

    Attributes:
        recipe: What to build.
        target: The kind of device.
        device: The machine that runs the target's engines, or why there is none.
        origin: The untrained networks, with a few samples.
    """

    recipe: Recipe
    target: Target
    device: Device | Absent
    origin: Origin

    @property
    def exported(self) -> Done[Exported]:
        """The graph that is to be built, and the samples."""
        return self.origin.exported

    @property
    def graph(self) -> str:
        """Name of the graph's file."""
        return onnx_name(self.origin.network)

    @property
    def runtime(self) -> Runtime:
        """The library that runs the engines."""
        return Runtime(self.target.runtime, self.target.options)

    @property
    def runs(self) -> bool:
        """Whether the engines are to run on the device: ONNX Runtime reads every graph on this host already."""
        return not isinstance(self.device, Absent) and self.runtime.name != ORT.name


def preflight_target(runner: Runner, given: UntrainedTarget) -> Done[TriedTarget]:
    """Let a target take the untrained student, or read that it did.

    Raises:
        ModelError: No candidate of the target can be built.
        DeviceError: The device was lost or hangs.
        MissingDependency: A library that the target needs is not installed.
    """
    specs = _specs(given)

    def run(folder: Path, report: StageReporter) -> TriedTarget:
        with scratch_folder(folder) as scratch:
            return try_out(_agreed(given, Cache(scratch), report), folder, report)

    def try_out(given: UntrainedTarget, folder: Path, report: StageReporter) -> TriedTarget:
        tried: list[CandidateSpec] = []
        refused: dict[str, str] = {}
        for done, spec in enumerate(specs, 1):
            if any(other.precision == spec.precision for other in tried):
                continue  # another quantizer is a second try, which nothing depends on
            with TemporaryDirectory(dir=folder) as temporary:
                try:
                    for step in _try_candidate(given, spec, Path(temporary)):
                        report.advance(done - 1, len(specs), f"{spec.name}: {step}")
                    tried.append(spec)
                except ModelError as error:
                    last = spec is specs[-1] and not tried
                    refused[spec.name] = _explain(given, error, Path(temporary) / spec.name / DEPLOY, search=last)
            report.advance(done, len(specs), spec.name)
        if not tried:  # the last is the float one: what is wrong with it is wrong with the graph itself
            raise ModelError(list(refused.values())[-1])
        for name, reason in refused.items():
            report.warn(f"{name} cannot be built: {reason}")
        report.advance(len(specs), len(specs), "judged and bundled")
        with scratch_folder(folder) as scratch:
            _ship(given, Cache(scratch), report)
        return TriedTarget(tuple(spec.name for spec in tried), refused)

    inputs = {"exported": given.exported.key}
    return runner(PREFLIGHT_TARGET, label=given.target.name, config=_settings(given, specs), inputs=inputs, run=run)


def _agreed(given: UntrainedTarget, cache: Cache, report: StageReporter) -> UntrainedTarget:
    """Return the target as it is after stage agree, where the engines are to run.

    Raises:
        ModelError: The float network is another in the engine library, or is refused by it.
    """
    if not given.runs:
        return given
    report.advance(0, 1, "float32 compared with ONNX Runtime")
    context = Context(Runner(cache, Silent()), given.recipe, given.target, given.origin, given.device)
    agreed, _ = agree(context)
    return dataclasses.replace(given, target=agreed.target, origin=agreed.origin)


def _specs(given: UntrainedTarget) -> tuple[CandidateSpec, ...]:
    """Return the candidates that are tried: a model that is built as it is alone, or those that are made of it."""
    if given.origin.given:
        return (CandidateSpec(given.origin.given.candidate.precision, None),)
    return quantize.candidate_specs(given.target, given.recipe.quantize)


def _try_candidate(given: UntrainedTarget, spec: CandidateSpec, folder: Path) -> Iterator[str]:
    """Write, build and run one candidate; yield what is about to be done."""
    exported, target, deploy = given.exported.folder, given.target, folder / spec.name / DEPLOY
    yield "written as a graph"
    model = exported / given.graph
    if given.origin.given:
        deploy.parent.mkdir()
        shutil.copyfile(given.origin.given.folder / DEPLOY, deploy)
    else:
        quantize.run(spec, model, exported / CALIBRATION, target.scheme, _CALIBRATION, folder)
    run_on_host(deploy, exported / TEST)
    engine = deploy
    if target.compile and compiles(target):
        yield "built ahead of time"
        plan = deploy.with_suffix(".plan")
        build_ahead(target, deploy, plan)
        engine = plan if target.compile.ship else deploy
    if not isinstance(given.device, Absent) and given.runs:
        yield f"run on {given.device.name}"
        threads = given.recipe.profile.threads
        given.device.evaluate(engine, given.runtime, exported / TEST, folder / OUTPUTS, threads, lambda _: None)


def _ship(given: UntrainedTarget, cache: Cache, report: StageReporter) -> None:
    """Take what was tried through the stages that follow: blame, repair, judge, bundle, and verify on the device.

    Engines were built and run already, so all but the bundle stay on this host.

    Raises:
        EdgekdError: One of them fails.
    """
    target, quantize_config = replace(given.target, compile=None), given.recipe.quantize
    recipe = replace(given.recipe, gate=GateConfig(), quantize=replace(quantize_config, calibration=_RANGES))
    context = Context(Runner(cache, Silent()), recipe, target, given.origin, Absent("engines were run before"))
    try:
        candidates, _ = write_candidates(context)
    except ModelError as error:  # its ranges may only lack samples: those of one candidate were written
        report.warn(f"of a few samples no candidate could be written: {error}")
        return
    int8 = next((candidate for candidate in candidates if quantize.has_pairs(candidate.spec)), None)
    if int8 is not None and quantize_config.repair != "off":
        return_layers(context, int8, blame_candidate(context, int8, thorough=False), "auto")
    shipped, _ = judge_shipped(context, evaluate(context, candidates).candidates[0])
    detail_shipped(context, shipped)
    measure_shipped(context, shipped)
    bundled = bundle(context, shipped, None)
    if given.target.compile is None:  # a plan is of the trained weights
        verify(dataclasses.replace(context, device=given.device), bundled)


def _explain(given: UntrainedTarget, error: ModelError, deploy: Path, *, search: bool) -> str:
    """Return why a candidate was refused; ``search`` for the node where the library that builds ahead names none."""
    if search and given.target.compile and compiles(given.target) and deploy.is_file():
        error = name_node(error, deploy, lambda graph: build_ahead(given.target, graph, graph.with_suffix(".plan")))
    origins = read_origins(given.exported.folder / origins_name(given.origin.network))
    return in_users_terms(error, (given.exported.folder, deploy.parent, deploy.parent.parent), origins)


def _settings(given: UntrainedTarget, specs: tuple[CandidateSpec, ...]) -> dict[str, object]:
    target = given.target
    built = find_backend(target.compile.library).packages if target.compile and compiles(target) else ()
    packages = (*quantize.quantizer_packages(specs), *built)
    device = None if isinstance(given.device, Absent) else given.device.describe(given.runtime)
    return {
        "candidates": [spec.name for spec in specs],
        "scheme": msgspec.to_builtins(target.scheme),
        "compile": msgspec.to_builtins(target.compile),
        "runtime": [target.runtime.rpartition("/")[2], target.options, given.runtime.digest()],
        "device": device,
        "repair": given.recipe.quantize.repair,
        "threads": given.recipe.profile.threads,
        "versions": library_versions(packages, "build"),
        "quantizers": quantize.quantizer_digests(specs),
    }
