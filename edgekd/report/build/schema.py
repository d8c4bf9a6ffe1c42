"""The JSON schema of ``report.json``, which the docs publish, made of the dataclasses that are written."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import edgekd.config.target
import edgekd.gram.drift
import edgekd.gram.gate
import edgekd.report.results
import edgekd.runtime.corruption
import edgekd.runtime.measure.results
import edgekd.stages.stage
from edgekd.report.results import SCHEMA_VERSION, BudgetCheck, BuildReport, TargetResult

Json = dict[str, Any]

_MODULES = (
    edgekd.config.target,
    edgekd.gram.drift,
    edgekd.gram.gate,
    edgekd.runtime.corruption,
    edgekd.runtime.measure.results,
    edgekd.stages.stage,
    edgekd.report.results,
)
#: What annotations of the dataclasses may name.
_NAMES = {name: value for module in _MODULES for name, value in vars(module).items()}

#: A float that is not finite is written as null.
_TYPES: dict[Any, str | list[str]] = {
    float: ["number", "null"],
    int: "integer",
    str: "string",
    bool: "boolean",
    NoneType: "null",
}


def report_schema() -> Json:
    """Return the JSON schema (2020-12) of ``report.json``, with every field and its meaning."""
    definitions = _Definitions()
    build, target = _hints(BuildReport), _hints(TargetResult)
    network = _nullable(definitions.of(target["robustness"]))
    records = {
        "Row": _row(),
        "RowBaseline": _object(_measured(), "What was measured of a float network."),
        "RowLatency": _latency(),
        "Target": _target(definitions, target),
    }
    content = {
        "schema_version": {"const": SCHEMA_VERSION, "description": "Of this format."},
        "recipe": _text("Name or path of the recipe."),
        "task": _text("Name of the task."),
        "seed": {"type": "integer", "description": "Seed of every random choice."},
        "verdict": _verdict("The worst verdict of all targets."),
        "versions": _table(_text(), "Versions of edgekd and of the libraries that computed the result."),
        "rows": _list(_record("Row"), "The figures of what ships, one entry for each target."),
        "targets": _list(_record("Target"), "What stands behind each row."),
        "stages": {**definitions.of(build["stages"]), "description": "The stages in the order they ran."},
        "training": _table(
            _list(_table(_number())),
            "For each network that was trained here one entry for each epoch, figures by name.",
        ),
        "robustness": _object(
            {
                "noise": _number("Standard deviation of the noise, in training standard deviations of each channel."),
                "networks": _nullable(_table(network, "Of the networks that were trained here, by name.")),
                "engines": _nullable(_table(network, "Of what ships, by target.")),
                "reason": _nullable(_text("Why the others are null: 'not measured: ...'.")),
            },
            "The task's metric with each modality dropped, and with each noisy.",
        ),
        "not_finite": _table(_text(), "By dotted path, what a figure was that is null because it is not finite."),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edgekd:report:{SCHEMA_VERSION}",
        "title": f"edgekd build report, version {SCHEMA_VERSION}",
        **_object(content, "report.json of a build: latencies in ms, sizes in bytes, stage times in s."),
        "$defs": dict(sorted({**records, **definitions.found}.items())),
    }


def _target(definitions: _Definitions, hints: Mapping[str, Any]) -> Json:
    definitions.of(BudgetCheck)
    check = definitions.found.pop(BudgetCheck.__name__)
    kept = {"type": "boolean", "description": "Whether the figure was measured and is within the limit."}
    return _object(
        {
            "target": _text("Its name."),
            "bundle": _nullable(_text("Path relative to the output folder; null where no bundle was released.")),
            "sizes_bytes": _table({"type": "integer"}, "Of the engine files of the float networks and of what ships."),
            "candidates": {
                **definitions.of(hints["candidates"]),
                "description": "Every way in which the network was written, the one that ships among them.",
            },
            "choice": _text("Why the one that ships does."),
            "facts": _list(_text(), "What else is to be known of the engine, in sentences."),
            "budgets": _list(
                _object({**check["properties"], "kept": kept}, "A limit of the target."), "The target's limits."
            ),
            "ledger": {**definitions.of(hints["ledger"]), "description": "The same test samples after every stage."},
            "profile": {**_nullable(definitions.of(hints["profile"])), "description": "What was measured."},
            "profile_reason": _nullable(_text("Why there is no profile: 'not measured: ...'.")),
        }
    )


def _row() -> Json:
    """Return the schema of the figures of what ships for one target."""
    by_network = "For each float network of before: "
    metric = {
        "name": _text("Its name."),
        "higher_is_better": {"type": "boolean"},
        "samples": {"type": "integer", "description": "Test samples."},
        "shipped": _number("Of what ships."),
        "change": _number("Of what ships, less that of the reference."),
    }
    gram = {
        "reference": _text("The stage that drift is measured against."),
        "scope": _nullable(_text("'sample': between modalities; 'intra': within each.")),
        "stage": _text("The ledger's row that ships."),
        "drift": _number("Mean drift."),
        "bound": _number("Its upper confidence bound."),
        "tau": _number("The gate's limit of the bound."),
        "tau_pass": _number("Up to here the gate passes without a word."),
        "verdict": {"enum": ["pass", "warn", "fail", None], "description": "Of the drift alone."},
    }
    return _object(
        {
            "target": _text("Its name."),
            "device": _text("What ran the engine, in words; 'no device' where nothing did."),
            "runtime": _text("The engine library."),
            "precision": _text("Of what ships."),
            "verdict": _verdict("The gate's, and the budgets'."),
            "reasons": _list(_text(), "Why it did not simply pass."),
            **_measured(),
            "throughput_per_s": _number("Inferences a second of one stream."),
            "compute_ms": _nullable(_record("RowLatency", "The engine library's computing alone.")),
            "paced": _nullable(_paced()),
            "sustained": _nullable(_sustained()),
            "energy_mj": _number("Of one inference, idle subtracted."),
            "energy_rail": _nullable(_text("The power sensors that were added up.")),
            "branches_ms": _nullable(_table(_number(), "Time of the layers by modality, under the profiler.")),
            "metric": {
                **_object(metric, "The task's metric: these, and by name that of each stage."),
                "additionalProperties": _number(),
            },
            "gram": _object(gram, "Drift of what ships from the reference."),
            "speedup_p50": _table(_number(), f"{by_network}its p50 over that of what ships."),
            "size_ratio": _table(_number(), f"{by_network}the size of its file over that of what ships."),
            "candidate": _text("Which candidate ships."),
            "deploy_logit_error": _number("Largest difference of a logit between deploy.onnx and probe.onnx."),
            "baselines": _table(_record("RowBaseline"), f"{by_network}the same figures."),
            "not_measured": _table(_text(), "By dotted path, why a figure of this row is null."),
        }
    )


def _measured() -> Json:
    times = {"type": ["array", "null"], "items": _number()}
    return {
        "latency_ms": _record("RowLatency", "Single inferences at batch 1, end to end."),
        "load_ms": {**times, "description": "For each fresh process, the time to open the engine."},
        "first_run_ms": {**times, "description": "For each fresh process, the time of the first inference."},
        "size_bytes": {"type": ["integer", "null"], "description": "Of the engine file."},
        "peak_rss_bytes": {"type": ["integer", "null"], "description": "Peak resident memory of the process."},
    }


def _latency() -> Json:
    quantiles = ("p50", "p90", "p99")
    interval = {"type": ["array", "null"], "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    return _object(
        {
            **{name: _number("null where there are too few inferences for its interval.") for name in quantiles},
            "p90_bound": _number("The p90 is below it with 99 % confidence."),
            "max": _number("The slowest."),
            "n": {"type": ["integer", "null"], "description": "Timed inferences."},
            "interval_95": _object(dict.fromkeys(quantiles, interval), "The ends of each quantile's 95 % interval."),
        },
        "Latency of single inferences, in ms; null where nothing was measured.",
    )


def _paced() -> Json:
    late = {"type": "integer", "description": "Samples that arrived before the result of the one before."}
    return _object(
        {
            "rate_hz": _number("Samples a second."),
            "late": late,
            "latency_ms": _record("RowLatency", "From a sample's arrival to its result."),
        },
        "At a sensor's rate.",
    )


def _sustained() -> Json:
    return _object(
        {
            "seconds": _number("How long."),
            "slowdown": _number("p50 of the last tenth of the run over that of the first."),
            "throttled": {"type": ["boolean", "null"], "description": "Whether the system reports throttling."},
            "hottest_c": _number("Of the hottest sensor that can be read."),
        },
        "Back to back, for a long time.",
    )


class _Definitions:
    """The dataclasses that a report has, each as a definition."""

    def __init__(self) -> None:
        self.found: dict[str, Json] = {}

    def of(self, kind: Any) -> Json:
        """Return the schema of an annotation; a dataclass becomes a definition and a reference to it."""
        parts = get_args(kind)
        match get_origin(kind):
            case origin if origin is Literal:
                return {"enum": list(parts)}
            case origin if origin in (Union, UnionType):
                options = [self.of(part) for part in parts if part is not NoneType]
                schema = options[0] if len(options) == 1 else {"anyOf": options}
                return _nullable(schema) if NoneType in parts else schema
            case origin if origin in (tuple, list):
                return {"type": "array", "items": self.of(parts[0])}
            case origin if origin in (dict, Mapping):
                return {"type": "object", "additionalProperties": self.of(parts[1])}
        if is_dataclass(kind) and isinstance(kind, type):
            return self._reference(kind)
        return {"type": _TYPES[kind]}

    def _reference(self, kind: type) -> Json:
        name = kind.__name__
        if name not in self.found:
            self.found[name] = {}
            summary, meanings = _docstring(kind)
            fields = {
                field: {**self.of(hint), **({"description": meanings[field]} if field in meanings else {})}
                for field, hint in _hints(kind).items()
            }
            self.found[name] = _object(fields, summary)
        return _record(name)


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, localns=_NAMES)


def _docstring(kind: type) -> tuple[str, dict[str, str]]:
    """Return the first sentence of a dataclass's docstring, and what it says of each attribute."""
    text = inspect.getdoc(kind) or ""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text).replace("``", "'")
    summary, _, attributes = text.partition("\nAttributes:\n")
    found = re.findall(r"^    (\w+): (.+(?:\n     .+)*)", attributes, re.MULTILINE)
    return summary.partition("\n\n")[0].replace("\n", " "), {name: " ".join(what.split()) for name, what in found}


