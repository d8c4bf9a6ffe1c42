import pytest
import torch

from edgekd.learn.balance import Balance
from edgekd.recipe import Term


def balance_of(**shares):
    return Balance({name: Term(share=share) for name, share in shares.items()})


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
    for step in range(Balance.FIRST + 21):
        before = dict(balance.weights)
        update(balance, 1.0 + step, 1.0)
        changes.append(balance.weights != before)
    assert all(changes[: Balance.FIRST])
    assert [step for step in range(Balance.FIRST, len(changes)) if changes[step]] == [50, 60, 70]


@pytest.mark.parametrize("extra", [1e-9, 0.0])
def test_a_weight_is_bounded(extra):
    balance = balance_of(intra=1.0)
    update(balance, 1.0, extra)
    assert balance.weights["intra"] == Balance.LARGEST


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
