import json
from types import SimpleNamespace

import pytest
import torch
from pruned import Wide, batch, cutter, pruning, remove_channels, taps, widths
from small import CLASSES, TAPS, Remembers, TwoTowers, loaded, mlp, reporter
from torch import nn

from edgekd.config.recipe import Tap
from edgekd.errors import TaskError
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import PROBE, REMOVED, WEIGHTS
from edgekd.training.loop.evaluate import probe
from edgekd.training.loop.weights import build
from edgekd.training.pruning import stage as prune
from edgekd.training.pruning.stage import PruningNetworks, rebuild
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps
from edgekd.training.task.protocol import UNLABELLED


class ConvConcat(nn.Module):
    """Feature maps of two branches, which no tap holds, concatenated before a convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (
            nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()) for width in (16, 32)
        )
        self.embed_a, self.embed_b = nn.Linear(16, 8), nn.Linear(32, 8)
        self.fuse = nn.Conv2d(48, 24, 3, padding=1)
        self.head = nn.Linear(24 + 16, CLASSES)

    def forward(self, a, b):
        a, b = self.a(a), self.b(b)
        embeddings = [self.embed_a(a.mean((2, 3))), self.embed_b(b.mean((2, 3)))]
        fused = self.fuse(torch.cat([a, b], 1)).relu().mean((2, 3))
        return self.head(torch.cat([fused, *embeddings], 1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(3, 32, 3, padding=1)
        self.down, self.up = nn.Conv1d(32, 16, 3, padding=1), nn.Conv1d(16, 32, 3, padding=1)
        self.embed, self.b = nn.Linear(32, 8), mlp(5, 32, 8)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, a, b):
        a = self.first(a).relu()
        a = a + self.up(self.down(a).relu())
        return self.head(torch.cat([self.embed(a.mean(2)), self.b(b)], 1))


class NormAfterTap(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = mlp(6, 32, 16), nn.BatchNorm1d(16)
        self.b = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 16, bias=False), nn.BatchNorm1d(16))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.norm(self.a(a)), self.b(b)], 1))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = mlp(6, 32, 16)
        self.head = mlp(32, 24, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.encoder(a), self.encoder(b)], 1))


class ActivationTap(nn.Module):
    """One tap names an activation, the other a container of convolutions whose map is pooled."""

    def __init__(self):
        super().__init__()
        self.a, self.activation = mlp(6, 32, 16), nn.ReLU()
        self.b = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16 + 16 * 4 * 4, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.activation(self.a(a)), self.b(b).flatten(1)], 1))


class InSlices(nn.Module):
    """A convolution that works in slices, each of which must lose the same channels; with 32, it is depthwise."""

    def __init__(self, groups):
        super().__init__()
        self.a = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=groups), nn.Conv2d(32, 32, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16),
        )  # fmt: skip
        self.b, self.head = mlp(5, 32, 16), nn.Linear(32, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.a(a), self.b(b)], 1))


#: For each network its taps, the shapes of its inputs, and the widths of its layers after a quarter is pruned.
NETWORKS = {
    "late fusion": (
        Wide, TAPS, [(6,), (5,)],
        {"encoders.a.0": 24, "encoders.a.2": 16, "encoders.b.0": 48, "encoders.b.2": 16, "head.1": 16, "head.3": 3},
    ),
    "maps concatenated": (
        ConvConcat, taps("embed_a", "embed_b"), [(1, 8, 8), (1, 8, 8)],
        {"a.0": 8, "b.0": 24, "embed_a": 8, "embed_b": 8, "fuse": 16, "head": 3},
    ),
    "residual": (
        Residual, taps("embed", "b"), [(3, 20), (5,)],
        {"first": 24, "down": 8, "up": 24, "embed": 8, "b.0": 24, "b.2": 8, "head": 3},
    ),
    "norm after the tap": (
        NormAfterTap, taps("a", "b"), [(6,), (5,)], {"a.0": 24, "a.2": 16, "b.0": 24, "b.2": 16, "head": 3},
    ),
    "norm tapped": (
        NormAfterTap, taps("norm", "b.3"), [(6,), (5,)], {"a.0": 24, "a.2": 16, "b.0": 24, "b.2": 16, "head": 3},
    ),
    "shared encoder": (
        Shared, taps("encoder", "encoder", call=1), [(6,), (6,)],
        {"encoder.0": 24, "encoder.2": 16, "head.0": 16, "head.2": 3},
    ),
    "activation and container tapped": (
        ActivationTap, taps("activation", "b"), [(6,), (1, 8, 8)],
        {"a.0": 24, "a.2": 16, "b.0": 8, "b.2": 16, "head": 3},
    ),
    "depthwise": (
        lambda: InSlices(32), taps("a", "b"), [(1, 12, 12), (5,)],
        {"a.0": 24, "a.2": 24, "a.3": 24, "a.7": 16, "b.0": 24, "b.2": 16, "head": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("importance", ["gram", "magnitude", "taylor", "random", "fpgm"])
@pytest.mark.parametrize(("make", "tap", "shapes", "expected"), NETWORKS.values(), ids=NETWORKS)
def test_layers_shrink_and_embeddings_and_logits_keep_their_width(make, tap, shapes, expected, importance):
    model = build(make, 0)
    inputs, labels = batch(shapes)
    removed = remove_channels(model, tap, inputs, labels, pruning(importance=importance))
    assert widths(model) == expected
    assert removed
    with TappedModel(model, tap) as tapped:
        answers, embeddings = tapped(inputs)
    assert answers["logits"].shape == (8, CLASSES)
    full = build(make, 0)
    with TappedModel(full, tap) as tapped:
        assert {n: z.shape for n, z in embeddings.items()} == {n: z.shape for n, z in tapped(inputs)[1].items()}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("importance", ["gram", "magnitude", "taylor", "random"])
def test_slices_lose_the_same_channels(importance):
    model = build(lambda: InSlices(4), 0)
    removed = remove_channels(model, taps("a", "b"), *batch([(1, 12, 12), (5,)]), pruning(importance=importance))
    assert widths(model) == {"a.0": 24, "a.2": 24, "a.3": 24, "a.7": 16, "b.0": 24, "b.2": 16, "head": 3}
    for gone in (channels for name, _, channels in removed if name in ("a.0", "a.2")):
        assert gone == [first + 8 * part for part in range(4) for first in gone[:2]]


def test_what_torch_pruning_cannot_measure_is_said_and_the_rest_is_pruned():
    model = build(lambda: InSlices(4), 0)
    cut = cutter(model, taps("a", "b"), *batch([(1, 12, 12), (5,)]), pruning(importance="fpgm")).cut()
    told = "'a.0' keeps its 32 channels: importance = 'fpgm' cannot be measured"
    assert any(warning.startswith(told) for warning in cut.warnings)
    assert (widths(model)["a.0"], widths(model)["b.0"]) == (32, 24)


def test_two_concatenated_branches_are_not_one_group():
    # Torch-Pruning#481 merged them, so that pruning one took the same channels from the other; #146 crashed on them.
    for make, tap, shapes, ignore, kept, pruned in [
        (Wide, TAPS, [(6,), (5,)], "encoders.b", {"encoders.b.0": 64}, {"encoders.a.0": 24}),
        (ConvConcat, taps("embed_a", "embed_b"), [(1, 8, 8)] * 2, "b", {"b.0": 32}, {"a.0": 8}),
    ]:
        model = build(make, 0)
        remove_channels(model, tap, *batch(shapes), pruning(ignore=[ignore]))
        assert widths(model).items() >= {**kept, **pruned}.items()


def test_what_a_branch_lost_the_fusion_lost_at_its_place():
    model, full = build(ConvConcat, 0), build(ConvConcat, 0)
    tap = taps("embed_a", "embed_b")
    config = pruning(ignore=["b", "fuse"], importance="magnitude")  # which leaves the other weights as they are
    removed = remove_channels(model, tap, *batch([(1, 8, 8)] * 2), config)
    (gone,) = [set(channels) for name, _, channels in removed if name == "a.0"]
    kept = [channel for channel in range(48) if channel not in gone]
    assert torch.equal(model.fuse.weight, full.fuse.weight[:, kept])
    assert torch.equal(
        model.embed_a.weight, full.embed_a.weight[:, [channel for channel in range(16) if channel not in gone]]
    )


def test_magnitude_removes_the_smallest_channels():
    model = build(Wide, 0)
    smallest = [3, 5, 7, 11, 13, 17, 19, 23]
    with torch.no_grad():
        model.encoders["a"][0].weight[smallest] *= 1e-3
        model.encoders["a"][2].weight[:, smallest] *= 1e-3
    removed = remove_channels(model, TAPS, *batch([(6,), (5,)]), pruning())
    assert {name: channels for name, _, channels in removed}["encoders.a.0"] == smallest


def test_taylor_removes_what_the_loss_does_not_feel():
    model = build(Wide, 0)
    # Large weights that lead nowhere: only the gradient knows.
    with torch.no_grad():
        model.encoders["a"][0].weight[:8] = 100.0
        model.encoders["a"][0].bias[:8] = -1e6
    for importance, expected in [("taylor", True), ("magnitude", False)]:
        copy = build(Wide, 0)
        copy.load_state_dict(model.state_dict())
        removed = remove_channels(copy, TAPS, *batch([(6,), (5,)]), pruning(importance=importance))
        assert (set({n: c for n, _, c in removed}["encoders.a.0"]) == set(range(8))) is expected


@pytest.mark.parametrize("round_to", [1, 4, 8, 16])
def test_widths_are_multiples(round_to):
    model = build(Wide, 0)
    remove_channels(model, TAPS, *batch([(6,), (5,)]), pruning(round_to=round_to, ratio=0.3))
    pruned = {name: width for name, width in widths(model).items() if width != widths(Wide())[name]}
    assert len(pruned) == 3
    assert all(width % round_to == 0 for width in pruned.values())
    if round_to == 1:
        assert pruned["encoders.b.0"] == int(64 * 0.7)


def test_where_rounding_leaves_nothing_the_layer_stays():
    model = build(TwoTowers, 0)  # 16 hidden units
    assert remove_channels(model, TAPS, *batch([(6,), (5,)]), pruning(round_to=32)) == []
    assert widths(model) == widths(TwoTowers())


def test_ignored_modules_keep_their_width_with_all_inside():
    model = build(Wide, 0)
    remove_channels(model, TAPS, *batch([(6,), (5,)]), pruning(ignore=["encoders", "head.1"]))
    assert widths(model) == widths(Wide())


def test_an_unknown_path_to_ignore_names_the_nearest():
    with pytest.raises(
        TaskError, match=r"\[prune\] ignore: the student has no module 'encoder.a'; did you mean 'encoders.a'"
    ):
        remove_channels(Wide(), TAPS, *batch([(6,), (5,)]), pruning(ignore=["encoder.a"]))


def test_frozen_parameters_stay_frozen_in_their_new_shape():
    model = build(Wide, 0)
    model.encoders["a"].requires_grad_(False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    remove_channels(model, TAPS, *batch([(6,), (5,)]), pruning())
    assert model.encoders["a"][0].weight.shape == (24, 6)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen


def test_taylor_needs_a_label_and_skips_samples_without():
    inputs, labels = batch([(6,), (5,)])
    with pytest.raises(TaskError, match="importance = 'taylor' needs labels"):
        remove_channels(Wide(), TAPS, inputs, torch.full_like(labels, UNLABELLED), pruning(importance="taylor"))
    some = torch.where(torch.arange(8) < 4, labels, UNLABELLED)
    removed = remove_channels(build(Wide, 0), TAPS, inputs, some, pruning(importance="taylor"))
    alone = remove_channels(
        build(Wide, 0), TAPS, [x[:4] for x in inputs], labels[:4], pruning(importance="taylor")
    )  # fmt: skip
    assert removed == alone


@pytest.mark.parametrize(
    "wrap",
    [lambda x: {"logits": x, "epoch": 3}, lambda x: (x, None), lambda x: SimpleNamespace(logits=x, note="n")],
    ids=["dict", "tuple", "object"],
)
def test_logits_may_be_wrapped(wrap):
    class Wrapped(Wide):
        def forward(self, a, b):
            return wrap(super().forward(a, b))

    model = build(Wrapped, 0)
    remove_channels(model, TAPS, *batch([(6,), (5,)]), pruning())
    assert widths(model)["encoders.b.0"] == 48


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.LSTM(3, 16, batch_first=True), mlp(5, 32, 16), nn.Linear(32, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.a(a)[0].mean(1), self.b(b)], 1))


def test_a_recurrent_layer_keeps_its_width():
    model = Recurrent()
    tap = {"a": Tap(module="a", pool="tokens"), "b": Tap(module="b")}
    remove_channels(model, tap, *batch([(7, 3), (5,)]), pruning())
    assert (model.a.hidden_size, model.b[0].out_features) == (16, 24)


class FixedView(Wide):
    def forward(self, a, b):
        hidden = self.encoders["a"][:2](a).view(-1, 4, 8).flatten(1)
        return self.head(torch.cat([self.encoders["a"][2:](hidden), self.encoders["b"](b)], 1))


def test_what_cannot_be_pruned_is_named_and_the_rest_is_pruned():
    tap, arguments = taps("encoders.a.2", "encoders.b"), batch([(6,), (5,)])
    model = build(FixedView, 0)
    (warning,) = cutter(model, tap, *arguments, pruning()).cut().warnings
    assert warning.startswith("'encoders.a.0' keeps its 32 channels: without some of them the network fails: mat1")
    assert "(test_prune.py:" in warning
    assert (model.encoders["a"][0].out_features, model.encoders["b"][0].out_features) == (32, 48)
    model = build(FixedView, 0)
    assert cutter(model, tap, *arguments, pruning(ignore=["encoders.a"])).cut().warnings == []
    assert model.encoders["b"][0].out_features == 48


def test_nothing_is_printed(capfd):
    remove_channels(Wide(), TAPS, *batch([(6,), (5,)]), pruning())
    assert capfd.readouterr() == ("", "")


def run_stage(folder, observer=None, make=Wide, tap=TAPS, **config):
    task = loaded(network=make)
    networks = PruningNetworks(build(make, 1), build(make, 0), build(make, 0))
    settings = pruning(**{"epochs": 2, "batch_size": 16, **config})
    return task, networks, prune.run(task, networks, Taps(tap, tap), settings, StageRun(0, folder, reporter(observer)))


@pytest.mark.parametrize(
    ("make", "tap"), [(Wide, TAPS), (NormAfterTap, taps("a", "b"))], ids=["plain", "with batch norm"]
)
def test_a_rebuilt_network_gives_the_same_bits(tmp_path, make, tap):
    task, networks, trained = run_stage(tmp_path, make=make, tap=tap)
    model = rebuild(build(make, 77), task, tmp_path).eval()
    inputs = list(task.splits["test"].inputs.values())
    with torch.no_grad():
        assert torch.equal(model(*inputs), networks.pruned.eval()(*inputs))
    stored = Probe.load(tmp_path / PROBE)
    assert stored.ids.tolist() == task.splits["test"].ids
    assert (
        trained.parameters == sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in make().parameters())
    )
    assert len(trained.history) == 2
    assert all(parameter.requires_grad for parameter in model.parameters())


class Spare(Wide):
    """A quarter of the channels leads nowhere, so that nothing is lost with them."""

    def __init__(self):
        super().__init__()
        branches = (self.encoders["a"][0], self.encoders["a"][2]), (self.encoders["b"][0], self.encoders["b"][2])
        with torch.no_grad():
            for first, second in (*branches, (self.head[1], self.head[3])):
                spare = slice(0, first.out_features // 4)
                first.weight[spare], first.bias[spare], second.weight[:, spare] = 0, 0, 0


def test_the_anchor_is_the_unpruned_student_and_not_the_teacher(tmp_path):
    task, networks, trained = run_stage(tmp_path, make=Spare, epochs=1, learning_rate=1e-9)
    assert trained.history[0]["loss.intra"] < 1e-9
    pruned, student, teacher = (
        probe(network, TAPS, task.splits["test"]) for network in (networks.pruned, networks.student, networks.teacher)
    )
    assert measure_drift(pruned, student, None, Bootstrap()).mean < 1e-5
    assert measure_drift(pruned, teacher, None, Bootstrap()).mean > 0.05


def test_fine_tuning_keeps_the_grams_anchor_as_it_was(tmp_path):
    _, networks, trained = run_stage(tmp_path)
    fresh = build(Wide, 0)
    assert all(torch.equal(p, q) for p, q in zip(networks.student.parameters(), fresh.parameters(), strict=True))
    assert trained.history[-1]["loss.intra"] < trained.history[0]["loss.intra"]


@pytest.mark.parametrize(("importance", "stay"), [("gram", True), ("magnitude", False)])
def test_statistics_stay_where_what_was_removed_is_made_up_for(tmp_path, importance, stay):
    _, networks, _ = run_stage(tmp_path, make=NormAfterTap, tap=taps("a", "b"), importance=importance)
    before, after = networks.student.norm, networks.pruned.norm
    assert all(
        torch.equal(getattr(before, name), getattr(after, name)) == stay for name in ("running_mean", "running_var")
    )
    assert not torch.equal(before.weight, after.weight), "it goes on learning"


@pytest.mark.parametrize(
    ("config", "warnings"), [({"ratio": 0}, 0), ({"round_to": 128}, 1)], ids=["ratio 0", "no layer wide enough"]
)
def test_when_nothing_is_pruned_the_student_stays_as_it_is(tmp_path, config, warnings):
    observer = Remembers()
    task, _, trained = run_stage(tmp_path, observer, **config)
    assert json.loads((tmp_path / REMOVED).read_text()) == []
    assert trained.history == []
    assert len(observer.warnings) == warnings
    assert all("nothing was pruned: at ratio 0.25 no layer gives 128 channels" in text for text in observer.warnings)
    model = rebuild(build(Wide, 5), task, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), build(Wide, 0).parameters(), strict=True))


def test_the_seed_decides_what_is_removed_at_random(tmp_path):
    def removed(folder, seed):
        networks = PruningNetworks(build(Wide, 1), build(Wide, 0), build(Wide, 0))
        config = pruning(epochs=1, importance="random")
        prune.run(
            loaded(network=Wide), networks, Taps(TAPS, TAPS), config, StageRun(seed, tmp_path / folder, reporter())
        )
        return (tmp_path / folder / REMOVED).read_text(), (tmp_path / folder / WEIGHTS).read_bytes()

    first, again, other = removed("first", 3), removed("again", 3), removed("other", 4)
    assert first == again
    assert first[0] != other[0]
