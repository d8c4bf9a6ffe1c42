"""The results of a finished build, which every table and file is made of, and the verdict over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.gram.intervals import Estimate  # noqa: TC001
from edgekd.gram.verdict import Verdict, worst  # msgspec reads the annotations of CandidateResult
from edgekd.runtime.measure.results import Quantile  # noqa: TC001

if TYPE_CHECKING:
    from edgekd.config.target import Budgets
    from edgekd.gram.gate import Ledger, LedgerRow
    from edgekd.report.details.content import OutputDetails
    from edgekd.runtime.corruption import NetworkRobustness, Robustness
    from edgekd.runtime.measure.results import EngineProfile, Profile
    from edgekd.stages.stage import StageTime
    from edgekd.stages.trained import PruneAttempt

#: Name of the candidate that ships, in tables.
SHIPPED = "shipped"

#: The report for machines in the output folder, the file that ``edgekd profile`` writes, and their versions.
REPORT, SCHEMA_VERSION = "report.json", 4
PROFILE, PROFILE_VERSION = "profile.json", 2

#: Folders below a target's output: that of raw timings, and that with the Gram matrices of a few samples, whose file is
#: a :class:`~edgekd.gram.heatmap.FewGrams`.
LATENCY, GRAM, SAMPLES = "latency", "gram", "samples.npz"

#: Folder below a target's output of a bundle that was not released.
REJECTED = "rejected"


def project_name(recipe: str, task: str) -> str:
    """Return what a user calls a build: the recipe where the task is a class of the user's own file, else the task."""
    return recipe if ".py:" in task else task


@dataclass(frozen=True)
class BudgetCheck:
    """One limit that a target recommends.

    Attributes:
        name: Name of the figure.
        unit: Unit of the figure and of the limit.
        limit: The largest figure that keeps the limit.
        measured: The figure; None where it was not measured.
    """

    name: str
    unit: str
    limit: float
    measured: float | None

    @property
    def kept(self) -> bool:
        """Whether the figure was measured and is within the limit."""
        return self.measured is not None and self.measured <= self.limit

    def __str__(self) -> str:
        """Return the figure and its limit in words, e.g. ``"latency p50 6.1 ms, budget 5 ms"``."""
        figure = "not measured" if self.measured is None else f"{self.measured:.3g} {self.unit}"
        return f"{self.name} {figure}, budget {self.limit:g} {self.unit}"


