import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from small import CLASSES, SHAPES, TAPS, TwoTowers
from torch import nn
from torch.nn.utils import parametrizations

from edgekd.compress import quantize
from edgekd.compress.variants import CandidateSpec
from edgekd.config.recipe import Tap
from edgekd.config.target import Calibration, Scheme
from edgekd.training.export.onnx import ExportNetwork, write_onnx
from edgekd.training.loop.weights import build
from edgekd.training.qat.fake_quant import fake_quantized
from edgekd.training.taps.taps import TappedModel

PER_CHANNEL = Scheme(activations="uint8", symmetric_activations=False)
#: Every combination that changes a level.
SCHEMES = {
    "7-bit weights": PER_CHANNEL,
    "8-bit weights": Scheme(activations="uint8", symmetric_activations=False, reduce_range=False),
    "one scale a tensor": Scheme(activations="uint8", symmetric_activations=False, per_channel=False),
    "int8": Scheme(activations="int8", symmetric_activations=False),
    "symmetric uint8": Scheme(activations="uint8", symmetric_activations=True),
    "symmetric int8": Scheme(activations="int8", symmetric_activations=True, bias="float"),
}


class Convolutions(nn.Module):
    """Layers whose BatchNorm is folded into them: a convolution, a linear layer and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(
            nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.ConvTranspose1d(8, 6, 3), nn.BatchNorm1d(6), nn.ReLU(),
            nn.Flatten(), nn.Linear(72, 8),
        )  # fmt: skip
        self.b = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.a(a), self.b(b)], 1))


CONVOLUTION_TAPS, CONVOLUTION_SHAPES = {"a": Tap(module="a"), "b": Tap(module="b")}, {"a": (3, 12), "b": (5,)}
NETWORKS = {
    "linear layers": (TwoTowers, TAPS, SHAPES),
    "folded norms": (Convolutions, CONVOLUTION_TAPS, CONVOLUTION_SHAPES),
}


def network(make):
    """Return a network whose statistics are uneven, so that folding them changes which weight is the largest."""
    model = build(make, 0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.running_var.uniform_(0.05, 5)
            nn.init.uniform_(norm.weight, -2, 2)
    return model.eval()


def inputs(shapes, count=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}


def embeddings(model, taps, x):
    with torch.no_grad(), TappedModel(model, taps) as tapped:
        return {name: z.numpy() for name, z in tapped(list(x.values()))[1].items()}


@dataclass(frozen=True)
class Exported:
    """A network, its taps, samples, and the folder of its graph and of the samples as calibration."""

    model: nn.Module
    taps: dict[str, Tap]
    samples: dict[str, torch.Tensor]
    folder: Path


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS)
def exported(request, tmp_path_factory):
    make, taps, shapes = request.param
    model, x, folder = network(make), inputs(shapes), tmp_path_factory.mktemp("exported")
    write_onnx(ExportNetwork(model, taps), x, 20, folder / "float.onnx")
    np.savez(folder / "calibration.npz", **{f"input.{name}": value.numpy() for name, value in x.items()})
    return Exported(model, taps, x, folder)


def by_onnx_runtime(exported, scheme, folder):
    """Quantize the network as a build does, and run it node by node, as ONNX defines it."""
    way, calibration = (
        CandidateSpec("int8", "qdq"),
        Calibration(description="", ranges="minmax", rounding="nearest"),
    )
    graph, samples = exported.folder / "float.onnx", exported.folder / "calibration.npz"
    quantize.run(way, graph, samples, scheme, calibration, folder)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        folder / way.name / quantize.PROBE_GRAPH, options, providers=["CPUExecutionProvider"]
    )
    outputs = [f"embedding.{name}" for name in exported.taps]
    found = session.run(outputs, {name: value.numpy() for name, value in exported.samples.items()})
    return dict(zip(exported.taps, found, strict=True))


def noise(found, exact):
    return np.sqrt(sum(((found[name] - exact[name]) ** 2).mean() for name in exact))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_it_computes_what_onnx_runtimes_int8_computes(exported, scheme, tmp_path):
    model, taps, x = exported.model, exported.taps, exported.samples
    exact, int8 = embeddings(model, taps, x), by_onnx_runtime(exported, scheme, tmp_path)
    with fake_quantized(model, scheme) as quantized:
        quantized.calibrate(lambda: embeddings(model, taps, x))
        fake = embeddings(model, taps, x)
    assert noise(fake, int8) < 0.2 * noise(int8, exact)
    assert np.array_equal(embeddings(model, taps, x)["a"], exact["a"])


def test_it_leaves_the_network_as_it_was():
    model = network(Convolutions)
    before, kinds = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    with fake_quantized(model, PER_CHANNEL) as quantized:
        assert len(model.state_dict()) > len(before)
        quantized.calibrate(lambda: embeddings(model, CONVOLUTION_TAPS, inputs(CONVOLUTION_SHAPES)))
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [type(module) for module in model.modules()] == kinds
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_it_ends_when_what_it_holds_for_fails():
    model = build(TwoTowers, 0)
    with pytest.raises(ZeroDivisionError), fake_quantized(model, PER_CHANNEL):
        raise ZeroDivisionError
    assert set(model.state_dict()) == set(TwoTowers().state_dict())


def test_the_gradient_passes_the_rounding_straight_through():
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(32, 6)

    def gradients():
        given = x.clone().requires_grad_()
        model(given).sum().backward()
        found = [given.grad, model[0].bias.grad, *(p.grad for name, p in model.named_parameters() if "weight" in name)]
        model.zero_grad()
        return found

    exact = gradients()
    with fake_quantized(model, PER_CHANNEL) as quantized:
        quantized.calibrate(lambda: model(x))
        rounded, weight = gradients(), model[0].weight.detach()
    assert torch.allclose(rounded[0], weight.sum(0).expand(32, 6))  # of the rounded weight
    assert not torch.allclose(rounded[0], exact[0], atol=1e-6)
    assert torch.allclose(rounded[1], exact[1])
    assert torch.allclose(rounded[2], exact[2], atol=0.2)  # of the rounded input, which no level is far from


def test_weights_have_as_many_levels_as_the_scheme_says():
    model = nn.Sequential(nn.Linear(512, 2))
    for reduce_range, levels in [(True, 129), (False, 255)]:
        scheme = Scheme(activations="uint8", symmetric_activations=False, reduce_range=reduce_range)
        with fake_quantized(model, scheme):
            steps = model[0].weight / model[0].weight.abs().amax(1, keepdim=True) * (levels // 2)
        assert torch.allclose(steps, steps.round(), atol=1e-4)
        assert steps.abs().max() == levels // 2
        assert len(steps.round().unique()) > 0.8 * levels


@pytest.mark.parametrize(
    ("operators", "rounded"),
    [(["Conv"], {"a.0"}), (["ConvTranspose"], {"a.3"}), (["Gemm"], {"a.7", "b.0", "b.3", "head"}), (["Relu"], set())],
)
def test_only_what_the_scheme_quantizes_is_rounded(operators, rounded):
    model = network(Convolutions)
    weights = {name: m.weight.clone() for name, m in model.named_modules() if hasattr(m, "weight")}
    scheme = Scheme(activations="uint8", symmetric_activations=False, operators=operators)
    with fake_quantized(model, scheme):
        found = {name for name, weight in weights.items() if not torch.equal(weight, model.get_submodule(name).weight)}
    assert found == rounded


def test_the_ranges_travel_with_the_networks_state():
    first, second = build(TwoTowers, 0), build(TwoTowers, 1)
    x = list(inputs(SHAPES).values())
    with fake_quantized(first, PER_CHANNEL) as quantized, fake_quantized(second, PER_CHANNEL):
        quantized.calibrate(lambda: first(*x))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(*x), second(*x))


def test_a_calibration_forgets_the_one_before():
    model, x = build(TwoTowers, 0), list(inputs(SHAPES).values())
    with fake_quantized(model, PER_CHANNEL) as quantized:
        quantized.calibrate(lambda: model(*x))
        expected = model(*x)
        quantized.calibrate(lambda: model(*(100 * value for value in x)))
        assert not torch.equal(model(*x), expected)
        quantized.calibrate(lambda: model(*x))
        assert torch.equal(model(*x), expected)


class Unusual(nn.Module):
    """An input that is always 0, a norm without statistics, attention that calls no layer, a computed weight."""

    def __init__(self):
        super().__init__()
        self.silent, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False, track_running_stats=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.computed = parametrizations.weight_norm(nn.Linear(8, CLASSES))

    def forward(self, x):
        z = self.norm(self.silent(0 * x))[:, None] + 1
        return self.computed(self.attention(z, z, z)[0][:, 0])


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_it_takes_unusual_layers(scheme):
    model, x = build(Unusual, 0).eval(), torch.randn(8, 6)
    exact = model(x)
    with fake_quantized(model, scheme) as quantized:
        quantized.calibrate(lambda: model(x))
        fake = model(x)
        fake.sum().backward()
    assert torch.allclose(fake, exact, atol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.equal(model(x), exact)


def test_it_computes_under_autocast():
    model, x = build(TwoTowers, 0), list(inputs(SHAPES).values())
    with fake_quantized(model, PER_CHANNEL) as quantized, torch.autocast("cpu", torch.bfloat16):
        quantized.calibrate(lambda: model(*x))
        logits = model(*x)
    assert logits.dtype == torch.bfloat16
    assert torch.allclose(logits.float(), model(*x), atol=0.05)
