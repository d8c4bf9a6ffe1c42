"""The joined table: what is read back, its order, its filters and its forms."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from builds import LEDGERS, LIMITS, full_profile, further, ledger, profile, target, write_profile, write_run

from edgekd.errors import ReportError
from edgekd.gram.heatmap import FewGrams
from edgekd.gram.intervals import Estimate
from edgekd.gram.verdict import GateLimits
from edgekd.report.compare import checks
from edgekd.report.compare.formats import (
    Comparison,
    as_csv,
    as_json,
    as_markdown,
    flat_row,
    long_table,
    notes,
    short_tables,
)
from edgekd.report.compare.grams import read_grams
from edgekd.report.compare.page import as_html
from edgekd.report.compare.read import read_run, read_runs
from edgekd.report.compare.rows import Filters, filter_entries, sort_entries
from edgekd.report.figures import sort_keys

NO_DEVICE = "not measured: no device"
LOWER = GateLimits(LIMITS.tau_pass, LIMITS.tau_fail, LIMITS.max_flips, LIMITS.max_metric_drop, higher_is_better=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two outputs: gestures for three targets, one of which ran nowhere, and depth, whose metric is better low."""
    folder = tmp_path_factory.mktemp("runs")
    slow, fast = profile(times=(0.9, 0.5, 0.3)), full_profile()
    write_run(
        folder / "a",
        target("cpu", profile=slow, ledger=ledger(0.03, metrics=(("device", 0.97),))),
        target("orin", device="orin", runtime="tensorrt", profile=fast, sizes={"shipped": 120_000}),
        target("pi", device="no device", profile_reason=NO_DEVICE, ledger=ledger(0.2)),
    )
    write_run(folder / "b", target("cpu", ledger=ledger(metric="MAE", limits=LOWER)), task="depth")
    return folder


@pytest.fixture(scope="module")
def entries(runs):
    return read_runs([runs / "a", runs / "b"])


def names(entries):
    return [f"{entry.row.task} {entry.row.target}" for entry in entries]


# --- read


def test_a_row_has_the_figures_of_the_report(runs, entries):
    report = json.loads((runs / "a" / "report.json").read_text())["rows"][1]
    row = entries[1].row
    assert (row.run, row.task, row.target, row.device) == (str(runs / "a"), "gestures", "orin", "orin")
    assert [row.latency_ms.p50, row.latency_ms.p90, row.latency_ms.p99] == [
        report["latency_ms"][name] for name in ("p50", "p90", "p99")
    ]
    assert list(row.latency_ms.interval_95["p90"]) == report["latency_ms"]["interval_95"]["p90"]
    assert row.throughput_per_s == report["throughput_per_s"]
    assert (row.metric.name, row.metric.shipped) == ("macro-F1", report["metric"]["device"])
    assert row.metric.change == pytest.approx(report["metric"]["device"] - report["metric"]["student"])
    assert row.gram.bound == report["gram"]["bound"]
    assert (row.size_bytes, row.peak_rss_bytes) == (120_000, report["peak_rss_bytes"])
    assert (row.energy_mj, row.energy_rail) == (1.84, "RAPL package-0")
    assert flat_row(row)["not_measured"] == {}


def test_what_stands_behind_a_row_comes_back_as_it_was(entries):
    assert entries[0].ledger == ledger(0.03, metrics=(("device", 0.97),))
    assert entries[0].profile == profile(times=(0.9, 0.5, 0.3))
    assert entries[2].profile is None


def test_every_figure_that_is_lacking_has_its_reason(entries):
    row = entries[2].row
    lacking = ("n", "p50_ms", "p90_ms", "p99_ms", "throughput_per_s", "memory_bytes", "energy_mj")
    flat = flat_row(row)
    assert [flat[field] for field in lacking] == [None] * len(lacking)
    assert flat["not_measured"] == dict.fromkeys((*lacking, "energy_rail"), NO_DEVICE)
    not_asked = "not measured: the profile was not asked for it"
    assert flat_row(entries[0].row)["not_measured"] == {"energy_mj": not_asked, "energy_rail": not_asked}


