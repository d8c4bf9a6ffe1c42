"""The page, in the real Chromium; where it or axe-core is absent, those tests are skipped."""

import base64
import json
import math
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import axe
import msgspec
import numpy as np
import outputs
import pytest
from builds import LEDGERS, LIMITS, MACHINE, build, full_profile, ledger, profile, target, write_run
from cdp import chromium_tab, file_url
from requirements import AXE, CHROMIUM

from edgekd.config.target import Budgets
from edgekd.errors import ReportError
from edgekd.gram.heatmap import few_grams
from edgekd.gram.intervals import Estimate
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import QUESTIONS, GateLimits
from edgekd.report.build.files import write_report
from edgekd.report.compare.formats import Comparison
from edgekd.report.compare.grams import heat_maps, png
from edgekd.report.compare.page import as_html
from edgekd.report.compare.questions import evidence_svg
from edgekd.report.compare.read import read_run, read_runs
from edgekd.report.compare.rows import sort_entries
from edgekd.report.compare.scatter import unbeaten_rows
from edgekd.report.details.make import output_details
from edgekd.report.details.pictures import input_picture
from edgekd.report.questions import Evidence
from edgekd.report.results import CandidateResult
from edgekd.report.svg.draw import WIDTH
from edgekd.runtime.corruption import NetworkRobustness, Robustness

LOWER = GateLimits(LIMITS.tau_pass, LIMITS.tau_fail, LIMITS.max_flips, LIMITS.max_metric_drop, higher_is_better=False)
MODALITIES = {"image": 8, "sound": 12}
#: A name that would run a script, were it not escaped.
EVIL = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(
        folder / "a",
        target("cpu", profile=full_profile()),
        target("openvino-cpu", runtime="openvino", profile=profile(times=(0.5, 0.3, 0.12)), ledger=ledger(0.03)),
        target("browser", runtime="onnxruntime-web", profile=profile(times=(3, 1, 4)), ledger=LEDGERS["fail"]()),
        target("pi", device="no device", profile_reason="not measured: no device"),
    )
    write_run(folder / "b", target("cpu", device=EVIL, ledger=LEDGERS["undecided"]()))
    return Comparison(sort_entries(read_runs([folder / "a", folder / "b"]), "p50"))


