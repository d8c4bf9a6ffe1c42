"""With some channels absent, an operator gives for the others what it gives without those channels."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekd.training.pruning.absent import AbsentValues

GONE, STAY = [1, 2, 4, 7], [0, 3, 5, 6]  # two of each half, as a group norm of two groups needs
X = torch.randn(3, 8, 6, 5, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(1))
SCALE, SHIFT = torch.rand(2, 8, generator=torch.Generator().manual_seed(2))


def last(x):
    return x.movedim(1, -1)


def first(x):
    return x.movedim(-1, 1)


def pair(x):
    """Return the parameters for as many channels as there are."""
    return (SCALE, SHIFT) if x.shape[1] == 8 else (SCALE[STAY], SHIFT[STAY])


def columns(weight, x):
    return weight if x.shape[1] == 8 else weight[:, STAY]


#: Functions of a tensor [B, C, H, W] whose output has the same channels, or none of them.
FUNCTIONS = {
    "layer norm": lambda x: first(functional.layer_norm(last(x), (x.shape[1],), *pair(x))),
    "group norm": lambda x: functional.group_norm(x, 2, *pair(x)),
    "RMS norm": lambda x: first(functional.rms_norm(last(x), (x.shape[1],), pair(x)[0])),
    "batch norm in training": lambda x: functional.batch_norm(x, None, None, *pair(x), training=True),
    "instance norm": lambda x: functional.instance_norm(x, weight=pair(x)[0], bias=pair(x)[1]),
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(1),
    "mean": lambda x: x.mean(1),
    "mean of all": lambda x: x.mean()[None],
    "mean over positions": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum(1),
    "variance": lambda x: x.var(1),
    "variance without correction": lambda x: x.var(1, correction=0, keepdim=True),
    "standard deviation": lambda x: x.std((1, 2)),
    "maximum": lambda x: x.amax(1),
    "maximum with its place": lambda x: x.max(1).values,
    "minimum": lambda x: x.amin((1, 3)),
    "L2 norm": functional.normalize,
    "convolution": lambda x: functional.conv2d(x, columns(W, x), torch.ones(4), padding=1),
    "padding alone": lambda x: functional.conv2d(x, columns(W, x), torch.ones(4), padding=9),
    "transposed": lambda x: functional.conv_transpose2d(x, columns(W, x).transpose(0, 1)),
    "linear": lambda x: functional.linear(last(x), columns(W[..., 0, 0], x), torch.ones(4)),
    "product of two": lambda x: torch.einsum("bchw,bcvw->bhv", x, x),
    "product that keeps channels": lambda x: torch.einsum("bchw,wv->bchv", x, torch.ones(5, 2)),
    "depthwise": lambda x: functional.conv2d(x, pair(x)[0].view(-1, 1, 1, 1).expand(-1, 1, 3, 3), groups=x.shape[1]),
    "softplus": functional.softplus,
    "clamped": lambda x: x.clamp(-0.1, 0.1),
    "hardswish": functional.hardswish,
    "max pooling": lambda x: functional.max_pool2d(x, 2),
    "average pooling": lambda x: functional.adaptive_avg_pool2d(x, 2),
    "upsampling": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_what_is_there_is_computed_as_if_the_rest_had_never_been(function):
    with AbsentValues():
        given = function(X.index_fill(1, torch.tensor(GONE), torch.nan))
    expected = function(X[:, STAY])
    assert torch.allclose(given[~given.isnan()], expected.flatten(), atol=1e-5)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_layer_reads_zero(kind):
    torch.manual_seed(0)
    layer, x = kind(8, 4, batch_first=True), last(X).flatten(1, 2)
    with AbsentValues():
        given = layer(x.index_fill(2, torch.tensor(GONE), torch.nan))[0]
    assert torch.allclose(given, layer(x.index_fill(2, torch.tensor(GONE), 0.0))[0], atol=1e-6)


def test_where_nothing_is_absent_nothing_changes():
    for function in FUNCTIONS.values():
        with AbsentValues():
            given = function(X)
        assert torch.equal(given, function(X))


def test_a_tensor_of_which_all_is_absent_is_absent():
    x = torch.full((2, 3), torch.nan)
    with AbsentValues():
        outputs = [x.sum(1), x.mean(1), x.amax(1), x @ torch.ones(3, 2), functional.layer_norm(x, (3,))]
    assert all(output.isnan().all() for output in outputs)


def test_what_is_drawn_at_random_is_the_same_for_every_width():
    with AbsentValues():
        narrow, wide = (functional.dropout(torch.ones(2, width), 0.25, training=True) for width in (3, 5))
    assert torch.equal(narrow, wide[:, :3])
    assert (narrow > 0).all()
