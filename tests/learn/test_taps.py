from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from small import CLASSES, TAPS, TwoTowers, mlp
from torch import nn

from edgekd.errors import TaskError
from edgekd.learn.taps import Tapped, resolve_taps
from edgekd.recipe import Tap


def inputs(batch=4):
    return [torch.randn(batch, 6), torch.randn(batch, 5)]


def read(model, taps, batch):
    with Tapped(model, taps) as tapped:
        return tapped(batch)


def test_embeddings_are_what_the_named_modules_put_out():
    model, batch = TwoTowers(), inputs()
    logits, embeddings = read(model, TAPS, batch)
    assert torch.equal(logits, model(*batch))
    assert list(embeddings) == ["a", "b"]
    assert torch.equal(embeddings["a"], model.encoders["a"](batch[0]))
    assert torch.equal(embeddings["b"], model.encoders["b"](batch[1]))


def test_order_is_that_of_the_taps():
    _, embeddings = read(TwoTowers(), dict(reversed(TAPS.items())), inputs())
    assert list(embeddings) == ["b", "a"]


def test_a_wrong_path_names_the_nearest():
    with pytest.raises(TaskError, match=r"tap of 'a': TwoTowers has no module 'encoder.a'; did you mean 'encoders.a'"):
        Tapped(TwoTowers(), {"a": Tap(module="encoder.a")})


class OneLayer(nn.Module):
    """Puts out whatever ``make`` makes of a linear layer's output, and logits of it."""

    def __init__(self, make):
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.tapped = SimpleModule(make)

    def forward(self, a, b):
        self.tapped(self.layer(a))
        return b[:, :CLASSES]


class SimpleModule(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


def pooled(make, pool="auto", batch=4):
    _, embeddings = read(OneLayer(make), {"a": Tap(module="tapped", pool=pool)}, inputs(batch))
    return embeddings["a"]


def fold(*shape):
    return lambda x: torch.arange(x.shape[0] * torch.Size(shape).numel(), dtype=torch.float32).view(-1, *shape)


@pytest.mark.parametrize(
    ("shape", "pool", "expected"),
    [
        ((8,), "auto", lambda x: x),
        ((8,), "none", lambda x: x),
        ((3, 4, 5), "auto", lambda x: x.mean((2, 3))),
        ((3, 4, 5), "spatial", lambda x: x.mean((2, 3))),
        ((3, 2, 4, 5), "auto", lambda x: x.mean((2, 3, 4))),
        ((3, 7), "spatial", lambda x: x.mean(2)),
        ((7, 3), "tokens", lambda x: x.mean(1)),
        ((7, 3), "first", lambda x: x[:, 0]),
    ],
    ids=["vector", "vector, none", "map", "map, spatial", "volume", "series", "tokens", "first token"],
)
def test_pooling(shape, pool, expected):
    make = fold(*shape)
    assert torch.allclose(pooled(make, pool), expected(make(torch.empty(4, 8))))


@pytest.mark.parametrize(
    ("shape", "pool", "message"),
    [
        (
            (3, 7),
            "auto",
            r"\(4, 3, 7\) may be features \[B, C, T\] or tokens \[B, T, D\]; say which with pool = 'spatial'",
        ),
        ((3, 7), "none", "pool = 'none' does not make one vector a sample of an output of shape"),
        ((3, 4, 5), "none", "pool = 'none' does not make one vector"),
        ((3, 4, 5), "tokens", "pool = 'tokens' does not make one vector"),
        ((), "auto", "pool = 'auto' does not make one vector"),
    ],
    ids=["series or tokens", "series, none", "map, none", "map, tokens", "scalars"],
)
def test_what_cannot_be_pooled_is_refused(shape, pool, message):
    with pytest.raises(TaskError, match=f"tap of 'a' at 'tapped': .*{message}"):
        pooled(fold(*shape), pool)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, None),
        lambda x: [x, x + 1],
        lambda x: SimpleNamespace(last_hidden_state=x),
    ],
    ids=["tuple", "list", "last_hidden_state"],
)
def test_embeddings_may_be_wrapped(wrap):
    assert torch.equal(pooled(lambda x: wrap(torch.ones_like(x))), torch.ones(4, 8))


def test_an_lstm_is_a_tuple_of_tokens():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 8, batch_first=True)

        def forward(self, a, b):
            return self.rnn(a[:, None])[0][:, 0, :CLASSES]

    model, batch = Recurrent(), inputs()
    _, embeddings = read(model, {"a": Tap(module="rnn", pool="first")}, batch)
    assert torch.equal(embeddings["a"], model.rnn(batch[0][:, None])[0][:, 0])


def test_an_embedding_that_is_no_tensor_is_refused():
    with pytest.raises(TaskError, match="the module gives a dict, not a tensor; tap a module inside it"):
        pooled(lambda x: {"embedding": x})


def test_rows_that_are_no_samples_are_refused():
    with pytest.raises(TaskError, match="gives 2 vectors for a batch of 4; its first dimension must be the batch"):
        pooled(lambda x: x.view(2, 16))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, "more"),
        lambda x: [x],
        lambda x: {"logits": x, "loss": 3},
        lambda x: UserDict(logits=x),
        lambda x: SimpleNamespace(logits=x),
    ],
    ids=["tensor", "tuple", "list", "dict", "mapping", "object"],
)
def test_logits_may_be_wrapped(wrap):
    class Wrapped(TwoTowers):
        def forward(self, a, b):
            return wrap(super().forward(a, b))

    torch.manual_seed(0)
    model, batch = Wrapped(), inputs()
    logits, embeddings = read(model, TAPS, batch)
    assert torch.equal(logits, TwoTowers.forward(model, *batch))
    assert embeddings["a"].shape == (4, 8)


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        (lambda: torch.zeros(4), r"\(4,\)"),
        (lambda: torch.zeros(4, 3, 2), r"\(4, 3, 2\)"),
        (lambda: {"scores": torch.zeros(4, 3)}, "NoneType"),
        (lambda: 3.0, "float"),
    ],
    ids=["vector", "three dimensions", "no key 'logits'", "number"],
)
def test_other_logits_are_refused(output, shape):
    class Odd(nn.Module):
        def forward(self, a, b):
            return output()

    with pytest.raises(TaskError, match=rf"must give logits \[batch, classes\].*but gave {shape}"):
        read(Odd(), {}, inputs())


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = mlp(6, 16, 8)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.encoder(a), self.encoder(b)], 1))


