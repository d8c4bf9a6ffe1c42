"""Networks of many kinds go all the way: pruned, trained, exported, quantized and run."""

import re

import kinds
import numpy as np
import onnx
import pytest
import torch
from kinds import Beside
from pruned import cutter, pruning, taps, widths
from sequences import SEQUENCES
from small import CLASSES
from torch import nn

from edgekd.compress import quantize
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import Calibration, Scheme
from edgekd.gram.npz import INPUT_PREFIX
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import write_arrays
from edgekd.training.export.onnx import ExportNetwork, write_onnx
from edgekd.training.loop.autograd_layers import train_unfrozen
from edgekd.training.loop.weights import build
from edgekd.training.qat.fake_quant import fake_quantized

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")

TAPS, SCHEME = taps("a", "b"), Scheme(activations="uint8", symmetric_activations=False)
CALIBRATION = Calibration(description="", ranges="minmax", samples=64)

OTHERS = {
    "ConvNeXt": kinds.ConvNext,
    "C2f": kinds.Split,
    "PixelShuffle": kinds.Shuffling,
}
NETWORKS = {name: lambda make=make: Beside(make()) for name, make in {**SEQUENCES, **OTHERS}.items()}
NETWORKS["auxiliary head"] = kinds.Auxiliary

#: For networks of which a layer keeps its width the layers, as the warnings name them; of the others all are cut.
KEPT = {
    "tied tokens": {"a.told", "a.inputs"},
    "old weight_norm": {"a.first", "a.inputs"},
    "spectral_norm": {"a.first", "a.inputs"},
    "gated, with RMSNorm": {"a.narrow"},
    "C2f": {"a.second", "a.conv"},
    "PixelShuffle": {"a.conv"},
}


def samples(model):
    draw = torch.Generator().manual_seed(0)
    shapes = getattr(getattr(model, "a", None), "shape", kinds.IMAGE), kinds.VECTOR
    return [torch.randn(64, *shape, generator=draw) for shape in shapes], torch.arange(64) % CLASSES


def train(model, inputs, labels):
    """Take a step of fine-tuning, and one with fake quantization."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with fake_quantized(model, SCHEME) as quantized:
        for _ in range(2):
            train_unfrozen(model)
            optimizer.zero_grad()
            outputs = model(*inputs)
            logits, *further = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = nn.functional.cross_entropy(logits, labels)
            torch.autograd.backward(loss + sum(x.square().mean() for x in further))
            optimizer.step()
            quantized.calibrate(lambda: model.eval()(*inputs))


def answers(graph, inputs):
    with open_engine(graph) as session:
        return session.run({name: x.numpy() for name, x in zip("ab", inputs, strict=True)})["logits"]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_pruned_trained_exported_and_quantized(name, tmp_path):
    model = build(NETWORKS[name], 0)
    inputs, labels = samples(model)
    before = widths(model)
    few = [x[:12] for x in inputs]
    cut = cutter(model, TAPS, few, labels[:12], pruning(ratio=0.5, importance="magnitude")).cut()
    assert {re.match(r"'([\w.]+)' keeps", warning)[1] for warning in cut.warnings} == KEPT.get(name, set())
    after = widths(model)
    assert all(after[path] == before[path] for path in KEPT.get(name, set()))
    assert sum(after.values()) < sum(before.values()) - 16 or name in KEPT

    train(model, inputs, labels)
    write_onnx(ExportNetwork(model, TAPS), dict(zip("ab", few, strict=True)), 18, tmp_path / "float.onnx")
    with torch.no_grad():
        expected = model.eval()(*inputs).numpy()
    for count in (1, 64):
        given = answers(tmp_path / "float.onnx", [x[:count] for x in inputs])
        np.testing.assert_allclose(given, expected[:count], atol=1e-4 * np.abs(expected).max())

    columns = {INPUT_PREFIX + key: x.numpy() for key, x in zip("ab", inputs, strict=True)}
    write_arrays(tmp_path / "samples.npz", {"ids": np.arange(64).astype(str), "labels": labels.numpy(), **columns})
    spec = CandidateSpec("int8", "qdq")
    quantize.run(spec, tmp_path / "float.onnx", tmp_path / "samples.npz", SCHEME, CALIBRATION, tmp_path)
    graph = tmp_path / spec.name / "deploy.onnx"
    assert np.sqrt(np.mean((answers(graph, inputs) - expected) ** 2)) < 0.1 * expected.std()
    assert all(layer in rounded(graph) for layer in ("head", "b.0"))


def rounded(path):
    """Return the layers of a graph that compute in INT8."""
    nodes = onnx.load(path).graph.node
    given = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    return {node.name for node in nodes if len(given.intersection(node.input[:2])) == 2}
