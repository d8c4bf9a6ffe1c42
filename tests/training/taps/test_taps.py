from collections import UserDict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from small import CLASSES, TAPS, TwoTowers, mlp
from torch import nn

from edgekd.config.recipe import Tap
from edgekd.errors import TaskError
from edgekd.training.taps.taps import TappedModel, resolve_taps


def inputs(batch=4):
    return [torch.randn(batch, 6), torch.randn(batch, 5)]


def read(model, taps, batch):
    with TappedModel(model, taps) as tapped:
        answers, embeddings = tapped(batch)
    return answers["logits"], embeddings


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
        TappedModel(TwoTowers(), {"a": Tap(module="encoder.a")})


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


def pooled(make, pool="auto", batch=4, output=None):
    _, embeddings = read(OneLayer(make), {"a": Tap(module="tapped", pool=pool, output=output)}, inputs(batch))
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
        ((4, 5, 3), "tokens", lambda x: x.mean((1, 2))),
        ((7, 3), "first", lambda x: x[:, 0]),
    ],
    ids=["vector", "vector, none", "map", "map, spatial", "volume", "series", "tokens", "grid", "first token"],
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
        ((3, 4, 5), "first", "pool = 'first' does not make one vector"),
        ((), "auto", "pool = 'auto' does not make one vector"),
    ],
    ids=["series or tokens", "series, none", "map, none", "map, first", "scalars"],
)
def test_what_cannot_be_pooled_is_refused(shape, pool, message):
    with pytest.raises(TaskError, match=f"tap of 'a' at 'tapped': .*{message}"):
        pooled(fold(*shape), pool)


class Named(NamedTuple):
    tokens: torch.Tensor
    pooled: torch.Tensor


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda x: (x, None), None),
        (lambda x: [x, x + 1], None),
        (lambda x: {"embedding": x, "mask": None}, None),
        (lambda x: UserDict(last_hidden_state=x, pooler_output=x + 1), None),
        (lambda x: SimpleNamespace(last_hidden_state=x, pooler_output=x + 1), None),
        (lambda x: SimpleNamespace(embedding=x, steps=3), None),
        (lambda x: (x + 1, x), 1),
        (lambda x: [x + 1, x + 2, x], -1),
        (lambda x: Named(x + 1, x), "pooled"),
        (lambda x: Named(x + 1, x), 1),
        (lambda x: {"last_hidden_state": x + 1, "pooler_output": x}, "pooler_output"),
        (lambda x: SimpleNamespace(tokens=x + 1, pooled=x), "pooled"),
    ],
    ids=[
        *("tuple", "list", "only tensor of a dict", "tokens of a dict", "tokens of an object", "only of an object"),
        *("place", "place from the end", "name of a tuple", "place of a named tuple", "key", "attribute"),
    ],
)
def test_embeddings_may_be_wrapped(wrap, output):
    assert torch.equal(pooled(lambda x: wrap(torch.ones_like(x)), output=output), torch.ones(4, 8))


@pytest.mark.parametrize(
    ("wrap", "output", "message"),
    [
        (
            lambda x: {"tokens": x, "pooled": x},
            None,
            r"gives a dict of 'tokens' \(4, 8\), 'pooled' \(4, 8\); say which is meant, e.g. output = 'tokens'",
        ),
        (lambda x: {"tokens": [x]}, None, "gives a dict of 'tokens' list, not a tensor; tap a module inside it"),
        (lambda x: (None, x), None, r"gives a tuple of NoneType, \(4, 8\); say which is meant, e.g. output = 1"),
        (lambda x: {"tokens": x}, "token", "output has no 'token'; did you mean 'tokens'"),
        (lambda x: {"tokens": x}, 1, "output has no '1'; known: tokens"),
        (lambda x: (x, x), 2, r"output = 2, but the module gives a tuple of \(4, 8\), \(4, 8\)"),
        (lambda x: (x, x), "tokens", "output = 'tokens', but the module gives a tuple"),
        (lambda x: x, 0, r"output = 0, but the module gives a tensor of shape \(4, 8\)"),
        (lambda x: (x, (x, x)), 1, r"'1' of the module's output is a tuple of .*, not a tensor"),
    ],
    ids=[
        *("two tensors", "no tensor", "first is none", "no such key", "no such place of a dict", "no such place"),
        *("no names", "only a tensor", "nested"),
    ],
)
def test_an_output_that_is_not_clear_is_refused_with_what_is_in_it(wrap, output, message):
    with pytest.raises(TaskError, match=f"tap of 'a' at 'tapped': .*{message}"):
        pooled(wrap, output=output)


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
        (
            lambda: torch.zeros(4),
            r"output 'logits' of the model is of shape \(4,\), but classes are \[batch, classes\]",
        ),
        (lambda: torch.zeros(4, 3, 2), r"output 'logits' of the model is of shape \(4, 3, 2\), but classes are"),
        (lambda: {"scores": torch.zeros(4, 3)}, "gave a dict of 'scores' .*: 'logits' is not there"),
        (lambda: 3.0, "must give 'logits', as a tensor or under that name, but gave a float"),
    ],
    ids=["vector", "three dimensions", "no key 'logits'", "number"],
)
def test_other_logits_are_refused(output, shape):
    class Odd(nn.Module):
        def forward(self, a, b):
            return output()

    with pytest.raises(TaskError, match=shape):
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


