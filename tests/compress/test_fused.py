"""Graphs of many kinds compute the same with ONNX Runtime's optimizers as without, but for what is named."""

import msgspec
import numpy as np
import onnx
import pytest
from int8 import SYMMETRIC, USUAL, int8, run
from layer_kinds import KINDS, make

from edgekd.compress.fp16 import to_half
from edgekd.compress.oracles.fused import INTEGER_KERNELS, fused_difference, relative_error

#: Schemes of processors, and that of Jetson boards, whose rest is float16.
SCHEMES = {
    "usual": USUAL,
    "one scale": msgspec.structs.replace(USUAL, per_channel=False),
    "symmetric": SYMMETRIC,
    "8 bits": msgspec.structs.replace(USUAL, reduce_range=False),
    "half": msgspec.structs.replace(SYMMETRIC, reduce_range=False),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    model, feeds = make(request.param)
    folder = tmp_path_factory.mktemp("kind")
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "samples.npz", **{f"input.{name}": x for name, x in feeds(64).items()})
    return request.param, folder, model, feeds(64, seed=2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_int8_is_the_same_fused_or_the_optimizer_is_named(kind, scheme, tmp_path):
    name, folder, model, feeds = kind
    graph, _ = int8(folder / "model.onnx", folder / "samples.npz", tmp_path / "work", SCHEMES[scheme])
    if scheme == "half":
        graph = to_half(graph)
    onnx.save(graph, tmp_path / "deploy.onnx")
    own = relative_error(run(graph, feeds)["logits"], run(model, feeds)["logits"])
    assert own < 0.03, "it is INT8 of that model"
    found = fused_difference(tmp_path / "deploy.onnx", [feeds], max(own, 0.01))
    optimizer = found and found.optimizer
    if (name, scheme) == ("conv, large bias", "half"):  # the bias is infinite at the product of float16 scales
        assert optimizer == "WeightBiasQuantization"
        assert found.error > 0.1
    elif scheme == "8 bits":
        assert optimizer in (None, INTEGER_KERNELS), "x86 with AVX2 and no VNNI saturates"
    else:
        assert found is None


def test_float16_is_the_same_fused(kind, tmp_path):
    _, _, model, feeds = kind
    half = to_half(model)
    onnx.save(half, tmp_path / "deploy.onnx")
    assert relative_error(run(half, feeds)["logits"], run(model, feeds)["logits"]) < 0.005
    assert fused_difference(tmp_path / "deploy.onnx", [feeds], 0.005) is None


def test_a_relative_error_is_one_of_roots_of_mean_squares():
    assert relative_error(np.array([3.0, 5.0]), np.array([3.0, 4.0])) == pytest.approx(1 / 5)
    assert relative_error(np.array([3.0, 4.0]), np.zeros(2)) == pytest.approx(np.sqrt(12.5))
    assert np.isnan(relative_error(np.array([np.nan, 1.0]), np.ones(2)))
