"""Stages profile and bundle: time the candidates side by side, and put together what ships."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from edgekd.compress.graph import drop_embeddings
from edgekd.compress.qdq_map import branches
from edgekd.files import need, write_text
from edgekd.gram.heatmap import few_grams
from edgekd.gram.probe import Probe, top1
from edgekd.pipeline.target.context import BUNDLED, LAYERS, LIBRARIES
from edgekd.pipeline.target.outputs import write_references
from edgekd.report.format import size
from edgekd.report.results import GRAM, SAMPLES, SHIPPED
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.bundle_writer import BundleFacts, write_bundle
from edgekd.runtime.manifest import BRANCHES, POSTPROCESS, null_not_finite
from edgekd.runtime.measure.layers import assign_branches
from edgekd.runtime.measure.results import Profile
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import DEPLOY, PROBE_GRAPH, onnx_name
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.stage import StageSpec, library_versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.pipeline.target.context import Context, EvaluatedCandidate
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done, StageTime

#: A profile may take this long however short the stages before it were, which may have been up to date.
_LEAST_PROFILE_S = 30.0


@dataclass(frozen=True)
class Bundled:
    """A bundle lies in the stage's folder, and beside it the Grams of a few samples, for the report's picture.

    The bundle's manifest and all files are part of the result's digests.

    Attributes:
        size_bytes: Bytes of all files of the bundle.
    """

    size_bytes: int


def _describe_profile(profiled: Profile) -> str:
    p50 = {engine.name: engine.latency.p50 for engine in profiled.engines}
    return ", ".join(f"{name} {q.value_ms:.3f} ms" for name, q in p50.items() if q is not None)


def _describe_bundle(bundled: Bundled) -> str:
    return size(bundled.size_bytes)


PROFILE: StageSpec[Profile] = StageSpec(
    "profile", 6, Profile, ("numpy",), "time the float networks and the candidates in turns", _describe_profile
)
BUNDLE: StageSpec[Bundled] = StageSpec(
    "bundle", 9, Bundled, (), "put together what ships, with its evidence", _describe_bundle
)


def profile(context: Context, candidates: Sequence[EvaluatedCandidate]) -> Done[Profile]:
    """Time the float networks and every candidate that ran, in turns, on the device."""
    config, device = context.recipe.profile, context.present
    config = msgspec.structs.replace(config, rails=config.rails or context.target.power_rails)

    def run(folder: Path, report: StageReporter) -> Profile:
        engines = {}
        for name in context.exported.result.timed(context.origin.baselines):
            engines[name] = folder / f"{name}.deploy.onnx"
            drop_embeddings(context.exported.folder / onnx_name(name), engines[name])
        graphs = {**engines, **{candidate.name: candidate.prepared.folder / DEPLOY for candidate in candidates}}
        engines |= {candidate.name: candidate.engine for candidate in candidates}
        limited = msgspec.structs.replace(config, limit_s=_limit_s(config.limit_s, context.runner.times))
        measured = device.profile(engines, context.runtime, context.test, folder, limited, report.advance)
        return assign_branches(measured, {name: branches(graph) for name, graph in graphs.items()})

    inputs = {
        "exported": context.exported.key,
        "candidates": {candidate.name: candidate.keys for candidate in candidates},
    }
    settings = {**msgspec.to_builtins(config), **context.device_identity()}
    return context.stage(PROFILE, config=settings, inputs=inputs, run=run)


def _limit_s(limit_s: float, before: Sequence[StageTime]) -> float:
    """Return the limit of a profile in s: no more than the stages of this build took before it; 0 for none."""
    return min(limit_s, max(_LEAST_PROFILE_S, sum(stage.seconds for stage in before)))


def bundle(context: Context, shipped: EvaluatedCandidate, profiled: Done[Profile] | None) -> Done[Bundled]:
    """Put together what ships: the candidate that was chosen."""

    def run(folder: Path, _report: StageReporter) -> Bundled:
        place = folder / BUNDLED
        place.mkdir()
        _copy_engines(shipped, place)
        if (context.exported.folder / POSTPROCESS).exists():
            shutil.copyfile(context.exported.folder / POSTPROCESS, place / POSTPROCESS)
        write_text(place / BRANCHES, json.dumps(branches(place / DEPLOY), indent=1) + "\n")
        write_references(context.test, Probe.load(shipped.outputs), context.rules.kinds, place / "reference.npz")
        text = json.dumps(null_not_finite(msgspec.to_builtins(shipped.ledger)), indent=1, allow_nan=False)
        (place / "ledger.json").write_text(text, encoding="utf-8")
        _write_manifest(context, shipped, profiled, place)
        _write_grams(context, shipped, folder / GRAM / SAMPLES)
        return Bundled(sum(path.stat().st_size for path in place.iterdir()))

    config = {
        "name": shipped.name,
        "task": context.origin.name,
        "target": context.target.name,
        "runtime": [context.public_runtime, context.target.options],
    }
    inputs = {"shipped": [*shipped.keys, shipped.check_key], "profile": profiled.key if profiled else None}
    return context.stage(BUNDLE, config=config, inputs=inputs, run=run)


def _copy_engines(shipped: EvaluatedCandidate, place: Path) -> None:
    """Copy the graphs of what ships, and the engines that were built of them ahead of time."""
    for name in (PROBE_GRAPH, DEPLOY):
        shutil.copyfile(shipped.prepared.folder / name, place / name)
    if shipped.layers:
        shutil.copyfile(shipped.layers, place / LAYERS)
    if shipped.engine.suffix == ".plan":
        for plan in shipped.engine.parent.glob("*.plan"):
            shutil.copyfile(plan, place / plan.name)


def _write_manifest(context: Context, shipped: EvaluatedCandidate, profiled: Done[Profile] | None, place: Path) -> None:
    facts = context.exported.result.facts
    stated = BundleFacts(
        target=context.target.name,
        runtime=Runtime(context.public_runtime, context.target.options),
        precision=shipped.prepared.candidate.precision,
        task={"name": context.origin.name, "metric": facts.metric},
        inputs=_inputs(facts.inputs, place / DEPLOY),
        outputs=facts.outputs,
        classes=facts.classes,
        states=facts.states,
        released=shipped.ledger.released,
        verdict=shipped.ledger.verdict,
        reasons=[*shipped.ledger.reasons, *shipped.ledger.warnings],
        versions=library_versions(LIBRARIES, "build"),
        measurements={
            facts.metric: shipped.ledger.rows[-1].metric,
            "profile": _without_layers(name_shipped(profiled.result, shipped.name)) if profiled else None,
        },
    )
    write_bundle(place, stated)


def _inputs(stated: Iterable[Mapping[str, Any]], engine: Path) -> list[JsonObject]:
    """Return the inputs that a manifest states: the batch of a candidate may be fixed at one, of others it is not."""
    graph = need("onnx", "build").load(str(engine), load_external_data=False).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    fixed = {name for name, shape in shapes.items() if shape and shape[0].dim_value == 1}
    return [{**spec, "shape": [1, *spec["shape"][1:]]} if spec["name"] in fixed else dict(spec) for spec in stated]


def _write_grams(context: Context, shipped: EvaluatedCandidate, path: Path) -> None:
    """Write the Grams of the same few samples of the teacher, the ledger's reference and what ships."""
    before = context.origin.probes("test")
    probes = {name: before[name] for name in before if name in ("teacher", shipped.ledger.reference)}
    probes[SHIPPED] = Probe.load(shipped.outputs)
    with open_arrays(context.test) as test:
        classes = test.get("labels")
        classes = None if classes is None or (classes == UNLABELLED).all() else classes
    told_apart = next((name for name, kind in context.rules.kinds.items() if kind.name == "classes"), None)
    if classes is None and told_apart is not None:
        classes = top1(before[shipped.ledger.reference].outputs[told_apart])
    names = context.exported.result.facts.classes.get(told_apart, []) if told_apart is not None else []
    few_grams(probes, classes, names).save(path)


def name_shipped(profiled: Profile, chosen: str) -> Profile:
    """Return a profile in which the candidate that ships is called "shipped"."""
    engines = (replace(engine, name=SHIPPED) if engine.name == chosen else engine for engine in profiled.engines)
    return replace(profiled, engines=tuple(engines))


def _without_layers(profiled: Profile) -> JsonObject:
    """Return a profile as JSON values, of the layers only their sums: deep networks have hundreds in each candidate."""
    content: JsonObject = msgspec.to_builtins(profiled)
    for values, engine in zip(content["engines"], profiled.engines, strict=True):
        del values["layers"]
        values["branches_ms"] = engine.branches_ms
    return content
