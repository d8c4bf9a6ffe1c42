"""Importance "gram": by hand where that can be done, and by what it is for."""

import pytest
import torch
from pruned import Wide, batch, cutter, pruning, taps, widths
from small import CLASSES, SHAPES, TAPS, mlp
from torch import nn
from torch.nn.functional import cosine_similarity

from edgekd.config.recipe import Tap
from edgekd.training.loop.autograd_layers import matrix, parameters_trainable, set_matrix
from edgekd.training.loop.weights import build
from edgekd.training.pruning.curvature import ImportanceInputs, sensitivities
from edgekd.training.pruning.obs import _GroupReader, _GroupSlice, _one_by_one
from edgekd.training.taps.taps import TappedModel
from edgekd.training.task.protocol import Batch

SAMPLES = 600


def evidence(model, tap=TAPS, shapes=SHAPES, count=SAMPLES):
    inputs, labels = batch(shapes.values(), count)
    whole = Batch([""] * count, dict(zip(shapes, inputs, strict=True)), labels, [""] * count)
    return ImportanceInputs(model.eval(), tap, [whole], 0)


def known(model, **options):
    given = evidence(model, **options)
    with parameters_trainable(model):
        return given, sensitivities(given)


def derivatives(value, outputs):
    """Each sample's derivative of its own entry of ``value`` [B] by its own outputs."""
    return torch.autograd.grad(value.sum(), outputs, retain_graph=True)[0].double()


def test_what_the_gram_feels_of_an_embedding_is_the_derivative_of_its_cosine():
    model = build(Wide, 0)
    given, found = known(model)
    _, z = TappedModel(model, TAPS).__enter__()(list(given.samples[0].inputs.values()))
    a = z["a"].detach().requires_grad_()
    g = derivatives(cosine_similarity(a, z["b"].detach()), a)
    # Two modalities have one entry, whose sign does not matter once it is squared: nothing is left to chance.
    assert torch.allclose(found[model.encoders["a"][2]].gram, g.T @ g / SAMPLES, rtol=0.01, atol=1e-5)
    assert not found[model.head[1]].gram.any(), "the Gram does not see the fusion head"


def test_what_the_prediction_feels_is_the_fisher_information():
    model = build(Wide, 0)
    given, found = known(model)
    logits = TappedModel(model, {}).read(list(given.samples[0].inputs.values())).answers["logits"]
    p = logits.detach().softmax(1).double()
    # By the logits themselves: E[(e_y - p)(e_y - p)^T] = diag(p) - p p^T.
    expected = torch.diag(p.mean(0)) - p.T @ p / SAMPLES
    assert torch.allclose(found[model.head[3]].task, expected, atol=0.02)


def test_what_a_layer_reads_is_counted_with_a_constant():
    model = build(Wide, 0)
    given, found = known(model)
    x = given.samples[0].inputs["a"].double()
    x = torch.cat([x, torch.ones(SAMPLES, 1)], 1)
    assert torch.allclose(found[model.encoders["a"][0]].moment, x.T @ x / SAMPLES)


def test_three_modalities_give_every_pair_its_share():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)
            for layer in self.children():
                nn.init.constant_(layer.bias, 2.0)  # away from 0, where a cosine turns sharply

        def forward(self, a, b, c):
            return self.a(a) + self.b(b) + self.c(c)

    model = build(Three, 0)
    given, found = known(model, tap={n: taps(n, n)["a"] for n in "abc"}, shapes=dict.fromkeys("abc", (4,)), count=2000)
    _, z = TappedModel(model, given.taps).__enter__()(list(given.samples[0].inputs.values()))
    a = z["a"].detach().requires_grad_()
    pairs = [derivatives(cosine_similarity(a, z[other].detach()), a) for other in "bc"]
    expected = sum(g.T @ g for g in pairs) / 2000
    assert torch.allclose(found[model.a].gram, expected, atol=0.05 * expected.diagonal().max())


def test_a_layer_too_wide_to_hold_keeps_its_width_and_the_rest_is_pruned():
    def make():
        model = Wide()
        model.encoders["a"] = mlp(6, 9000, 16)
        return model

    model = build(make, 0)
    cut = cutter(model, TAPS, *batch([(6,), (5,)], 40), pruning(importance="gram")).cut()
    assert widths(model)["encoders.a.0"] == 9000
    assert widths(model)["encoders.b.0"] == 48
    (warning,) = cut.warnings
    assert warning.startswith("'encoders.a.0' keeps its 9000 channels: importance = 'gram'")
    assert "more than 8192" in warning


