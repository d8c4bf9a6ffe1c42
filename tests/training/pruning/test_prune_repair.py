"""Where the gate rejects the pruned network, it is pruned less and tuned longer, until the gate lets it through."""

import json
from itertools import pairwise

import msgspec
import pytest
import torch
from small import Remembers

from edgekd.config.recipe import Recipe
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.stages.artifacts import REMOVED, WEIGHTS
from edgekd.stages.cache import Cache
from edgekd.stages.stage import Runner

TASK = """
from small import SmallTask
from pruned import Wide

class Task(SmallTask):
    def __init__(self):
        super().__init__(network=Wide, counts=(200, 100, 20, 30))
"""

#: No answer that differs at all is let through; the last resort alone is.
STRICT = {"gate__max_divergence": 1e-12, "gate__max_metric_drop": 0}


class Watches(Remembers):
    """Remembers which stages worked; it may stop the build at one of a stage's epochs."""

    def __init__(self, stage="", epoch=0):
        super().__init__()
        self.started, self.notes, self.stage, self.last = [], [], stage, epoch

    def start(self, stage):
        self.started.append(stage)

    def advance(self, stage, done, total, note):
        self.notes.append((stage, done, note))
        if (stage, done) == (self.stage, self.last) and note.startswith("loss"):
            raise KeyboardInterrupt


def stages(folder, observer=None, task=TASK, **changes):
    torch.set_num_threads(1)
    (folder / "task.py").write_text(task)
    settings = {
        "teacher__epochs": 3, "distill__epochs": 3, "prune__epochs": 2, "prune__ratio": 0.5, "prune__round_to": 8,
        **{f"{network}__taps__{name}": f"encoders.{name}" for network in ("teacher", "student") for name in "ab"},
        **changes,
    }  # fmt: skip
    content = {"task": {"name": f"{folder}/task.py:Task"}}
    for key, value in settings.items():
        *path, last = key.split("__")
        table = content
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    recipe = msgspec.convert(content, Recipe)
    runner = Runner(Cache(folder / "cache"), observer or Watches())
    return TrainingStages(runner, Project(recipe.task, folder / "cache"), recipe, 18)


def train(folder, observer=None, **changes):
    return stages(folder, observer, **changes).train()[2]


def verdicts(pruned):
    return [each.row.verdict for each in pruned.result.attempts]


def test_what_the_gate_lets_through_is_tried_once(tmp_path):
    observer = Watches()
    pruned = train(tmp_path, observer, gate__max_divergence=100.0, gate__max_metric_drop=1, gate__max_flips=1)
    assert len(pruned.result.attempts) == 1
    assert [name for name in observer.started if name.startswith("prune")] == ["prune", "prune_check"]
    assert observer.warnings == []
    (one,) = pruned.result.attempts
    assert (one.ratio, one.epochs, one.reason) == (pytest.approx(64 / 120), 2, "")
    assert one.ratios == {"a": 0.5, "b": 0.5, "fusion": pytest.approx(2 / 3)}
    assert one.parameters == pruned.result.parameters
    assert set(one.drifts) == {"a", "b"}
    assert one.row.first.samples == 100, "the validation split, and not the 30 samples of the test"


def test_less_is_pruned_until_the_gate_lets_it_through(tmp_path):
    first = train(tmp_path, prune__repair="off", **STRICT).result.attempts[0].row.first.divergence
    observer = Watches()
    # The first attempt is more than five times beyond it, as no metric excuses.
    pruned = train(tmp_path, observer, gate__max_divergence=first.low / 6, gate__max_metric_drop=0)
    attempts = pruned.result.attempts
    assert verdicts(pruned)[0] == "fail"
    assert verdicts(pruned)[-1] != "fail"
    assert len(attempts) > 1
    assert attempts[-1].ratio < attempts[0].ratio or attempts[-1].epochs > attempts[0].epochs
    assert attempts[-1].parameters >= attempts[0].parameters
    assert observer.warnings[-1].startswith(
        "pruned as [prune] asks, the network is not let through on the validation split: "
    )
    assert pruned.result.history


def test_the_last_resort_is_the_student_itself(tmp_path):
    one = stages(tmp_path, **STRICT)
    _, student, pruned = one.train()
    attempts = pruned.result.attempts
    assert verdicts(pruned) == ["fail"] * (len(attempts) - 1) + ["pass"]
    assert all(later.ratio <= earlier.ratio for earlier, later in pairwise(attempts))
    assert (attempts[-1].ratio, attempts[-1].epochs) == (0, 0)
    assert pruned.result.history == []
    assert json.loads((pruned.folder / REMOVED).read_text()) == []
    assert (pruned.folder / WEIGHTS).read_bytes() == (student.folder / WEIGHTS).read_bytes()
    assert pruned.result.metric == student.result.metric


def test_without_repair_the_first_attempt_stays(tmp_path):
    observer = Watches()
    pruned = train(tmp_path, observer, prune__repair="off", **STRICT)
    assert verdicts(pruned) == ["fail"]
    assert "prune.repair = 'off' leaves it so" in observer.warnings[-1]
    again = Watches()
    repaired = train(tmp_path, again, prune__repair_s=0, **STRICT)
    assert again.started == ["prune attempt 2", "prune_check attempt 2"], "the first attempt is the same"
    assert len(repaired.result.attempts) == 2
    assert "prune.repair_s = 0" in repaired.result.attempts[-1].reason


def test_a_changed_limit_trains_nothing_again(tmp_path):
    before = train(tmp_path, **STRICT)
    observer = Watches()
    pruned = train(tmp_path, observer, gate__max_divergence=100.0, gate__max_metric_drop=1, gate__max_flips=1)
    assert observer.started == ["prune_check"]
    assert len(pruned.result.attempts) == 1
    idle = Watches()
    assert train(tmp_path, idle, **STRICT).result == before.result
    assert idle.started == []


def test_a_killed_run_comes_to_the_same_attempts(tmp_path):
    whole = train(tmp_path, **STRICT)
    cut = tmp_path / "cut"
    cut.mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(cut, Watches("prune attempt 2", 2), **STRICT)
    again = Watches()
    pruned = train(cut, again, **STRICT)
    assert "prune" not in again.started
    epochs = [done for stage, done, note in again.notes if stage == "prune attempt 2" and note.startswith("loss")]
    assert min(epochs) == 3, "what was done is not done again"
    assert (pruned.folder / WEIGHTS).read_bytes() == (whole.folder / WEIGHTS).read_bytes()
    assert verdicts(pruned) == verdicts(whole)
    assert [each.ratios for each in pruned.result.attempts] == [each.ratios for each in whole.result.attempts]


def test_a_network_of_which_nothing_can_be_pruned_is_not_judged(tmp_path):
    for name, changes in (("none", {"prune__ratio": 0.0}), ("narrow", {"prune__round_to": 128})):
        folder = tmp_path / name
        folder.mkdir()
        observer = Watches()
        pruned = train(folder, observer, **STRICT, **changes)
        assert pruned.result.attempts == ()
        assert "prune_check" not in observer.started


def test_the_choice_does_not_look_at_the_test_split(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    ours = train(tmp_path, **STRICT)
    theirs = train(other, task=TASK.replace("20, 30", "20, 77"), **STRICT)
    assert [each.row for each in ours.result.attempts] == [each.row for each in theirs.result.attempts]
    assert ours.result.metric != theirs.result.metric
