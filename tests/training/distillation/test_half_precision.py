"""A teacher in half precision: near to float32, and never where float32 is promised."""

import copy

import pytest
import torch
from small import CLASSES, TAPS, Remembers, TwoTowers, loaded, reporter
from torch import nn

from edgekd.config.recipe import DistillConfig, PruneConfig, Recipe, Tap, TaskConfig, TeacherConfig
from edgekd.errors import ModelError
from edgekd.training.distillation import distill, teacher
from edgekd.training.distillation.half_precision import tapped_teacher
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.preflight import check as preflight
from edgekd.training.pruning import stage as prune
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps
from edgekd.training.task.models import Conv2dEncoder, LateFusion, MlpEncoder, Standardize

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
#: Largest distance from float32, as a share of the largest output: bfloat16 has 8 bits, float16 11.
NEAR = {"bfloat16": 3e-2, "float16": 4e-3}


def towers():
    """Convolutions, BatchNorm, and raw inputs of a size that float16 cannot hold."""
    torch.manual_seed(0)
    image, values = torch.rand(64, 1, 8, 8), 1e6 + 1e5 * torch.randn(64, 6)
    encoders = {
        "a": nn.Sequential(Standardize(image), Conv2dEncoder((1, 8, 16), 8)),
        "b": nn.Sequential(Standardize(values), MlpEncoder(6, (16,), 8)),
    }
    taps = {"a": Tap(module="encoders.a.1.features", pool="spatial"), "b": Tap(module="encoders.b")}
    return LateFusion(encoders, 8, 16, CLASSES), taps, [image, values]


class Tokens(nn.Module):
    """Attention, LayerNorm and a GRU."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed, self.encode = nn.Linear(6, 8), nn.TransformerEncoder(layer, 2)
        self.rnn, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(16, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.encode(self.embed(a)).mean(1), self.rnn(b)[0][:, -1]], 1))


def tokens():
    torch.manual_seed(0)
    taps = {"a": Tap(module="encode", pool="tokens"), "b": Tap(module="rnn", pool="tokens")}
    return Tokens(), taps, [torch.randn(16, 7, 6), torch.randn(16, 4, 5)]


def distance(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("make", [towers, tokens])
def test_half_is_near_to_float32_and_read_as_float32(make, precision):
    model, taps, inputs = make()
    model.eval().requires_grad_(False)
    with TappedModel(model, taps) as tapped:
        expected = tapped.read(inputs)
    with tapped_teacher(copy.deepcopy(model), taps, precision) as tapped:
        found = tapped.read(inputs)
    for key, value in {**expected.answers, **expected.embeddings}.items():
        half = {**found.answers, **found.embeddings}[key]
        assert half.dtype == torch.float32
        assert 0 < distance(half, value) < NEAR[precision], key
    assert {x.dtype for x in found.outputs.values()} == {torch.float32}


def test_layers_with_weights_hold_half_and_the_rest_stays():
    model, taps, _ = towers()
    tapped_teacher(model, taps, "bfloat16")
    held = {name: x.dtype for name, x in model.state_dict().items() if x.is_floating_point()}
    assert held["encoders.a.1.features.0.weight"] == held["head.3.bias"] == torch.bfloat16
    assert held["encoders.a.0.mean"] == held["encoders.a.1.features.1.running_var"] == torch.float32


def test_float32_is_the_model_as_it_is():
    model, taps, inputs = towers()
    model.eval()
    expected = copy.deepcopy(model)(*inputs)
    with tapped_teacher(model, taps, "float32") as tapped:
        assert torch.equal(tapped(inputs)[0]["logits"], expected)


def test_values_that_half_cannot_hold_are_said_so():
    model, batch = TwoTowers(), [1e6 * torch.randn(4, 6), torch.randn(4, 5)]
    tapped = tapped_teacher(model, TAPS, "float16")
    with tapped, pytest.raises(ModelError, match=r"teacher, TwoTowers, gives NaN or infinite values in float16 .*set"):
        tapped(batch)


class InFloat32Alone(TwoTowers):
    """torch has no determinant of half matrices."""

    def forward(self, a, b):
        square = self.encoders["a"](a)[:, :4].reshape(-1, 2, 2)
        return super().forward(a, b) + torch.linalg.det(square)[:, None]


def of_small(network, precision):
    task = loaded()
    task.task.teacher = network
    recipe = Recipe(task=TaskConfig(name="small"), teacher=TeacherConfig(precision=precision))
    preflight.check(task, Taps(TAPS, TAPS, precision), recipe, reporter())


def test_what_has_no_half_is_refused_before_anything_is_trained():
    of_small(InFloat32Alone, "float32")
    with pytest.raises(ModelError, match=r"InFloat32Alone, cannot run in bfloat16: .*; set teacher.precision = 'float"):
        of_small(InFloat32Alone, "bfloat16")


@pytest.mark.parametrize("precision", HALVES)
def test_a_student_learns_from_half_nearly_what_it_learns_from_float32(precision, tmp_path):
    task = loaded()
    config = DistillConfig(epochs=2, batch_size=16)

    def learn(name):
        (tmp_path / name).mkdir()
        taps = Taps(TAPS, TAPS, name)
        return distill.run(task, build(TwoTowers, 1), taps, config, StageRun(0, tmp_path / name, reporter())).history

    half, full = learn(precision), learn("float32")
    assert half != full
    for ours, theirs in zip(half, full, strict=True):
        assert ours["kd"] == pytest.approx(theirs["kd"], rel=0.05)
        assert ours["loss.intra"] == pytest.approx(theirs["loss.intra"], rel=0.05)


def test_the_fine_tune_after_pruning_learns_from_half_too(tmp_path):
    networks = prune.PruningNetworks(build(TwoTowers, 1), build(TwoTowers, 0), build(TwoTowers, 0))
    config = PruneConfig(epochs=1, batch_size=16, ratio=0.5, round_to=4)
    prune.run(loaded(), networks, Taps(TAPS, TAPS, "bfloat16"), config, StageRun(0, tmp_path, reporter(Remembers())))
    assert networks.teacher.head[1].weight.dtype == torch.bfloat16
    assert networks.pruned.head[1].weight.dtype == networks.student.head[1].weight.dtype == torch.float32


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_weights_in_half_are_loaded_into_float32(half, tmp_path):
    stored = {name: x.to(half) for name, x in TwoTowers(norm=True).state_dict().items() if x.is_floating_point()}
    model = TwoTowers(norm=True)
    torch.save({**model.state_dict(), **stored}, tmp_path / "teacher.pt")
    load_weights(model, tmp_path / "teacher.pt")
    for name, x in stored.items():
        assert model.state_dict()[name].dtype == torch.float32
        assert torch.equal(model.state_dict()[name], x.float())


def test_a_loaded_half_teacher_is_probed_in_float32(tmp_path):
    weights = tmp_path / "teacher.pt"
    torch.save({name: x.half() for name, x in TwoTowers().state_dict().items()}, weights)
    config = TeacherConfig(weights=str(weights), precision="float16")
    trained = teacher.run(loaded(), TAPS, config, StageRun(0, tmp_path, reporter()))
    assert trained.history == []
    model = load_weights(build(TwoTowers, 0), tmp_path / "model.safetensors")
    assert {x.dtype for x in model.state_dict().values()} == {torch.float32}