def test_figures_that_are_no_numbers_come_back_as_such(tmp_path):
    write_run(tmp_path, target(ledger=ledger(metrics=(("device", math.nan), ("cut", math.inf)))))
    (entry,) = read_run(tmp_path)
    assert math.isnan(entry.ledger.row("device").metric)
    assert entry.ledger.row("cut").metric == math.inf
    assert (entry.row.metric.shipped, entry.row.verdict) == (None, "fail")
    assert entry.row.not_measured["metric.shipped"] == "not a number: the measured value was nan"


def damage(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.update(schema_version=1),
            "has schema_version 1, and this edgekd reads 2, 3 and 4 only",
        ),
        (lambda c: c.pop("schema_version"), "has no schema_version"),
        (lambda c: c["rows"][0].pop("target"), r"rows\[0\] lacks the key 'target'"),
        (lambda c: c["rows"][0]["latency_ms"].update(p50="fast"), r"rows\[0\]\.latency_ms\.p50: expected 'float"),
        (lambda c: c["rows"][0].update(verdict="good"), r"rows\[0\]\.verdict: there is no 'good'"),
        (lambda c: c["targets"][0]["ledger"].update(rows=3), r"targets\[0\]\.ledger\.rows: expected 'array'"),
        (lambda c: c["targets"].pop(), "has 1 rows and 0 targets"),
        (lambda c: c.update(not_finite={"targets.0.x": "big"}), "not_finite"),
        (lambda c: c["targets"][0]["ledger"].update(rows=[]), "a target's ledger is empty"),
    ],
    ids=["older", "no version", "no target", "text", "verdict", "ledger", "no targets", "not finite", "no ledger"],
)
def test_a_report_that_is_broken_says_where(tmp_path, change, said):
    write_run(tmp_path, target())
    damage(tmp_path / "report.json", change)
    with pytest.raises(ReportError, match=r"report\.json: .*" + said):
        read_run(tmp_path)


def formerly(value, flips):
    """Return the JSON of a report or a profile as version 3, or 1, had it: no answers, and flips instead."""
    if isinstance(value, list):
        return [formerly(item, flips) for item in value]
    if not isinstance(value, dict):
        return value
    new = {"answers", "warnings", "missing", "questions", "advice", "constant", "kind", "divergence"}
    new |= {"released", "chosen_on", "pruning", "max_divergence", "max_missing_flips", "min_learned", "undecided"}
    kept = {key: formerly(item, flips) for key, item in value.items() if key not in new}
    if "to_reference" in kept:
        del kept["loss"]
        kept["flips"] = flips if kept["to_reference"] else None
    return kept


def test_a_report_of_the_former_version_is_read_without_what_it_did_not_compare(tmp_path):
    written = write_run(tmp_path, target())
    (now,) = read_run(written)
    content = formerly(json.loads((written / "report.json").read_text()), flips=0.0125)
    (written / "report.json").write_text(json.dumps({**content, "schema_version": 3}))
    (former,) = read_run(written)
    assert former.row.verdict == now.row.verdict == "pass"
    assert (former.row.released, former.row.warnings, former.row.questions) == (True, (), {})
    assert former.row.answers is None
    assert (
        former.row.why_not("answers.divergence_bound") == "not measured: an earlier edgekd compared top-1 classes alone"
    )
    assert former.row.gram == now.row.gram
    last, before = former.ledger.rows[-1], now.ledger.rows[-1]
    assert (last.stage, last.metric, last.to_reference) == (before.stage, before.metric, before.to_reference)
    assert (last.answers, last.loss, former.ledger.questions) == ({}, None, ())
    assert former.ledger.limits.max_divergence is None
    page = as_html(Comparison((former,)))
    assert 'class="questions"' not in page
    assert 'id="drift-1"' in page
    assert 'id="divergence-1"' not in page


