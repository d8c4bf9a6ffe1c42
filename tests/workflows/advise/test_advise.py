"""`edgekd advise` on real trainings. Time is counted by a clock that moves by one second whenever it is looked at, so
that a trial of E epochs takes E + 1 seconds, on any machine."""

import dataclasses
import itertools
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from commands import edgekd, python
from msgspec.structs import replace

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import (
    DistillConfig,
    GateConfig,
    LossConfig,
    ModelConfig,
    PruneBudget,
    PruneConfig,
    Recipe,
    StudentConfig,
    TaskConfig,
    TeacherConfig,
)
from edgekd.errors import ModelError, OutputError, RecipeError, TaskError
from edgekd.pipeline.paths import BuildPaths
from edgekd.stages.progress import Silent
from edgekd.workflows.advise.budgeted import OVERRUN
from edgekd.workflows.advise.run import AdviceBudget, advise_recipe

torch.set_num_threads(1)

SMALL = Path(__file__).parents[2] / "training" / "small.py"
TAPS = {"a": "encoders.a", "b": "encoders.b"}
EPOCHS = 6
#: Seconds of the trials that are timed, of a recipe with four epochs or more.
TIMING = (1 + 1) + (4 + 1)
#: Seconds that the gate's judgement is expected to take: all epochs, and those of the fine-tune after pruning.
PRUNING = 4
JUDGING = (EPOCHS + 1) + (PRUNING + 1)


def ticking():
    return itertools.count(0.0).__next__


def small_recipe(task, **loss):
    return Recipe(
        task=TaskConfig(name=f"{SMALL}:{task}"),
        teacher=TeacherConfig(epochs=1, learning_rate=1e-9, taps=TAPS),
        student=StudentConfig(taps=TAPS),
        distill=DistillConfig(epochs=EPOCHS, batch_size=12, learning_rate=3e-2, loss=LossConfig(**loss)),
        prune=PruneConfig(epochs=PRUNING, batch_size=12),
        gate=GateConfig(tau_fail=1, max_flips=1, max_metric_drop=1),
    )


class Watches(Silent):
    """Remembers what it hears."""

    def __init__(self):
        self.notes, self.finished = [], {}

    def advance(self, stage, done, total, note):
        if stage == "trials":
            self.notes.append(note)

    def finish(self, stage, seconds, cached, summary):
        self.finished[stage] = cached


def run(recipe, folder, budget, observer=None, epochs=None, **options):
    paths = BuildPaths(folder / "out", folder / "cache")
    return advise_recipe(recipe, paths, AdviceBudget(budget, epochs), observer=observer, clock=ticking(), **options)


#: Room for six seeds of all epochs. At first there are 10 contestants, since the recipe's temperature is none of the
#: usual; then KD and the better five of the others.
BUDGET = (TIMING + (3 * 10 + 3 * 6) * (EPOCHS + 1) + JUDGING) / 0.8 + 1


@pytest.fixture(scope="module")
def matters(tmp_path_factory):
    """A task where KD matters, and a recipe whose temperature leaves next to nothing of it."""
    folder, watched = tmp_path_factory.mktemp("advice"), Watches()
    return folder, watched, run(small_recipe("Scarce", temperature=0.1, extra={}), folder, BUDGET, watched, name="mine")


def test_what_matters_is_picked(matters):
    _, _, found = matters
    assert found.verdict.kind == "use"
    assert found.verdict.text.startswith("use KD T=")
    assert found.verdict.lines[0] == "[distill.loss]"
    assert found.verdict.lines[1] in ("temperature = 4.0", "temperature = 8.0")
    assert found.verdict.lines[2] == "extra = {}"
    best = next(one for one in found.standings if one.found == "better")
    assert best.difference.low > 0
    assert found.standings[0].name == "KD T=0.1"


