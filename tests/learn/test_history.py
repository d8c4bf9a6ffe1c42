"""What an epoch leaves in a training's history, where the logit losses have no gradient to hold a share of."""

import math

import msgspec
import pytest
import torch
from small import CLASSES, TAPS, Remembers, TwoTowers, loaded, reporter
from torch import nn

from edgekd.cache import Cache
from edgekd.errors import ModelError
from edgekd.learn.aligned import Models, aligned
from edgekd.learn.result import Trained
from edgekd.learn.taps import Taps
from edgekd.learn.train import Fit, fit
from edgekd.learn.weights import build
from edgekd.recipe import LossConfig, Tap, Term, Training


class Beside(TwoTowers):
    """The tapped modules lie beside the way to the logits."""

    def __init__(self):
        super().__init__()
        self.aside = nn.ModuleDict({name: nn.Linear(8, 4) for name in "ab"})

    def forward(self, a, b):
        for name, x in (("a", a), ("b", b)):
            self.aside[name](self.encoders[name](x))
        return super().forward(a, b)


ASIDE = {name: Tap(module=f"aside.{name}") for name in "ab"}


def train(folder, task=None, observer=None, **config):
    task = task or loaded()
    models = Models(build(Beside, 0), build(TwoTowers, 1))
    taps, loss = Taps(TAPS, ASIDE), LossConfig(extra={"intra": Term(weight=3.0)}, **config)
    with aligned(task, models, taps, loss, 0, reporter(observer)) as (objective, validate):
        run = Fit(Training(epochs=2, batch_size=16), 0, folder, reporter(observer))
        return fit(models.trained, objective, task.splits["train"], validate, run)


def test_a_share_of_nothing_is_no_number_and_no_divergence(tmp_path):
    history = train(tmp_path)
    assert [math.isnan(epoch["share.intra"]) for epoch in history] == [True, True]
    assert all(math.isfinite(value) for epoch in history for name, value in epoch.items() if name != "share.intra")
    assert history[0]["weight.intra"] == 3.0


def test_it_is_kept_and_read_again_as_it_is(tmp_path):
    history = train(tmp_path)
    cache = Cache(tmp_path / "cache")
    with cache.claim("distill-1", lambda: None):
        cache.finish("distill-1", msgspec.to_builtins(Trained(0.5, CLASSES, history)))
    read = msgspec.convert(cache.find("distill-1"), Trained).history
    assert math.isnan(read[0].pop("share.intra"))
    assert read[0] == {name: value for name, value in history[0].items() if name != "share.intra"}


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
