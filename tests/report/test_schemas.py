"""The published JSON schemas: what the types say, and what reports and profiles of every kind keep."""

import json
import math
from importlib.resources import files

import jsonschema
import outputs
import pytest
from builds import build, full_profile, ledger, profile, target, write_profile, write_run
from profiles import all_of

from edgekd.report import schema
from edgekd.report.build.files import report_json
from edgekd.report.details.make import output_details

DETAILS = {name: output_details(made(), outputs.pictures) for name, made in outputs.EVERY.items()}
REGENERATE = "run: python -c 'from edgekd.report.schema import write_schemas; write_schemas()'"


def published(name):
    return json.loads((files("edgekd.report") / f"{name}.schema.json").read_text(encoding="utf-8"))


def validator(name):
    return jsonschema.Draft202012Validator(published(name))


@pytest.mark.parametrize("name", ["report", "profile"])
def test_the_published_schema_is_what_the_types_say(name):
    assert published(name) == getattr(schema, f"{name}_schema")(), REGENERATE
    jsonschema.Draft202012Validator.check_schema(published(name))


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(target(profile=full_profile()), id="complete"),
        pytest.param(target(profile=profile(n=200)), id="few samples"),
        pytest.param(target(profile_reason="not measured: no device"), id="no profile"),
        pytest.param(target(ledger=ledger(pruned=False)), id="not pruned"),
        pytest.param(target(ledger=ledger(metrics=(("device", math.nan),))), id="metric is NaN"),
        pytest.param(target(details=DETAILS), id="details of every kind"),
        pytest.param(target(bundle=None, deploy_logit_error=math.inf), id="no bundle, infinite error"),
    ],
)
def test_every_report_keeps_its_schema(result):
    plain = json.loads(json.dumps(report_json(build(result)), allow_nan=False))
    assert list(validator("report").iter_errors(plain)) == []


@pytest.mark.parametrize("measured", [all_of(), full_profile(), profile(n=200)], ids=["least", "full", "few samples"])
def test_every_profile_keeps_its_schema(tmp_path, measured):
    write_profile(tmp_path, measured)
    content = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    assert list(validator("profile").iter_errors(content)) == []
    assert content["row"]["latency_ms"]["n"] == measured.engines[-1].latency.n


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("rows"),
        lambda content: content["rows"][0].pop("metric"),
        lambda content: content["rows"][0].update(verdict="good"),
        lambda content: content.update(schema_version=0),
        lambda content: content["targets"][0]["ledger"].update(rows="none"),
    ],
    ids=["no rows", "no metric", "verdict", "version", "ledger"],
)
def test_what_is_no_report_does_not_keep_the_schema(tmp_path, change):
    content = json.loads((write_run(tmp_path, target()) / "report.json").read_text(encoding="utf-8"))
    assert validator("report").is_valid(content)
    change(content)
    assert not validator("report").is_valid(content)


def test_each_figure_of_a_row_says_what_it_is():
    row = published("report")["$defs"]["EngineRow"]["properties"]
    assert all(part.get("description") for part in row.values())
