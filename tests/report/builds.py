"""Build reports on real data types: seeded probes judged by the gate, and timings of plausible spread."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace

import numpy as np

from edgekd.config.target import Budgets
from edgekd.gram.gate import GateRules, keep_ledger
from edgekd.gram.heatmap import few_grams
from edgekd.gram.intervals import Bootstrap, Estimate
from edgekd.gram.metric import ConstantAnswer, LedgerMetrics
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import GateLimits
from edgekd.report.build import profile as profiles
from edgekd.report.build.files import write_report
from edgekd.report.results import BuildReport, TargetResult
from edgekd.runtime.manifest import Manifest
from edgekd.runtime.measure.results import (
    Energy,
    EngineProfile,
    LayerTime,
    Paced,
    Profile,
    Sustained,
    Window,
    latency_from,
)
from edgekd.stages.stage import StageTime

LIMITS = GateLimits(
    tau_pass=0.005, tau_fail=0.02, max_flips=0.03, max_metric_drop=0.015, max_missing_flips=0.08, structure="strict"
)
MACHINE = {
    "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    "cores": "2",
    "governor": "not readable",
    "memory": "8.3 GB",
    "os": "Linux 6.1.0, glibc 2.36",
    "onnxruntime": "1.30.0",
}


@functools.cache
def probes(noise=0.01, pruned=True, answers=0.3):
    """What the stages of a network over three modalities say of 150 samples; compressed ones stray by ``noise``.

    Their logits stray by ``answers`` times as much.
    """
    random = np.random.default_rng(7)
    ids = np.array([f"s{index:04d}" for index in range(150)])
    logits = random.normal(size=(150, 6)).astype(np.float32)
    shared = random.normal(size=(150, 16))
    clean = {name: shared + random.normal(size=(150, 16)) for name in ("accel", "gyro", "audio")}

    def probe(scale):
        embeddings = {k: (z + scale * random.normal(size=z.shape)).astype(np.float32) for k, z in clean.items()}
        moved = (logits + answers * scale * random.normal(size=logits.shape)).astype(np.float32)
        return Probe(ids, {"logits": moved}, embeddings)

    scales = {"teacher": 0.3, "student": 0.0, "cut": 4 * noise, "finetuned": noise}
    scales |= dict.fromkeys(("quantized", "device"), 1.5 * noise)
    if not pruned:
        del scales["cut"], scales["finetuned"]
    return {stage: probe(scale) for stage, scale in scales.items()}


@functools.cache
def ledger(
    noise=0.01, pruned=True, metrics=(), limits=LIMITS, metric="macro-F1", answers=0.3, surely=0.002, without=False
):
    """The ledger of :func:`probes`; how much worse a metric is than the student's is known up to ``surely``."""
    found = {"teacher": 0.9731, "student": 0.9612, "cut": 0.9012, "finetuned": 0.9598}
    found |= dict.fromkeys(("quantized", "device"), 0.9581)
    found |= dict(metrics)
    stages, before, sign = probes(noise, pruned, answers), found["student"], 1 if limits.higher_is_better else -1
    falls = {stage: sign * (before - value) for stage, value in found.items() if None not in (value, before)}
    losses = {
        stage: Estimate(fall, fall - surely, fall + surely)
        for stage, fall in falls.items()
        if stage not in ("teacher", "student")
    }
    constant = ConstantAnswer("class 2", 0.1834, Estimate(0.7778, 0.7101, 0.8455)) if before and sign > 0 else None
    missing = {"accel": Estimate(0.0133, 0.0, 0.0413), "audio": Estimate(0.0933, 0.0571, 0.1417)}
    figures = LedgerMetrics({stage: found[stage] for stage in stages}, losses, constant)
    groups, rules = np.arange(150) % 30, GateRules(metric, limits, Bootstrap(resamples=200), {"logits": OutputKind()})
    return keep_ledger(stages, figures, rules, groups, missing=missing if without else {})


#: Ledgers of every verdict: of an undecided one the metric is not known well enough, and the answers stray too far.
LEDGERS = {
    "pass": ledger,
    "warn": functools.partial(ledger, without=True),
    "undecided": functools.partial(ledger, answers=10, surely=0.03),
    "fail": functools.partial(ledger, 0.03, answers=40, metrics=(("device", 0.8023),)),
}


def timings(typical_ms, n=2000):
    """Inferences in ns of a skewed distribution."""
    random = np.random.default_rng(round(typical_ms * 1e4))
    return (typical_ms * 1e6 * (0.97 + random.gamma(1.2, 0.03, n))).astype(np.int64)


def latency(typical_ms, n=2000):
    """Summarised timings; n of 200 is too few for p99."""
    return latency_from(timings(typical_ms, n))


def profile(n=2000, times=(0.4124, 0.2011, 0.0883)):
    engines = tuple(
        EngineProfile(name, latency(ms, n), (31.2, 30.1, 33.9), (1.92, 1.88, 2.4), rss, size, f"{name}.npy")
        for name, ms, rss, size in zip(
            ("teacher", "student", "shipped"), times, (91_300_000, 84_100_000, 82_700_000), SIZES.values(), strict=True
        )
    )
    return Profile(MACHINE, threads=1, block=50, engines=engines)


