"""What every stage of the second half knows, and what one stage hands to the next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgekd.devices.base import Absent
from edgekd.gram.drift import Bootstrap
from edgekd.gram.gate import GateLimits
from edgekd.runtime.backends.registry import Runtime
from edgekd.stages.artifacts import CALIBRATION, TEST, onnx_name
from edgekd.stages.stage import Done, Runner, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from edgekd.compress.quantize import Candidate, CandidateSpec
    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.gram.gate import Ledger
    from edgekd.gram.probe import Probe
    from edgekd.pipeline.source import Origin
    from edgekd.stages.artifacts import Exported

LIBRARIES = ("onnx", "onnxruntime", "numpy")
VERSIONS = {
    "quantize": 6,
    "blame": 3,
    "repair": 3,
    "alarm": 1,
    "compile": 2,
    "engine": 4,
    "check": 3,
    "disturb": 1,
    "profile": 3,
    "bundle": 4,
    "verify": 1,
}

#: What a candidate's graph gave for the test samples, in its folder.
OUTPUTS = "outputs.npz"


@dataclass(frozen=True)
class LedgerStep:
    """One row of the ledger that a candidate went through on this host: its name, a note, and the probe's file."""

    stage: str
    note: str
    probe: Path


@dataclass(frozen=True)
class PreparedCandidate:
    """A candidate, and where it comes from.

    Attributes:
        candidate: what it is.
        way: in which it was written.
        folder: where its graphs lie.
        key: of the stage that wrote it.
        deploy_logit_error: largest |difference| of a logit between its two variants, on this host.
        steps: its rows of the ledger, the last of which is the graph itself.
        history: of the fine-tune for INT8 that it is made of, one entry an epoch.
    """

    candidate: Candidate
    way: CandidateSpec
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
    """An offer that ran and was judged.

    Attributes:
        offer: what it is.
        ledger: the same probe after every stage, and the verdict.
        engine: the file that the runtime is given.
        layers: where the description of a compiled engine's layers lies; None where nothing was compiled.
        outputs: what the engine, or on this host its graph, gave for the test samples.
        deploy_logit_error: as the offer's, where it ran last.
        keys: of the stages that engine and outputs come from.
        checked: key of the stage that judged it.
    """

    offer: PreparedCandidate
    ledger: Ledger
    engine: Path
    layers: Path | None
    outputs: Path
    deploy_logit_error: float
    keys: tuple[str, ...]
    checked: str

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.offer.name


@dataclass(frozen=True)
class Context:
    """One target of one build."""

    runner: Runner
    recipe: Recipe
    target: Target
    origin: Origin
    device: Device | Absent

    def stage(self, kind: str, batch: str, depends: dict[str, Any], result: Any, run: Any, summary: Any) -> Done[Any]:
        """Run a stage of this target; ``batch`` tells apart stages of one kind, "" for the first."""
        name = " ".join(filter(None, (kind, self.target.name, batch)))
        return self.runner(Stage(name, VERSIONS[kind], depends, result, run, summary))

    @property
    def exported(self) -> Done[Exported]:
        """The float graph that the first candidates are made of."""
        return self.origin.exported

    @property
    def float_graph(self) -> Path:
        """Its file."""
        return self.exported.folder / onnx_name(self.origin.network)

    @property
    def test(self) -> Path:
        """The gate's samples."""
        return self.exported.folder / TEST

    @property
    def calibration(self) -> Path:
        """The samples with which ranges, blame and repair are found; none of them is the gate's."""
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
    def public_runtime(self) -> str:
        """The runtime as a bundle names it: without this machine's path to a user's own file."""
        return self.target.runtime.rpartition("/")[2]

    def where(self) -> dict[str, Any]:
        """Return what the results of the device depend on."""
        return {
            "device": self.present.describe(self.runtime),
            "runtime": [self.public_runtime, self.target.options],
            "source": self.runtime.digest(),
        }

    def metrics(self, probes: Mapping[str, Probe], labels: np.ndarray[Any, Any] | None) -> dict[str, float | None]:
        """Return the metric of each probe; None where there are no labels."""
        return {
            name: None if labels is None else self.origin.metric(probe.logits, labels) for name, probe in probes.items()
        }

    @cached_property
    def limits(self) -> GateLimits:
        """What the gate asks for."""
        gate, facts = self.recipe.gate, self.exported.result.facts
        return GateLimits(gate.tau_pass, gate.tau_fail, gate.max_flips, gate.max_metric_drop, facts.higher_is_better)

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """How drift is bounded."""
        return Bootstrap(self.recipe.gate.confidence, self.recipe.gate.resamples, self.recipe.seed)