def test_the_budget_holds_and_says_what_it_went_into(matters):
    _, watched, found = matters
    assert (found.spent.epochs, found.spent.recipe_epochs, found.spent.seeds) == (EPOCHS, EPOCHS, 6)
    (judgement,) = found.judgements
    assert found.spent.seconds == TIMING + (EPOCHS + 1) * found.spent.trials + judgement.seconds <= BUDGET
    assert found.spent.left_out == ()
    assert [len(names) for names in found.spent.dropped.values()] == [4]
    assert len(found.standings[0].values) == 6
    assert watched.notes[0].endswith("left: timing")
    assert any(note.endswith(f"left: KD T=0.1, seed 0, epoch 3/{EPOCHS}") for note in watched.notes)


def test_parts_are_switched_off_in_what_is_left(matters):
    _, _, found = matters
    pair, modality = sorted(found.ablations, key=lambda one: one.what, reverse=True)
    assert (list(pair.parts), list(modality.parts)) == (["a-b"], ["a", "b"])
    assert all(one.difference.pairs >= 3 for one in (*pair.parts.values(), *modality.parts.values()))


def test_the_metrics_own_error_is_that_of_300_samples(matters):
    found = matters[2]
    p = found.standings[0].values[0]
    assert found.facts.labelled == 300
    assert found.error == pytest.approx((p * (1 - p) / 300) ** 0.5, rel=0.15)


def test_the_answer_is_written_and_no_trial_keeps_weights_or_looks_at_the_test_split(matters):
    folder, _, found = matters
    content = json.loads((folder / "out" / "advice.json").read_text())
    assert content["verdict"]["text"] == found.verdict.text
    assert (folder / "out" / "advice.md").read_text().startswith("# Which loss? mine")
    trials = [path for path in (folder / "cache").glob("trial-*") if path.is_dir()]
    assert len(trials) == found.spent.trials, "the trials that are timed are not kept"
    assert {file.name for trial in trials for file in trial.iterdir()} == {"result.json"}


def test_what_is_recommended_was_judged_by_the_gate_as_a_build_makes_it(matters):
    folder, _, found = matters
    (judgement,) = found.judgements
    assert (judgement.name, judgement.rejected) == (found.verdict.name, False)
    assert 0 < judgement.metric <= 1
    assert any(reason.startswith(f"The gate lets {judgement.name} through") for reason in found.verdict.reasons)
    assert [len(list((folder / "cache").glob(f"{stage}-*/result.json"))) for stage in ("distill", "prune")] == [1, 1]


def test_the_same_call_again_trains_nothing_that_is_kept_and_says_the_same(matters):
    folder, _, found = matters
    watched = Watches()
    again = run(small_recipe("Scarce", temperature=0.1, extra={}), folder, BUDGET, watched, name="mine")
    assert again.spent.seconds <= found.spent.seconds
    assert dataclasses.replace(again, spent=found.spent) == found
    assert dataclasses.replace(again.spent, seconds=0) == dataclasses.replace(found.spent, seconds=0)
    assert watched.finished == {"preflight": True, "teacher": True, "trials": True}


def test_no_room_where_every_network_solves_the_task(tmp_path):
    recipe = small_recipe("Easy")
    recipe = replace(recipe, teacher=replace(recipe.teacher, epochs=12, batch_size=12, learning_rate=2e-2))
    found = run(recipe, tmp_path, (TIMING + 27 * (EPOCHS + 1)) / 0.8 + 1)
    assert found.teacher == 1
    assert found.verdict.kind == "no room"
    assert all("no transfer to take apart" in one.skipped for one in found.ablations)


