"""The contents of ``report.json`` and ``profile.json`` as types, and the JSON schemas that derive from them.

The files are written from these types and read into them. ``report.schema.json`` and ``profile.schema.json`` beside
this module are what :func:`write_schemas` makes of the types.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from edgekd.files import write_text
from edgekd.gram.gate import Ledger
from edgekd.gram.verdict import Question, Verdict
from edgekd.report.details.content import (
    ChangedAnswers,
    ClassFigures,
    ClassRow,
    ConfusedPair,
    DetailCurve,
    ElementRow,
    GroupFigures,
    GroupRow,
    InputPicture,
    NumberFigures,
    OutputDetails,
    RecallRow,
    Retrieved,
    SampleDetails,
    TokenErrors,
)
from edgekd.report.questions import Evidence
from edgekd.report.results import PROFILE_VERSION, SCHEMA_VERSION, CandidateResult
from edgekd.report.row import (
    AnswerFigures,
    BaselineFigures,
    EngineRow,
    GramFigures,
    LatencyFigures,
    MetricFigures,
    PacedFigures,
    SustainedFigures,
)
from edgekd.runtime.corruption import NetworkRobustness
from edgekd.runtime.measure.results import Profile
from edgekd.stages.stage import StageTime
from edgekd.stages.trained import PruneAttempt

if TYPE_CHECKING:
    from edgekd.files import JsonObject


#: Figures that JSON cannot hold, by dotted path.
NotFinite = dict[str, Literal["nan", "inf", "-inf"]]


class BudgetResult(Struct, frozen=True):
    """One limit that the target recommends.

    Attributes:
        name: Name of the figure.
        unit: Unit of ``limit`` and ``measured``.
        limit: The largest value that keeps the limit.
        measured: The engine's figure; None where it was not measured.
        kept: Whether the figure was measured and is within the limit.
    """

    name: str
    unit: str
    limit: float
    measured: float | None
    kept: bool


class QuestionDetails(Struct, frozen=True):
    """The answer to one of the gate's three questions about what ships.

    Attributes:
        question: The question, as a word.
        asked: The question in full.
        verdict: The answer; None where it was not asked.
        reasons: Why it is not simply "pass".
        figures: The figures that it rests on, each with its bounds, its limit and whether it keeps that.
    """

    question: Question
    asked: str
    verdict: Verdict | None
    reasons: tuple[str, ...]
    figures: tuple[Evidence, ...]


class TargetDetails(Struct, frozen=True):
    """What stands behind the row of a target.

    Attributes:
        target: Name of the target.
        bundle: Path of the bundle relative to the output folder; None where no bundle was released.
        sizes_bytes: Sizes of the engine files, by network.
        candidates: Every way in which the network was written for the target.
        choice: Why the candidate that ships was chosen.
        chosen_on: On which samples the candidates were judged, and one of them was chosen; "" where it is not known.
        questions: The answers to the gate's three questions about what ships.
        facts: Sentences about the engine.
        budgets: The limits that the target recommends.
        ledger: The same probe after every stage, judged by the gate.
        profile: Latencies of baselines, engine and candidates; None where nothing was timed.
        profile_reason: Why there is no profile; None where there is one.
        details: What stands behind the quality of each output of what ships, by its name; empty in reports of an
            earlier edgekd.
    """

    target: str
    bundle: str | None
    sizes_bytes: dict[str, int]
    candidates: tuple[CandidateResult, ...]
    choice: str
    chosen_on: str
    questions: tuple[QuestionDetails, ...]
    facts: tuple[str, ...]
    budgets: tuple[BudgetResult, ...]
    ledger: Ledger
    profile: Profile | None
    profile_reason: str | None
    details: dict[str, OutputDetails] = {}


class RobustnessDetails(Struct, frozen=True):
    """The metric with each modality dropped, and with each noisy.

    Attributes:
        noise: Standard deviation of the noise, in training standard deviations of each channel.
        networks: Figures of the networks that were trained, by name.
        engines: Figures of the engines that ship, by target; None where one was not measured.
        reason: Why nothing was measured; None where it was.
    """

    noise: float | None
    networks: dict[str, NetworkRobustness] | None
    engines: dict[str, NetworkRobustness | None] | None
    reason: str | None


class ReportFile(Struct, frozen=True):
    """The content of ``report.json``. Latencies are in ms, sizes in bytes and times of stages in seconds.

    Attributes:
        schema_version: Version of the content.
        recipe: Name or path of the recipe.
        task: Name of the task.
        seed: Seed of every random choice.
        verdict: The worst verdict of all targets.
        released: Whether every target's build is released.
        versions: Versions of edgekd and of the libraries that computed the result.
        rows: The engine of each target.
        targets: What stands behind each row, in the same order.
        refused: For each target that was not built the reason, by its name.
        stages: The stages in the order in which they ran.
        training: The figures of each epoch, by the network that was trained.
        pruning: The attempts at pruning, in order; the last is what was exported.
        robustness: What losing or spoiling one modality costs.
        not_finite: Each figure outside of ``rows`` that JSON cannot hold, by dotted path: "nan", "inf" or "-inf". The
            figure itself is null.
    """

    schema_version: int
    recipe: str
    task: str
    seed: int
    verdict: Verdict
    released: bool
    versions: dict[str, str]
    rows: tuple[EngineRow, ...]
    targets: tuple[TargetDetails, ...]
    stages: tuple[StageTime, ...]
    training: dict[str, list[dict[str, float | None]]]
    pruning: tuple[PruneAttempt, ...]
    robustness: RobustnessDetails
    not_finite: NotFinite
    refused: dict[str, str] = {}


class ShippedMetric(Struct, frozen=True):
    """The metric that a bundle states.

    Attributes:
        name: Name of the metric.
        value: Its value; None where there are no labels.
    """

    name: str | None
    value: float | None


class ProfileFile(Struct, frozen=True):
    """The content of ``profile.json``: one bundle's engine, measured on one device.

    Attributes:
        schema_version: Version of the content.
        edgekd: Version of the edgekd that measured.
        task: Name of the task.
        target: Name of the target.
        device: The machine that ran the engine.
        runtime: The engine library that ran it.
        precision: Precision of the engine, e.g. "int8".
        verdict: The gate's verdict on the bundle.
        reasons: Why it did not simply pass.
        metric: The metric that the bundle states.
        drift_bound: Upper confidence bound of the Gram drift that the bundle's ledger ends with.
        size_bytes: Size of the engine file.
        profile: What was measured.
        ledger: The bundle's ledger.
        row: The same as a row of ``report.json``; a file of an earlier edgekd has none.
    """

    schema_version: int
    edgekd: str
    task: str
    target: str
    device: str
    runtime: str
    precision: str
    verdict: Verdict
    reasons: tuple[str, ...]
    metric: ShippedMetric
    drift_bound: float | None
    size_bytes: int
    profile: Profile
    ledger: Ledger
    row: EngineRow | None = None


#: The types whose documentation describes the schema: those of this package.
_DESCRIBED: tuple[type, ...] = (
    *(BudgetResult, TargetDetails, RobustnessDetails, ReportFile, ShippedMetric, ProfileFile, CandidateResult),
    *(LatencyFigures, PacedFigures, SustainedFigures, MetricFigures, GramFigures, BaselineFigures, EngineRow),
    *(AnswerFigures, QuestionDetails, Evidence, PruneAttempt),
    *(OutputDetails, ClassFigures, ClassRow, ConfusedPair, DetailCurve, NumberFigures, ElementRow, RecallRow),
    *(TokenErrors, GroupFigures, GroupRow, ChangedAnswers, SampleDetails, InputPicture, Retrieved),
)


def report_schema() -> JsonObject:
    """Return the JSON schema of ``report.json``."""
    return _schema(ReportFile, "report.json of an edgekd build", SCHEMA_VERSION)


def profile_schema() -> JsonObject:
    """Return the JSON schema of ``profile.json``."""
    schema = _schema(ProfileFile, "profile.json of edgekd profile", PROFILE_VERSION)
    # The file holds this sum beside the layers that it is of, so that a reader need not compute it.
    branches = {"type": "object", "additionalProperties": {"type": "number"}}
    schema["$defs"]["EngineProfile"]["properties"]["branches_ms"] = branches
    return schema


def _schema(kind: type[Struct], title: str, version: int) -> JsonObject:
    """Return the schema of a file; any figure may be null, as JSON has no word for what is not finite."""
    _, definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    for described in _DESCRIBED:
        if described.__name__ in definitions:
            _describe(definitions[described.__name__], inspect.getdoc(described) or "")
    for name in definitions.keys() - {described.__name__ for described in _DESCRIBED}:
        definitions[name].pop("description", None)
    content = definitions.pop(kind.__name__)
    content["properties"]["schema_version"] |= {"const": version}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_with_null({**content, "title": title}),
        "$defs": {name: _with_null(definition) for name, definition in sorted(definitions.items())},
    }


def _describe(definition: JsonObject, documentation: str) -> None:
    """Put the documentation of a type into its schema: the summary, and a description of each attribute."""
    summary, _, attributes = documentation.partition("\n\nAttributes:\n")
    definition["description"] = " ".join(summary.split())
    for part in re.split(r"\n    (?=\w+: )", f"\n{attributes}")[1:]:
        name, _, meaning = part.partition(": ")
        known = definition["properties"].get("float" if name == "float_model" else name)
        if known is not None:
            known["description"] = " ".join(meaning.split())


def _with_null(schema: Any) -> Any:
    """Return a schema in which each number may be null."""
    if isinstance(schema, list | tuple):
        return [_with_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "number":
        return {**schema, "type": ["number", "null"]}
    return {key: _with_null(item) for key, item in schema.items()}


def write_schemas(folder: Path = Path(__file__).parent) -> None:
    """Write ``report.schema.json`` and ``profile.schema.json`` into a folder, by default beside this module."""
    for name, schema in (("report", report_schema()), ("profile", profile_schema())):
        write_text(folder / f"{name}.schema.json", json.dumps(schema, indent=1, ensure_ascii=False) + "\n")