class TwoOutputs(nn.Module):
    """One network of both modalities that gives their embeddings by name, as CLIP does."""

    def __init__(self):
        super().__init__()
        self.both = SimpleModule(lambda z: {"image_embeds": z[:, :8], "text_embeds": z[:, 8:]})
        self.layer, self.head = nn.Linear(11, 16), nn.Linear(16, CLASSES)

    def forward(self, a, b):
        parts = self.both(self.layer(torch.cat([a, b], 1)))
        return {**parts, "logits": self.head(torch.cat(list(parts.values()), 1))}


@pytest.mark.parametrize("module", ["both", ""], ids=["inside", "the whole network"])
def test_two_modalities_may_read_two_parts_of_one_output(module):
    model, batch = TwoOutputs(), inputs()
    names = {"a": "image_embeds", "b": "text_embeds"}
    logits, embeddings = read(model, {key: Tap(module=module, output=name) for key, name in names.items()}, batch)
    expected = model(*batch)
    assert torch.equal(logits, expected["logits"])
    for key, name in names.items():
        assert torch.equal(embeddings[key], expected[name])


def test_two_modalities_cannot_read_the_same_part():
    taps = {key: Tap(module="both", output="text_embeds") for key in "ab"}
    with pytest.raises(TaskError, match=r"a, b read the same output; .* or 'output' if it puts out several"):
        read(TwoOutputs(), taps, inputs())


class Attention(nn.Module):
    """Attention over the tokens of one modality, whose module gives a tuple, and torch's own encoder of the other."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.attend(a, a, a)[0].mean(1), self.encode(b).mean(1)], 1))


def tokens(batch=4):
    return [torch.randn(batch, 5, 6), torch.randn(batch, 3, 4)]


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_read_as_it_runs(training):
    # Out of training torch computes these layers in one kernel, past the modules inside, unless someone listens there.
    model, batch = Attention().train(training), tokens()
    taps = {"a": Tap(module="attend", pool="tokens"), "b": Tap(module="encode.layers.0.linear2", pool="tokens")}
    with torch.no_grad():
        _, embeddings = read(model, taps, batch)
        assert torch.allclose(embeddings["a"], model.attend(batch[0], batch[0], batch[0])[0].mean(1))
    assert embeddings["b"].shape == (4, 4)


def test_attention_weights_are_no_embedding_but_may_be_named():
    model, batch = Attention(), tokens()
    taps = {"a": Tap(module="attend", output=1, pool="tokens")}
    assert read(model, taps, batch)[1]["a"].shape == (4, 5)


def test_tokens_before_the_batch_are_refused():
    model = Attention(batch_first=False)
    model.forward = lambda a, b: model.attend(*[a.transpose(0, 1)] * 3)[0][0, :, :CLASSES]
    with pytest.raises(TaskError, match="gives 5 vectors for a batch of 4; its first dimension must be the batch"):
        read(model, {"a": Tap(module="attend", pool="tokens")}, tokens())


class Backbones(nn.Module):
    """torchvision's layout for one modality, timm's for the other."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.patches, self.norm, self.fc_norm = nn.Linear(6, 8), nn.LayerNorm(8), nn.Identity()
        self.head = nn.Linear(16, CLASSES)

    def forward_features(self, x):
        return self.norm(self.patches(x))

    def forward(self, a, b):
        # In place on what `features` put out, as torchvision's DenseNet works.
        image = self.avgpool(nn.functional.relu(self.features(a), inplace=True)).flatten(1)
        return self.head(torch.cat([image, self.fc_norm(self.forward_features(b)[:, 0])], 1))


