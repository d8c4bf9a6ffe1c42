import copy
import json
import math

import jsonschema
import pytest
from builds import build, full_profile, ledger, profile, target

from edgekd.report.build.files import report_json
from edgekd.report.build.schema import report_schema

SCHEMA = report_schema()


def complaints(report):
    found = jsonschema.Draft202012Validator(SCHEMA).iter_errors(report)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


@pytest.fixture(scope="module")
def real(built):
    return json.loads((built.output / "report.json").read_text(encoding="utf-8"))


def test_the_report_of_a_build_keeps_the_published_schema(real):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert complaints(real) == []


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(target(profile=full_profile()), id="everything was measured"),
        pytest.param(target(profile=profile(n=200)), id="few samples"),
        pytest.param(target(profile_reason="not measured: no device", bundle=None), id="no profile, no bundle"),
        pytest.param(target(ledger=ledger(pruned=False)), id="not pruned"),
        pytest.param(target(ledger=ledger(metrics=(("teacher", math.nan),))), id="a metric is NaN"),
    ],
)
def test_a_report_that_lacks_figures_keeps_it_too(result):
    assert complaints(json.loads(json.dumps(report_json(build(result))))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows", 0, "verdict"), "perhaps"),
        (("rows", 0, "latency_ms", "p50"), "1 ms"),
        (("rows", 0, "gram", "tau"), ...),
        (("targets", 0, "ledger", "rows", 0, "stage"), 3),
        (("targets", 0, "candidates", 0, "p50"), 1.5),
        (("stages", 0, "cached"), "yes"),
        (("schema_version",), 1),
        (("unheard",), "of"),
    ],
)
def test_what_is_no_such_report_does_not(real, path, value):
    changed = copy.deepcopy(real)
    *above, last = path
    place = changed
    for part in above:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    assert complaints(changed)


def test_every_field_says_what_it_means():
    definitions = SCHEMA["$defs"]
    silent = [f"{name}.{field}" for name, kind in definitions.items() for field, what in kind["properties"].items()
              if "description" not in what]  # fmt: skip
    assert {name.partition(".")[0] for name in silent} <= {"GateLimits", "Quantile", "StageTime"}, silent
    assert len(definitions) > 10
