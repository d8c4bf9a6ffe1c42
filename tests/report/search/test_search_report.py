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
from edgekd.report.search.tables import SearchResult, SearchTrial, TrialFigures, rejection, search_json, search_table

SVG = "{http://www.w3.org/2000/svg}"


def trial(number, metric, latency, drift, own=False, reasons=(), verdict=None):
    verdict = verdict or ("fail" if reasons else "pass")
    figures = TrialFigures(metric, latency, drift, latency / 10, 0.1, 1000, verdict, reasons, drift / 10)
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
    assert table.rows[0][1:] == ("0.9500", "0.1000", "0.80×", "0.0800", "pass", "extra { fd = 1.5 }, temperature 3")
    assert table.rows[1][-1] == "as the recipe stands"
    assert "4 trials done, 1 failed" in table.notes[0]
    assert table.notes[-1] == "The first that failed, trial 4: training diverged"


REASON = "Gram drift bound 0.0400 is above 0.02 (worst pair a-b, 0.0500)"


@pytest.fixture
def judged():
    """Trial 1 has the best of everything, and the gate rejects it."""
    return study(
        trial(0, 0.90, 1.0, 0.20, own=True), trial(1, 0.95, 0.4, 0.10, reasons=(REASON,)),
        trial(2, 0.85, 0.5, 0.30, verdict="warn"), trial(3, 0.99, 0.1, 0.05, reasons=(REASON, "5% of classes changed")),
    )  # fmt: skip


def test_what_the_gate_rejects_is_never_on_the_front_nor_built(judged, tmp_path, capsys):
    assert [one.number for one in judged.front] == [0, 2]
    table = search_table(judged)
    assert [(row[0], row[5]) for row in table.rows] == [
        ("0 recipe", "pass"), ("2", "warn"), ("1", "rejected"), ("3", "rejected"),
    ]  # fmt: skip
    assert "The gate rejects 2 of 4 trials, which are never on the front." in table.notes
    assert f"Trial 1 is rejected: {REASON}." in table.notes
    content = search_json(judged)
    assert [(one["front"], one["rejected"]) for one in content["trials"]] == [
        (True, False), (False, True), (True, False), (False, True),
    ]  # fmt: skip
    print_search(judged, tmp_path, 80)
    assert capsys.readouterr().out.splitlines()[-1] == "edgekd build --recipe digits --set seed=3"
    svg = ElementTree.fromstring(search_svg(judged))
    assert len(svg.findall(f".//{SVG}g/{SVG}circle[@class='rejected']")) == 2
    assert any("2 rejected by the gate" in text.text for text in svg.findall(f".//{SVG}text"))


def test_what_no_verdict_of_the_gate_keeps_back_is_released():
    assert study(trial(0, 0.9, 1.0, 0.2, verdict="undecided")).front


def test_where_the_gate_rejects_all_nothing_is_to_be_built(judged, tmp_path, capsys):
    rejected = replace(judged, trials=tuple(one for one in judged.trials if one.rejected))
    assert rejected.front == ()
    assert search_table(rejected).title == "Rejected trials"
    print_search(rejected, tmp_path, 80)
    told = capsys.readouterr().out
    assert "Nothing to build: the gate rejects every trial." in told
    assert "edgekd build" not in told
    assert rejection(rejected).startswith(f"the gate rejects all 2 trials; the nearest, trial 1: {REASON}; cut less")
    assert "prune.ratio" in rejection(rejected)


def test_of_many_rejected_trials_the_nearest_to_the_limits_are_shown(found):
    many = [trial(5 + n, 0.5, 1.0, 0.9 - n / 100, reasons=(REASON,)) for n in range(8)]
    table = search_table(replace(found, trials=(*found.trials, *many)))
    assert [row[0] for row in table.rows][3:] == ["12", "11", "10", "9", "8"]
    assert any("the 5 nearest to its limits are shown" in note for note in table.notes)


def test_latencies_of_several_machines_are_said_not_to_compare(found):
    assert not any("its own machine" in note for note in search_table(found).notes)
    two = replace(found, machines={"here": {}, "there": {}})
    assert any("its own machine (here, there)" in note for note in search_table(two).notes)


def test_the_terminal_has_80_columns_and_a_command_to_paste(found, tmp_path, capsys):
    print_search(found, tmp_path, 80)
    lines = capsys.readouterr().out.splitlines()
    command = lines.index("The best accuracy that the gate lets through, trial 1, is built by") + 1
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
