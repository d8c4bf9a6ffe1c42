"""The weights that training makes do not depend on the machine's threads, but on the recipe's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from small import TAPS, loaded

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import Recipe, TaskConfig
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Silent
from edgekd.stages.stage import Runner
from edgekd.training.stage_run import Resources, computing
from edgekd.training.taps.taps import Taps
from edgekd.training.thread_timing import faster, time_threads

#: Trains a network whose sums are long enough to be divided, and prints a digest of its weights.
TRAINS = """
import hashlib, tempfile
from pathlib import Path

import torch
from small import TAPS, TwoTowers, reporter, split

from edgekd.config.recipe import Training
from edgekd.training.distillation.objective import SupervisedObjective
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.weights import build
from edgekd.training.stage_run import Resources, computing
from edgekd.training.taps.taps import TappedModel

def digest(threads):
    model = build(lambda: TwoTowers(norm=True), 0)
    with computing(Resources(threads)), TappedModel(model, TAPS) as tapped, tempfile.TemporaryDirectory() as folder:
        run = Fit(Training(epochs=4, batch_size=4096), 0, Path(folder), reporter())
        fit(model, SupervisedObjective(tapped), split("train", 4096), lambda: {"validation": 0.0}, run)
    content = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(content).hexdigest()

print(*(digest(threads) for threads in (1, 2)))
"""


def digests(threads):
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "training")]),
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    done = subprocess.run([sys.executable, "-c", TRAINS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_environments_threads_do_not_matter():
    assert digests("1") == digests("3")


def test_the_recipes_threads_are_undone_after_the_stage():
    before = torch.get_num_threads()
    with computing(Resources(before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_one_thread_and_several_are_timed_and_several_must_be_worth_it():
    times = time_threads(loaded(), Taps(TAPS, TAPS), Recipe(task=TaskConfig(name="digits")), 2)
    assert list(times) == [1, 2]
    assert all(0 < milliseconds < 10_000 for milliseconds in times.values())
    assert [faster({1: 10.0, 4: other}) for other in (2.0, 8.0, 9.0, 50.0)] == [4, 4, 1, 1]
    assert faster(time_threads(loaded(), Taps(TAPS, TAPS), Recipe(task=TaskConfig(name="digits")), 1)) == 1


def test_what_is_chosen_is_said_and_found_once(tmp_path):
    """A resumed build goes on with the same threads, however busy the machine is by then."""
    said, chosen = [], []
    for threads in ("auto", "auto", 3):
        observer, recipe = Remembers(), load_recipe("digits", (f"threads={threads}",))
        runner = Runner(Cache(tmp_path), observer)
        chosen.append(TrainingStages(runner, Project(recipe.task, tmp_path), recipe, 18).threads)
        said.append(observer.finished)
    assert chosen[0] == chosen[1]
    assert chosen[2] == 3
    assert [[cached for *_, cached in each] for each in said] == [[False], [True], []]
    assert said[0][0][:2] == said[1][0][:2]
    stage, summary, _ = said[0][0]
    assert stage == "threads"
    assert re.match(rf"{chosen[0]} threads?: a step takes \S+ ms with 1", summary)


class Remembers(Silent):
    def __init__(self):
        self.finished = []

    def finish(self, stage, seconds, cached, summary):
        self.finished.append((stage, summary, cached))
