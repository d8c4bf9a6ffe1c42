import math

import pytest
import torch

from edgekd.config.recipe import Term
from edgekd.training.distillation.gradient_balance import GradientBalance, schedule


def balance_of(**shares):
    return GradientBalance({name: Term(share=share) for name, share in shares.items()})


def update(balance, base, extra):
    """One step at which the base's gradient norm is ``base``, and that of the loss `intra` is ``extra``."""
    z = torch.zeros(1, requires_grad=True)
    balance.update(base * z.sum(), {"intra": extra * z.sum()}, {"intra": [z]})


def test_norms_are_averaged_over_steps():
    balance = balance_of(intra=2.0)
    for base, extra in [(1.0, 4.0), (3.0, 2.0)]:
        update(balance, base, extra)
    expected = 2.0 * (0.9 * 1 + 0.1 * 3) / (0.9 * 4 + 0.1 * 2)
    assert balance.weights["intra"] == pytest.approx(expected)


def test_after_the_first_steps_norms_are_measured_now_and_then():
    balance = balance_of(intra=1.0)
    changes = []
    for step in range(GradientBalance.FIRST + 21):
        before = dict(balance.weights)
        update(balance, 1.0 + step, 1.0)
        changes.append(balance.weights != before)
    assert all(changes[: GradientBalance.FIRST])
    assert [step for step in range(GradientBalance.FIRST, len(changes)) if changes[step]] == [50, 60, 70]


@pytest.mark.parametrize("extra", [1e-9, 0.0])
def test_a_weight_is_bounded(extra):
    balance = balance_of(intra=1.0)
    update(balance, 1.0, extra)
    assert balance.weights["intra"] == GradientBalance.LARGEST


def test_a_restored_balance_goes_on_as_if_never_stopped():
    def steps(balance, first, last):
        for step in range(first, last):
            update(balance, 1 + step % 7, 1 + step % 3)

    whole, first, second = (balance_of(intra=1.0) for _ in range(3))
    steps(whole, 0, 80)
    steps(first, 0, 53)
    state = first.state()
    steps(first, 53, 75)  # what was handed out does not change behind the checkpoint's back
    second.restore(state)
    steps(second, 53, 80)
    assert second.state() == whole.state()


def test_a_fixed_weight_stays_and_its_share_is_measured():
    balance = GradientBalance({"intra": Term(weight=2.0)})
    assert balance.weights == {"intra": 2.0}
    update(balance, 4.0, 3.0)
    assert balance.weights == {"intra": 2.0}
    assert balance.shares() == {"intra": pytest.approx(2.0 * 3 / 4)}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_step_that_is_not_finite_leaves_the_weights_as_they_are(wrong):
    balance, other = balance_of(intra=2.0), balance_of(intra=2.0)
    for each in (balance, other):
        update(each, 1.0, 4.0)
    update(balance, wrong, 1.0)
    update(balance, 1.0, wrong)
    assert balance.weights == other.weights
    update(balance, 3.0, 2.0)
    update(other, 3.0, 2.0)
    assert balance.weights == other.weights


def test_a_share_of_nothing_is_no_number():
    balance = balance_of(intra=1.0)
    update(balance, 0.0, 3.0)
    assert balance.shares() == {}
    assert balance.weights == {"intra": 0.0}
    update(balance, 1.0, 3.0)
    assert balance.shares() == {"intra": pytest.approx(1.0)}


@pytest.mark.parametrize(("weight", "vanished"), [("auto", ["intra"]), (1e-9, []), (2.0, [])])
def test_what_vanishes_is_no_fixed_weight(weight, vanished):
    balance = GradientBalance({"intra": Term(weight=weight)})
    for step in range(GradientBalance.SETTLED + 1):
        assert balance.vanished() == [], step
        update(balance, 0.0, 1.0)
    assert balance.vanished() == vanished


def test_each_loss_is_measured_where_it_is_read():
    balance = balance_of(near=1.0, far=1.0)
    first, second = (torch.ones(3, requires_grad=True) for _ in range(2))
    base = 2 * first.sum() + 6 * second.sum()
    balance.update(base, {"near": first.sum(), "far": 2 * second.sum()}, {"near": [first], "far": [second]})
    assert balance.weights == {"near": pytest.approx(2.0), "far": pytest.approx(3.0)}


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (Term(), [1, 1, 1, 1]),
        (Term(warm_up=0.5), [0, 0.5, 1, 1]),
        (Term(warm_up=1.0), [0, 0.25, 0.5, 0.75]),
        (Term(decay="linear"), [1, 0.75, 0.5, 0.25]),
        (Term(decay="cosine"), [1, 0.5 + 2**-1.5, 0.5, 0.5 - 2**-1.5]),
        (Term(warm_up=0.5, decay="linear"), [0, 0.5, 1, 0.5]),
        (Term(warm_up=0.25, decay="cosine"), [0, 1, 0.75, 0.25]),
    ],
)
def test_the_schedule(term, expected):
    assert [schedule(term, progress) for progress in (0.0, 0.25, 0.5, 0.75)] == pytest.approx(expected)
