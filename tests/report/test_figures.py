"""A figure that is added in one place is everywhere."""

import csv
import io
import json

import pytest
from builds import full_profile, target, write_run

from edgekd.report import figures
from edgekd.report.compare.budgets import check_budgets, read_budgets
from edgekd.report.compare.formats import Comparison, as_csv, as_json, as_markdown, short_tables
from edgekd.report.compare.page import as_html
from edgekd.report.compare.read import read_run
from edgekd.report.compare.rows import Filters, filter_entries, sort_entries
from edgekd.report.format import milliseconds

BOUND = figures.Figure(
    key="p90-bound",
    field="latency_ms.p90_bound",
    column="p90_bound_ms",
    heading="p90 bound ms",
    format=milliseconds,
    unit=" ms",
    limits=(figures.Limit("latency_p90_bound_ms", "bound of the p90", unit=" ms", option="max_p90_bound_ms"),),
)


@pytest.fixture
def entries(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, BOUND))
    reason = "not measured: no device"
    write_run(tmp_path, target("cpu", profile=full_profile()), target("pi", profile_reason=reason))
    return read_run(tmp_path)


def test_an_added_figure_is_in_json_csv_tables_and_page(entries):
    comparison = Comparison(entries)
    value = entries[0].row.latency_ms.p90_bound
    first, second = json.loads(as_json(comparison))["rows"]
    assert first["p90_bound_ms"] == value > 0
    assert (second["p90_bound_ms"], second["not_measured"]["p90_bound_ms"]) == (None, "not measured: no device")
    (row, _) = csv.DictReader(io.StringIO(as_csv(comparison)))
    assert float(row["p90_bound_ms"]) == value
    assert "p90 bound ms" in as_markdown(comparison)
    doing, _ = short_tables(comparison)
    assert [column.name for column in doing.columns][-2] == "p90 bound ms"
    page = as_html(comparison)
    assert f'data-label="p90 bound ms" data-value="{value!r}"' in page
    assert 'data-figure="p90-bound" data-bound="most"' in page


def test_one_sorts_and_filters_by_an_added_figure(entries):
    assert "p90-bound" in figures.sort_keys()
    assert [entry.row.target for entry in sort_entries(entries[::-1], "p90-bound")] == ["cpu", "pi"]
    kept, excluded = filter_entries(entries, Filters(limits={"max_p90_bound_ms": 1e-6}))
    assert kept == ()
    assert "p90-bound" in excluded[0].why
    assert "is above 1e-06 ms" in excluded[0].why


def test_a_budget_limits_an_added_figure(entries, tmp_path):
    path = tmp_path / "budget.toml"
    path.write_text("[[limits]]\ntarget = 'cpu'\nlatency_p90_bound_ms = 1000\n")
    (check,) = check_budgets(entries, read_budgets(path), path)
    assert (check.key, check.kept, check.wanted) == ("latency_p90_bound_ms", True, "≤ 1000 ms")


def test_keys_columns_and_limits_are_unique():
    columns = [name for figure in figures.FIGURES for name, _ in figure.columns]
    assert len(set(columns)) == len(columns)
    assert len(figures.budget_limits()) == sum(len(figure.limits) for figure in figures.FIGURES)
    assert len(set(figures.sort_keys())) == len(figures.sort_keys())
