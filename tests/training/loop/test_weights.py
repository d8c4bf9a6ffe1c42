import os
import pickle
import random
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file, save_model
from small import TwoTowers
from torch import nn

from edgekd.errors import ModelError, TaskError
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
    said = "lacks 'head.1.bias' (is it its 'head.9.bias'?); has 'head.9.bias', which the network does not"
    assert f"not the weights of TwoTowers: {said}" in message
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


PREFIXES = ["module.", "model.", "_orig_mod.", "backbone.", "model._orig_mod."]


def run_advice(message, folder, monkeypatch):
    """Run the line of Python that an error advises, as its reader would."""
    line = message[message.index("state = ") :]
    monkeypatch.chdir(folder)
    scope = {"torch": torch, "safetensors": safetensors}
    exec(line, scope)
    return folder / "weights.pt"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_with_a_prefix_are_refused_with_the_line_that_mends_them(tmp_path, monkeypatch, prefix):
    model = build(TwoTowers, 0)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({**state, "loss.scale": torch.ones(1)}, tmp_path / "teacher.pt")
    with pytest.raises(
        ModelError, match=f"Its names begin with '{prefix}', unlike the network's; if it is the"
    ) as told:
        load_weights(build(TwoTowers, 1), tmp_path / "teacher.pt")
    mended = run_advice(str(told.value), tmp_path, monkeypatch)
    assert same(model, load_weights(build(TwoTowers, 1), mended))


def test_names_that_lack_a_prefix_are_refused_with_the_line_that_mends_them(tmp_path, monkeypatch):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = TwoTowers()

    model = build(Wrapped, 0)
    save_file(model.net.state_dict(), str(tmp_path / "w.safetensors"))
    with pytest.raises(ModelError, match=r"Its names lack 'net\.', unlike the network's") as told:
        load_weights(build(Wrapped, 1), tmp_path / "w.safetensors")
    assert same(model, load_weights(build(Wrapped, 1), run_advice(str(told.value), tmp_path, monkeypatch)))


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("item", ["state_dict", "model", "ema"])
def test_a_whole_checkpoint_is_refused_with_the_line_that_takes_the_weights_out(tmp_path, monkeypatch, item, prefix):
    model = build(TwoTowers, 0)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "optimizer": {"state": {}}, item: state}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match=f"the weights are its item '{item}'") as told:
        load_weights(build(TwoTowers, 1), tmp_path / "last.ckpt")
    assert same(model, load_weights(build(TwoTowers, 1), run_advice(str(told.value), tmp_path, monkeypatch)))


def test_another_networks_names_are_offered_no_line(tmp_path):
    torch.save({f"model.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="not the weights of TwoTowers") as told:
        load_weights(TwoTowers(), tmp_path / "w.pt")
    assert "rewrite" not in str(told.value)


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("-inf"), "an infinite value")])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("key", ["encoders.a.2.weight", "norm.running_var"])
def test_weights_that_are_no_numbers_are_named(tmp_path, name, key, value, kind):
    state = TwoTowers(norm=True).state_dict()
    state[key].view(-1)[3] = value
    (torch.save if name == "w.pt" else save_file)(state, str(tmp_path / name))
    with pytest.raises(ModelError, match=f"{name}: '{key}' holds {kind}"):
        load_weights(TwoTowers(norm=True), tmp_path / name)


def test_a_mask_may_be_infinite_where_the_networks_own_is(tmp_path):
    class Masked(nn.Module):
        def __init__(self, inside=0.0):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("mask", torch.tensor([[inside, float("-inf")], [inside, inside]]))

    torch.save(Masked().state_dict(), tmp_path / "w.pt")
    load_weights(build(Masked, 0), tmp_path / "w.pt")
    torch.save(Masked(float("-inf")).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="'mask' holds an infinite value"):
        load_weights(build(Masked, 0), tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_width_are_converted(tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in build(TwoTowers, 0).state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    model = load_weights(build(TwoTowers, 1), tmp_path / "w.pt")
    assert all(torch.equal(value, state[key].float()) for key, value in model.state_dict().items())


def test_weights_that_leave_the_networks_range_are_named(tmp_path):
    state = {key: value.double() for key, value in TwoTowers().state_dict().items()}
    state["head.1.bias"][0] = 1e300
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"'head\.1\.bias' holds an infinite value"):
        load_weights(TwoTowers(), tmp_path / "w.pt")


def test_integers_are_no_weights(tmp_path):
    state = TwoTowers().state_dict()
    state["head.1.weight"] = state["head.1.weight"].to(torch.int8)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"'head\.1\.weight' is torch.int8, the network's is torch.float32"):
        load_weights(TwoTowers(), tmp_path / "w.pt")


def teacher_of(value):
    def teacher():
        return value() if callable(value) else value

    return teacher


def with_value(value):
    model = TwoTowers()
    model.head[1].bias.data[0] = value
    return model


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, r"returned None, must return an nn.Module; is its 'return' missing\?$"),
        (lambda: TwoTowers, r"returned the class TwoTowers, must return an nn.Module: call it, as in TwoTowers\(\)$"),
        (lambda: teacher_of, "returned a function, must return an nn.Module$"),
        ((1, 2), "returned a tuple, must return an nn.Module$"),
        (lambda: torch.jit.trace(TwoTowers().eval(), (torch.zeros(2, 6), torch.zeros(2, 5))), "returned a TopLevelTra"),
        (lambda: torch.jit.script(nn.Linear(2, 2)), "returned a RecursiveScriptModule, whose layers cannot be taken"),
        (
            lambda: nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(2, 2))),
            "'1' is a RecursiveScriptModule, whose layers cannot be taken apart: put the nn.Module there",
        ),
        (lambda: nn.LazyLinear(3), "'weight' has no shape yet, as in a lazy layer: call the network once"),
        (lambda: nn.Linear(2, 2, device="meta"), "'weight' has no values, since it was made on the device 'meta'"),
        (lambda: with_value(float("nan")), r"'head\.1\.bias' holds NaN: was it initialised"),
        (lambda: with_value(float("inf")), r"'head\.1\.bias' holds an infinite value: was it initialised"),
        (lambda: next(iter(())), r"StopIteration \(.*test_weights\.py:\d+\)$"),
        (lambda: sys.exit(0), r"calls sys\.exit\(0\) \(.*test_weights\.py:\d+\)$"),
    ],
)
def test_what_is_no_network_to_train_is_named(value, said):
    with pytest.raises(TaskError, match=rf"^teacher\(\):? {said}"):
        build(teacher_of(value), 0)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
def test_a_wrapped_network_is_the_one_inside(wrap):
    model = build(lambda: wrap(TwoTowers()), 3)
    assert type(model) is TwoTowers
    assert all(map(torch.equal, model.state_dict().values(), build(TwoTowers, 3).state_dict().values()))
