import math
import re
from dataclasses import replace

import pytest
from builds import build, ledger, profile, target

from edgekd.report.build.files import report_markdown
from edgekd.report.format import duration, factor, milliseconds, size
from edgekd.report.table import (
    Column,
    Table,
    engine_table,
    ledger_table,
    markdown,
    summary_table,
)

RESULTS = [
    pytest.param(target(), id="measured"),
    pytest.param(target(profile=profile(n=200)), id="few samples"),
    pytest.param(target(profile=profile(times=(1234.5, 812.3, 99.96))), id="slow"),
    pytest.param(target(profile_reason="not measured: no device"), id="no profile"),
    pytest.param(target(ledger=ledger(0.2, metrics=(("device", math.nan),))), id="fails"),
    pytest.param(target(ledger=ledger(metric="balanced accuracy over subjects")), id="long metric name"),
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
    engine = dict(zip((column.name for column in table.columns), table.rows[5], strict=True))
    row = result.ledger.row("device")
    assert engine["bound"] == f"{row.to_reference.bound:.4f}"
    assert engine["change"] == f"{row.metric - result.ledger.row('student').metric:+.4f}"
    assert engine["gate"] == row.verdict == "warn"


def test_speed_is_relative_to_the_teacher():
    table = engine_table(target())
    speeds = [row[4] for row in table.rows]
    assert speeds[0] == "1.00×"
    assert speeds[2] == factor(target().speedup("teacher"))


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
    assert note == "macro-F1 and bound of board: of the same graph in ONNX Runtime on the building host."
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
        (duration, 8.13, "8.1 s"),
        (duration, 9.97, "10 s"),
        (duration, 59.6, "1 min 00 s"),
        (duration, 185.2, "3 min 05 s"),
        (duration, 3720, "1 h 02 min"),
    ],
)
def test_figures(write, value, text):
    assert write(value) == text
