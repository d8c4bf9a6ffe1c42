import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from edgekd.gram.blame import AddedLatency, Blame, Effect, RankedFigure, Suspect, WeightedLayer
from edgekd.report.blame.picture import blame_svg
from edgekd.report.blame.tables import blame_json, blame_table, write_blame
from edgekd.report.svg.draw import shorten
from edgekd.report.table import markdown

LONG = "/model/encoders/camera/backbone/stage_1/block/conv_with_a_long_name/Conv"


WHOLE = Effect(0.025, 0.2, 0.04, "camera-audio", 0.04, 0.12, 20.0, 0.85)
ALONE = Effect(0.02, 0.15, 0.02, "camera-audio", 0.02, 0.1, 30.0, 0.9)


def suspect(scope, name, relief, rank=1, latency_ms=None):
    latency = latency_ms and AddedLatency(latency_ms, latency_ms - 0.01, latency_ms + 0.01)
    per_ms = RankedFigure(relief / latency_ms, 0.1, rank) if latency and latency.told_apart else None
    undone = Effect(0.01, 0.1, 0.04 - relief / 20, "camera-audio", 0.03, 0.05, None, 0.95)
    return Suspect(
        scope, name, (f"{name}.weight",), ALONE, undone, RankedFigure(relief, 0.01, rank),
        RankedFigure(0.05, 0.01, rank), latency, per_ms, per_ms,
    )  # fmt: skip


@pytest.fixture
def blame():
    layers = (
        WeightedLayer(LONG, "Conv", "camera", ("embed",)),
        WeightedLayer("embed", "Gemm", "camera", ("head",)),
        WeightedLayer("a<b", "Conv", "audio", ("audio 2", "audio 3")),
        WeightedLayer("audio 2", "Conv", "audio", ("audio 3",)),
        WeightedLayer("audio 3", "Gemm", "audio", ("head",)),
        WeightedLayer("head", "Gemm", "fusion", ("logits",)),
        WeightedLayer("logits", "Gemm", "fusion", ()),
    )
    suspects = (
        suspect("layer", LONG, 0.6, 1, 0.25),
        suspect("layer", "a<b", 0.2, 2, -0.002),
        suspect("layer", "embed", 0.2, 2),
        suspect("layer", "audio 2", -0.00001, 4),
        suspect("layer", "audio 3", 0, 4),
        suspect("layer", "head", 0, 4),
        suspect("branch", "camera", 0.66),
        suspect("branch", "audio", 0.04, 2),
        suspect("branch", "fusion", 0, 3),
        suspect("kind", "weights", 0.4),
        suspect("kind", "activations", 0.2, 2),
    )
    return Blame(layers, "classes", 256, WHOLE, suspects, -0.28)


def columns(table):
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def test_the_table_holds_every_suspect_the_worst_of_its_scope_first(blame):
    rows = columns(blame_table(blame))
    assert len(rows) == len(blame.suspects)
    assert rows[0] == {
        "suspect": shorten(LONG, 19), "rank": "1", "relief": "60 ± 1%", "alone": "0.02000", "drift": "0.03000",
        "gain": "+0.0500", "ms": "0.250", "per ms": "2.4",
    }  # fmt: skip
    assert (rows[1]["ms"], rows[1]["per ms"]) == ("-0.0020", "free")
    assert (rows[2]["ms"], rows[2]["per ms"]) == ("–", "–")
    assert (rows[3]["relief"], rows[3]["drift"]) == ("0 ± 1%", "0.00000")
    assert [row["suspect"] for row in rows[6:]] == [
        "branch camera", "branch audio", "branch fusion", "weights", "activations"
    ]  # fmt: skip


def test_long_names_that_end_alike_are_told_apart(blame):
    ends = ("accel", "gyro")
    suspects = tuple(suspect("layer", f"encoders.{end}.1.features.3", 0.3) for end in ends)
    rows = columns(blame_table(replace(blame, suspects=suspects)))
    assert [row["suspect"] for row in rows] == ["…accel.1.features.3", "….gyro.1.features.3"]


