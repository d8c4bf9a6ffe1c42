"""One engine on its device, as ``report.json`` and ``profile.json`` hold it: one type to write and to read."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

from edgekd.gram.output_kind import OutputName
from edgekd.gram.verdict import Question, Verdict

#: The quantiles of latency that a report holds.
QUANTILES = ("p50", "p90", "p99")

#: The metric of a stage in a report: None where it was not measured, unset where the build has no such stage.
StageMetric = float | None | UnsetType


class LatencyFigures(Struct, frozen=True):
    """Latency of single inferences at batch 1, in ms. A figure is None where too few were timed for it.

    Attributes:
        p50: The median.
        p90: The 90th percentile.
        p99: The 99th percentile.
        p90_bound: An upper bound of the 90th percentile at 99 % confidence.
        max: The slowest inference; none is left out.
        n: How many inferences were timed.
        interval_95: The lower and upper end of the 95 % interval of each quantile, by the quantile's name.
    """

    p50: float | None
    p90: float | None
    p99: float | None
    p90_bound: float | None
    max: float | None
    n: int | None
    interval_95: dict[str, tuple[float, float] | None]


class PacedFigures(Struct, frozen=True):
    """Inferences at the rate of a sensor.

    Attributes:
        rate_hz: Samples per second.
        late: How many samples arrived before the inference of the sample before them was done.
        latency_ms: Time from a sample's arrival to its result.
    """

    rate_hz: float
    late: int
    latency_ms: LatencyFigures


class SustainedFigures(Struct, frozen=True):
    """A run of back-to-back inferences that is long enough to heat the device.

    Attributes:
        seconds: Length of the run.
        slowdown: Median p50 of the last tenth of the run over that of the first tenth.
        throttled: Whether the system reported throttling; None where it reports nothing of the kind.
        hottest_c: The highest temperature in degrees Celsius; None where no sensor can be read.
    """

    seconds: float
    slowdown: float | None
    throttled: bool | None
    hottest_c: float | None


class MetricFigures(Struct, frozen=True):
    """The task's metric on the test split, after each stage that the build has.

    Attributes:
        name: Name of the metric.
        higher_is_better: Whether a larger metric is better.
        samples: How many test samples the ledger compares.
        shipped: The metric of the engine that ships, on the device or, where none ran it, on the building host.
        change: ``shipped`` less the metric of the ledger's reference.
        teacher: The metric of the teacher.
        student: The metric of the student before pruning.
        float_model: The metric of a float model imported from ONNX.
        cut: The metric of the network just cut.
        finetuned: The metric after the fine-tune that follows pruning.
        device: The metric of the engine on the device.
    """

    name: str
    higher_is_better: bool
    samples: int
    shipped: float | None
    change: float | None
    teacher: StageMetric = UNSET
    student: StageMetric = UNSET
    float_model: StageMetric = field(name="float", default=UNSET)
    cut: StageMetric = UNSET
    finetuned: StageMetric = UNSET
    device: StageMetric = UNSET


class AnswerFigures(Struct, frozen=True):
    """What ships beside the ledger's reference: the output of each sample, compared one by one.

    Attributes:
        kind: What the output is.
        samples: How many samples were compared.
        error: Mean length of a sample's difference over the length of the reference's output.
        error_bound: One-sided upper confidence bound of ``error``.
        divergence: Mean divergence of a sample, by the kind: for classes the KL divergence in nats.
        divergence_low: One-sided lower confidence bound of ``divergence``.
        divergence_bound: One-sided upper confidence bound of ``divergence``.
        max_divergence: The limit of ``divergence_bound``.
        largest_error: The largest absolute difference of any number, in the output's own unit.
        changed: Share of answers that changed, such as top-1 classes; unset where nothing is decided.
        changed_bound: One-sided upper confidence bound of ``changed``; unset likewise.
        max_changed: The limit of ``changed_bound``; unset likewise.
        without: For each modality the share of answers that changed with it absent; unset where it was not measured.
    """

    kind: OutputName
    samples: int
    error: float | None
    error_bound: float | None
    divergence: float | None
    divergence_low: float | None
    divergence_bound: float | None
    max_divergence: float
    largest_error: float | None
    changed: float | UnsetType | None = UNSET
    changed_bound: float | UnsetType | None = UNSET
    max_changed: float | UnsetType = UNSET
    without: dict[str, float | None] | UnsetType = UNSET


class GramFigures(Struct, frozen=True):
    """Drift of the Gram matrix of what ships against the ledger's reference.

    Attributes:
        reference: The stage that the drift is measured against.
        scope: "sample" for drift between the modalities of a sample, "intra" for drift between samples.
        stage: The stage of the ledger that the figures are of.
        drift: Mean absolute difference of the cosines.
        bound: One-sided upper confidence bound of ``drift``.
        tau: The gate fails above this bound.
        tau_pass: The gate warns above this bound.
        verdict: The gate's verdict on the drift alone.
    """

    reference: str
    scope: str | None
    stage: str
    drift: float | None
    bound: float | None
    tau: float
    tau_pass: float
    verdict: Verdict | None


class BaselineFigures(Struct, frozen=True):
    """What was measured of a float network that the engine is compared with.

    Attributes:
        latency_ms: Latency of single inferences.
        load_ms: Time to open the engine in ms, for each fresh process.
        first_run_ms: Time of the first inference in ms, for each fresh process.
        size_bytes: Size of the engine file.
        peak_rss_bytes: Peak resident memory of the process that ran it.
    """

    latency_ms: LatencyFigures
    load_ms: tuple[float, ...] | None
    first_run_ms: tuple[float, ...] | None
    size_bytes: int | None
    peak_rss_bytes: int | None


class EngineRow(Struct, frozen=True, omit_defaults=True):
    """One engine on its device. Each figure that is None has its reason in ``not_measured``, by its dotted path.

    Attributes:
        target: Name of the target.
        device: The machine that ran the engine, in the user's words.
        runtime: The engine library.
        precision: Precision of the engine, e.g. "int8".
        verdict: Verdict of the build, the target's budgets included.
        released: Whether there is a bundle that apps may open.
        reasons: Why the verdict is what it is.
        warnings: What is less severe than the verdict.
        questions: The answers to the gate's three questions, as far as they were asked.
        latency_ms: Latency of single inferences at batch 1, back to back.
        load_ms: Time to open the engine in ms, for each fresh process.
        first_run_ms: Time of the first inference in ms, for each fresh process.
        size_bytes: Size of the engine file.
        peak_rss_bytes: Peak resident memory of the process that ran it.
        throughput_per_s: Inferences per second of one stream: 1000 over the mean latency in ms.
        compute_ms: Latency of the engine library alone, with inputs and outputs in place.
        paced: Inferences at a sensor's rate.
        sustained: Inferences for a long time.
        energy_mj: Energy of one inference in mJ, with the idle power subtracted.
        energy_rail: The power sensors that were read.
        branches_ms: Time of the layers in ms, added up by modality branch.
        metric: The task's metric.
        answers: The output beside the reference's, sample by sample; None where what ships is the reference itself.
        gram: Drift of the Gram matrix.
        speedup_p50: The p50 of each baseline over that of the engine.
        size_ratio: The file size of each baseline over that of the engine.
        candidate: Name of the candidate that ships; None where it is not known.
        deploy_logit_error: Largest absolute difference between the logits of the graph without and with embeddings.
        baselines: Figures of the float networks that the engine is compared with, by name.
        not_measured: For each figure that is None the reason, by dotted path.
        run: The folder that the row was read from, as the user wrote it. It is not written.
        task: Name of the task. It is not written: the report has it once for all rows.
    """

    target: str
    device: str
    runtime: str
    precision: str
    verdict: Verdict
    released: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    questions: dict[Question, Verdict]
    latency_ms: LatencyFigures
    load_ms: tuple[float, ...] | None
    first_run_ms: tuple[float, ...] | None
    size_bytes: int | None
    peak_rss_bytes: int | None
    throughput_per_s: float | None
    compute_ms: LatencyFigures | None
    paced: PacedFigures | None
    sustained: SustainedFigures | None
    energy_mj: float | None
    energy_rail: str | None
    branches_ms: dict[str, float] | None
    metric: MetricFigures
    answers: AnswerFigures | None
    gram: GramFigures
    speedup_p50: dict[str, float | None]
    size_ratio: dict[str, float | None]
    candidate: str | None
    deploy_logit_error: float | None
    baselines: dict[str, BaselineFigures]
    not_measured: dict[str, str]
    run: str = ""
    task: str = ""

    def value(self, path: str) -> Any:
        """Return what is at a dotted path, e.g. ``"latency_ms.interval_95.p50.0"``; None where there is nothing."""
        found: Any = self
        for name in path.split("."):
            if isinstance(found, dict):
                found = found.get(name)
            elif isinstance(found, tuple):
                found = found[int(name)]
            elif found is not None:
                found = getattr(found, name)
        return None if found is UNSET else found

    def why_not(self, path: str) -> str:
        """Say why there is no figure at a dotted path; where a whole part is lacking, its reason counts."""
        while path and path not in self.not_measured:
            path = path.rpartition(".")[0]
        return self.not_measured.get(path, "not measured")
