"""What a search found, shown: the front against brute force and against Optuna's, the table, JSON and picture."""

import json
import random
from dataclasses import replace
from xml.etree import ElementTree

import optuna
import pytest

from edgekd.cli.terminal.search import print_search
from edgekd.report.search.files import write_search
from edgekd.report.search.picture import search_svg
from edgekd.report.search.tables import SearchResult, SearchTrial, TrialFigures, search_json, search_table

SVG = "{http://www.w3.org/2000/svg}"


def trial(number, metric, latency, drift, own=False):
    figures = TrialFigures(metric, latency, drift, latency / 10, 0.1, 1000)
    settings = () if own else ("distill.loss.extra={ fd = 1.5 }", f"distill.loss.temperature={2 + number}")
    return SearchTrial(number, "done", own, settings, figures, "", "here", 1.0)


def study(*trials, higher=True):
    return SearchResult(
        "digits-1", "/s.journal", "digits", ("seed=3",), "accuracy", higher, {}, trials, {"here": {"cpu": "c"}}
    )


@pytest.fixture
def found():
    failed = SearchTrial(4, "failed", False, ("prune.ratio=0.5",), None, "training diverged", "here", 1.0)
    return study(
        trial(0, 0.90, 1.0, 0.20, own=True), trial(1, 0.95, 0.8, 0.10), trial(2, 0.85, 0.4, 0.30),
        trial(3, 0.80, 0.5, 0.40), failed,
    )  # fmt: skip


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_optunas(seed, higher):
    rng = random.Random(seed)
    # Coarse values, so that many are level in one or all of them.
    trials = [trial(n, *(rng.randint(0, 5) / 10 for _ in range(3))) for n in range(60)]
    optunas = optuna.create_study(directions=["maximize" if higher else "minimize", "minimize", "minimize"])
    for one in trials:
        known = one.appraisal
        optunas.add_trial(optuna.trial.create_trial(values=[known.metric, known.latency, known.drift]))
    front = study(*trials, higher=higher).front
    figures = [(one.appraisal.metric, one.appraisal.latency, one.appraisal.drift) for one in front]
    assert set(figures) == {tuple(best.values) for best in optunas.best_trials}
    assert len(set(figures)) == len(figures)
    assert figures == sorted(figures, key=lambda values: -values[0] if higher else values[0]) or len(figures) < 2


def test_the_table_shows_the_front_best_first_and_the_recipe_even_where_it_is_beaten(found):
    table = search_table(found)
    assert [row[0] for row in table.rows] == ["1", "0 recipe (beaten)", "2"]
    assert table.rows[0][1:] == ("0.9500", "0.1000", "0.80×", "0.0800", "extra { fd = 1.5 }, temperature 3")
    assert table.rows[1][-1] == "as the recipe stands"
    assert "4 trials done, 1 failed" in table.notes[0]
    assert table.notes[-1] == "The first that failed, trial 4: training diverged"


def test_latencies_of_several_machines_are_said_not_to_compare(found):
    assert not any("its own machine" in note for note in search_table(found).notes)
    two = replace(found, machines={"here": {}, "there": {}})
    assert any("its own machine (here, there)" in note for note in search_table(two).notes)


def test_the_terminal_has_80_columns_and_a_command_to_paste(found, tmp_path, capsys):
    print_search(found, tmp_path, 80)
    lines = capsys.readouterr().out.splitlines()
    command = lines.index("The best accuracy, trial 1, is built by") + 1
    assert lines[command] == (
        "edgekd build --recipe digits --set seed=3 --set 'distill.loss.extra={ fd = 1.5 }' "
        "--set distill.loss.temperature=3"
    )
    assert all(len(line) <= 80 for line in lines[3 : command - 2])


def test_a_study_without_a_result_says_so(tmp_path, capsys):
    print_search(study(), tmp_path, 80)
    assert "no trial is done yet; the same command goes on" in capsys.readouterr().out
    write_search(study(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


def test_the_json_holds_every_trial_with_its_command(found):
    content = json.loads(json.dumps(search_json(found), allow_nan=False))
    assert content["schema_version"] == 1
    assert [one["front"] for one in content["trials"]] == [False, True, True, False, False]
    assert content["trials"][4]["reason"] == "training diverged"
    assert content["trials"][0]["command"] == "edgekd build --recipe digits --set seed=3"
    assert content["machines"] == {"here": {"cpu": "c"}}


def test_the_picture_has_a_dot_for_each_trial_large_on_the_front_and_a_ring_around_the_recipe(found):
    svg = ElementTree.fromstring(search_svg(found))
    dots = {kind: svg.findall(f".//{SVG}g/{SVG}circle[@class='{kind}']") for kind in ("front", "trial", "own")}
    assert {kind: len(of) for kind, of in dots.items()} == {"front": 2, "trial": 2, "own": 1}
    numbers = {text.text for text in svg.findall(f".//{SVG}g/{SVG}text[@class='number']")}
    assert numbers == {"0", "1", "2"}
    for dot in dots["front"] + dots["trial"]:
        assert 76 <= float(dot.get("cx")) <= 732
        assert 74 <= float(dot.get("cy")) <= 416
    best, fast = dots["front"]  # in the order of the metric
    assert float(fast.get("cx")) < float(best.get("cx"))
    assert float(fast.get("cy")) > float(best.get("cy"))
    assert fast.get("fill") == "#" + "".join(
        f"{round(a + (b - a) * (2 / 3 * 4 - 2)):02x}" for a, b in zip((254, 153, 41), (217, 95, 14), strict=True)
    )


@pytest.mark.parametrize("trials", [[trial(0, 0.5, 1.0, 0.1)], [trial(n, 0.0, 0.0, 0.0) for n in range(2)]])
def test_a_picture_of_one_point_has_axes_too(trials):
    svg = ElementTree.fromstring(search_svg(study(*trials)))
    assert len(svg.findall(f".//{SVG}path[@class='grid']")) >= 4


def test_names_cannot_break_the_picture(found):
    ElementTree.fromstring(search_svg(replace(found, study="a<b&c", metric="F<1>")))