def further(engine):
    """The same engine with all else that a profile can have."""
    typical_ms = engine.latency.p50.value_ms
    layers = [("conv", "Conv", "accel", 0.5), ("conv_1", "Conv", "audio", 0.2), ("head", "Gemm", "fusion", 0.1)]
    return replace(
        engine,
        compute=latency(0.8 * typical_ms),
        paced=Paced(30.0, latency(1.3 * typical_ms), 2, f"{engine.name}.paced.npy"),
        sustained=Sustained(60.0, (Window(0.0, 900, typical_ms, 51.0, 2400.0),), 1.04, False, "long.npy"),
        energy=Energy(1.84, 9.1, 14.2, "RAPL package-0", 10.0),
        layers=tuple(LayerTime(name, kind, branch, typical_ms * part) for name, kind, branch, part in layers),
    )


def full_profile():
    """A profile in which nothing is lacking."""
    found = profile()
    return replace(found, engines=tuple(further(engine) for engine in found.engines))


SIZES = {"teacher": 5_213_004, "student": 812_400, "shipped": 231_770}


def target(name="cpu", profile_reason=None, **changes):
    """A result; pass the fields to change."""
    kept = changes.get("ledger") or ledger()
    known = {
        "device": "this host",
        "runtime": "onnxruntime",
        "precision": "int8",
        "ledger": kept,
        "baselines": ("teacher", "student"),
        "profile": None if profile_reason else profile(),
        "sizes": {**SIZES, "pruned": 640_112},
        "bundle": f"gestures-{name}" if kept.released else None,
        "budgets": Budgets(),
        "deploy_logit_error": 0.0031,
        "candidates": (),
        "chosen": "int8",
        "choice": "the only candidate",
    }
    return TargetResult(target=name, profile_reason=profile_reason, **{**known, **changes})


def without_a_graph_of_the_teacher():
    """A result of a build whose teacher could not be exported."""
    timed, sizes = profile(), {name: size for name, size in SIZES.items() if name != "teacher"}
    return target(profile=replace(timed, engines=timed.engines[1:]), sizes=sizes)


STAGES = (
    StageTime("teacher", 0.0, True, "macro-F1 0.973"),
    StageTime("distil", 185.2, False, "macro-F1 0.961, Gram drift 0.021"),
    StageTime("prune", 61.0, False, "25 % of channels, macro-F1 0.960"),
    StageTime("quantize cpu", 8.13, False, "int8, 42 nodes"),
)


def build(*targets):
    """A report of some targets, or of one that warns."""
    return BuildReport(
        recipe="gestures",
        task="gestures",
        seed=0,
        versions={"edgekd": "0.1.0", "torch": "2.9.0", "onnx": "1.19.0"},
        stages=STAGES,
        training={
            "teacher": [{"loss": 0.9}, {"loss": 0.25, "validation": 0.96}],
            "student": [{"loss": 0.5, "loss.intra": 0.004, "weight.intra": 36.54, "validation": 0.95}],
        },
        targets=targets or (target(),),
    )


def write_run(folder, *targets, task="gestures"):
    """Write the output of a build as its last steps do: raw timings and Grams, then the report; return the folder."""
    for result in targets:
        place = folder / result.target
        (place / "latency").mkdir(parents=True)
        for engine in result.profile.engines if result.profile else ():
            np.save(place / "latency" / engine.raw_file, timings(engine.latency.p50.value_ms))
        shown = {stage: probes()[stage] for stage in ("teacher", "student", "device")}
        shown["shipped"] = shown.pop("device")
        found = few_grams(shown, np.arange(150) % 6, [f"class {index}" for index in range(6)])
        found.save(place / "gram" / "samples.npz")
    write_report(replace(build(*targets), task=task), folder)
    return folder


def write_profile(folder, measured, kept=None):
    """Write what ``edgekd profile`` leaves of a bundle: its engine's raw timings and ``profile.json``."""
    kept, engine = kept or ledger(), measured.engines[-1]
    manifest = Manifest(
        **{"schema_version": 3, "edgekd": "0", "target": "cpu", "runtime": "onnxruntime", "options": {}},
        **{"precision": "int8", "released": kept.verdict != "fail", "verdict": kept.verdict},
        **{"reasons": list(kept.reasons), "task": {"name": "gestures", "metric": kept.metric}, "inputs": []},
        **{"outputs": [], "states": [], "versions": {}, "measurements": {}, "files": {}},
    )
    folder.mkdir(exist_ok=True)
    np.save(folder / engine.raw_file, timings(engine.latency.p50.value_ms))
    alone = replace(measured, engines=(engine,))
    profiles.write_profile(profiles.profile_json(manifest, asdict(kept), "onnxruntime", "local", alone), folder)