def test_a_profile_of_the_former_version_is_read_too(tmp_path):
    write_profile(tmp_path, profile())
    (now,) = read_run(tmp_path)
    content = formerly(json.loads((tmp_path / "profile.json").read_text()), flips=0.0125)
    (tmp_path / "profile.json").write_text(json.dumps({**content, "schema_version": 1}))
    (former,) = read_run(tmp_path)
    assert former.row.gram == now.row.gram
    assert former.row.answers is None
    assert (former.ledger.rows[-1].answers, now.ledger.rows[-1].first.kind) == ({}, "classes")


def test_a_report_of_version_2_is_read_in_todays_words(tmp_path):
    written = write_run(tmp_path, target())
    (now,) = read_run(written)
    text = json.dumps(formerly(json.loads((written / "report.json").read_text()), flips=0.0125))
    for today, older in (("cut", "pruned"), ("finetuned", "tuned"), ("device", "engine")):
        assert f'"stage": "{today}"' in text
        text = text.replace(f'"stage": "{today}"', f'"stage": "{older}"')
        assert f'"{today}": 0.9' in text, "the metric of the stage"
        text = text.replace(f'"{today}": 0.9', f'"{older}": 0.9')
    text = text.replace('"name": "shipped"', '"name": "engine"').replace('"shipped": 231770', '"engine": 231770')
    (written / "report.json").write_text(text.replace('"schema_version": 4', '"schema_version": 2'))
    grams = FewGrams.load(now.grams)
    shown = {("engine" if name == "shipped" else name): values for name, values in grams.cosines.items()}
    replace(grams, cosines=shown).save(now.grams)
    (former,) = read_run(written)
    assert [row.stage for row in former.ledger.rows] == [row.stage for row in now.ledger.rows]
    assert former.row.metric == now.row.metric
    assert former.profile == now.profile
    assert "shipped" in [engine.name for engine in former.profile.engines]
    assert list(read_grams(former).cosines) == list(grams.cosines)


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[1]", b"", b'{"schema_version": 2, "rows": NaN}'],
    ids=["cut", "no text", "a list", "empty", "NaN"],
)
def test_a_report_that_is_no_json_says_so(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ReportError, match=r"report\.json: (is no JSON|has no schema_version)"):
        read_run(tmp_path)


def test_a_place_that_is_not_there_is_no_matter(tmp_path):
    write_run(tmp_path, target())
    damage(tmp_path / "report.json", lambda c: c.update(not_finite={"targets.9.x": "nan", "rows.0.verdict.y": "inf"}))
    assert len(read_run(tmp_path)) == 1


def test_a_folder_without_a_report_says_which_is_wanted(tmp_path):
    with pytest.raises(ReportError, match=r"has neither report\.json nor profile\.json; give the --output folder of"):
        read_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="has neither"):
        read_run(tmp_path / "file")


def test_a_run_that_is_named_twice_is_refused(runs):
    with pytest.raises(ReportError, match="is named twice"):
        read_runs([runs / "a", runs / "b" / ".." / "a"])


# --- profiles of bundles


def test_a_profile_of_a_bundle_is_a_row(tmp_path, entries):
    write_profile(tmp_path / "p", full_profile())
    (entry,) = read_runs([tmp_path / "p"])
    engine = full_profile().engines[-1]
    row = entry.row
    assert (row.task, row.target, row.device, row.verdict) == ("gestures", "cpu", "local", "pass")
    assert (row.latency_ms.p50, row.latency_ms.interval_95["p99"][1]) == (
        engine.latency.p50.value_ms,
        engine.latency.p99.high_ms,
    )
    assert (row.metric.name, row.metric.shipped, row.metric.higher_is_better) == ("macro-F1", 0.9581, True)
    assert row.metric.change == pytest.approx(0.9581 - 0.9612)
    assert row.gram.bound == ledger().row("device").to_reference.bound
    assert (row.size_bytes, row.peak_rss_bytes, row.energy_mj) == (231_770, engine.peak_rss_bytes, 1.84)
    assert flat_row(row)["not_measured"] == {}
    text = as_html(Comparison((*entries, entry)))
    for picture in ("latency-5", "branches-5", "drift-5"):
        assert f'id="{picture}"' in text


