import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from builds import build, ledger, profile, target
from profiles import MEASURED, REASONS, all_of

from edgekd.cli.terminal import print_profile, print_report, print_targets, print_tasks
from edgekd.report.build.markdown import run_lines


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def on_terminal(report, monkeypatch, **env):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    print_report(report)
    return sys.stdout.getvalue()


REPORTS = [
    pytest.param(build(), id="passes"),
    pytest.param(build(target(profile=profile(n=200))), id="few samples"),
    pytest.param(build(target(ledger=ledger(0.2, metrics=(("device", float("nan")),)))), id="fails"),
    pytest.param(
        build(
            target("jetson-orin-nano-8gb", device="the one on the second shelf of the lab, left"),
            target("pi5", profile_reason="not measured: no device was given for 'pi5'"),
        ),
        id="two targets",
    ),
]


@pytest.mark.parametrize("report", REPORTS)
def test_no_line_is_wider_than_80_columns(report, capsys):
    print_report(report, width=80)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("report", REPORTS)
def test_no_figure_is_cut_off(report, capsys):
    print_report(report, width=80)
    lines = capsys.readouterr().out.splitlines()
    words = " ".join(lines).split()
    for result in report.targets:
        assert f"{result.ledger.row('quantized').to_reference.bound:.4f}" in words
        assert "kB" in words
        assert words.count(result.verdict.upper()) == (1 if len(report.targets) == 1 else 2 * len(report.targets))


def test_a_long_meaning_goes_on_below_its_own_beginning(capsys):
    print_report(build(), width=80)
    lines = capsys.readouterr().out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("  change   "))
    assert lines[first + 1].startswith(" " * 11)
    assert lines[first + 1][11] != " "


def test_a_narrow_terminal_does_not_lose_figures(capsys, monkeypatch):
    print_report(build(), width=80)
    wide = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "50")
    print_report(build())
    assert capsys.readouterr().out == wide


def test_the_verdict_stands_in_words_with_its_reasons(capsys):
    report = build(target(ledger=ledger(0.2)))
    print_report(report, width=80)
    out = capsys.readouterr().out
    assert "\nFAIL  cpu  int8  gestures-cpu  (rejected: not for release)\n" in out
    assert "is above 0.02" in out
    assert "edgekd.load" not in out


def test_the_python_names_the_bundle_where_it_lies(capsys):
    print_report(build(), Path("out/build"), width=80)
    assert 'with edgekd.load("out/build/gestures-cpu") as engine:\n' in capsys.readouterr().out


def test_a_build_ends_with_the_page_the_bundle_and_three_lines_that_run_it(capsys):
    print_report(build(), Path("out/build"), width=80)
    assert (
        capsys.readouterr().out.splitlines()[-9:]
        == [
            "PASS  cpu  int8  out/build/gestures-cpu",
            "",
            "Report with pictures:  out/build/report.html",
            "Bundle for your app:   out/build/gestures-cpu",
            "",
            "In the app, without torch:",
            "",
            *run_lines("out/build/gestures-cpu"),
        ][-9:]
    )


def test_a_rejected_build_names_the_page_and_nothing_to_run(capsys):
    print_report(build(target(ledger=ledger(0.2))), Path("out/build"), width=80)
    out = capsys.readouterr().out
    assert out.endswith("\nReport with pictures:  out/build/report.html\n")
    assert "Bundle for your app" not in out


def test_a_long_path_is_not_broken_in_the_python(capsys):
    folder = Path("/a/rather/long/path" * 6)
    print_report(build(), folder, width=80)
    assert f'with edgekd.load("{folder}/gestures-cpu") as engine:\n' in capsys.readouterr().out


def test_a_file_gets_no_escape_codes(capsys):
    print_report(build())
    assert "\x1b" not in capsys.readouterr().out


def test_a_terminal_gets_colour(monkeypatch):
    assert "\x1b[33mWARN" in on_terminal(build(target(ledger=ledger(0.024))), monkeypatch)


def test_no_color_is_honoured(monkeypatch):
    written = on_terminal(build(target(ledger=ledger(0.024))), monkeypatch, NO_COLOR="1")
    assert "WARN" in written
    assert "\x1b[33m" not in written


def test_markup_in_a_name_is_text(capsys):
    print_report(build(target("cpu", device="[bold]board[/bold]")), width=80)
    assert "cpu · [bold]board[/bold] ·" in capsys.readouterr().out


def test_an_ascii_terminal_does_not_end_a_build(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print_report(build())
    sys.stdout.flush()
    assert b"PASS  cpu" in raw.getvalue()


def test_lists_wrap_the_description(capsys):
    print_targets([("cpu", "onnxruntime", "word " * 30)], width=80)
    print_tasks([("digits", "rows of digits seen from three sides")], width=80)
    out = capsys.readouterr().out
    assert out.count("word") == 30
    assert max(map(len, out.splitlines())) <= 80
    assert "digits" in out


@pytest.mark.parametrize("measured", [{}, MEASURED, {"not_measured": REASONS}], ids=["bare", "all", "nothing"])
def test_a_profile_fits_into_80_columns(measured, capsys):
    manifest = SimpleNamespace(target="jetson-orin-nano-8gb", precision="int8")
    print_profile(manifest, all_of(**measured), "ssh://user@nano", "onnxruntime", width=80)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "end to end" in out
    assert "cpu Intel(R) Xeon(R)" in out
