"""What every stage of a target is given, and what one stage hands to the next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import msgspec

from edgekd.devices.base import Absent
from edgekd.errors import ModelError
from edgekd.pipeline.target.refusal import in_users_terms, read_origins
from edgekd.runtime.backends.registry import AS_WRITTEN, ORT, Runtime
from edgekd.stages.artifacts import CALIBRATION, TEST, VALIDATION, onnx_name, origins_name
from edgekd.stages.judging import gate_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from edgekd.compress.candidate import Candidate
    from edgekd.compress.variants import CandidateSpec
    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.gram.gate import GateRules, Ledger
    from edgekd.gram.verdict import GateLimits
    from edgekd.pipeline.source import Origin
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done, Runner, StageSpec

    R = TypeVar("R")

#: Packages that the stages of a target compute with.
LIBRARIES = ("onnx", "onnxruntime", "numpy")

#: Outputs of a candidate's graph for the test samples, in the candidate's folder.
OUTPUTS = "outputs.npz"

#: Description of a compiled engine's layers, in the candidate's folder.
LAYERS = "layers.json"

#: Folder of the bundle in the results of the stage that makes it.
BUNDLED = "bundle"


@dataclass(frozen=True)
class LedgerStep:
    """One row of the ledger that a candidate went through on this host.

    Attributes:
        stage: Name of the row.
        note: What the step did; "" where its name says it.
        probe: File of the probe after the step, of the validation samples.
        test_probe: The same of the test samples; None where these have not been looked at.
    """

    stage: str
    note: str
    probe: Path
    test_probe: Path | None = None


@dataclass(frozen=True)
class PreparedCandidate:
    """A candidate whose graphs are written, and where they come from.

    Attributes:
        candidate: The candidate itself.
        spec: In which precision and by which quantizer it was written.
        folder: Folder of its graphs.
        key: Key of the stage that wrote it.
        deploy_logit_error: Largest |difference| of a logit between its two variants, on this host.
        steps: Its rows of the ledger; the last one is the graph itself.
        history: One entry for each epoch of the fine-tune for INT8 that it comes from; empty where there was none.
    """

    candidate: Candidate
    spec: CandidateSpec
    folder: Path
    key: str
    deploy_logit_error: float
    steps: tuple[LedgerStep, ...]
    history: tuple[dict[str, float], ...] = ()

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.candidate.name


@dataclass(frozen=True)
class EvaluatedCandidate:
    """A candidate that ran and was judged: to be chosen on the validation samples, and then on those of the test.

    Attributes:
        prepared: The candidate with its graphs.
        ledger: The same probe after every step, and the verdict.
        engine: File that the runtime is given.
        layers: Description of a compiled engine's layers; None where nothing was compiled.
        outputs: File with what the engine, or its graph on this host, gave for these samples.
        deploy_logit_error: Largest |difference| of a logit between its two variants, where it ran last.
        keys: Keys of the stages that engine and outputs come from.
        check_key: Key of the stage that judged it.
    """

    prepared: PreparedCandidate
    ledger: Ledger
    engine: Path
    layers: Path | None
    outputs: Path
    deploy_logit_error: float
    keys: tuple[str, ...]
    check_key: str

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.prepared.name

    def engine_of(self, variant: str) -> Path:
        """Return the file of a variant that the runtime is given: an engine that was built ahead of time, or ONNX."""
        return (self.engine.parent / variant).with_suffix(self.engine.suffix)


@dataclass(frozen=True)
class Context:
    """One target of one build.

    Attributes:
        runner: Runs the stages.
        recipe: What to build.
        target: The kind of device.
        origin: The float network, its samples, and the networks that it comes from.
        device: The machine that runs the target's engines, or why there is none.
    """

    runner: Runner
    recipe: Recipe
    target: Target
    origin: Origin
    device: Device | Absent

    def stage(
        self,
        spec: StageSpec[R],
        label: str = "",
        *,
        config: Mapping[str, object],
        inputs: Mapping[str, object],
        run: Callable[[Path, StageReporter], R],
    ) -> Done[R]:
        """Run a stage of this target, or read its result.

        Args:
            spec: Kind of stage.
            label: What tells it from the target's other stages of this kind; "" for the first.
            config: Settings that the result depends on.
            inputs: Keys of the results that it is computed from.
            run: Function that does the work in a folder.
        """
        label = f"{self.target.name} {label}".rstrip()
        return self.runner(spec, label=label, config=config, inputs=inputs, run=run)

    @property
    def exported(self) -> Done[Exported]:
        """The export of the float graph that the first candidates are made of."""
        return self.origin.exported

    @property
    def float_graph(self) -> Path:
        """File of the float graph."""
        return self.exported.folder / onnx_name(self.origin.network)

    @property
    def test(self) -> Path:
        """File of the samples that judge what ships, and only that."""
        return self.exported.folder / TEST

    @property
    def validation(self) -> Path:
        """File of the samples on which candidates are judged, repaired and chosen."""
        return self.exported.folder / VALIDATION

    @property
    def calibration(self) -> Path:
        """File of the samples with which ranges, blame and repair are found; none of them is the gate's."""
        return self.exported.folder / CALIBRATION

    @property
    def present(self) -> Device:
        """The device; the caller has looked whether there is one."""
        assert not isinstance(self.device, Absent)
        return self.device

    @property
    def timed(self) -> bool:
        """Whether there is a device whose latency means something."""
        return not isinstance(self.device, Absent) and self.device.no_latency is None

    @property
    def runtime(self) -> Runtime:
        """The library that runs the engines."""
        return Runtime(self.target.runtime, self.target.options)

    @property
    def on_onnxruntime(self) -> bool:
        """Whether ONNX Runtime, here or elsewhere, is the library that runs the engines."""
        return self.runtime.backend.module == ORT.backend.module

    @property
    def host_runtime(self) -> Runtime:
        """ONNX Runtime on this host as the target opens it, or, in another library's stead, as the graph is written."""
        if not self.on_onnxruntime:
            return AS_WRITTEN
        return Runtime(ORT.name, {key: value for key, value in self.target.options.items() if key == "fused"})

    @property
    def public_runtime(self) -> str:
        """The runtime as a bundle names it: without this machine's path to a user's own file."""
        return self.target.runtime.rpartition("/")[2]

    def device_identity(self) -> dict[str, object]:
        """Return what the results of the device depend on, as JSON."""
        return {
            "device": self.present.describe(self.runtime),
            "runtime": [self.public_runtime, self.target.options],
            "source": self.runtime.digest(),
        }

    def gate_identity(self) -> dict[str, object]:
        """Return what a verdict depends on beside the outputs, as JSON."""
        return {
            **msgspec.to_builtins(self.recipe.gate),
            "seed": self.recipe.seed,
            "runtime": [self.public_runtime, self.target.options],
        }

    @property
    def limits(self) -> GateLimits:
        """Limits of the gate."""
        return self.rules.limits

    @cached_property
    def rules(self) -> GateRules:
        """How the rows of a ledger are judged."""
        facts, seed = self.exported.result.facts, self.recipe.seed
        gate, higher_is_better = self.recipe.gate, facts.higher_is_better
        same = self.origin.same if facts.own_same else None
        return gate_rules(gate, facts.metric, facts.outputs, higher_is_better=higher_is_better, seed=seed, same=same)

    def leave_out(self, name: str, error: ModelError, folder: Path, report: StageReporter) -> str:
        """Warn that a candidate is left out, and return why, without the path of a folder of the cache."""
        origins = read_origins(self.exported.folder / origins_name(self.origin.network))
        reason = in_users_terms(error, [folder], origins)
        report.warn(f"{name} is left out: {reason}")
        return reason


def require_one(left: Collection[object], refused: Mapping[str, str]) -> None:
    """Check that a target still has a candidate.

    Args:
        left: The candidates that are left.
        refused: For each that was left out the reason.

    Raises:
        ModelError: There is none.
    """
    if not left:
        same = dict.fromkeys(refused.values())
        raise ModelError(next(iter(same)) if len(same) == 1 else "; ".join(f"{n}: {r}" for n, r in refused.items()))