def test_a_profile_that_lacks_something_says_why(tmp_path):
    few = further(profile(n=200).engines[-1])
    few = replace(few, energy=None, not_measured={"energy": "not measured: no rail"})
    write_profile(tmp_path, replace(profile(), engines=(few,)), ledger(metrics=(("device", None),)))
    row = read_run(tmp_path)[0].row
    no_metric = "not measured: the bundle's ledger has no metric"
    assert flat_row(row)["not_measured"] == {
        "p99_ms": "withheld: 200 samples are too few for its 95 % interval",
        "metric_value": no_metric,
        "metric_change": no_metric,
        "energy_mj": "not measured: no rail",
        "energy_rail": "not measured: no rail",
    }


def test_drift_that_is_no_number_is_none_of_a_profile_either(tmp_path):
    kept = ledger()
    last = replace(kept.rows[-1], to_reference=replace(kept.rows[-1].to_reference, mean=math.nan, bound=math.nan))
    write_profile(tmp_path, profile(), replace(kept, rows=(*kept.rows[:-1], last)))
    row = read_run(tmp_path)[0].row
    assert row.gram.bound is None
    assert row.not_measured["gram.bound"] == "not a number: the measured value was nan"


def test_bounds_that_a_profiles_ledger_lacks_come_back_as_infinite(tmp_path):
    kept = ledger(surely=math.inf)
    write_profile(tmp_path, profile(), kept)
    assert '"low": null' in (tmp_path / "profile.json").read_text()
    assert read_run(tmp_path)[0].ledger.row("device").loss == kept.row("device").loss
    last = kept.rows[-1]
    broken = replace(last.first, error=Estimate(math.nan, math.nan, math.nan), largest_error=math.nan)
    write_profile(tmp_path, profile(), replace(kept, rows=(*kept.rows[:-1], replace(last, answers={"logits": broken}))))
    answers = read_run(tmp_path)[0].ledger.rows[-1].first
    assert all(map(math.isnan, (answers.error.mean, answers.error.low, answers.error.high, answers.largest_error)))


def test_a_profile_has_the_reasons_of_its_ledger_apart_from_the_warnings(tmp_path):
    kept = LEDGERS["fail"]()
    write_profile(tmp_path, profile(), kept)
    row = read_run(tmp_path)[0].row
    assert (row.verdict, row.released) == ("fail", False)
    assert (row.reasons, row.warnings) == (kept.reasons, kept.warnings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.update(schema_version=3),
            "has schema_version 3, and this edgekd reads 1 and 2 only; run edgekd",
        ),
        (lambda c: c.pop("device"), "lacks the key 'device'"),
        (lambda c: c["profile"].update(engines=[]), "has no engine"),
        (lambda c: c["ledger"].update(limits=None), r"ledger\.limits: expected 'object'"),
    ],
    ids=["version", "device", "engines", "ledger"],
)
def test_a_profile_that_is_broken_says_where(tmp_path, change, said):
    write_profile(tmp_path, profile())
    damage(tmp_path / "profile.json", change)
    with pytest.raises(ReportError, match=r"profile\.json: .*" + said):
        read_run(tmp_path)


def test_a_folder_may_have_a_build_and_a_profile(tmp_path):
    write_run(tmp_path, target())
    write_profile(tmp_path, profile())
    assert [entry.row.device for entry in read_run(tmp_path)] == ["this host", "local"]


# --- order


def test_the_smallest_is_first_and_what_was_not_measured_is_last_either_way(entries):
    up, down = sort_entries(entries, "p50"), sort_entries(entries, "p50", reverse=True)
    assert names(up)[-1] == names(down)[-1] == "gestures pi"
    rising, falling = ([entry.row.latency_ms.p50 for entry in found[:-1]] for found in (up, down))
    assert rising == sorted(rising) == falling[::-1]


@pytest.mark.parametrize("key", sort_keys())
def test_every_key_sorts(entries, key):
    found = sort_entries(entries, key)
    assert sorted(names(found)) == sorted(names(entries))


def test_verdicts_sort_from_good_to_bad(entries):
    found = [entry.row.verdict for entry in sort_entries(entries, "verdict")]
    assert found == ["pass", "pass", "warn", "fail"]