@pytest.fixture(scope="module")
def page(joined, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(as_html(joined), encoding="utf-8")
    return path


IMAGE = np.random.default_rng(0).random((3, 20, 20)).astype(np.float32)


def shown_inputs(rows):
    """Give every sample a series and an image."""
    return {row: (*found, input_picture("image", IMAGE, IMAGE)) for row, found in outputs.pictures(rows).items()}


def few_details():
    """Return details of every kind of output, with few samples, so that a page is quickly looked at."""
    every = {name: output_details(made(), shown_inputs) for name, made in outputs.EVERY.items()}
    return {name: msgspec.structs.replace(one, worst=one.worst[:2], flips=one.flips[:2]) for name, one in every.items()}


def write_build(folder, *targets):
    """Write the output of a build that has all that a page can show, of a task in a user's own file."""
    result = target("cpu", profile=full_profile(), details=few_details()) if not targets else targets[0]
    worst = NetworkRobustness(0.958, {"accel": 0.412}, {"accel": 0.833})
    candidates = tuple(
        CandidateResult(name, precision, "pass", 0.958, Estimate(0.002, 0.001, 0.003), 0.004, 0.01, None, 231_770, None)
        for name, precision in (("int8", "int8"), ("float32", "float32"))
    )
    result = replace(result, robustness=worst, candidates=candidates, choice="the fastest")
    write_run(folder, result)
    report = replace(build(result), recipe="watch", task="task.py:Htad")
    write_report(replace(report, robustness=Robustness(1.0, {"student": worst})), folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def build_page(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def tab():
    with chromium_tab() as found:
        yield found


SHOWN = "[...document.querySelectorAll('#table tbody tr:not([hidden])')].map(row => row.cells[2].textContent)"


def press(tab, key):
    tab.run(f"document.querySelector('th[data-key={key}] button').click()")
    return tab.run(f"document.querySelector('th[data-key={key}]').getAttribute('aria-sort')")


def enter(tab, name, value):
    tab.run(
        f"{{const field = document.getElementById('{name}'); field.value = {json.dumps(value)};"
        "field.dispatchEvent(new Event('input', {bubbles: true}))}"
    )
    return tab.run(SHOWN)


# --- without a browser


class _Balance(HTMLParser):
    """Checks that each element that is opened is closed, in order."""

    VOID = ("meta", "input", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass


def test_the_page_is_well_formed_small_and_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    parser = _Balance()
    parser.feed(text)
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert page.stat().st_size < 500_000
    assert set(re.findall(r'(?:href|src)="([^"]{0,5})', text)) == {"#row-", "data:"}
    assert EVIL not in text


def test_every_figure_and_every_reason_stands_in_the_page(page, joined):
    text = page.read_text(encoding="utf-8")
    for row in joined.rows:
        for value in (row.latency_ms.p50, row.latency_ms.p90, row.metric.shipped, row.gram.bound, row.size_bytes):
            assert value is None or f'data-value="{value!r}"' in text
    assert 'title="not measured: no device"' in text
    assert text.count("not measured</td>") >= 6


def test_the_pictures_say_what_they_show(page):
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r'<svg [^>]*role="img" aria-labelledby="([^"]+)">\s*<title id="([^"]+)">([^<]+)', text)
    assert len(pictures) == text.count("<svg viewBox")
    assert all(labelled == named and told.strip() for labelled, named, told in pictures)
    kinds = {named.split("-")[0] for _, named, _ in pictures}
    assert kinds == {
        *("scatter", "latency", "branches", "divergence", "flips", "metric", "drift", "gram"),
        *("learned", "behaviour", "structure"),
    }


def test_a_build_without_pictures_material_says_so(tmp_path):
    write_run(tmp_path, target())
    (tmp_path / "cpu" / "gram" / "samples.npz").unlink()
    for path in (tmp_path / "cpu" / "latency").iterdir():
        path.unlink()
    text = as_html(Comparison(read_run(tmp_path)))
    assert "Gram matrices: there are none beside the report." in text
    assert "the raw timings no longer lie beside the report" in text
    assert "Time by branch not measured: the profile was not asked for it." in text


@pytest.mark.parametrize("file", ["latency/shipped.npy", "gram/samples.npz"])
def test_broken_material_is_one_error(tmp_path, file):
    write_run(tmp_path, target())
    (tmp_path / "cpu" / file).write_bytes(b"broken")
    with pytest.raises(ReportError, match=re.escape(file.rpartition("/")[2]) + ": "):
        as_html(Comparison(read_run(tmp_path)))


def test_timings_that_are_none_are_one_error(tmp_path):
    write_run(tmp_path, target())
    np.save(tmp_path / "cpu" / "latency" / "shipped.npy", np.array([1.5, 2]))
    with pytest.raises(ReportError, match=r"shipped\.npy: holds no raw timings"):
        as_html(Comparison(read_run(tmp_path)))


def test_a_large_table_stays_below_two_megabytes(tmp_path):
    write_run(tmp_path, target(profile=full_profile()))
    text = as_html(Comparison(read_run(tmp_path) * 100))
    assert 1_000_000 < len(text.encode()) < 2_000_000
    (pictured,) = re.findall(r"The first (\d+) have pictures below", text)
    assert text.count("<section data-row=") == int(pictured)
    assert text.count('<tr role="row" data-row=') == 100


def test_the_page_of_a_build_has_all_that_readers_ask(build_page):
    text = build_page.read_text(encoding="utf-8")
    parser = _Balance()
    parser.feed(text)
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    asked = (
        "What each stage kept, and the limits", "Classes and samples: classes",
        "Samples and errors: custom", "How fast and how small", "Candidates, and which ships",
        "Gram matrices", "What if a sensor fails", "How it was trained", "How it was built", "Stages",
        "Machine: this host", "Versions",
    )  # fmt: skip
    places = [text.index(f">{head}<") for head in asked]
    assert places == sorted(places)
    for shown in (
        MACHINE["cpu"], "2.9.0", "edgekd.load(&quot;gestures-cpu&quot;)", "the fastest", "without accel", "0.4120",
        "3 min 05 s", 'id="training-1"', 'id="training-2"', 'id="flips-1"', "1.84 mJ",
    ):  # fmt: skip
        assert shown in text, shown
    assert "<script" not in text, "one row has nothing to sort"


def test_the_page_of_a_build_shows_each_kind_of_output_as_its_users_look_at_it(build_page):
    text = build_page.read_text(encoding="utf-8")
    pictures = re.findall(r'<svg viewBox[^>]*aria-labelledby="([a-z]+)-1-\d', text)
    assert {"confusion", "recall", "errors", "predicted", "worst", "flip"} == set(pictures) - {"gram"}
    for shown in (
        "The answers for 15 of 120 samples (12.5%) are not those of the student", "precision, shipped", "Most confused",
        "AP, teacher", "R², student", "recall@1, shipped", "Errors by token", "IoU, student", "Colours of the masks",
        "student finds", "6 of 6 groups, the worst first", "The student is right.", 'alt="image of s',
    ):  # fmt: skip
        assert shown in text, shown
    markdown = build_page.with_name("report.md").read_text("utf-8")
    for shown in ("What is right, and what changed of dense", "| class | pixels |", "Answers that changed most"):
        assert shown in markdown, shown


def test_what_a_page_shows_of_samples_is_what_the_build_said(build_page):
    (entry,) = read_run(build_page.parent)
    assert entry.result.details == few_details()


def test_a_page_without_samples_says_so_and_names_none(tmp_path):
    details = {name: output_details(made(), None) for name, made in outputs.EVERY.items()}
    write_run(tmp_path, target(details=details))
    for name in ("report.html", "report.md", "report.json"):
        text = (tmp_path / name).read_text("utf-8")
        assert "person 1" not in text
        assert not re.search(r"\bs1\d\d\b", text)
    assert "Samples are left out, as the recipe says (report.samples)." in (tmp_path / "report.html").read_text("utf-8")


def test_names_of_samples_groups_and_classes_are_text(tmp_path):
    compared = outputs.classes()
    evil = replace(compared, ids=np.array([EVIL] * 120), groups=np.array([EVIL] * 120), classes=(EVIL,) * 5)
    write_run(tmp_path, target(details={EVIL: output_details(evil, outputs.pictures)}))
    assert EVIL not in (tmp_path / "report.html").read_text("utf-8")
    assert "<img src=x" not in (tmp_path / "report.md").read_text("utf-8")


def test_the_project_gives_the_title_not_the_class(build_page):
    text = build_page.read_text(encoding="utf-8")
    assert "<title>edgekd: watch</title>" in text
    assert "<h1>watch " in text
    assert "Htad" not in text
    assert build_page.with_name("report.md").read_text("utf-8").startswith("# watch: ")


def cards(text):
    """Return the reasons in each question's card, by the question and its verdict."""
    found = re.findall(r'<li class="question (\w+)"><h4>([^<]+?) <span[^>]*>\w+</span></h4>(.*?)(?=<svg)', text, re.S)
    return {(question, verdict): re.findall(r"<li>([^<]+)", head) for verdict, question, head in found}


def test_what_is_beyond_its_limit_stands_out_and_what_is_within_says_so(tmp_path):
    strict = replace(LIMITS, tau_pass=1.5, tau_fail=1.9)
    failing = target(
        profile=full_profile(), ledger=ledger(0.03, answers=40, limits=strict, metrics=(("device", 0.8023),))
    )
    text = write_build(tmp_path, failing).read_text(encoding="utf-8")
    tiles = dict(re.findall(r'<li class="tile (\w*)"><span class="name">([^<]+)', text)[::-1])
    assert tiles["fail"] == "macro-F1"
    assert re.search(r'class="figure over fail"><span class="away">beyond its limit: </span>[\d.]+%', text)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    (divergence,) = (caption for caption in captions if "How far answers are" in caption)
    (drift,) = (caption for caption in captions if "Gram drift by stage" in caption)
    assert "✗ beyond its limit" in divergence
    assert "✓ within its limit" in drift
    assert "edgekd.load" not in text


@pytest.mark.parametrize("state", LEDGERS)
def test_each_question_has_a_card_with_its_verdict_its_reasons_and_a_picture(tmp_path, state):
    kept = LEDGERS[state]()
    text = write_build(tmp_path, target(ledger=kept)).read_text(encoding="utf-8")
    asked = {(QUESTIONS[one.question], one.verdict): [*one.reasons] for one in kept.questions}
    assert cards(text) == asked
    for question in ("learned", "behaviour", "structure"):
        assert f'<title id="{question}-1">Figures with their bounds and limits. ' in text
    assert '<title id="learned-1-metric">macro-F1 of what was learned. teacher 0.9731; student 0.9612; ' in text
    assert f'<h1>watch <span class="verdict {state}">{state.upper()}</span></h1>' in text
    assert ("edgekd.load" in text) == (state != "fail")


def test_reasons_warnings_and_advice_stand_apart_and_the_path_of_what_was_rejected_is_there(tmp_path):
    result = target(ledger=LEDGERS["fail"](), budgets=Budgets(size_mb=0.1))
    text = write_build(tmp_path, result).read_text(encoding="utf-8")
    lists = dict(re.findall(r'<p class="aside">([^<]+)</p><ul class="told">(.*?)</ul>', text))
    reasons = re.search(r'<ul class="reasons">(.*?)</ul>', text)[1]
    assert "the metric is " in reasons
    assert "drift" not in reasons
    assert "Gram drift bound" in lists["Warnings"]
    assert "budget 0.1 MB" in lists["Warnings"]
    assert "from the row &#x27;device&#x27; on" in lists["Where it began, and what to change"]
    assert "No bundle was released; what was rejected is cpu/rejected. None ships: " in text
    assert "ships: the fastest" not in text


def figure(**changes):
    known = {"name": "loss", "label": "worse by", "value": 0.01, "low": 0.005, "high": 0.03, "limit": 0.02}
    return Evidence(**{**known, **changes})


def places(svg, limit=WIDTH / 2):
    """Return where a figure and the ends of its band are drawn, as shares of the half of the line: 0 is the limit."""
    low, high = map(float, re.search(r'class="band \w+" d="M([\d.]+) [\d.]+ H([\d.]+)', svg).groups())
    dot = re.search(r'<circle class="dot \w+" cx="([\d.]+)', svg)
    return [round((float(x) - limit) / (limit - 6), 2) for x in (low, dot[1] if dot else "nan", high)]


def test_limits_of_all_figures_are_in_one_line_and_what_is_far_beyond_is_an_arrow():
    assert places(evidence_svg("x", [figure()])) == [-0.75, -0.5, 0.5]
    far = evidence_svg("x", [figure(value=0.5, low=0.3, high=0.9)])
    assert 'class="quiet arrow"' in far
    assert "<circle" not in far
    below = places(evidence_svg("x", [figure(value=-0.001, low=-0.02, high=0.018)]))
    assert below == [-1.0, -0.53, -0.05], "the line begins as far below 0 as the limit is above it"
    unbounded = places(evidence_svg("x", [figure(low=-math.inf, high=math.inf)]))
    assert unbounded == [-1.0, -0.5, 1.0]
    share = evidence_svg("x", [figure(share=True, verdict="undecided")])
    assert ">? 1.0%<" in share
    assert ">≤ 2%<" in share
    assert evidence_svg("x", []) is None
    nothing = evidence_svg("x", [figure(value=math.nan, low=math.nan, high=math.nan, verdict="fail")])
    assert ">✗ NaN<" in nothing
    assert "band" not in nothing


def test_an_empty_table_is_a_page(joined):
    assert "No engine is left." in as_html(Comparison(()))


def test_the_front_is_what_no_other_beats(joined):
    rows = dict(enumerate(joined.rows, 1))
    for index in unbeaten_rows(rows):
        one = rows[index]
        known = [row for row in rows.values() if row.latency_ms.p50 is not None and row.metric.shipped is not None]
        assert not any(
            row.latency_ms.p50 < one.latency_ms.p50 and row.metric.shipped > one.metric.shipped for row in known
        )
    fastest = min((row for row in rows.values() if row.latency_ms.p50), key=lambda row: row.latency_ms.p50)
    assert rows[unbeaten_rows(rows)[0]].latency_ms.p50 == fastest.latency_ms.p50


def test_rows_whose_p50_do_not_differ_beyond_noise_are_both_on_the_front(tmp_path):
    times = {"a": 0.0883, "b": 0.0884, "c": 0.1}
    write_run(tmp_path, *(target(name, profile=profile(times=(0.4, 0.2, ms))) for name, ms in times.items()))
    rows = dict(enumerate((entry.row for entry in read_run(tmp_path)), 1))
    assert rows[1].latency_ms.interval_95["p50"][1] > rows[2].latency_ms.interval_95["p50"][0]
    assert unbeaten_rows(rows) == [1, 2]


def test_a_metric_that_is_better_low_turns_the_front(tmp_path):
    worse, better = ledger(metrics=(("device", 0.97),), limits=LOWER), ledger(metrics=(("device", 0.9),), limits=LOWER)
    write_run(tmp_path, target("a", ledger=worse), target("b", ledger=better), target("c", ledger=worse))
    rows = dict(enumerate((entry.row for entry in read_run(tmp_path)), 1))
    assert unbeaten_rows(rows) == [2]


def test_modalities_of_unequal_widths_are_grey_between_each_other():
    random = np.random.default_rng(0)
    ids = np.array([f"s{index}" for index in range(30)])
    probes = {}
    for model in ("float", "shipped"):
        embeddings = {name: random.normal(size=(30, width)) for name, width in MODALITIES.items()}
        probes[model] = Probe(ids, {"logits": random.normal(size=(30, 4))}, embeddings)
    grams = few_grams(probes, None, [])
    pictures = heat_maps("gram", grams)
    assert list(pictures) == ["float", "shipped", "float − shipped"]
    levels = pixels(png(grams.cosines["float"]))
    assert (levels[:16, 16:] == 255).all()
    assert (levels[:16, :16] != 255).all()


def pixels(uri):
    """Return the levels of a PNG of ours [H, W]."""
    data = base64.b64decode(uri.partition(",")[2])
    width, height = struct.unpack(">II", data[16:24])
    begin = data.index(b"IDAT")
    (size,) = struct.unpack(">I", data[begin - 4 : begin])
    rows = np.frombuffer(zlib.decompress(data[begin + 4 : begin + 4 + size]), np.uint8).reshape(height, width + 1)
    return rows[:, 1:]


def test_a_png_has_a_pixel_for_each_value():
    head, content = png(np.array([[-1.0, 0.0, 1.0], [np.nan, 2.0, -2.0]])).split(",")
    data = base64.b64decode(content)
    chunks, place = {}, 8
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size]) == (zlib.crc32(kind + body),)
        chunks[kind], place = body, place + 12 + size
    assert head == "data:image/png;base64"
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (3, 2)
    assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 0, 127, 254, 0, 255, 254, 0])
    assert len(chunks[b"PLTE"]) == 256 * 3