def test_a_shared_encoder_is_read_call_by_call():
    model, batch = Shared(), [torch.randn(4, 6), torch.randn(4, 6)]
    _, embeddings = read(model, {"a": Tap(module="encoder"), "b": Tap(module="encoder", call=1)}, batch)
    for name, x in zip("ab", batch, strict=True):
        assert torch.equal(embeddings[name], model.encoder(x))


def test_two_modalities_cannot_read_the_same_output():
    with pytest.raises(TaskError, match="a, b read the same output; set 'call' if the encoder is shared"):
        read(Shared(), {"a": Tap(module="encoder"), "b": Tap(module="encoder")}, [torch.randn(4, 6)] * 2)


def test_a_call_that_was_not_made_is_refused():
    with pytest.raises(TaskError, match="the module was called 2 times in a forward pass, call 2 is read"):
        read(Shared(), {"a": Tap(module="encoder", call=2)}, [torch.randn(4, 6)] * 2)


def test_a_module_that_is_not_called_is_refused():
    model = TwoTowers()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(TaskError, match="tap of 'a' at 'spare': the module was called 0 times"):
        read(model, {"a": Tap(module="spare")}, inputs())


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_model_is_left_as_it_was():
    model = TwoTowers()
    before, keys = dict(vars(model.encoders["a"])), list(model.state_dict())
    with Tapped(model, TAPS) as tapped:
        tapped(inputs())
        assert hooks(model) == 2
    assert hooks(model) == 0
    assert list(model.state_dict()) == keys
    assert vars(model.encoders["a"]) == before


def test_hooks_are_removed_after_an_error_and_the_next_reading_is_clean():
    model = TwoTowers()
    with pytest.raises(RuntimeError), Tapped(model, TAPS) as tapped:
        tapped([torch.randn(4, 6), torch.randn(4, 7)])
    assert hooks(model) == 0
    with tapped:
        assert torch.isfinite(tapped(inputs())[0]).all()


def test_one_object_may_be_entered_twice():
    model = Shared()
    batch = [torch.randn(4, 6), torch.randn(4, 6)]
    tapped = Tapped(model, {"a": Tap(module="encoder"), "b": Tap(module="encoder", call=1)})
    with tapped:
        with tapped:
            assert torch.equal(tapped(batch)[1]["b"], model.encoder(batch[1]))
        assert torch.equal(tapped(batch)[1]["b"], model.encoder(batch[1]))
    assert hooks(model) == 0


def test_two_readers_of_one_model_do_not_disturb_each_other():
    model, batch = TwoTowers(), inputs()
    with Tapped(model, TAPS) as first, Tapped(model, {"b": TAPS["b"]}) as second:
        for _ in range(2):
            assert list(second(batch)[1]) == ["b"]
            assert torch.equal(first(batch)[1]["a"], model.encoders["a"](batch[0]))


def test_nothing_is_kept_of_runs_that_are_not_read():
    class Counted(nn.Module):
        alive = 0

        def forward(self, a, b):
            return a[:, :CLASSES] + 0

    model = Counted()
    model.layer = nn.Identity()
    model.forward = lambda a, b: model.layer(a)[:, :CLASSES]
    with Tapped(model, {"a": Tap(module="layer")}) as tapped:
        seen = torch.randn(4, 6)
        model(seen, seen)
        model(seen, seen)
        # With those two remembered, call 0 would be an older one.
        fresh = inputs()
        assert torch.equal(tapped(fresh)[1]["a"], fresh[0])


def test_outputs_are_what_the_network_reads_on():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 4, 3)

        def forward(self, a, b):
            return self.conv(a[:, None]).amax(2)[:, :CLASSES]

    with Tapped(Conv(), {"a": Tap(module="conv", pool="spatial")}) as tapped:
        reading = tapped.read(inputs())
    assert reading.outputs["a"].shape == (4, 4, 4)
    assert torch.equal(reading.embeddings["a"], reading.outputs["a"].mean(2))
    (gradient,) = torch.autograd.grad(reading.logits.sum(), reading.outputs["a"])
    assert gradient.abs().sum() > 0


def test_the_recipes_taps_lie_over_the_tasks():
    taps = resolve_taps("student", {"b": Tap(module="y", pool="tokens")}, {"a": "x", "b": "z"}, ["a", "b"])
    assert taps == {"a": Tap(module="x"), "b": Tap(module="y", pool="tokens")}


def test_a_tap_of_no_modality_is_refused():
    with pytest.raises(TaskError, match=r"\[student.taps\]: 'acel' is no modality of the task; did you mean 'accel'"):
        resolve_taps("student", {"acel": "x"}, {}, ["accel", "gyro"])


def test_a_modality_without_a_tap_is_refused():
    with pytest.raises(TaskError, match=r"\[teacher.taps\]: no tap for gyro; .*e.g. gyro = \"encoders.gyro\""):
        resolve_taps("teacher", {"accel": "x"}, {}, ["accel", "gyro"])