def test_a_budget_that_holds_some_losses_leaves_the_others_out_and_gives_an_answer(tmp_path):
    found = run(small_recipe("Scarce"), tmp_path, 60)
    # The warm-up takes 2 s, so an epoch is thought to take that; trials of 3 epochs then take 4 s. Of the 60 s, 20 are
    # kept for the judgement.
    assert (found.spent.epochs, found.spent.seeds) == (3, 3)
    assert found.spent.left_out[-2:] == ("sample", "cross")
    tried = {one.name for one in found.standings if len(one.values) == 3}
    assert tried == {"KD T=4", "default"}
    assert tried.isdisjoint(found.spent.left_out)
    assert found.verdict.lines[0] == "[distill.loss]"
    assert found.spent.seconds <= 60 * OVERRUN
    reasons = " ".join(found.verdict.reasons)
    assert "Left out, since the budget does not hold them: " in reasons
    assert " through (" in reasons, "the gate's judgement"
    assert "Left out" in (tmp_path / "out" / "advice.md").read_text()


def test_a_budget_that_holds_no_two_trials_says_what_to_keep_and_what_would_do(tmp_path):
    found = run(small_recipe("Scarce"), tmp_path, 12)
    assert found.verdict.kind == "too short"
    assert found.verdict.text == "the budget is too short to compare anything: keep default, which the recipe has"
    assert "3 of the recipe's 6 epochs" in found.verdict.reasons[0]
    assert found.verdict.lines[0] == "[distill.loss]"
    assert found.spent.seconds == 2, "a longer timing would have been a large part of the budget"
    assert "Not judged by the gate" in (tmp_path / "out" / "advice.md").read_text()


def test_a_timing_on_a_busy_machine_is_not_used_again(tmp_path):
    recipe, budget = small_recipe("Scarce"), 230
    recipe = replace(recipe, distill=replace(recipe.distill, epochs=3))
    paths = BuildPaths(tmp_path / "out", tmp_path / "cache")

    def busy():
        return itertools.count(0.0, 5.0).__next__

    slow = advise_recipe(recipe, paths, AdviceBudget(budget), clock=busy())
    assert slow.spent.left_out, "each trial took five times as long"
    idle = run(recipe, tmp_path, budget)
    undisturbed = run(recipe, tmp_path / "other", budget)
    assert idle.spent.left_out == ()
    assert idle.standings == undisturbed.standings
    assert idle.spent.seconds <= undisturbed.spent.seconds <= budget, "its trials count as what they take now"


def test_what_the_gate_rejects_is_not_recommended(tmp_path):
    recipe = small_recipe("Scarce")
    gate = GateConfig(tau_pass=1e-6, tau_fail=1e-6, structure="strict")
    recipe = replace(recipe, gate=gate, prune=replace(recipe.prune, repair="off"))
    found = run(recipe, tmp_path, 120, epochs=1)
    assert found.verdict.kind == "rejected"
    assert found.verdict.lines == ()
    assert all(one.rejected for one in found.judgements)
    assert found.judgements[-1].name in ("default", "KD T=4"), "what the recipe has, and KD, are the last resorts"
    assert any("prune.ratio" in reason for reason in found.verdict.reasons)
    assert "```toml" not in (tmp_path / "out" / "advice.md").read_text()


def test_a_recommendation_that_cannot_be_built_is_none(tmp_path):
    recipe = small_recipe("Scarce")
    recipe = replace(recipe, prune=replace(recipe.prune, budget=PruneBudget(macs=0.0001)))
    found = run(recipe, tmp_path, 120, epochs=1)
    assert found.verdict.kind == "rejected"
    assert "cannot be met" in " ".join(found.judgements[0].reasons)


DIGITS = ("teacher.epochs=2", "distill.epochs=2", "distill.batch_size=400")
#: Three seeds of two epochs, and nothing left to take apart.
DIGITS_BUDGET = 120
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {tests!r}
import torch
torch.set_num_threads(1)
from test_advise import DIGITS, DIGITS_BUDGET, Silent, load_recipe, run

class Kills(Silent):
    def advance(self, stage, done, total, note):
        if done == 4 and "epoch 1/2" in note:
            os.kill(os.getpid(), signal.SIGKILL)