def test_what_no_output_reads_together_is_not_counted_together():
    model = build(lambda: RepeatedMaps(slices=2), 0)
    _, found = known(model, tap=MAPS, shapes={"a": (6, 20), "b": (5,)}, count=50)
    moment = found[model.read].moment
    assert not moment[:8, 8:].any()
    assert not moment[8:, :8].any()
    assert moment[:8, :8].all()


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (5, 6)),
    "convolution": (lambda: nn.Conv1d(6, 4, 1), (5, 6, 3)),
    "in slices": (lambda: nn.Conv2d(6, 4, 1, groups=2), (5, 6, 2, 2)),
    "depthwise": (lambda: nn.Conv1d(6, 6, 1, groups=6), (5, 6, 3)),
    "transposed": (lambda: nn.ConvTranspose1d(6, 4, 1), (5, 6, 3)),
    "transposed in slices": (lambda: nn.ConvTranspose2d(6, 4, 1, groups=2), (5, 6, 2, 2)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layers_matrix_is_what_it_does_to_its_channels(make, shape):
    layer, x = make(), torch.randn(shape)
    rows = (x if x.dim() == 2 else x.movedim(1, -1)).double()
    dense = matrix(layer)[..., 0]
    constant = dense.shape[1] - 6
    if constant:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
    expected = layer(x) if x.dim() == 2 else layer(x).movedim(1, -1)
    if layer.bias is not None and not constant:
        expected = expected - layer.bias
    assert torch.allclose(rows @ dense.T, expected.double(), atol=1e-6)


@pytest.mark.parametrize("make", [make for make, _ in LAYERS.values()], ids=LAYERS)
def test_a_layer_takes_its_matrix_back(make):
    layer, other = make(), make()
    set_matrix(other, matrix(layer))
    assert torch.equal(other.weight, layer.weight)
    if matrix(layer).shape[1] > 6:
        assert torch.equal(other.bias, layer.bias)


def least_loss(weight, outputs, moment, gone):
    """Minimise tr(G dW S dW^T) over dW whose columns ``gone`` cancel those of W."""
    stay = [c for c in range(weight.shape[1]) if c not in gone]
    change = torch.zeros_like(weight)
    change[:, gone] = -weight[:, gone]
    change[:, stay] = weight[:, gone] @ torch.linalg.solve(moment[stay][:, stay], moment[stay][:, gone]).T
    return float(torch.trace(outputs @ change @ moment @ change.T))


def test_channels_cost_what_is_lost_once_the_others_make_up_for_them():
    torch.manual_seed(0)
    weight, x, g = torch.randn(5, 6).double(), torch.randn(50, 6).double(), torch.randn(9, 5).double()
    moment, outputs = x.T @ x / 50, g.T @ g
    part = _GroupSlice(nn.Linear(6, 5), torch.arange(4), torch.arange(4))  # two more columns are of another group
    reader = _GroupReader(part, weight.T @ outputs @ weight, torch.linalg.inv(moment))
    alone = [least_loss(weight, outputs, moment, [c]) for c in range(4)]
    assert reader.costs(4).tolist() == pytest.approx(alone)
    first = min(range(4), key=alone.__getitem__)
    reader.remove(first)
    for c in {*range(4)} - {first}:
        both = least_loss(weight, outputs, moment, [first, c])
        assert float(reader.costs(4)[c]) == pytest.approx(both - alone[first])


def test_a_channel_that_another_repeats_is_worth_nothing_until_the_other_goes():
    moment = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double() + 1e-9 * torch.eye(3)
    part = _GroupSlice(nn.Linear(3, 1), torch.arange(3), torch.arange(3))
    readers = [_GroupReader(part, torch.ones(3, 3).double(), torch.linalg.inv(moment))]
    importance = _one_by_one(readers, 3).sort().values.tolist()
    # The twins weigh 1 + 1 together, so the last of them takes (1 + 1)^2 with it.
    assert importance == pytest.approx([0, 1, 4], abs=1e-6)


def test_a_channel_that_is_read_at_several_positions_is_lost_at_all_of_them():
    """Of the first channel each position alone would be made up for by the other one, which goes with it."""
    torch.manual_seed(0)
    said = torch.randn(2000, 1).double()
    x = torch.cat([said, said + 0.01 * torch.randn(2000, 1), torch.randn(2000, 2)], 1).double()
    weight, outputs, moment = torch.tensor([[1, 1, 0.3, 0.3]]).double(), torch.eye(1).double(), x.T @ x / 2000
    part = _GroupSlice(nn.Identity(), torch.arange(4), torch.tensor([0, 0, 1, 1]))
    costs = _GroupReader(part, weight.T @ outputs @ weight, torch.linalg.inv(moment)).costs(2)
    for cost, gone, stay in ((costs[0], [0, 1], [2, 3]), (costs[1], [2, 3], [0, 1])):
        lost = x[:, gone] @ weight[:, gone].T
        left = lost - x[:, stay] @ torch.linalg.lstsq(x[:, stay], lost).solution
        assert torch.allclose(cost, left.square().mean(), rtol=1e-6)


class Repeated(Wide):
    """Of each hidden layer the second half repeats the first, and is read with weights of its own."""

    def __init__(self):
        super().__init__()
        for layer in (self.encoders["a"][0], self.encoders["b"][0], self.head[1]):
            half = layer.out_features // 2
            with torch.no_grad():
                layer.weight[half:] = 2 * layer.weight[:half]
                layer.bias[half:] = 2 * layer.bias[:half]


class RepeatedMaps(nn.Module):
    """The same in convolutions: padded, strided, in slices, transposed, and without a bias."""

    def __init__(self, slices=1, transposed=False):
        super().__init__()
        self.make = nn.Conv1d(6, 16, 3, padding=1)
        with torch.no_grad():
            self.make.weight.view(2, 2, 4, 6, 3)[:, 1] = self.make.weight.view(2, 2, 4, 6, 3)[:, 0]
            self.make.bias.view(2, 2, 4)[:, 1] = self.make.bias.view(2, 2, 4)[:, 0]
        kind = nn.ConvTranspose1d if transposed else nn.Conv1d
        self.read = kind(16, 8, 3, padding=1, stride=2, groups=slices, bias=False)
        self.b, self.head = mlp(5, 32, 8), nn.Linear(16, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.read(self.make(a).relu()).mean(2), self.b(b)], 1))