@pytest.mark.parametrize(
    ("image", "sequence"),
    [
        (Tap(module="features"), Tap(module="norm", pool="first")),
        (Tap(module="features.1", pool="spatial"), Tap(module="fc_norm")),
    ],
    ids=["features and tokens", "layer and pooled"],
)
def test_the_layouts_of_torchvision_and_timm(image, sequence):
    model, batch = Backbones(), [torch.randn(4, 1, 8, 8), torch.randn(4, 7, 6)]
    model.eval()
    with TappedModel(model, {"a": image, "b": sequence}) as tapped:
        reading = tapped.read(batch)
    # What the module gave, not what was made of it in its place; and the gradient still passes there.
    assert torch.equal(reading.embeddings["a"], model.features(batch[0]).flatten(2).mean(2))
    assert torch.equal(reading.embeddings["b"], model.forward_features(batch[1])[:, 0])
    assert torch.equal(reading.answers["logits"], model(*batch))
    for gradient in torch.autograd.grad(reading.answers["logits"].sum(), list(reading.outputs.values())):
        assert gradient.abs().sum() > 0


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
    with TappedModel(model, TAPS) as tapped:
        tapped(inputs())
        assert hooks(model) == 2
    assert hooks(model) == 0
    assert list(model.state_dict()) == keys
    assert vars(model.encoders["a"]) == before


def test_hooks_are_removed_after_an_error_and_the_next_reading_is_clean():
    model = TwoTowers()
    with pytest.raises(RuntimeError), TappedModel(model, TAPS) as tapped:
        tapped([torch.randn(4, 6), torch.randn(4, 7)])
    assert hooks(model) == 0
    with tapped:
        assert torch.isfinite(tapped(inputs())[0]["logits"]).all()


def test_one_object_may_be_entered_twice():
    model = Shared()
    batch = [torch.randn(4, 6), torch.randn(4, 6)]
    tapped = TappedModel(model, {"a": Tap(module="encoder"), "b": Tap(module="encoder", call=1)})
    with tapped:
        with tapped:
            assert torch.equal(tapped(batch)[1]["b"], model.encoder(batch[1]))
        assert torch.equal(tapped(batch)[1]["b"], model.encoder(batch[1]))
    assert hooks(model) == 0


def test_two_readers_of_one_model_do_not_disturb_each_other():
    model, batch = TwoTowers(), inputs()
    with TappedModel(model, TAPS) as first, TappedModel(model, {"b": TAPS["b"]}) as second:
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
    with TappedModel(model, {"a": Tap(module="layer")}) as tapped:
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

    with TappedModel(Conv(), {"a": Tap(module="conv", pool="spatial")}) as tapped:
        reading = tapped.read(inputs())
    assert reading.outputs["a"].shape == (4, 4, 4)
    assert torch.equal(reading.embeddings["a"], reading.outputs["a"].mean(2))
    (gradient,) = torch.autograd.grad(reading.answers["logits"].sum(), reading.outputs["a"])
    assert gradient.abs().sum() > 0


def test_the_recipes_taps_lie_over_the_tasks():
    taps = resolve_taps("student", {"b": Tap(module="y", pool="tokens")}, {"a": "x", "b": "z"}, ["a", "b"])
    assert taps == {"a": Tap(module="x"), "b": Tap(module="y", pool="tokens")}


def test_a_task_may_write_a_tap_as_a_table():
    table = {"module": "x", "pool": "first", "output": "last_hidden_state"}
    (tap,) = resolve_taps("student", {}, {"a": table}, ["a"]).values()
    assert tap == Tap(module="x", pool="first", output="last_hidden_state")
    with pytest.raises(TaskError, match=r"\[student.taps\] a: .*field `paths`"):
        resolve_taps("student", {}, {"a": {**table, "paths": 1}}, ["a"])


def test_a_tap_of_no_modality_is_refused():
    with pytest.raises(TaskError, match=r"\[student.taps\]: 'acel' is no modality of the task; did you mean 'accel'"):
        resolve_taps("student", {"acel": "x"}, {}, ["accel", "gyro"])


def test_a_modality_without_a_tap_is_refused():
    with pytest.raises(TaskError, match=r"\[teacher.taps\]: no tap for gyro; .*e.g. gyro = \"encoders.gyro\""):
        resolve_taps("teacher", {"accel": "x"}, {}, ["accel", "gyro"])