run(load_recipe("digits", DIGITS), Path("."), DIGITS_BUDGET, Kills())
"""


def test_killed_it_goes_on_and_comes_to_the_same(tmp_path):
    found = python("-c", KILLED.format(tests=[str(Path(__file__).parents[n]) for n in (0, 2)]), cwd=tmp_path)
    assert found.returncode == -signal.SIGKILL, found.stderr
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("trial-*/result.json")}
    assert len(finished) == 4
    shutil.copytree(tmp_path / "cache", tmp_path / "other" / "cache", ignore=lambda _, names: [
        name for name in names if name.startswith("trial")
    ])  # fmt: skip
    recipe = load_recipe("digits", DIGITS)

    again, undisturbed = run(recipe, tmp_path, DIGITS_BUDGET), run(recipe, tmp_path / "other", DIGITS_BUDGET)

    assert again.standings == undisturbed.standings
    assert again.spent.seeds == undisturbed.spent.seeds == 3
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert not list((tmp_path / "cache").glob("*.partial"))
    assert all("more than the budget has left" in one.skipped for one in again.ablations)


def test_it_needs_a_task(tmp_path):
    recipe = Recipe(model=ModelConfig(path="a.onnx", calibration="a.npz"))
    with pytest.raises(RecipeError, match=r"\[model\] is trained already"):
        run(recipe, tmp_path, 60)


def test_it_needs_labels_to_judge_by(tmp_path):
    with pytest.raises(TaskError, match="split 'val' has no labels"):
        run(small_recipe("Unlabelled"), tmp_path, 60)


@pytest.mark.parametrize("epochs", [0, 7])
def test_trials_have_no_more_epochs_than_the_recipe(tmp_path, epochs):
    with pytest.raises(RecipeError, match=f"{epochs} epochs: .* is 6"):
        run(small_recipe("Scarce"), tmp_path, 60, epochs=epochs)


def test_a_training_that_fails_is_named(tmp_path):
    recipe = small_recipe("Scarce")
    recipe = replace(recipe, distill=replace(recipe.distill, learning_rate=1e30))
    with pytest.raises(ModelError, match="'joint' that was to be timed failed: training diverged"):
        run(recipe, tmp_path, 1e4)


def test_an_output_that_cannot_be_written_is_told_first(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="--output"):
        run(small_recipe("Scarce"), tmp_path, 60)


@pytest.mark.parametrize("budget", ["10x", "10", "-1m"])
def test_what_is_no_budget_is_told(tmp_path, budget):
    found = edgekd("advise", "--recipe", "digits", f"--budget={budget}", cwd=tmp_path)
    assert found.returncode == 2
    assert f"'{budget}' is no time above 0: write it as 90s" in found.stderr
    assert not (tmp_path / ".edgekd").exists()


def test_the_command_line_ends_with_the_answer(tmp_path):
    settings = [f"--set={setting}" for setting in DIGITS]
    arguments = ["advise", "--recipe", "digits", "--budget=1s", "--cache", "cache", *settings]
    found = edgekd(*arguments, cwd=tmp_path, COLUMNS="80")
    assert (found.returncode, found.stderr) == (0, "")
    assert "keep recipe's own, which the recipe has" in " ".join(found.stdout.split())
    as_json = edgekd(*arguments, "--json", cwd=tmp_path)
    last = json.loads(as_json.stdout.splitlines()[-1])
    assert last["event"] == "advice"
    assert last["advice"]["verdict"]["kind"] in ("too short", "undecided")
    assert (tmp_path / "build" / "digits" / "advice.json").is_file()


def test_where_the_gate_rejects_all_the_exit_code_is_that_of_a_rejected_build(tmp_path):
    tight = ("prune.epochs=1", "prune.ratio=0.9", "gate.max_flips=0.0")
    settings = [f"--set={setting}" for setting in (*DIGITS, *tight)]
    found = edgekd("advise", "--recipe", "digits", "--budget=20s", "--epochs=1", *settings, cwd=tmp_path)
    assert found.returncode == 20, found.stderr
    assert "error: no loss can be recommended: the gate rejects what a build makes of " in found.stderr
    assert "[distill.loss]" not in found.stdout
