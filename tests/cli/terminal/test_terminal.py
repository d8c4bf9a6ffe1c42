import io
import os
import re
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from builds import LEDGERS, LIMITS, build, ledger, profile, target
from profiles import MEASURED, REASONS, all_of

from edgekd.cli.terminal import print_profile, print_report, print_targets, print_tasks
from edgekd.config.target import Budgets
from edgekd.gram.verdict import QUESTIONS
from edgekd.report.build.markdown import run_lines
from edgekd.runtime.manifest import REQUIRED, manifest_text
from edgekd.stages.trained import PruneAttempt


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
    pytest.param(build(target(ledger=ledger(answers=10, surely=0.03, without=True))), id="undecided"),
    pytest.param(build(target(ledger=ledger(metric="balanced accuracy over subjects"))), id="long metric name"),
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
        asked = [answered.verdict for one in report.targets for answered in one.ledger.questions]
        told = asked.count(result.verdict) + (1 if len(report.targets) == 1 else 2 * len(report.targets))
        assert words.count(result.verdict.upper()) == told


def test_a_long_meaning_goes_on_below_its_own_beginning(capsys):
    print_report(build(), width=80)
    lines = capsys.readouterr().out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("  KL     d"))
    assert lines[first + 1].startswith(" " * 9)
    assert lines[first + 1][9] != " "


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
    assert "\nFAIL  cpu  not released: cpu/rejected\n" in out
    assert "is above 0.02" in out
    assert "edgekd.load" not in out
    assert "int8 ships" not in out


def after_verdict(out, verdict):
    """Return what stands below the verdict of a build's only target, as paragraphs."""
    lines = out[out.index(f"\n{verdict}  cpu") + 1 :].splitlines()
    below = lines[1 : lines.index("")]
    assert all(line.startswith(" " * 6) for line in below)
    return " ".join(line.strip() for line in below)


@pytest.mark.parametrize("state", LEDGERS)
def test_three_questions_are_answered_apart_each_with_figures_bounds_and_limits(state, capsys):
    kept = LEDGERS[state]()
    print_report(build(target(ledger=kept)), width=80)
    out = capsys.readouterr().out
    places = [out.index(f"\n  {one.verdict.upper():<11}{QUESTIONS[one.question]}\n") for one in kept.questions]
    assert places == sorted(places)
    assert out.index("KL ≤") < out.index("drift ≤") < places[0], "the output first, and the Gram after it"
    assert re.search(r"\n    macro-F1 worse by  +\S+ +\S+ to \S+  ≤ 0.015\n", out)
    assert re.search(r"\n    Gram drift  +0\.\d{4} +at most 0\.\d{4} +≤ 0\.02\n", out)
    assert re.search(r"\n    macro-F1 of the student +0\.9612 .* ≥ 0\.8941\n", out)


def test_reasons_warnings_and_advice_stand_apart_below_the_verdict(capsys):
    print_report(build(target(ledger=LEDGERS["fail"](), budgets=Budgets(size_mb=0.1))), Path("out"), width=80)
    out = capsys.readouterr().out
    assert "\nFAIL  cpu  not released: out/cpu/rejected\n" in out
    told = after_verdict(out, "FAIL")
    parts = [
        "the metric is 0.159 [0.157, 0.161] worse, more than 0.015",
        "warning: Gram drift bound",
        "warning: size 0.232 MB, budget 0.1 MB",
        "where it began, and what to change: it is so from the row 'device' on; finetuned, quantized did better; ",
        "None ships: int8 was chosen (the only candidate), and the gate rejects it on the test samples.",
    ]
    places = [told.index(part) for part in parts]
    assert places == sorted(places)
    assert places[0] == 0


@pytest.mark.parametrize(
    ("undecided", "where", "said"),
    [
        ("release", "int8  out/gestures-cpu", "released all the same, since gate.undecided is 'release'"),
        ("reject", "not released: out/cpu/rejected", "not released, since gate.undecided is 'reject'"),
    ],
)
def test_of_a_build_that_is_undecided_the_setting_is_named(undecided, where, said, capsys):
    limits = replace(LIMITS, undecided=undecided)
    print_report(build(target(ledger=ledger(answers=10, surely=0.03, limits=limits))), Path("out"), width=80)
    out = capsys.readouterr().out
    assert f"\nUNDECIDED  cpu  {where}\n" in out
    told = after_verdict(out, "UNDECIDED")
    assert re.match(r"undecided: n = 30 groups, about \d+ would tell warning: ", told)
    assert said in told


def publish_manifest(folder, **changes):
    """Write the manifest of a bundle as a build has published it at a known time."""
    known = {
        **{"schema_version": 6, "edgekd": "0", "target": "cpu", "runtime": "onnxruntime", "options": {}},
        **{"precision": "int8", "released": True, "verdict": "pass", "reasons": []},
        **{"task": {"name": "gestures", "metric": "macro-F1"}, "inputs": [], "outputs": [], "states": []},
        **{"versions": {}, "measurements": {"macro-F1": 0.9583}},
        "files": {name: {"sha256": "0" * 64, "bytes": 1} for name in REQUIRED},
    }
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest_text({**known, **changes}))
    os.utime(folder / "manifest.json", (0, datetime(2026, 3, 1, 9, 5).timestamp()))


def test_the_bundle_that_is_left_of_an_earlier_build_is_named_with_what_it_is(capsys, tmp_path):
    rejected = build(target(ledger=LEDGERS["fail"]()))
    print_report(rejected, tmp_path, width=1000)
    assert "earlier build" not in capsys.readouterr().out
    publish_manifest(tmp_path / "cpu" / "bundle")
    print_report(rejected, tmp_path, width=1000)
    left = f"the bundle of an earlier build is still in {tmp_path}/cpu/bundle"
    assert f"      {left}: of 2026-03-01 09:05, int8, macro-F1 0.9583, pass\n" in capsys.readouterr().out
    refused = replace(build(), targets=(), refused={"cpu": "no device"})
    print_report(refused, tmp_path, width=1000)
    assert f"{left}: of 2026-03-01 09:05" in capsys.readouterr().out
    (tmp_path / "cpu" / "bundle" / "manifest.json").write_text("{")
    print_report(rejected, tmp_path, width=1000)
    assert f"      {left}\n" in capsys.readouterr().out
    print_report(build(), tmp_path, width=1000)
    assert "earlier build" not in capsys.readouterr().out


def test_attempts_at_pruning_are_shown_where_there_was_more_than_one(capsys):
    row = ledger().row("finetuned")
    attempts = tuple(PruneAttempt(ratio, {}, 10, 81_234, 61.0, row) for ratio in (0.5, 0.25))
    print_report(replace(build(), pruning=attempts), width=80)
    out = capsys.readouterr().out
    assert "attempts at pruning" in out
    assert re.search(r"\n  2 +25% +10 +81,234 .* pass  1 min 01 s\n", out)
    print_report(replace(build(), pruning=attempts[:1]), width=80)
    assert "attempts at pruning" not in capsys.readouterr().out


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
