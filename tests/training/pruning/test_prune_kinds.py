"""Networks of many kinds: each layer is cut rightly, or keeps its width and is named."""

import copy
import re

import pytest
import torch
from kinds import (
    IMAGE,
    VECTOR,
    Attended,
    Auxiliary,
    AuxiliaryMap,
    AuxiliaryVector,
    Bag,
    Beside,
    Borrowed,
    ChannelsLast,
    ConformerBlock,
    ConvNext,
    Decoder,
    DeeplySupervised,
    Doubtful,
    Einsum,
    Excited,
    Flat,
    Flipped,
    FlippedResidual,
    Folded,
    Frames,
    Grouped,
    Halved,
    Indexed,
    Interleaved,
    LastState,
    MBConv,
    Mixer,
    Normed,
    OneEncoder,
    Recurrent,
    Rolled,
    ScaleNorm,
    Shuffled,
    ShuffleUnit,
    Shuffling,
    Sides,
    Slices,
    Split,
    StochasticDepth,
    Tokens,
    Transformer,
    UNet,
    Whispered,
)
from pruned import batch, cutter, pruning, taps, widths
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from edgekd.config.recipe import PruneBudget
from edgekd.config.target import Scheme
from edgekd.training.loop.weights import build
from edgekd.training.pruning.candidates import find_prunable
from edgekd.training.pruning.groups import remove_channels
from edgekd.training.pruning.tracing import Trace
from edgekd.training.qat.fake_quant import fake_quantized
from edgekd.training.task.protocol import Batch

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")

TAPS = taps("a", "b")
ARGUMENTS = batch([IMAGE, VECTOR], 12)


def beside(make, *arguments, **options):
    return lambda: Beside(make(*arguments, **options))


#: Networks whose layers are all cut but embeddings and logits: for each layer that is cut first the others that lose
#: the same channels, among them norms.
CUT = {
    "flattened": (beside(Flat), {"a.conv": []}),
    "GRU": (beside(Recurrent), {"a.conv": []}),
    "RNN": (beside(Recurrent, nn.RNN), {"a.conv": []}),
    "two LSTMs": (beside(Recurrent, nn.LSTM, num_layers=2), {"a.conv": []}),
    "GRU both ways": (beside(Recurrent, bidirectional=True), {"a.conv": []}),
    "last state of an LSTM both ways": (beside(LastState), {"a.conv": []}),
    "batch norm": (beside(Grouped, lambda: nn.BatchNorm2d(32)), {"a.conv": ["a.norm"]}),
    "PReLU": (beside(Grouped, lambda: nn.PReLU(32)), {"a.conv": []}),
    "channel attention": (beside(Excited), {"a.conv": ["a.up"], "a.down": []}),
    "depthwise and residual": (beside(Folded), {"a.conv": ["a.depth", "a.norm", "a.point"]}),
    "embedding": (beside(Tokens), {"a.beside": ["a.embedding"], "a.hidden": []}),
    "auxiliary head": (Auxiliary, {"stem.0": ["stem.1"], "aux.0": []}),
    "deep supervision": (DeeplySupervised, {"first": [], "second": [], "aux.0": ["aux.1"]}),
    "slices": (beside(Slices), {"a.conv": [], "a.sliced": [], "a.point": []}),
    "auxiliary vector": (AuxiliaryVector, {"stem.0": ["stem.1"]}),
    "stochastic depth": (beside(StochasticDepth), {"a.conv": ["a.second"], "a.first": []}),
    "U-Net": (
        beside(UNet),
        {"a.up": [], "a.up2": []}
        | {name: [f"{name[:-1]}1"] for name in ("a.down.0", "a.deep.0", "a.bottom.0", "a.join.0", "a.join2.0")},
    ),
    "MBConv": (
        beside(MBConv),
        {
            "a.conv": ["a.project.0", "a.project.1"],
            "a.expand.0": ["a.expand.1", "a.depth.0", "a.depth.1", "a.gate.3"],
            "a.gate.1": [],
        },
    ),
}

