import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from builds import build

from edgekd.report.build.files import report_json, report_markdown, write_report
from edgekd.report.build.training_picture import training_svg
from edgekd.report.svg.chart import COLOURS, Curve, Panel, chart_svg
from edgekd.report.svg.scale import AxisScale

SVG = "{http://www.w3.org/2000/svg}"


def entry(epoch, **changes):
    figures = {
        "loss": 5 * 0.9**epoch, "ce": 2 * 0.9**epoch, "kd": 4 * 0.9**epoch, "loss.intra": 0.1 * 0.9**epoch,
        "weight.intra": 30.0, "share.intra": 1.0, "validation": 0.5 + 0.01 * epoch, "drift": 0.1 * 0.95**epoch,
    }  # fmt: skip
    return {**figures, **changes}


HISTORY = [entry(epoch) for epoch in range(30)]


def texts(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines(svg, colour=None):
    """Return the points of each drawn run, those of the legend left out."""
    paths = [path for path in ElementTree.fromstring(svg).iter(f"{SVG}path") if path.get("class") == "line"]
    wanted = [path.get("d") for path in paths if colour in (None, path.get("stroke")) and " L" in path.get("d")]
    return [[tuple(map(float, point.split())) for point in d[1:].split(" L")] for d in wanted]


def dots(svg):
    return list(ElementTree.fromstring(svg).iter(f"{SVG}circle"))


def test_a_distilled_network_has_three_panels_with_titled_axes_and_a_legend():
    told = texts(training_svg("student", HISTORY, "accuracy"))
    for expected in (
        "Training of the student network", "Losses", "loss", "ce", "kd", "intra", "mean of the epoch, log",
        "Added losses' share of the gradient", "× that of CE and KD", "Validation split", "accuracy",
        "Gram drift from the anchor (right)", "mean |Δ cosine|",
    ):  # fmt: skip
        assert expected in told, expected
    assert told.count("epoch") == 3
    assert told.count("30") == 3


def test_a_teacher_has_no_shares_and_no_drift():
    told = texts(training_svg("teacher", [{"loss": 2.0, "validation": 0.5}, {"loss": 1.0, "validation": 0.8}], "F1"))
    assert {"Losses", "Validation split", "F1"} <= set(told)
    assert not [word for word in told if "share" in word or "drift" in word]


def test_points_stand_where_the_figures_are():
    values = [0.0, 1.0, 0.5]
    ((first, second, third),) = lines(chart_svg("x", [Panel("p", "y", [Curve("a", values, COLOURS[0])])]))
    assert first[0] < second[0] < third[0]
    assert second[0] - first[0] == pytest.approx(third[0] - second[0])
    assert third[1] == pytest.approx((first[1] + second[1]) / 2)
    assert second[1] < first[1], "more is further up"


def test_what_is_no_number_is_a_gap_and_a_lone_point_a_dot():
    shares = [1.0, 1.1, math.nan, 1.2, math.nan, 1.3, 1.4, 1.5]
    history = [entry(epoch, **{"share.intra": share}) for epoch, share in enumerate(shares)]
    svg = training_svg("student", history, "accuracy")
    loss, *runs = lines(svg, COLOURS[3])
    assert len(loss) == 8
    assert [len(run) for run in runs] == [2, 3]
    assert len(dots(svg)) == 1
    assert "nan" not in svg


def test_a_line_of_which_nothing_can_be_drawn_says_so():
    svg = training_svg("student", [entry(epoch, **{"share.intra": math.nan, "ce": 0.0}) for epoch in range(5)], "F1")
    told = texts(svg)
    assert told.count("intra (none)") == 1
    assert "ce (none)" in told, "0 has no place on a logarithmic axis"
    assert "nan" not in svg


def test_one_epoch_is_dots():
    svg = training_svg("student", HISTORY[:1], "accuracy")
    assert lines(svg) == []
    assert len(dots(svg)) == 7


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.5, 30.0], AxisScale(0.5, 50.0, None)),
        ([0.011, 0.9], AxisScale(0.01, 1.0, None)),
        ([1.0, 19.0], AxisScale(0.0, 20.0, 5.0)),
        ([-1.0, 30.0], AxisScale(-10.0, 30.0, 10.0)),
        ([0.8, 0.9], AxisScale(0.8, 0.9, 0.02)),
        ([math.nan, 0.0, math.inf], AxisScale(0.0, 1.0, 0.2)),
        ([], AxisScale(0.0, 1.0, 0.2)),
    ],
)
def test_a_scale_ends_at_round_figures(values, scale):
    found = AxisScale.of(values)
    assert (found.low, found.high, found.step) == pytest.approx((scale.low, scale.high, scale.step))
    assert found.share(found.low) == 0
    assert found.share(found.high) == pytest.approx(1)


