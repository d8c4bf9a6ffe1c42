"""What stages warned of stands in the report: in its JSON with the stage, and once in words on the page."""

import dataclasses
import json

from builds import build, target

from edgekd.cli.terminal import print_report
from edgekd.report.build.files import write_report
from edgekd.stages.stage import StageTime

ODD = "the student's taps of 'image' and 'audio' are swapped"


def warned():
    stages = (
        StageTime("preflight", 1.0, False, "1 warning", (ODD,)),
        StageTime("preflight", 0.0, True, "1 warning", (ODD,)),
        StageTime("teacher", 1.0, False, "metric 0.9"),
    )
    return dataclasses.replace(build(target()), stages=stages)


def test_a_stages_warning_is_in_every_form_of_the_report(tmp_path, capsys):
    report = warned()
    assert report.warnings == (f"preflight: {ODD}",)
    write_report(report, tmp_path)
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    assert [stage["warnings"] for stage in stages] == [[ODD], [ODD], []]
    assert (tmp_path / "report.md").read_text("utf-8").count("**WARNING** preflight: the student") == 1
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("What looked odd on the way") == 1
    assert page.count("are swapped") == 1
    print_report(report, tmp_path, 80)
    assert "warning: preflight: the student's taps" in capsys.readouterr().out


def test_a_report_without_warnings_has_no_place_for_them(tmp_path):
    write_report(build(target()), tmp_path)
    assert "What looked odd" not in (tmp_path / "report.html").read_text("utf-8")
