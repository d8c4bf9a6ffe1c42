import os
import pickle
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from small import TwoTowers
from torch import nn

from edgekd.errors import ModelError
from edgekd.training.loop.weights import build, load_weights, save_weights


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_seed_alone_decides_the_first_weights():
    torch.manual_seed(99)
    first = build(TwoTowers, 1)
    torch.randn(7)
    assert same(first, build(TwoTowers, 1))
    assert not same(first, build(TwoTowers, 2))


def test_weights_drawn_from_any_generator_depend_on_the_seed_alone():
    def network():
        layer = nn.Linear(1, 2)
        layer.weight.data[:, 0] = torch.tensor([random.random(), np.random.rand()])
        return layer

    assert same(build(network, 2**40), build(network, 2**40))
    assert not same(build(network, 1), build(network, 2))


def test_safetensors_come_back(tmp_path):
    model = build(lambda: TwoTowers(norm=True), 0)
    model(torch.randn(8, 6), torch.randn(8, 5))  # so that the norm has statistics
    save_weights(model, tmp_path / "w.safetensors")
    assert same(model, load_weights(build(lambda: TwoTowers(norm=True), 1), tmp_path / "w.safetensors"))


def test_a_state_dict_of_torch_loads(tmp_path):
    model = build(TwoTowers, 0)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert same(model, load_weights(build(TwoTowers, 1), tmp_path / "w.pt"))


class Tied(nn.Module):
    """One encoder under two names."""

    def __init__(self):
        super().__init__()
        self.left = self.right = nn.Linear(3, 3)
        self.norm = nn.BatchNorm2d(2).to(memory_format=torch.channels_last)
        self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)


def test_a_shared_encoder_comes_back(tmp_path):
    model = build(Tied, 0)
    save_weights(model, tmp_path / "w.safetensors")
    assert same(model, load_weights(build(Tied, 1), tmp_path / "w.safetensors"))


def test_a_shared_encoder_may_be_stored_once(tmp_path):
    # As safetensors' own save_model and transformers' save_pretrained do.
    model = nn.Module()
    model.left = model.right = nn.Linear(3, 3)
    save_model(model, str(tmp_path / "w.safetensors"))
    other = nn.Module()
    other.left = other.right = nn.Linear(3, 3)
    assert same(model, load_weights(other, tmp_path / "w.safetensors"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch", "pickle"]
)
def test_code_is_refused_and_not_run(tmp_path, save):
    save({"weight": Bomb(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"not a plain state dict; files that hold code are refused"):
        load_weights(TwoTowers(), tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(TwoTowers(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"files that hold code are refused"):
        load_weights(TwoTowers(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"PK\x03\x04 not a zip", b"\x80\x04."], ids=["empty", "text", "zip", "pickle"]
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_is_no_weights_file_is_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"not a (plain state dict|safetensors file)"):
        load_weights(TwoTowers(), tmp_path / name)


@pytest.mark.parametrize("value", [torch.zeros(3), [torch.zeros(3)], {"epoch": 3}], ids=["tensor", "list", "numbers"])
def test_what_is_no_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"not a plain state dict of tensors"):
        load_weights(TwoTowers(), tmp_path / "w.pt")


def test_keys_and_shapes_that_differ_are_named_and_nothing_is_loaded(tmp_path):
    state = TwoTowers().state_dict()
    del state["head.1.bias"]
    state["head.9.bias"] = torch.zeros(2)
    state["head.1.weight"] = torch.zeros(4, 4)
    state["head.3.bias"] = torch.zeros(9)
    save_file(state, str(tmp_path / "w.safetensors"))
    model = build(TwoTowers, 5)
    with pytest.raises(ModelError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "not the weights of TwoTowers: lacks 'head.1.bias'; has 'head.9.bias', which the network does not" in message
    assert "'head.1.weight' is (4, 4), the network's is (16, 16), and 1 more" in message
    assert same(model, build(TwoTowers, 5))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nothing.safetensors: no such weights file"):
        load_weights(TwoTowers(), tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_cut_short_is_refused(tmp_path, name):
    state = TwoTowers().state_dict()
    if name == "w.pt":
        torch.save(state, tmp_path / name)
    else:
        save_file(state, str(tmp_path / name))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"is damaged or not a plain state dict|not a safetensors file"):
        load_weights(TwoTowers(), tmp_path / name)