#: Networks of which some layers keep their width: for each of these layers what is said of it.
LEFT = {
    "channels last": (beside(ChannelsLast), {"a.conv": r"'a.out' \(kinds.py:\d+\) does not give what"}),
    "frames in the batch": (beside(Frames), {"a.conv": r"'a.out' \(kinds.py:\d+\) does not give what"}),
    "shuffled": (beside(Shuffled), {"a.conv": r"'a.mix' \(kinds.py:\d+\) does not give what"}),
    "rolled": (beside(Rolled), {"a.conv": r"'a.out' \(kinds.py:\d+\) does not give what"}),
    "flipped": (beside(Flipped), {"a.conv": r"'a.out' \(kinds.py:\d+\) does not give what"}),
    "flipped residual": (beside(FlippedResidual), {"a.conv": "does not give what", "a.second": "does not give what"}),
    "whispered": (beside(Whispered), {"a.wide": r"'a.narrow' \(kinds.py:\d+\) does not give what"}),
    "indexed": (beside(Indexed), {"a.conv": r"out of bounds.* \(kinds.py:\d+\)"}),
    "interleaved": (beside(Interleaved), {"a.conv": r"the network fails"}),
    "RMSNorm": (beside(Normed, lambda: nn.RMSNorm(32)), {"a.conv": r"normalized_shape.* \(kinds.py:\d+\)"}),
    "split": (beside(Split), {"a.conv": r"\(kinds.py:\d+\)", "a.second": r"\(kinds.py:\d+\)"}),
    "mixer": (beside(Mixer), {"a.conv": r"\(kinds.py:\d+\)"}),
    "shared weight": (
        beside(Sides, "tied"),
        {"a.left": "'a.left' shares its weight with 'a.right'", "a.right": "'a.right' shares its weight with 'a.left'"},
    ),
    "weight_norm": (beside(Sides, "weight_norm"), {"a.left": "the weight of 'a.left' is computed"}),
    "spectral_norm": (beside(Sides, "spectral"), {"a.left": "the weight of 'a.left' is computed"}),
    "weight_norm of an LSTM": (
        beside(Recurrent, lambda *given, **named: weight_norm(nn.LSTM(*given, **named), "weight_ih_l0")),
        {"a.conv": "the weight of 'a.rnn' is computed"},
    ),
    "old weight_norm": (beside(Sides, "old"), {"a.left": "the weight of 'a.left' is computed"}),
    "borrowed weight": (beside(Borrowed), {"a.lent": "its weight is read without a call"}),
    "transposed slices": (beside(Slices, transposed=True), {"a.sliced": "the network fails", "a.conv": "fails"}),
    "GLU": (beside(Halved), {"a.wide": r"\(kinds.py:\d+\)"}),
    "bag of tokens": (beside(Bag), {"a.conv": r"'a.bag' \(kinds.py:\d+\) does not give what"}),
    "einsum": (beside(Einsum), {"a.conv": r"einsum.* \(kinds.py:\d+\)"}),
    "spatial attention": (beside(Attended), {"a.conv": r"\(kinds.py:\d+\)"}),
    "PixelShuffle": (beside(Shuffling), {"a.conv": "the network fails"}),
    "auxiliary head, channels last": (AuxiliaryMap, {"stem.0": r"'aux.0' \(kinds.py:\d+\) does not give what"}),
    "decoder": (beside(Decoder), {"a.inputs": "the recurrent layer 'a.cell'", "a.say": "the recurrent layer 'a.cell'"}),
    "ShuffleNet": (beside(ShuffleUnit), {"a.conv": r"\(kinds.py:\d+\)", "a.branch.5": r"\(kinds.py:\d+\)"}),
    "Conformer": (beside(ConformerBlock), {"a.wide": r"\(kinds.py:\d+\)", "a.depth": r"\(kinds.py:\d+\)"}),
}