def test_the_table_fits_80_columns(blame):
    table = blame_table(blame)
    widths = [max(map(len, cells)) for cells in zip([c.name for c in table.columns], *table.rows, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80


def test_the_notes_say_what_was_measured(blame):
    notes = " ".join(blame_table(blame).notes)
    loss = "divergence 0.02500, error 20.0%, drift 0.04000, 12.0% flips, metric 0.8500"
    for words in (loss, "nats", "camera-audio, 0.04000", "256 calibration samples", "-0.28", "per ms"):
        assert words in notes


def test_what_was_not_measured_has_no_column(blame):
    suspects = tuple(replace(s, latency=None, relief_per_ms=None, gain=None, gain_per_ms=None) for s in blame.suspects)
    bare = replace(blame, suspects=suspects, quantized=replace(WHOLE, flips=None, metric=None), agreement=None)
    table = blame_table(bare)
    assert [column.name for column in table.columns] == ["suspect", "rank", "relief", "alone", "drift"]
    notes = " ".join(table.notes)
    assert not [word for word in ("ms", "gain", "flips", "metric", "correlation") if word in notes.split()]
    assert markdown(table)


def test_json_holds_everything_and_no_number_that_json_lacks(blame):
    odd = replace(blame, quantized=replace(blame.quantized, drift=float("nan")))
    content = json.loads(json.dumps(blame_json(odd), allow_nan=False))
    assert content["quantized"]["drift"] is None
    assert content["schema_version"] == 2
    assert len(content["layers"]) == 7
    assert content["suspects"][0]["relief"] == {"value": 0.6, "error": 0.01, "rank": 1}
    assert content["suspects"][0]["latency"] == {"value_ms": 0.25, "low_ms": 0.24, "high_ms": 0.26}


def test_both_files_are_written(blame, tmp_path):
    table, picture = write_blame(blame, tmp_path)
    assert json.loads(table.read_text("utf-8")) == json.loads(json.dumps(blame_json(blame)))
    assert picture.read_text("utf-8") == blame_svg(blame)


def elements(svg, kind):
    return list(ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{kind}"))


def boxes(svg):
    """Return place and size of each layer's box, by the name in its title."""
    found = {}
    for group in elements(svg, "g"):
        title, rect = group[0].text, group[1]
        found[re.split(r" \(", title)[0]] = rect
    return found


def test_the_picture_has_a_box_for_each_layer_and_none_overlap(blame):
    rects = boxes(blame_svg(blame))
    assert list(rects) == [layer.name for layer in blame.layers]
    placed = [tuple(float(rect.get(key)) for key in ("x", "y", "width", "height")) for rect in rects.values()]
    for index, (x, y, width, height) in enumerate(placed):
        for other_x, other_y, *_ in placed[index + 1 :]:
            assert abs(x - other_x) >= width or abs(y - other_y) >= height
    root = ElementTree.fromstring(blame_svg(blame))
    assert max(x + width for x, _, width, _ in placed) < float(root.get("width"))
    assert max(y + height for _, y, _, height in placed) < float(root.get("height"))


def test_no_line_is_cut_off(blame):
    layers = (WeightedLayer("first", "Conv", "x", ("second",)), WeightedLayer("second", "Gemm", "x", ()))
    svg = blame_svg(replace(blame, layers=layers, suspects=(suspect("layer", "first", 0.5),)))
    width = float(ElementTree.fromstring(svg).get("width"))
    for line in elements(svg, "text"):
        if line.get("text-anchor") == "start":
            assert float(line.get("x")) + 6.6 * len(line.text) < width, line.text


def test_branches_stand_side_by_side_above_the_fusion(blame):
    rects = boxes(blame_svg(blame))
    at = {name: (float(rect.get("x")), float(rect.get("y"))) for name, rect in rects.items()}
    assert at[LONG][0] == at["embed"][0] != at["a<b"][0]
    assert at[LONG][1] == at["a<b"][1]
    assert at["logits"][1] > at["head"][1] > max(at["embed"][1], at["audio 3"][1])
    arrows = [path for path in elements(blame_svg(blame), "path") if path.get("class") == "edge"]
    assert len(arrows) == sum(len(layer.following) for layer in blame.layers)


def test_the_worst_layer_is_the_darkest_and_a_float_one_has_no_colour(blame):
    def lightness(name):
        fill = rects[name].get("fill").lstrip("#")
        return sum(bytes.fromhex(fill))

    rects = boxes(blame_svg(blame))
    assert lightness(LONG) < lightness("embed") == lightness("a<b") < lightness("head") == lightness("audio 2")
    assert rects["logits"].get("fill") is None


def test_long_names_are_shortened_in_the_middle_and_told_whole(blame):
    shown = [text.text for text in elements(blame_svg(blame), "text") if "name" in text.get("class", "")]
    assert LONG not in shown
    assert max(map(len, shown)) <= 28
    assert any(LONG in title.text for title in elements(blame_svg(blame), "title"))
    assert shorten("short", 28) == "short"
    assert len(shorten(LONG, 20)) == 20
    assert shorten(LONG, 20).startswith("/model")
    assert shorten(LONG, 20).endswith("name/Conv")


def test_the_picture_shows_the_loss_first_and_the_drift_beside_it(blame):
    shown = [text.text for text in elements(blame_svg(blame), "text")]
    assert "60 ± 1% · drift 0.03000" in shown
    assert "camera: 66 ± 1%" in shown
    assert any("divergence 0.02500" in line for line in shown)


def test_the_picture_needs_nothing_from_elsewhere(blame):
    svg = blame_svg(blame)
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme: dark" in svg
    assert not elements(svg, "script")


def test_one_modality_and_no_fusion(blame):
    layers = (WeightedLayer("first", "Conv", "x", ("second",)), WeightedLayer("second", "Gemm", "x", ()))
    alone = replace(blame, layers=layers, suspects=(suspect("layer", "first", 0.5),))
    assert list(boxes(blame_svg(alone))) == ["first", "second"]
