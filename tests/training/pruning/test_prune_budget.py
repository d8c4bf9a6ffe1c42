"""What each encoder gives: by ratios of its own, or by one budget."""

import re

import pytest
import torch
from pruned import Wide, batch, cutter, pruning, taps, widths
from small import CLASSES, TAPS, mlp
from torch import nn

from edgekd.config.recipe import PruneBudget
from edgekd.errors import ModelError, RecipeError, TaskError
from edgekd.training.loop.weights import build
from edgekd.training.pruning.budget import choose_widths, count_macs, count_parameters
from edgekd.training.pruning.groups import Group
from edgekd.training.pruning.stage import check

ARGUMENTS = batch([(6,), (5,)])


def wide_macs(model):
    a, b, head = (widths(model)[name] for name in ("encoders.a.0", "encoders.b.0", "head.1"))
    return 6 * a + 16 * a + 5 * b + 16 * b + 32 * head + 3 * head


class SharedStem(nn.Module):
    """Both modalities go through one stem, then through an encoder each."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(6, 32), mlp(32, 32, 16), mlp(32, 32, 16)
        self.head = mlp(32, 32, CLASSES)

    def forward(self, a, b):
        a, b = self.stem(a).relu(), self.stem(b).relu()
        return self.head(torch.cat([self.a(a), self.b(b)], 1))


def test_a_ratio_hits_its_own_encoder_and_what_is_shared_takes_the_common_one():
    model = build(SharedStem, 0)
    tap = taps("a", "b")
    cutter(model, tap, *batch([(6,), (6,)]), pruning(ratio=0.25, ratios={"b": 0.75})).cut()
    assert widths(model) == {"stem": 24, "a.0": 24, "a.2": 16, "b.0": 8, "b.2": 16, "head.0": 24, "head.2": 3}


def test_a_ratio_of_0_keeps_an_encoder_whatever_its_width():
    class Odd(Wide):
        def __init__(self):
            super().__init__()
            self.encoders["b"] = mlp(5, 30, 16)

    model = build(Odd, 0)
    cutter(model, TAPS, *ARGUMENTS, pruning(ratios={"b": 0.0})).cut()
    assert (widths(model)["encoders.a.0"], widths(model)["encoders.b.0"]) == (24, 30)


def test_what_a_recipe_may_not_ask():
    with pytest.raises(RecipeError, match="a budget and ratios"):
        check(pruning(budget=PruneBudget(macs=0.5), ratios={"a": 0.5}), Wide(), ["a", "b"])
    with pytest.raises(TaskError, match=r"\[prune\] ratios: 'accl' is no modality of the task; did you mean 'accel'"):
        check(pruning(ratios={"accl": 0.5}), Wide(), ["accel", "gyro"])
    with pytest.raises(TaskError, match="no module 'nowhere'"):
        check(pruning(ignore=["nowhere"]), Wide(), ["a", "b"])


def test_multiply_accumulates_are_those_of_the_layers():
    model = Wide()
    assert count_macs(model, ARGUMENTS[0]) == wide_macs(model) == 22 * 32 + 21 * 64 + 35 * 24
    conv = nn.Sequential(nn.Conv1d(3, 8, 5, padding=2, bias=False), nn.BatchNorm1d(8), nn.ReLU())
    assert count_macs(conv.eval(), [torch.zeros(7, 3, 20)]) == 3 * 8 * 5 * 20


@pytest.mark.parametrize("importance", ["gram", "magnitude", "random"])
@pytest.mark.parametrize("kept", [0.8, 0.5, 0.35])
@pytest.mark.parametrize(
    ("what", "count"), [("macs", wide_macs), ("parameters", count_parameters)], ids=["macs", "parameters"]
)
def test_a_budget_is_kept_and_no_more_than_a_block_is_given_up_for_it(what, count, kept, importance):
    model, full = build(Wide, 0), build(Wide, 0)
    cut = cutter(model, TAPS, *ARGUMENTS, pruning(budget=PruneBudget(**{what: kept}), importance=importance)).cut()
    share = count(model) / count(full)
    largest_block = 8 * (32 + 3 + 1) / count(full)
    assert kept - largest_block < share <= kept
    assert all(width % 8 == 0 and width > 0 for name, width in widths(model).items() if name != "head.3")
    assert f"{share:.1%}" in cut.note
    hidden = widths(model)
    assert f"a {hidden['encoders.a.0']} of 32, b {hidden['encoders.b.0']} of 64, fusion {hidden['head.1']} of 24" in (
        cut.note
    )


def test_a_budget_is_met_in_equal_steps():
    model = build(Wide, 0)
    cuts = cutter(model, TAPS, *ARGUMENTS, pruning(budget=PruneBudget(macs=0.4), round_to=1))
    shares = []
    for share in (0.5, 1.0):
        cuts.cut(share)
        shares.append(wide_macs(model) / wide_macs(Wide()))
    assert shares == pytest.approx([0.7, 0.4], abs=0.02)
    assert shares[0] <= 0.7
    assert shares[1] <= 0.4


def test_a_budget_that_cannot_be_met_says_what_was_reached():
    narrowest = (22 * 8 + 21 * 8 + 35 * 8) / wide_macs(Wide())
    with pytest.raises(
        ModelError, match=rf"budget = 10.0% of the MACs cannot be met.*round_to = 8.* still takes {narrowest:.1%}"
    ):
        cutter(Wide(), TAPS, *ARGUMENTS, pruning(budget=PruneBudget(macs=0.1))).cut()


def test_a_latency_budget_ends_within_it_or_says_what_it_reached():
    class Heavy(Wide):
        def __init__(self):
            super().__init__()
            self.encoders["b"] = nn.Sequential(nn.Linear(5, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU())
            self.encoders["b"].append(nn.Linear(1024, 16))

    model = build(Heavy, 0)
    cuts = cutter(
        model, TAPS, *ARGUMENTS, pruning(budget=PruneBudget(latency=0.7), round_to=512, importance="magnitude")
    )
    try:
        note = cuts.cut().note
    except ModelError as error:
        assert re.search(r"70.0% of the latency cannot be met: .* still takes \d", str(error))  # noqa: PT017
        assert widths(model) == widths(Heavy())
    else:
        (share,) = re.findall(r"; ([\d.]+)% of the latency", note)
        assert float(share) <= 70
        assert widths(model)["encoders.b.2"] < 1024 or widths(model)["encoders.b.0"] < 1024


def group(root, importance, step=1):
    return Group(root, "fusion", len(importance), 1, step, tuple(importance))


def spend_on(groups, prices, budget):
    """Spend where a channel of each group costs a price of its own."""
    full = {each.root: each.width for each in groups}
    return choose_widths(
        groups, lambda widths: sum({**full, **widths}[root] * price for root, price in prices.items()), budget
    )


def test_the_cheapest_channels_for_what_they_save_go_first():
    groups = [group("a", [5, 1, 3]), group("b", [3, 8, 40])]
    # Importance for cost: a 1, 3, 5 and b a quarter of 3, 8, 40.
    assert spend_on(groups, {"a": 1, "b": 4}, 14.9) == ({"b": 2}, 11)
    assert spend_on(groups, {"a": 1, "b": 4}, 10) == ({"b": 2, "a": 2}, 10)
    assert spend_on(groups, {"a": 1, "b": 4}, 9) == ({"b": 1, "a": 2}, 6)


def test_the_last_block_of_a_group_stays():
    assert spend_on([group("a", [1, 1, 1, 1], 2), group("b", [9])], {"a": 1, "b": 1}, 0) == ({"a": 2}, 3)


def test_what_saves_nothing_goes_last():
    assert spend_on([group("a", [1, 1]), group("b", [9, 9])], {"a": 0, "b": 1}, 1) == ({"b": 1}, 1)