#: Networks of which all is cut, with norms or activations that make something of a zero.
OTHERS = {
    "LayerNorm": (beside(Normed, lambda: nn.LayerNorm(32)), {"a.conv"}),
    "RMSNorm by hand": (beside(Normed, ScaleNorm), {"a.conv"}),
    "GroupNorm": (beside(Grouped, lambda: nn.GroupNorm(4, 32)), {"a.conv"}),
    "InstanceNorm": (beside(Grouped, lambda: nn.InstanceNorm2d(32, affine=True)), {"a.conv"}),
    "softplus": (beside(Doubtful), {"a.conv"}),
    "transformer": (beside(Transformer), {"a.block.linear1"}),
    "ConvNeXt": (beside(ConvNext), {"a.conv", "a.depth", "a.wide", "a.narrow"}),
    "one encoder": (OneEncoder, {"a.0"}),
}


def cut_in_half(make, **config):
    model = build(make, 0)
    return model, cutter(model, TAPS, *ARGUMENTS, pruning(**{"ratio": 0.5, "importance": "magnitude", **config})).cut()


def shrunk(model, make):
    before = widths(build(make, 0))
    return {name for name, width in widths(model).items() if width < before[name]}


def zeroed(make, removed, together):
    """Return the network with the removed channels set to zero where they are made, and normalised."""
    model = build(make, 0)
    groups = [{root, *others} for root, others in together.items()] + [{"b.0"}]
    with torch.no_grad():
        for root, _, channels in removed:
            (paths,) = [paths for paths in groups if root in paths]
            for layer in map(model.get_submodule, paths):
                by_column = isinstance(layer, nn.Embedding | nn.ConvTranspose2d)
                (layer.weight.transpose(0, 1) if by_column else layer.weight)[channels] = 0
                if getattr(layer, "bias", None) is not None:
                    layer.bias[channels] = 0
    return model


def distance(given, expected):
    given, expected = given.detach(), expected.detach()
    return float((given - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("make", "together"), CUT.values(), ids=CUT)
def test_what_is_cut_computes_what_it_does_with_the_channels_at_zero(make, together):
    model, cut = cut_in_half(make)
    layers = {path for paths in ([root, *others] for root, others in together.items()) for path in paths}
    weighted = {path for path in layers if path in widths(model)}
    assert shrunk(model, make) == weighted | {"b.0"}
    assert cut.warnings == []
    expected = zeroed(make, cut.removed, together)
    with torch.no_grad():
        given, known = (network.eval()(*ARGUMENTS[0]) for network in (model, expected))
    assert distance(given, known) < 1e-5


@pytest.mark.parametrize(("make", "reasons"), LEFT.values(), ids=LEFT)
def test_what_cannot_be_cut_is_named_and_computes_what_it_did(make, reasons):
    model, cut = cut_in_half(make)
    assert shrunk(model, make).isdisjoint(reasons)
    assert "b.0" in shrunk(model, make)
    for path, reason in reasons.items():
        told = next(each for each in cut.warnings if path in re.split(r"[', ]+", each.partition(":")[0]))
        assert re.search(reason, told), told
    if shrunk(model, make) == {"b.0"}:
        with torch.no_grad():
            ours, before = (network.eval().a(ARGUMENTS[0][0]) for network in (model, build(make, 0)))
        assert torch.equal(ours, before)


@pytest.mark.parametrize(("make", "layers"), OTHERS.values(), ids=OTHERS)
def test_a_norm_over_channels_or_an_activation_of_zero_is_no_reason_to_stay(make, layers):
    model, cut = cut_in_half(make)
    assert shrunk(model, make) - {"b.0"} == layers
    assert cut.warnings == []


def test_a_norm_over_channels_is_one_over_those_that_stay():
    for make in (OTHERS["LayerNorm"][0], OTHERS["softplus"][0]):
        model, cut = cut_in_half(make)
        a, before = model.a.eval(), build(make, 0).a.eval()
        gone = {root: channels for root, _, channels in cut.removed}["a.conv"]
        stay = [channel for channel in range(32) if channel not in gone]
        x = before.conv(ARGUMENTS[0][0]).relu()[:, stay]
        if hasattr(before, "norm"):
            weights = before.norm.weight[stay], before.norm.bias[stay]
            read = functional.layer_norm(x.flatten(2).transpose(1, 2), (16,), *weights).mean(1)
        else:
            read = functional.softplus(x).sigmoid().mean((2, 3))
        expected = functional.linear(read, before.out.weight[:, stay], before.out.bias)
        assert distance(a(ARGUMENTS[0][0]), expected) < 1e-5


KINDS = {name: make for table in (CUT, LEFT, OTHERS) for name, (make, _) in table.items()}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_kind_is_pruned_to_a_budget_trained_and_cut_again_from_the_record(make):
    budget = PruneBudget(parameters=0.9)
    model, cut = cut_in_half(make, budget=budget, importance="gram")
    outputs = model.train()(*ARGUMENTS[0])
    outputs = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(sum(x.sum() for x in outputs))
    again = build(make, 1)
    remove_channels(again, Trace.of(again, ARGUMENTS[0]), cut.removed)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("kind", ["tied", "weight_norm", "spectral", "old"])
def test_a_cut_network_whose_weights_are_shared_or_computed_is_trained_with_fake_quantization(kind):
    model, _ = cut_in_half(beside(Sides, kind))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with fake_quantized(model, Scheme(activations="uint8", symmetric_activations=False)) as quantized:
        quantized.calibrate(lambda: model.eval()(*ARGUMENTS[0]))
        optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
        torch.autograd.backward(model(*ARGUMENTS[0]).square().sum())
        optimizer.step()
        rounded = model.eval()(*ARGUMENTS[0])
    after = model.state_dict()
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in state.items()}
    assert any(not torch.equal(value, state[key]) for key, value in after.items() if key.startswith("a.left"))
    assert (model.a.left.weight is model.a.right.weight) == (kind == "tied")
    assert 0 < distance(rounded, model(*ARGUMENTS[0])) < 0.1