# --- in the browser


@CHROMIUM.mark
def test_it_opens_from_disk_without_network_and_without_complaint(tab, page):
    tab.open(file_url(page))
    tab.run("new Promise(done => setTimeout(done, 50))")
    assert [url for url in tab.requests if not url.startswith("data:")] == [file_url(page)]
    assert tab.complaints == []
    assert tab.run("document.title") == "edgekd: gestures"


@CHROMIUM.mark
@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_the_page_of_a_build_does_not_scroll_sideways_and_asks_for_nothing(tab, build_page, width):
    tab.open(file_url(build_page), width=width)
    wide = tab.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith("data:")][-1] == file_url(build_page)


@CHROMIUM.mark
@pytest.mark.parametrize("width", [400, 700, 1000, 1321, 1600])
@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_nothing_scrolls_sideways(tab, page, width, script):
    tab.open(file_url(page), width=width, script=script)
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    wide = tab.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
    cut = "[...document.querySelectorAll('#table td, #table th')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert tab.run(cut) == 0


@CHROMIUM.mark
def test_text_of_pictures_stays_inside_them(tab, page):
    tab.open(file_url(page))
    outside = """[...document.querySelectorAll('svg')].flatMap(svg => {
      const box = svg.getBoundingClientRect();
      return [...svg.querySelectorAll('text')].filter(text => {
        const at = text.getBoundingClientRect();
        return at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 || at.bottom > box.bottom + 1;
      }).map(text => text.textContent);
    })"""
    assert tab.run(outside) == []