# --- filters


@pytest.mark.parametrize(
    ("filters", "kept", "why"),
    [
        (
            Filters(limits={"max_latency_ms": 0.2}),
            ["gestures orin", "depth cpu"],
            ["p50 0.299 ms is above 0.2 ms", f"p50 {NO_DEVICE}"],
        ),
        (
            Filters(verdict="pass"),
            ["gestures orin", "depth cpu"],
            ["verdict warn, wanted pass", "verdict fail, wanted pass"],
        ),
        (Filters(targets=("orin", "pi")), ["gestures orin", "gestures pi"], []),
        (Filters(devices=("orin",)), ["gestures orin"], []),
        (
            Filters(targets=("orin", "pi"), limits={"min_metric": 0.96}),
            [],
            ["macro-F1 0.9581 is below 0.96", "macro-F1 0.9581 is below 0.96"],
        ),
    ],
    ids=["latency", "verdict", "target", "device", "metric"],
)
def test_filters_leave_out_and_say_why(entries, filters, kept, why):
    found, left_out = filter_entries(entries, filters)
    assert names(found) == kept
    assert [left.why for left in left_out] == why


def test_a_limit_on_a_metric_that_is_better_the_other_way_is_refused(entries):
    with pytest.raises(ReportError, match=r"--min-metric 0\.9: the MAE of .*b, cpu is better when lower: use --max-"):
        filter_entries(entries, Filters(limits={"min_metric": 0.9}))
    with pytest.raises(ReportError, match=r"--max-metric 0\.9: the macro-F1 of .* is better when higher: use --min-"):
        filter_entries(entries[:1], Filters(limits={"max_metric": 0.9}))
    found, _ = filter_entries(entries[3:], Filters(limits={"max_metric": 0.96}))
    assert names(found) == ["depth cpu"]


def test_a_name_that_no_row_has_is_refused(entries):
    with pytest.raises(ReportError, match=r"--target cpi: no row is of that target; did you mean 'pi' or 'cpu'"):
        filter_entries(entries, Filters(targets=("cpi",)))
    with pytest.raises(ReportError, match="--device tx2: no row is of that device"):
        filter_entries(entries, Filters(devices=("tx2",)))


# --- forms


