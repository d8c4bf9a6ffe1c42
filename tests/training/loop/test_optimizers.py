"""The learning rate and the steps, by the names in recipes."""

import math

import pytest
import torch
from torch import nn

from edgekd.config.recipe import Training
from edgekd.errors import RecipeError, TaskError
from edgekd.training.loop.optimizers import make_optimizer, make_schedule

STEPS = 100


def rates(**config):
    """Return the learning rate of each step, as a share of the peak."""
    settings = Training(learning_rate=0.5, **config)
    optimizer = make_optimizer(settings, [nn.Parameter(torch.zeros(2))])
    schedule = make_schedule(settings, optimizer, STEPS)
    seen = []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_onecycle_rises_over_its_warm_up_and_falls_to_nothing(optimizer):
    seen = rates(optimizer=optimizer)
    assert seen.index(max(seen)) == 29
    assert max(seen) == pytest.approx(1)
    assert seen[-1] < 1e-4
    assert rates(optimizer=optimizer, warm_up=0.1).index(max(seen)) == 9


@pytest.mark.parametrize(
    ("schedule", "half", "end"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.01), ("cosine", 0.5, 0.0)]
)
def test_the_others_fall_from_the_peak(schedule, half, end):
    seen = rates(schedule=schedule)
    assert (seen[0], seen[50], seen[-1]) == (1.0, pytest.approx(half), pytest.approx(end, abs=1e-3))
    warmed = rates(schedule=schedule, warm_up=0.2)
    assert warmed[:21] == pytest.approx([*((step + 1) / 20 for step in range(20)), 1.0])
    assert warmed[60] == pytest.approx(half)


def test_a_stated_momentum_is_kept_under_onecycle():
    settings = Training(optimizer="sgd", momentum=0.7)
    optimizer = make_optimizer(settings, [nn.Parameter(torch.zeros(2))])
    make_schedule(settings, optimizer, STEPS)
    assert optimizer.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD")])
def test_each_optimizer_is_torchs(name, kind):
    config = Training(optimizer=name, learning_rate=0.25, weight_decay=0.5)
    optimizer = make_optimizer(config, [nn.Parameter(torch.zeros(2))])
    assert type(optimizer).__name__ == kind
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.25, 0.5)


OWN = """
import torch

def rms(parameters, rate, decay):
    return torch.optim.RMSprop([{"params": parameters[:1], "lr": rate / 10}, {"params": parameters[1:]}], lr=rate)

def lazy(parameters, rate, decay):
    return [parameters]

def second_order(parameters, rate, decay):
    return torch.optim.LBFGS(parameters, lr=rate)

def one_argument(parameters):
    ...

number = 3

def halves(done):
    return 1.0 if done < 0.5 else 0.5

def negative(done):
    return 1 - 2 * done

def text(done):
    return "fast"

def fails(done):
    return {}["rate"]
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    return lambda name: f"{tmp_path / 'mine.py'}:{name}"


@pytest.mark.parametrize("schedule", ["onecycle", "linear"])
def test_an_optimizer_of_ones_own_keeps_the_rates_of_its_groups(own, schedule):
    config = Training(optimizer=own("rms"), schedule=schedule, learning_rate=0.5)
    optimizer = make_optimizer(config, [nn.Parameter(torch.zeros(2)) for _ in range(3)])
    changes = make_schedule(config, optimizer, STEPS)
    for _ in range(60):
        optimizer.step()
        changes.step()
        low, high = (group["lr"] for group in optimizer.param_groups)
        assert high == pytest.approx(10 * low)


def test_a_schedule_of_ones_own_is_the_share_of_the_peak(own):
    assert rates(schedule=own("halves"), warm_up=0.2) == pytest.approx(
        [*((step + 1) / 20 for step in range(20)), *[1.0] * 40, *[0.5] * 40]
    )


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("optimizer", "lazy", "returned a list, must be a torch.optim.Optimizer"),
        ("optimizer", "second_order", "LBFGS computes the loss of a step many times"),
        ("optimizer", "one_argument", "takes 1 positional argument but 3 were given"),
        ("optimizer", "number", "is an int, must be a function"),
        ("optimizer", "rmss", "has no 'rmss'; did you mean 'rms'"),
        ("schedule", "text", "returned 'fast' after 0% of the steps, must be a number from 0 on"),
        ("schedule", "negative", "of the steps, must be a number from 0 on"),
        ("schedule", "fails", "KeyError"),
    ],
)
def test_what_is_wrong_with_ones_own_is_one_line(own, key, name, message):
    with pytest.raises((RecipeError, TaskError)) as refused:
        rates(**{key: own(name)})
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{key} {own(name)}: ")
    assert "\n" not in str(refused.value)


def test_a_schedule_that_is_no_number_somewhere_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("import math\ndef f(done):\n    return math.nan if done > 0.5 else 1")
    with pytest.raises(RecipeError, match="returned nan after 51% of the steps"):
        rates(schedule=f"{tmp_path / 'mine.py'}:f")
    assert math.isfinite(rates(schedule="cosine")[-1])