@CHROMIUM.mark
def test_a_click_sorts_and_another_turns_it_round(tab, page, joined):
    tab.open(file_url(page))
    assert tab.run("document.querySelector('[aria-sort]').dataset.key") == "p50"
    assert press(tab, "bound") == "ascending"
    bounds = "[...document.querySelectorAll('#table td[data-label=bound]')].map(cell => Number(cell.dataset.value))"
    rising = sorted(row.gram.bound for row in joined.rows)
    assert tab.run(bounds) == rising
    assert press(tab, "bound") == "descending"
    assert tab.run(bounds) == rising[::-1]
    assert tab.run("document.querySelectorAll('[aria-sort]').length") == 1


@CHROMIUM.mark
def test_what_was_not_measured_stays_last(tab, page):
    tab.open(file_url(page))
    for direction in ("descending", "ascending"):
        assert press(tab, "p50") == direction
        assert tab.run(SHOWN)[-1] == "pi"
    assert press(tab, "target") == "ascending"
    assert tab.run(SHOWN) == sorted(tab.run(SHOWN))


@CHROMIUM.mark
def test_filters_hide_rows_and_their_pictures(tab, page):
    tab.open(file_url(page))
    assert enter(tab, "p50", "0.1") == ["cpu", "cpu"]
    assert tab.run("document.getElementById('shown').textContent") == "2 of 5 shown"
    hidden = "[...document.querySelectorAll('section[data-row]')].filter(s => s.hidden).length"
    assert tab.run(hidden) == 3
    assert enter(tab, "p50", "") == ["cpu", "cpu", "openvino-cpu", "browser", "pi"]
    assert enter(tab, "name", "OpenVINO") == ["openvino-cpu"]
    assert enter(tab, "name", "") != ["openvino-cpu"]
    assert enter(tab, "verdict", "warn") == ["cpu", "openvino-cpu", "pi"]
    assert enter(tab, "verdict", "undecided") == ["cpu", "cpu", "openvino-cpu", "pi"]
    assert enter(tab, "metric", "0.99") == []


@CHROMIUM.mark
def test_without_a_script_it_still_reads(tab, page):
    tab.open(file_url(page), script=False)
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.run("document.getElementById('filters').hidden") is True
    assert tab.run("document.querySelectorAll('th button').length") == 0
    assert len(tab.run(SHOWN)) == 5
    assert tab.run("document.querySelector('main').innerText").count("not measured") >= 6


@CHROMIUM.mark
def test_a_name_in_a_report_runs_nothing(tab, page):
    tab.open(file_url(page))
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert EVIL in tab.run("document.body.textContent")


@AXE.mark
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["comparison", "build"])
def test_axe_finds_no_violation(tab, page, build_page, width, scheme, kind):
    shown = page if kind == "comparison" else build_page
    tab.open(file_url(shown), width=width, scheme=scheme)
    tab.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    tab.run(axe.script().read_text(encoding="utf-8") + "; 0")
    told = "[found.passes.length, found.violations.map(v => [v.id, v.nodes[0].html])]"
    passes, violations = tab.run(f"axe.run().then(found => {told})")
    assert passes > 20
    assert violations == []