def _object(properties: Json, description: str = "") -> Json:
    required = list(properties)
    closed = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {**closed, "description": description} if description else closed


def _record(name: str, description: str = "") -> Json:
    reference = {"$ref": f"#/$defs/{name}"}
    return {**reference, "description": description} if description else reference


def _table(values: Json, description: str = "") -> Json:
    table = {"type": "object", "additionalProperties": values}
    return {**table, "description": description} if description else table


def _list(items: Json, description: str = "") -> Json:
    array = {"type": "array", "items": items}
    return {**array, "description": description} if description else array


def _text(description: str = "") -> Json:
    return {"type": "string", "description": description} if description else {"type": "string"}


def _number(description: str = "") -> Json:
    number: Json = {"type": ["number", "null"]}
    return {**number, "description": description} if description else number


def _verdict(description: str) -> Json:
    return {"enum": ["pass", "warn", "fail"], "description": description}


def _nullable(schema: Json) -> Json:
    """Let a schema be null too."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    kind = schema.get("type")
    if kind is None:
        described = {key: value for key, value in schema.items() if key == "description"}
        inner = {key: value for key, value in schema.items() if key != "description"}
        return {"anyOf": [inner, {"type": "null"}], **described}
    kinds = [kind] if isinstance(kind, str) else kind
    return {**schema, "type": [*kinds, *(["null"] if "null" not in kinds else [])]}
