"""What an epoch leaves in a training's history, where the logit losses have no gradient to hold a share of."""

import math

import pytest
import torch
from small import TAPS, Beside, Remembers, TwoTowers, loaded, reporter

from edgekd.config.recipe import LossConfig, Tap, Term, Training
from edgekd.errors import ModelError
from edgekd.training.distillation.setup import DistillationNetworks, distillation_setup
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.weights import build
from edgekd.training.taps.taps import Taps

ASIDE = {name: Tap(module=f"aside.{name}") for name in "ab"}


def train(folder, task=None, observer=None, **config):
    task = task or loaded()
    models = DistillationNetworks(build(Beside, 0), build(TwoTowers, 1))
    taps, loss = Taps(TAPS, ASIDE), LossConfig(extra={"intra": Term(weight=3.0)}, **config)
    with distillation_setup(task, models, taps, loss, 0, reporter(observer)) as (objective, validate):
        run = Fit(Training(epochs=2, batch_size=16), 0, folder, reporter(observer))
        return fit(models.trained, objective, task.splits["train"], validate, run)


def test_of_a_share_of_nothing_there_is_no_figure(tmp_path):
    history = train(tmp_path)
    figures = {"loss", "ce", "kd", "loss.intra", "weight.intra", "validation", "drift", "kept"}
    assert [set(epoch) for epoch in history] == [figures] * 2
    assert all(math.isfinite(value) for epoch in history for value in epoch.values())
    assert history[0]["weight.intra"] == 3.0


def test_a_loss_that_is_no_number_is_still_a_divergence(tmp_path):
    task = loaded()
    task.splits["train"].inputs["a"][7, 0] = float("nan")
    with pytest.raises(ModelError, match="training diverged"):
        train(tmp_path, task)


def test_progress_tells_the_drift_too(tmp_path):
    torch.manual_seed(0)
    observer = Remembers()
    history = train(tmp_path, observer=observer)
    last = history[-1]
    expected = f"loss {last['loss']:.3f}, validation {last['validation']:.3f}, drift {last['drift']:.4f}"
    assert observer.steps[-1] == (2, 2, expected)