def test_the_short_tables_fit_80_columns(entries):
    doing, taking = short_tables(Comparison(entries))
    for table in (doing, taking):
        cells = [[column.name for column in table.columns], *table.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        assert sum(widths) + 2 * (len(widths) - 1) <= 78
    assert doing.rows[2][2:5] == ("–", "–", "–")
    assert [column.name for column in taking.columns][1] == "task"


def test_the_short_tables_name_one_metric_and_no_task_where_there_is_one(entries):
    doing, taking = short_tables(Comparison(entries[:3]))
    assert "macro-F1" in [column.name for column in doing.columns]
    assert "task" not in [column.name for column in taking.columns]


def test_a_metric_that_no_row_has_is_not_named(tmp_path):
    stages = ("teacher", "student", "cut", "finetuned", "quantized", "device")
    write_run(tmp_path, target(ledger=ledger(metric="none", metrics=tuple((stage, None) for stage in stages))))
    joined = Comparison(read_run(tmp_path))
    assert [column.name for column in short_tables(joined)[0].columns][5] == "metric"
    assert "none" not in f"{as_markdown(joined)}"
    assert "metric, change of 1: not measured: there are no labels." in notes(joined)
    page = as_html(Comparison(joined.entries * 2))
    assert "no row has both a p50 and a metric" in page
    assert "<p>Metric not measured: there are no labels.</p>" in page
    assert 'id="metric"' not in page


def test_the_notes_name_each_metric_and_each_reason_once(entries, runs):
    told = "\n".join(notes(Comparison(entries)))
    assert "metric of 1, 2, 3: macro-F1, higher is better; metric of 4: MAE, lower is better" in told
    assert f"p50, p90, p99, throughput, memory, energy of 3: {NO_DEVICE}." in told
    assert "energy of 1, 4: not measured: the profile was not asked for it." in told
    assert "mJ of 2: energy of one inference, idle subtracted, by RAPL package-0." in told
    assert f"Read from {runs / 'a'}: 1, 2, 3; {runs / 'b'}: 4." in told


def test_the_notes_say_what_was_left_out(entries):
    found, left_out = filter_entries(entries, Filters(limits={"max_latency_ms": 0.2}))
    told = notes(Comparison(found, left_out))
    assert f"Left out, 2 of 4: pi on no device: p50 {NO_DEVICE}." in told
    assert "Left out, 1 of 4: cpu on this host: p50 0.299 ms is above 0.2 ms." in told


def test_a_table_without_rows_is_its_notes(entries):
    joined = Comparison(*filter_entries(entries, Filters(limits={"max_latency_ms": 1e-9})))
    assert as_markdown(joined).count("Left out, ") == 4
    assert json.loads(as_json(joined))["rows"] == []
    assert len(as_csv(joined).splitlines()) == 1
    assert [table.rows for table in short_tables(joined)] == [(), ()]


def test_markdown_says_not_measured_in_words(entries):
    text = as_markdown(Comparison(entries))
    (line,) = (line for line in text.splitlines() if "| pi " in line)
    assert line.count("not measured") == 6
    assert len(long_table(Comparison(entries)).columns) == line.count("|") - 1


def test_json_has_every_null_with_its_reason(entries):
    content = json.loads(as_json(Comparison(entries, sort="size")))
    assert (content["schema_version"], content["sort"]) == (1, "size")
    for row in content["rows"]:
        ends = [name for name in row if "_low_" in name or "_high_" in name]
        lacking = {name for name, value in row.items() if value is None and name not in ends}
        assert lacking == row["not_measured"].keys()
    assert content["rows"][1]["p50_low_ms"] <= content["rows"][1]["p50_ms"] <= content["rows"][1]["p50_high_ms"]


def test_csv_comes_back_as_it_was(entries):
    rows = list(csv.DictReader(io.StringIO(as_csv(Comparison(entries)))))
    assert [float(row["p50_ms"]) for row in rows if row["p50_ms"]] == [
        e.row.latency_ms.p50 for e in entries if e.row.latency_ms.p50
    ]
    assert rows[2]["p50_ms"] == ""
    assert f"p50_ms: {NO_DEVICE}" in rows[2]["not_measured"]
    assert [row["higher_is_better"] for row in rows] == ["true", "true", "true", "false"]


def test_few_inferences_withhold_the_p99(tmp_path):
    write_run(tmp_path, target(profile=profile(n=200)))
    (entry,) = read_run(tmp_path)
    assert (entry.row.latency_ms.p99, entry.row.latency_ms.interval_95["p99"]) == (None, None)
    assert any("p99 of 1: withheld: 200 samples are too few" in told for told in notes(Comparison((entry,))))


def test_what_a_profile_says_of_energy_is_told(tmp_path):
    lacking = profile()
    engines = (*lacking.engines[:-1], replace(lacking.engines[-1], not_measured={"energy": "not measured: no rail"}))
    write_run(tmp_path, target(profile=replace(lacking, engines=engines)))
    assert read_run(tmp_path)[0].row.why_not("energy_mj") == "not measured: no rail"
    assert further(lacking.engines[-1]).energy is not None


def test_no_figure_is_lost_on_the_way(entries):
    """Each figure of the table stands in Markdown too, rounded as the figures of other tables are."""
    text = as_markdown(Comparison(entries))
    for entry in entries:
        if entry.row.latency_ms.p50 is not None:
            assert f"{entry.row.metric.shipped:.4f}" in text
            assert np.isclose(entry.row.throughput_per_s, 1000 / entry.profile.engines[-1].latency.mean_ms)


@pytest.mark.parametrize(("ratio", "said"), [(4.7, "4.70× faster"), (1.0, "1.00× faster"), (0.5, "2.00× slower")])
def test_a_ratio_below_one_is_not_called_faster(ratio, said):
    assert checks._comparison(ratio, "faster", "slower") == said