@pytest.mark.parametrize("low", [1e-9, 3e-5, 0.02, 0.5, 7.0])
@pytest.mark.parametrize("ratio", [1.0, 1.001, 1.5, 10, 30, 1e3, 1e8])
@pytest.mark.parametrize("log", [True, False])
def test_an_axis_has_a_few_ticks_that_differ(low, ratio, log):
    scale = AxisScale.of([low, low * ratio], log)
    labels = [scale.label(tick) for tick in scale.ticks()]
    assert 2 <= len(labels) <= 8
    assert len(set(labels)) == len(labels)
    assert all(0 <= scale.share(tick) <= 1 + 1e-9 for tick in scale.ticks())
    assert max(map(len, labels)) <= 9
    assert 0 <= scale.share(low) <= 1 + 1e-9


def test_no_two_lines_look_alike_and_all_fit_the_picture():
    extras = [f"loss of a long name {index}" for index in range(12)]
    history = [entry(0, **{f"{kind}.{name}": 1.0 for name in extras for kind in ("loss", "share")})] * 2
    svg = training_svg("student", history, "accuracy")
    root = ElementTree.fromstring(svg)
    legend = [p for p in root.iter(f"{SVG}path") if p.get("class") == "line" and " h24" in p.get("d")]
    first = [(p.get("stroke"), p.get("stroke-dasharray")) for p in legend[:16]]
    assert len(set(first)) == 16
    assert max(float(text.get("x")) for text in root.iter(f"{SVG}text")) < float(root.get("width"))
    assert max(float(text.get("y")) for text in root.iter(f"{SVG}text")) < float(root.get("height"))


def test_names_are_text_and_long_ones_are_shortened():
    svg = training_svg("<b>", [entry(0, **{"loss.a & b": 1.0})], "a metric with a name that no axis is long enough for")
    told = texts(svg)
    assert "Training of the <b> network" in told
    assert "a & b" in told
    assert max(map(len, told)) < 70


def test_the_picture_needs_nothing_from_elsewhere_and_is_light():
    svg = training_svg("student", HISTORY, "accuracy")
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert '<rect width="560"' in svg
    assert 'fill="#ffffff"' in svg
    assert ElementTree.fromstring(svg).get("viewBox").startswith("0 0 560 ")


def trained(**training):
    return replace(build(), training=training)


def test_the_page_shows_each_picture_that_lies_beside_it(tmp_path):
    report = trained(teacher=HISTORY, student=HISTORY, **{"qat cpu": HISTORY})
    write_report(report, tmp_path)
    shown = re.findall(r"!\[[^]]*\]\(([^)]*)\)", report_markdown(report))
    assert shown == ["training/teacher.svg", "training/student.svg", "training/qat-cpu.svg"]
    assert sorted(f"training/{path.name}" for path in (tmp_path / "training").iterdir()) == sorted(shown)
    assert (tmp_path / "training" / "student.svg").read_text("utf-8") == training_svg("student", HISTORY, "macro-F1")


def test_a_picture_of_what_is_trained_no_more_is_taken_away(tmp_path):
    write_report(trained(student=HISTORY, pruned=HISTORY), tmp_path)
    (tmp_path / "training" / "notes.txt").write_text("mine")
    write_report(trained(student=HISTORY), tmp_path)
    assert sorted(path.name for path in (tmp_path / "training").iterdir()) == ["notes.txt", "student.svg"]


def test_a_share_that_is_no_number_is_null_in_json():
    report = trained(student=[entry(0, **{"share.intra": math.nan}), entry(1)])
    content = json.loads(json.dumps(report_json(report), allow_nan=False))
    assert [epoch["share.intra"] for epoch in content["training"]["student"]] == [None, 1.0]
    assert content["not_finite"] == {"training.student.0.share.intra": "nan"}
    assert content["training"]["student"][1] == entry(1)


def test_a_share_that_there_is_not_is_null_in_json_and_a_gap():
    without = {name: value for name, value in entry(0).items() if name != "share.intra"}
    report = trained(student=[without, without], pruned=[without, entry(1)])
    content = report_json(report)["training"]
    assert [epoch["share.intra"] for epoch in content["student"]] == [None, None]
    assert [epoch["share.intra"] for epoch in content["pruned"]] == [None, 1.0]
    assert "× that of CE and KD" not in texts(training_svg("student", [without, without], "F1"))
    assert len(dots(training_svg("pruned", [without, entry(1)], "F1"))) == 1