MAPS = {"a": Tap(module="read", pool="spatial"), "b": Tap(module="b")}


@pytest.mark.parametrize(
    ("make", "tap", "shapes", "ignore", "shrunk"),
    [
        (Repeated, TAPS, [(6,), (5,)], [], "encoders.b.0"),
        (RepeatedMaps, MAPS, [(6, 20), (5,)], ["b"], "make"),
        (lambda: RepeatedMaps(slices=2), MAPS, [(6, 20), (5,)], ["b"], "make"),
        (lambda: RepeatedMaps(transposed=True), MAPS, [(6, 20), (5,)], ["b"], "make"),
    ],
    ids=["linear", "convolution", "in slices", "transposed"],
)
@pytest.mark.parametrize("importance", ["gram", "magnitude"])
def test_what_others_can_make_up_for_goes_and_nothing_changes(make, tap, shapes, ignore, shrunk, importance):
    model = build(make, 0)
    inputs, labels = batch(shapes, 200)
    before = model.eval()(*inputs).detach()
    cutter(model, tap, inputs, labels, pruning(ratio=0.5, round_to=4, importance=importance, ignore=ignore)).cut()
    assert widths(model)[shrunk] == widths(make())[shrunk] // 2
    change = float((model(*inputs).detach() - before).abs().max() / before.abs().max())
    assert (change < 0.05) == (importance == "gram"), change


class ReadByRecurrence(nn.Module):
    """A layer that no layer with a plain weight reads; half of its channels are silent."""

    def __init__(self):
        super().__init__()
        self.make, self.read, self.a = nn.Linear(3, 16), nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 8)
        self.b, self.head = mlp(5, 32, 8), nn.Linear(16, CLASSES)
        with torch.no_grad():
            self.make.weight[8:], self.make.bias[8:] = 0, 0

    def forward(self, a, b):
        return self.head(torch.cat([self.a(self.read(self.make(a))[0].mean(1)), self.b(b)], 1))


def test_where_no_weight_reads_a_channel_those_that_make_it_say():
    config = pruning(ratio=0.5, importance="gram", ignore=["b"])
    removed = cutter(build(ReadByRecurrence, 0), taps("a", "b"), *batch([(7, 3), (5,)]), config).cut().removed
    assert removed == [("make", True, list(range(8, 16)))]


def test_the_same_seed_gives_the_same_cut():
    def cut():
        model = build(Wide, 0)
        removed = cutter(model, TAPS, *batch([(6,), (5,)], 40), pruning(ratio=0.5, importance="gram")).cut().removed
        return removed, model.state_dict()

    (first, weights), (again, same) = cut(), cut()
    assert first == again
    assert all(torch.equal(weights[key], same[key]) for key in weights)