@dataclass(frozen=True)
class CandidateResult:
    """One way in which the network was written for a target, as it was measured on the validation samples.

    Attributes:
        name: Name of the candidate, e.g. "int8", "int8-nncf" or "float32".
        precision: Its precision, e.g. "int8".
        verdict: The gate's verdict on its last stage.
        metric: The metric at its last stage; None where there are no labels.
        divergence: How far its output is from the reference's, in the kind's own measure; None for the reference.
        bound: Upper confidence bound of its drift against the ledger's reference, at its last stage.
        flips: Share of samples whose top-1 class is not the reference's, at its last stage; None where the network is
            no classifier.
        p50: Median latency in ms with its 95 % interval; None where it was not measured.
        size_bytes: Size of the file that the runtime is given.
        peak_rss_bytes: Peak resident memory of the process that ran it; None where it was not measured.
    """

    name: str
    precision: str
    verdict: Verdict
    metric: float | None
    divergence: Estimate | None
    bound: float
    flips: float | None
    p50: Quantile | None
    size_bytes: int
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class TargetResult:
    """The result of a build for one target.

    Attributes:
        target: Name of the target.
        device: The machine that ran the engine, in the user's words; "no device" where none did.
        runtime: The engine library.
        precision: Precision of the engine, e.g. "int8".
        ledger: The same probe after every stage.
        baselines: Names of the float networks that the engine is compared with; the last is the ledger's reference.
        profile: The baselines, the engine and the other candidates, measured in turns on the device; None where they
            were not measured.
        profile_reason: Why they were not measured: ``"not measured: ..."``; None where they were.
        sizes: Sizes in bytes of the engine files of the float networks and of "shipped".
        bundle: Path of the bundle relative to the output folder; None where no bundle was released.
        budgets: The limits that the target recommends.
        deploy_logit_error: Largest absolute difference between the logits of ``deploy.onnx`` and ``probe.onnx``.
        candidates: Every way in which the network was written for the target, the one that ships among them.
        chosen: Name of the candidate that ships.
        choice: Why that candidate was chosen.
        facts: Sentences about the engine that belong in the report.
        chosen_on: On which samples the candidates were judged and one of them was chosen, in words, e.g.
            "200 samples of the validation split"; none of them is among those that judge what ships.
        robustness: The metric of what ships with a modality dropped or noisy; None where it was not measured.
        details: What stands behind the quality of each output, by its name; empty in reports of an earlier edgekd.
    """

    target: str
    device: str
    runtime: str
    precision: str
    ledger: Ledger
    baselines: tuple[str, ...]
    profile: Profile | None
    profile_reason: str | None
    sizes: dict[str, int]
    bundle: str | None
    budgets: Budgets
    deploy_logit_error: float
    candidates: tuple[CandidateResult, ...]
    chosen: str
    choice: str
    facts: tuple[str, ...] = ()
    robustness: NetworkRobustness | None = None
    chosen_on: str = ""
    details: dict[str, OutputDetails] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.profile is None and not self.profile_reason:
            raise ValueError(f"{self.target}: without a profile there must be a reason for it")

    def measured(self, name: str) -> EngineProfile | None:
        """Return the measurements of a baseline or of "shipped"; None where it was not measured."""
        engines = self.profile.engines if self.profile else ()
        return next((engine for engine in engines if engine.name == name), None)

    def row(self, stage: str) -> LedgerRow | None:
        """Return the ledger's row of a stage; None where it has none."""
        return next((row for row in self.ledger.rows if row.stage == stage), None)

    @property
    def last(self) -> LedgerRow:
        """The ledger's row of what ships: of the device, or of this host where no device ran it."""
        return self.ledger.rows[-1]

    @property
    def samples(self) -> int:
        """Number of samples that the ledger compares."""
        return self.last.samples

    def speedup(self, baseline: str, name: str = SHIPPED) -> float | None:
        """Return a baseline's p50 over that of ``name``; None where one is lacking. The two took turns in one run."""
        slow, fast = self.measured(baseline), self.measured(name)
        if not (slow and fast and slow.latency.p50 and fast.latency.p50):
            return None
        return slow.latency.p50.value_ms / fast.latency.p50.value_ms

    def shrinkage(self, baseline: str) -> float | None:
        """Return the size of a baseline's file over that of the engine's; None where one of them is not known."""
        if baseline not in self.sizes or not self.sizes.get(SHIPPED):
            return None
        return self.sizes[baseline] / self.sizes[SHIPPED]

    @property
    def budget_checks(self) -> tuple[BudgetCheck, ...]:
        """The limits that the target recommends, each with the engine's figure."""
        engine = self.measured(SHIPPED)
        p50 = engine.latency.p50.value_ms if engine and engine.latency.p50 else None
        size = self.sizes[SHIPPED] / 1e6 if SHIPPED in self.sizes else None
        memory = engine.peak_rss_bytes / 1e6 if engine else None
        stated = (
            ("latency p50", "ms", self.budgets.latency_ms, p50),
            ("size", "MB", self.budgets.size_mb, size),
            ("peak memory", "MB", self.budgets.memory_mb, memory),
        )
        return tuple(BudgetCheck(name, unit, limit, value) for name, unit, limit, value in stated if limit is not None)

    @property
    def verdict(self) -> Verdict:
        """The gate's verdict; a budget that is missed or unmeasured warns, since a target only recommends it."""
        return worst(self.ledger.verdict, *("pass" if check.kept else "warn" for check in self.budget_checks))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is; what is less severe is among the warnings."""
        gate = self.ledger.reasons if self.ledger.verdict == self.verdict else ()
        return (*gate, *(self._missed if self.verdict == "warn" else ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is less severe than the verdict."""
        return (*self.ledger.warnings, *(() if self.verdict == "warn" else self._missed))

    @property
    def _missed(self) -> tuple[str, ...]:
        return tuple(str(check) for check in self.budget_checks if not check.kept)

    @property
    def released(self) -> bool:
        """Whether there is a bundle that apps may open."""
        return self.bundle is not None and self.ledger.released

    @property
    def shown_bundle(self) -> str:
        """Path of the bundle relative to the output folder, also of one that was rejected."""
        return self.bundle or f"{self.target}/{REJECTED}"

    @property
    def remark(self) -> str | None:
        """A warning where compression did not pay: the engine is not clearly faster than the float network."""
        before, engine = self.measured(self.baselines[-1]), self.measured(SHIPPED)
        if not (before and engine and before.latency.p50 and engine.latency.p50):
            return None
        if engine.latency.p50.high_ms < before.latency.p50.low_ms:
            return None
        if self.baselines == ("float",) and self.precision == "float32":
            return None
        precision = "INT8" if self.precision == "int8" else self.precision
        before_is = "the imported float network" if self.baselines == ("float",) else "the float student"
        own, others = engine.latency.p50, before.latency.p50
        times = f"p50 {_interval(own)} against {_interval(others)} ms"
        if own.low_ms > others.high_ms:
            return f"{precision} is slower than {before_is} on this device: {times}"
        return f"{precision} is not clearly faster than {before_is} on this device: {times}, and the intervals overlap"


def _interval(p50: Quantile) -> str:
    return f"{p50.value_ms:.3g} ({p50.low_ms:.3g} to {p50.high_ms:.3g})"


@dataclass(frozen=True)
class BuildReport:
    """The result of a whole build.

    Attributes:
        recipe: Name or path of the recipe.
        task: Name of the task.
        seed: Seed of every random choice.
        versions: Versions of edgekd and of the libraries that computed the result.
        stages: The stages in the order in which they ran.
        training: For each network that was trained, the figures of each epoch: mean losses, the weights of added losses
            and their shares of the gradient, and on the validation split the metric and the Gram drift from the anchor.
        targets: One result for each target that was built.
        refused: For each target that was not built the reason, by its name.
        robustness: The metric of the networks that were trained with a modality dropped or noisy; None where it was not
            measured.
        robustness_reason: Why it was not: ``"not measured: ..."``.
        pruning: The attempts at pruning, in order, the last of which is what was exported; empty where nothing was
            pruned here.
    """

    recipe: str
    task: str
    seed: int
    versions: dict[str, str]
    stages: tuple[StageTime, ...]
    training: dict[str, list[dict[str, float]]]
    targets: tuple[TargetResult, ...]
    refused: dict[str, str] = field(default_factory=dict)
    robustness: Robustness | None = None
    robustness_reason: str = "not measured"
    pruning: tuple[PruneAttempt, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the stages warned of, each once, with the stage's name."""
        return tuple(dict.fromkeys(f"{stage.name}: {told}" for stage in self.stages for told in stage.warnings))

    @property
    def released(self) -> bool:
        """Whether every target's build is released."""
        return all(result.ledger.released for result in self.targets)

    @property
    def name(self) -> str:
        """What a title calls the build."""
        return project_name(self.recipe, self.task)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all targets."""
        return worst(*(result.verdict for result in self.targets))
