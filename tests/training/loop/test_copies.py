"""A network is copied whole, or not at all."""

import functools
import threading

import pytest
import torch
from small import TwoTowers
from torch import nn
from torch.nn.utils import parametrizations

from edgekd.training.loop.copies import copy_where_possible

INPUTS = torch.randn(4, 6), torch.randn(4, 5)


class Listening(TwoTowers):
    """Keeps what a hook of its own hears, and an activation bound to itself by name."""

    def __init__(self):
        super().__init__()
        self.gain, self.heard = nn.Parameter(torch.ones(8)), []
        self.encoders["a"].register_forward_hook(self.hear)
        self.act = functools.partial(torch.clamp, min=0)

    def hear(self, _module, _inputs, output):
        self.heard.append(output.detach())
        return self.act(output * self.gain)


def old_weight_norm():
    model = TwoTowers()
    model.encoders["a"][0] = nn.utils.weight_norm(model.encoders["a"][0])
    model(*INPUTS)
    return model


def parametrized():
    model = TwoTowers()
    parametrizations.spectral_norm(model.head[1])
    return model


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [TwoTowers, Listening, old_weight_norm, parametrized])
def test_a_copy_computes_the_same_and_holds_nothing_of_the_first(make):
    model = make().eval()
    copy = copy_where_possible(model)
    assert torch.equal(model(*INPUTS), copy(*INPUTS))
    places = {value.data_ptr() for value in model.state_dict().values()}
    assert places.isdisjoint(value.data_ptr() for value in copy.state_dict().values())
    with torch.no_grad():
        before = copy(*INPUTS)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copy(*INPUTS), before)


def bound_by(way):
    model = TwoTowers()
    scale = nn.Parameter(torch.ones(()))
    if way == "attribute":
        model.act = lambda x: model.head(x) * 2
    if way == "hook":
        model.head.register_forward_hook(lambda _module, _inputs, output: output * scale)
    if way == "default":
        model.acts = [functools.partial(lambda x, head=model.head: head(x))]
    if way == "lock":
        model.lock = threading.Lock()
    return model


@pytest.mark.parametrize("way", ["attribute", "hook", "default", "lock"])
def test_a_network_that_a_copy_would_still_read_or_that_has_none_is_left_as_it_is(way):
    model = bound_by(way)
    assert copy_where_possible(model) is model
