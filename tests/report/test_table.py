import math
import re
from dataclasses import replace

import pytest
from builds import LEDGERS, LIMITS, build, ledger, profile, target, without_a_graph_of_the_teacher

from edgekd.report.build.files import report_markdown
from edgekd.report.format import duration, factor, milliseconds, number, percent, size, small
from edgekd.report.ledger_tables import candidate_table, choice_sentence, ledger_table, pruning_table, question_table
from edgekd.report.results import CandidateResult
from edgekd.report.table import Column, Table, engine_table, markdown, summary_table
from edgekd.stages.trained import PruneAttempt

RESULTS = [
    pytest.param(target(), id="measured"),
    pytest.param(target(profile=profile(n=200)), id="few samples"),
    pytest.param(target(profile=profile(times=(1234.5, 812.3, 99.96))), id="slow"),
    pytest.param(target(profile_reason="not measured: no device"), id="no profile"),
    pytest.param(target(ledger=ledger(0.2, metrics=(("device", math.nan),))), id="fails"),
    pytest.param(target(ledger=ledger(metric="balanced accuracy over subjects")), id="long metric name"),
    pytest.param(target(ledger=LEDGERS["undecided"]()), id="undecided"),
]


TABLES = (
    lambda result: ledger_table(result.ledger),
    engine_table,
    lambda result: summary_table(build(result)),
)


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("make", TABLES)
def test_tables_read_well_at_80_columns(make, result):
    lines = [line for line in markdown(make(result)).splitlines() if line.startswith("|")]
    assert max(map(len, lines)) <= 84  # Markdown's own bars; without them 80
    table = make(result)
    widths = [max(map(len, cells)) for cells in zip((c.name for c in table.columns), *table.rows, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 78


def tables_in(page):
    block = []
    for line in [*page.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            yield block
            block = []


@pytest.mark.parametrize("result", RESULTS)
def test_every_markdown_table_is_well_formed(result):
    found = list(tables_in(report_markdown(build(result))))
    assert len(found) >= 6
    for head, rule, *rows in found:
        assert re.fullmatch(r"\|( -+:? \|)+", rule)
        assert rows
        assert {len(line) for line in (head, rule, *rows)} == {len(head)}
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in (head, rule, *rows)} == {head.count("|")}


def test_markdown_escapes_what_would_break_a_row():
    text = markdown(Table("T", (Column("a", right=False), Column("b")), (("x|y", "two\nlines"),)))
    assert text == "### T\n\n| a    |         b |\n| ---- | --------: |\n| x\\|y | two lines |\n"


def test_the_ledger_shows_every_stage_and_the_limits():
    result = target(ledger=ledger(0.024))
    table = ledger_table(result.ledger)
    assert [row[0] for row in table.rows] == ["teacher", "student", "cut", "finetuned", "quantized", "device", "limit"]
    names = [column.name for column in table.columns]
    assert names == ["stage", "KL", "KL ≤", "flips", "macro-F1", "drift", "drift ≤", "gate"], "the output comes first"
    engine, limits = (dict(zip(names, table.rows[index], strict=True)) for index in (5, 6))
    row = result.ledger.row("device")
    assert engine["KL ≤"] == small(row.first.divergence.high)
    assert engine["drift ≤"] == f"{row.to_reference.bound:.4f}"
    assert engine["flips"] == f"{row.flips:.1%}"
    assert engine["gate"] == row.verdict == "warn"
    assert [limits[name] for name in ("KL ≤", "flips", "macro-F1", "drift ≤")] == [
        "≤ 0.02",
        "≤ 3%",
        "≥ 0.9462",
        "≤ 0.02",
    ]


def test_the_table_names_what_the_outputs_kind_measures():
    values = replace(ledger(), kinds={"logits": "regression"}, rows=tuple(_without_flips(row) for row in ledger().rows))
    assert [column.name for column in ledger_table(values).columns][1:4] == ["error", "error ≤", "macro-F1"]
    embedding = replace(ledger(), kinds={"logits": "embedding"})
    table = ledger_table(embedding)
    assert [column.name for column in table.columns][1:4] == ["Δcos", "Δcos ≤", "nearest"]
    assert table.rows[-1][2:4] == ("≤ 0.03", "–"), "of near neighbours that trade places there is no limit"


def _without_flips(row):
    changed = {name: replace(each, kind="regression", changed=None) for name, each in row.answers.items()}
    return replace(row, answers=changed)


def test_where_a_lower_metric_is_better_its_limit_is_above_the_reference():
    lower = replace(LIMITS, higher_is_better=False)
    assert ledger_table(ledger(metric="MAE", limits=lower)).rows[-1][4] == "≤ 0.9762"


def test_each_question_has_its_figures_with_bounds_and_limits():
    kept = ledger(without=True)
    learned, behaviour, structure = (question_table(kept, answered) for answered in kept.questions)
    assert [column.name for column in learned.columns] == ["figure", "measured", "95% bounds", "limit"]
    assert learned.rows == (
        ("macro-F1 of the student", "0.9612", "–", "≥ 0.8941"),
        ("that of the teacher", "0.9731", "–", "–"),
        ("that of answering always class 2", "0.1834", "–", "–"),
        ("better than always class 2 by", "0.7778", "0.7101 to 0.8455", "> 0"),
    )
    device = kept.row("device")
    shown = {row[0]: row[1:] for row in behaviour.rows}
    assert list(shown) == [
        "KL divergence, nats", "answers changed", "macro-F1 worse by", "relative error of a sample",
        "answers changed without accel", "answers changed without audio",
    ]  # fmt: skip
    assert shown["macro-F1 worse by"] == ("0.0031", "0.0011 to 0.0051", "≤ 0.015")
    assert shown["KL divergence, nats"][0] == small(device.first.divergence.mean)
    assert shown["answers changed without audio"] == ("9.3%", "5.7% to 14.2%", "≤ 8%")
    drift = device.to_reference
    assert structure.rows[0] == ("Gram drift", f"{drift.mean:.4f}", f"at most {drift.bound:.4f}", "≤ 0.02")


def candidates(*verdicts):
    named = zip(("int8", "float32"), verdicts, strict=True)
    return tuple(CandidateResult(name, name, verdict, 0.9, None, 0.1, None, None, 9, None) for name, verdict in named)


def test_what_ships_is_said_only_of_a_bundle_that_was_released():
    good = target(candidates=candidates("pass", "fail"), choice="the fastest", chosen_on="120 validation samples")
    assert choice_sentence(good) == "int8 ships: the fastest."
    table = candidate_table(good)
    assert [row[-1] for row in table.rows] == ["ships", ""]
    assert table.notes[0].startswith("Judged and chosen on 120 validation samples; ")
    on_test = replace(good, ledger=LEDGERS["fail"](), bundle=None)
    assert choice_sentence(on_test) == (
        "None ships: int8 was chosen (the fastest), and the gate rejects it on the test samples. It is shown for "
        "analysis."
    )
    assert [row[-1] for row in candidate_table(on_test).rows] == ["shown", ""]
    none = replace(on_test, candidates=candidates("fail", "fail"), choice="the gate rejects every candidate")
    assert choice_sentence(none) == "None ships: the gate rejects every candidate. int8 is shown for analysis."


def test_an_undecided_candidate_counts_as_the_gate_says():
    rejecting = replace(LIMITS, undecided="reject")
    kept = ledger(answers=10, surely=0.03, limits=rejecting)
    result = target(ledger=kept, candidates=candidates("undecided", "undecided"), choice="all are undecided")
    assert (kept.verdict, result.released) == ("undecided", False)
    assert choice_sentence(result) == "None ships: all are undecided. int8 is shown for analysis."


def test_each_attempt_at_pruning_is_a_row():
    row, first = ledger().row("finetuned"), LEDGERS["fail"]().row("device")
    attempts = (
        PruneAttempt(0.5, {"accel": 0.6}, 10, 81_234, 61.0, first),
        PruneAttempt(0.25, {}, 20, 121_234, 120.0, row, "the ratio was halved"),
    )
    table = pruning_table(attempts)
    names = ["attempt", "ratio", "epochs", "parameters", "KL ≤", "flips", "drift ≤", "gate", "time"]
    assert [column.name for column in table.columns] == names
    assert table.rows[0][:4] == ("1", "50%", "10", "81,234")
    assert table.rows[0][7:] == ("fail", "1 min 01 s")
    assert table.rows[1][4:8] == (
        small(row.first.divergence.high), f"{row.flips:.1%}", small(row.to_reference.bound), "pass",
    )  # fmt: skip
    assert "2: the ratio was halved." in table.notes
    assert "1: of accel 60%." in table.notes
    report = replace(build(), pruning=attempts)
    assert "### Attempts at pruning" in report_markdown(report)


def test_speed_is_relative_to_the_teacher():
    table = engine_table(target())
    speeds = [row[4] for row in table.rows]
    assert speeds[0] == "1.00×"
    assert speeds[2] == factor(target().speedup("teacher"))


def test_a_teacher_without_a_graph_has_a_row_and_speed_is_relative_to_the_student():
    table = engine_table(without_a_graph_of_the_teacher())
    teacher, student, shipped = table.rows
    assert teacher[:7] == ("teacher", *["not measured"] * 3, "–", "not measured", "not measured")
    assert teacher[7] == number(target().row("teacher").metric)
    assert (student[4], shipped[4]) == ("1.00×", factor(target().speedup("student")))


def test_withheld_quantiles_are_said_in_words():
    table = engine_table(target(profile=profile(n=200)))
    assert [row[3] for row in table.rows] == ["withheld"] * 3
    told = "p99 withheld, too few inferences for its interval: teacher (n = 200), student (n = 200), shipped (n = 200)."
    assert told in table.notes


def test_what_was_not_measured_is_never_zero():
    result = target(profile_reason="not measured: no device")
    assert [column.name for column in engine_table(result).columns] == ["model", "size", "macro-F1"]
    assert summary_table(build(result)).rows[0][2] == "not measured"


def test_what_no_device_ran_is_said_below_the_summary():
    on_host = replace(ledger(), rows=ledger().rows[:-1])
    unrun = target("board", profile_reason="not measured: no device", ledger=on_host)
    (note,) = summary_table(build(target(), unrun)).notes
    assert note == "macro-F1 and drift of board: of the same graph in ONNX Runtime on the building host."
    assert not summary_table(build(target())).notes


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (milliseconds, 0.08831, "0.0883"),
        (milliseconds, 0.4124, "0.412"),
        (milliseconds, 4.124, "4.12"),
        (milliseconds, 41.24, "41.2"),
        (milliseconds, 412.4, "412"),
        (size, 812, "0.8 kB"),
        (size, 231_770, "232 kB"),
        (size, 999_600, "1.00 MB"),
        (size, 5_213_004, "5.21 MB"),
        (size, 123_456_789, "123 MB"),
        (factor, 4.673, "4.67×"),
        (factor, 0.8, "0.80×"),
        (factor, 46.73, "46.7×"),
        (small, 0.01234, "0.0123"),
        (small, 0.0000321, "3e-05"),
        (small, 12345.6, "1.23e+04"),
        (small, -0.0, "0.0000"),
        (percent, -1e-12, "0.0%"),
        (percent, -0.004, "-0.4%"),
        (small, math.nan, "NaN"),
        (small, None, "–"),
        (duration, 8.13, "8.1 s"),
        (duration, 9.97, "10 s"),
        (duration, 59.6, "1 min 00 s"),
        (duration, 185.2, "3 min 05 s"),
        (duration, 3720, "1 h 02 min"),
    ],
)
def test_figures(write, value, text):
    assert write(value) == text
