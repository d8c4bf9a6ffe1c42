"""Attention keeps its widths: heads are slices of channels, and no dependency graph knows them."""

import pytest
import torch
from pruned import batch, pruning, remove_channels, widths
from small import CLASSES
from torch import nn
from torch.nn import functional

from edgekd.config.recipe import PruneBudget, Tap

TAPS = {"a": Tap(module="a.norm", pool="first"), "b": Tap(module="b.norm", pool="tokens")}
SHAPES = [(5, 6), (7, 4)]


def fused(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v)


def by_hand(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v


class Block(nn.Module):
    """A transformer's encoder of one layer that infers its heads from the width, as transformers' attention does."""

    def __init__(self, inputs, attend, qkv_in_one):
        super().__init__()
        self.embed, self.norm, self.attend = nn.Linear(inputs, 16), nn.LayerNorm(16), attend
        self.project = nn.ModuleList([nn.Linear(16, 48)] if qkv_in_one else [nn.Linear(16, 16) for _ in range(3)])
        self.output = nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        x = self.embed(x)
        projected = torch.cat([layer(x) for layer in self.project], 2).chunk(3, 2)
        heads = [part.view(*part.shape[:2], -1, 4).transpose(1, 2) for part in projected]
        x = x + self.output(self.attend(*heads).transpose(1, 2).flatten(2))
        return self.norm(x + self.mlp(x))


class Transformers(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.a, self.b = (Block(shape[1], **options) for shape in SHAPES)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.a(a)[:, 0], self.b(b).mean(1)], 1))


@pytest.mark.parametrize("config", [{"ratio": 0.5}, {"budget": PruneBudget(parameters=0.7)}], ids=["ratio", "budget"])
@pytest.mark.parametrize("qkv_in_one", [True, False], ids=["one projection", "three projections"])
@pytest.mark.parametrize("attend", [fused, by_hand])
def test_attention_keeps_its_widths_and_the_layers_around_it_are_pruned(attend, qkv_in_one, config):
    torch.manual_seed(0)
    model = Transformers(attend=attend, qkv_in_one=qkv_in_one)
    inputs, labels = batch(SHAPES)
    before = widths(model)
    removed = remove_channels(model, TAPS, inputs, labels, pruning(**config))
    after = widths(model)
    assert {name for name, width in after.items() if width < before[name]} == {"a.mlp.0", "b.mlp.0"}
    assert {root for root, _, _ in removed} == {"a.mlp.0", "b.mlp.0"}