@pytest.mark.parametrize("make", [LEFT["weight_norm"][0], beside(Sides, "old"), CUT["auxiliary head"][0]])
def test_what_would_be_cut_is_found_on_a_copy(make):
    model = build(make, 0).train()
    before = copy.deepcopy(model.state_dict())
    inputs, labels = ARGUMENTS
    samples = Batch([""] * 12, dict(zip("ab", inputs, strict=True)), labels, [""] * 12)
    found = find_prunable(model, TAPS, samples, pruning())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert "b.0" in found.widths
    cut = cutter(build(make, 0), TAPS, *ARGUMENTS, pruning()).cut()
    assert [str(refusal) for refusal in found.refusals] == cut.warnings
    assert {root for root, _, _ in cut.removed} <= set(found.widths)


def test_a_frozen_part_is_cut_like_any_other():
    def make():
        model = Auxiliary()
        model.stem.requires_grad_(False)
        return model

    model, cut = cut_in_half(make)
    assert shrunk(model, make) == {"stem.0", "aux.0", "b.0"}
    assert cut.warnings == []


def test_layers_that_are_not_asked_for_a_share_are_not_warned_of():
    make = LEFT["channels last"][0]
    assert cut_in_half(make, ratios={"a": 0.0})[1].warnings == []
    assert cut_in_half(make, round_to=32)[1].warnings == []
    assert len(cut_in_half(make)[1].warnings) == 1


def test_a_budget_that_such_layers_make_impossible_is_said_and_the_rest_is_pruned():
    model, cut = cut_in_half(LEFT["channels last"][0], budget=PruneBudget(parameters=0.3))
    assert widths(model)["b.0"] == 8
    assert re.search(r"budget = 30.0% of the parameters cannot be met: .* still takes \d", cut.warnings[-1])


def test_a_network_that_torch_pruning_cannot_read_stays_as_it_is():
    class OfTwelve(Beside):
        def forward(self, a, b):
            return super().forward(a.view(12, *IMAGE), b)

    _, cut = cut_in_half(lambda: OfTwelve(Flat()))
    assert cut.removed == []
    (warning,) = cut.warnings
    assert warning.startswith("'OfTwelve' keeps all channels: torch-pruning cannot read OfTwelve: shape")
