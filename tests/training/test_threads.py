"""The weights that training makes do not depend on the machine's threads, but on the recipe's."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from edgekd.training.stage_run import Resources, computing

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
