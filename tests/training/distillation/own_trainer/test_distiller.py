"""A Distiller is a module like any other, and its loss is the one that a build minimises."""

import copy
import io
import pickle

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from small import TAPS, TwoTowers, reporter, split
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BatchEncoding

import edgekd
from edgekd.config.recipe import LossConfig, Tap, Term
from edgekd.distillation import Distiller, Inputs
from edgekd.errors import ModelError, RecipeError, TaskError
from edgekd.training.distillation.loss_taps import LossTaps, taps_with_losses
from edgekd.training.distillation.objective import DistillationObjective
from edgekd.training.distillation.references import LiveReference
from edgekd.training.taps.taps import TappedModel
from edgekd.training.task.protocol import collate

SAMPLES = split("train", 24, seed=2)
BATCH = (*SAMPLES.inputs.values(), SAMPLES.labels)
WHERE = {"a": "encoders.a", "b": "encoders.b"}
LOSSES = {"extra": {"intra": 1.0, "fd": {"share": 0.5}, "sp": {"weight": 2.0}}}


def made(student=None, losses=None, **options):
    torch.manual_seed(0)
    teacher, own = TwoTowers(hidden=24, width=12), TwoTowers()
    options.setdefault("example", BATCH)
    return Distiller(teacher, own if student is None else student, WHERE, losses or LOSSES, **options)


def gradients(distiller, *batches):
    distiller.zero_grad()
    for batch in batches:
        (distiller(batch).loss / len(batches)).backward()
    return [p.grad.clone() for p in distiller.parameters()]


def assert_same(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.fixture(scope="module")
def expected():
    return gradients(made(), BATCH)


def test_loss_and_gradients_are_those_of_a_build(expected):
    torch.manual_seed(0)
    teacher, student = TwoTowers(hidden=24, width=12), TwoTowers()
    extra = {"intra": 1.0, "fd": Term(share=0.5), "sp": Term(weight=2.0)}
    config = LossConfig(extra=extra)
    batch = collate([SAMPLES[index] for index in range(24)])
    with (
        TappedModel(student, taps_with_losses(TAPS, config, "student")) as tapped,
        TappedModel(teacher, taps_with_losses(TAPS, config, "teacher")) as reference,
    ):
        live = LiveReference(reference)
        where = LossTaps(list(TAPS), TAPS, TAPS, "teacher")
        objective = DistillationObjective(tapped, live, live, config, where, reporter())
        loss, figures = objective.prepare(batch, torch.initial_seed())(batch, 0.0)
        loss.backward()
    distiller = made()
    assert distiller(BATCH).loss.item() == loss.item()
    assert {name: float(x) for name, x in distiller.figures.items() if name != "loss"} == {
        name: float(x) for name, x in figures.items()
    }
    assert_same([p.grad for p in [*student.parameters(), *objective.parameters()]], expected, rtol=0, atol=0)


def test_the_teacher_is_frozen_and_in_no_list_and_no_file():
    distiller = made()
    names = [name for name, _ in distiller.named_parameters()]
    assert {name.partition(".")[0] for name in names} == {"student", "losses"}
    assert {name.partition(".")[0] for name in distiller.state_dict()} == {"student", "losses", "_extra_state"}
    (teacher,) = (tapped.model for tapped in distiller._teacher.networks)
    before = copy.deepcopy(teacher.state_dict())
    teacher.train()
    distiller.train()
    optimizer = torch.optim.AdamW(distiller.parameters(), 0.1)
    distiller(BATCH).loss.backward()
    optimizer.step()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert_same(before.values(), teacher.state_dict().values(), rtol=0, atol=0)


def test_the_student_is_what_it_was_but_for_its_weights():
    student = TwoTowers()
    distiller = made(student)
    distiller(BATCH).loss.backward()
    assert distiller.student is student
    assert list(student.state_dict()) == list(TwoTowers().state_dict())
    assert not any(module._forward_hooks for module in student.modules())
    TwoTowers().load_state_dict(student.state_dict())


def test_the_teacher_goes_along_to_another_type_and_device():
    distiller = made().double()
    (teacher,) = (tapped.model for tapped in distiller._teacher.networks)
    assert {p.dtype for p in teacher.parameters()} == {torch.float64}
    assert distiller([x.double() if x.is_floating_point() else x for x in BATCH]).loss.isfinite()


def test_a_copy_and_a_pickle_train_alike_and_by_themselves(expected):
    original = made()
    for again in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert_same(gradients(again, BATCH), expected, rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in original.parameters())


def test_a_state_takes_up_weights_of_losses_and_the_place_in_the_training():
    losses = {"extra": {"intra": {"warm_up": 0.5}, "fd": 0.5}}
    first, second = (made(losses=losses) for _ in range(2))
    first.steps = second.steps = 10
    for _ in range(3):
        first(BATCH)
    second.load_state_dict(load_tensors(save_tensors(first.state_dict())))  # as Trainer and accelerate write it
    assert first(BATCH).loss.item() == second(BATCH).loss.item()
    assert {k: float(x) for k, x in first.figures.items()} == {k: float(x) for k, x in second.figures.items()}
    with pytest.raises(TaskError, match="not of a Distiller with the losses intra, fd, sp"):
        made().set_extra_state(first.get_extra_state())


def test_accumulated_gradients_are_the_mean_of_the_parts(expected):
    assert_same(gradients(made(), BATCH, BATCH), expected, rtol=1e-5, atol=1e-7)


def test_evaluation_measures_nothing_and_counts_nothing():
    distiller = made()
    distiller(BATCH)
    before = distiller.get_extra_state()
    with torch.no_grad():
        losses = [distiller(BATCH).loss.item(), distiller.eval()(BATCH).loss.item()]
    assert losses[0] == losses[1]
    assert torch.equal(before, distiller.get_extra_state())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_under_autocast_the_weights_of_losses_are_those_of_float32(kind):
    plain, half = made(), made()
    plain(BATCH)
    with torch.autocast("cpu", kind):
        loss = half(BATCH).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(half.figures["weight.intra"]) == pytest.approx(float(plain.figures["weight.intra"]), rel=0.02)
    assert all(p.grad.isfinite().all() for p in half.parameters())


class Checkpointed(TwoTowers):
    reentrant = False

    def forward(self, a, b):
        parts = [checkpoint(self.encoders[name], x, use_reentrant=self.reentrant) for name, x in (("a", a), ("b", b))]
        return self.head(self.norm(torch.cat(parts, 1)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointed_layers_give_the_same_gradients_or_are_refused(expected):
    torch.manual_seed(0)
    TwoTowers(hidden=24, width=12)
    student = Checkpointed()
    assert_same(gradients(made(student), BATCH), expected, rtol=1e-5, atol=1e-7)
    student.reentrant = True
    distiller = made(student)
    with pytest.raises(TaskError, match="'intra' can train nothing: no gradient reaches"):
        distiller(BATCH)


def test_compiled_as_a_whole_it_gives_the_same_and_compiled_inside_it_is_refused(expected):
    distiller = made()
    torch.compile(distiller, backend="eager")(BATCH).loss.backward()
    assert_same([p.grad for p in distiller.parameters()], expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(TaskError, match=r"the student is a OptimizedModule: give the network as it was before"):
        made(torch.compile(TwoTowers()))
    inside = TwoTowers()
    inside.encoders["a"].compile()
    with pytest.raises(TaskError, match=r"'encoders.a' of the student is compiled in place"):
        made(inside)


@pytest.mark.parametrize("wrapper", [nn.DataParallel])
def test_a_wrapped_student_is_refused(wrapper):
    with pytest.raises(TaskError, match="the student is a DataParallel: give its 'module'"):
        made(wrapper(TwoTowers()))


def test_data_parallel_is_refused():
    distiller = made()
    distiller._is_replica = True
    with pytest.raises(TaskError, match="start one process for each GPU with torchrun"):
        distiller(BATCH)


class ByName(nn.Module):
    """Takes its inputs by name, and gives a tuple whose first is the logits."""

    def __init__(self, width=8):
        super().__init__()
        self.towers = TwoTowers(width=width)

    def forward(self, *, values, mask, extra=None):
        hidden = values * mask
        return self.towers(hidden[:, :6], hidden[:, 6:]), hidden


def test_batches_by_name_are_read_as_they_are():
    torch.manual_seed(0)
    distiller = Distiller(ByName(12), ByName(), {"a": "towers.encoders.a", "b": "towers.encoders.b"})
    columns = {"values": torch.randn(8, 11), "mask": torch.ones(8, 11), "labels": torch.arange(8) % 3}
    by_batch = [distiller.eval()(given).loss.item() for given in (columns, BatchEncoding(columns))]
    by_keywords = distiller(**columns, extra=None).loss.item()
    renamed = {**columns, "label": columns["labels"]}
    del renamed["labels"]
    assert by_batch[0] == by_batch[1] == by_keywords == distiller(renamed).loss.item()


def test_pairs_of_taps_and_other_inputs_of_the_teacher():
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = TwoTowers(width=12)

        def forward(self, both):
            return {"logits": self.inner(both[:, :6], both[:, 6:])}

    torch.manual_seed(0)
    taps = {name: (Tap(module=f"inner.encoders.{name}"), f"encoders.{name}") for name in "ab"}

    def inputs(batch):
        a, b, labels = batch
        present = {"b": torch.arange(len(a)) > 3}
        return Inputs([a, b], labels, teacher=[torch.cat([a, b], 1)], present=present)

    distiller = Distiller(Elsewhere(), TwoTowers(), taps, inputs=inputs, example=BATCH)
    output = distiller(BATCH)
    assert output["logits"].shape == (24, 3)
    assert output.loss.requires_grad


def test_several_teachers_teach_together():
    torch.manual_seed(0)
    teachers = [TwoTowers(width=width) for width in (8, 12)]
    distiller = Distiller(teachers, TwoTowers(), WHERE, LOSSES, example=BATCH)
    assert len(distiller.losses[1].projections) == 4
    assert distiller(BATCH).loss.isfinite()


def test_a_nested_batch_and_one_of_edgekd_are_read():
    distiller = made().eval()
    a, b, labels = BATCH
    batch = collate([SAMPLES[index] for index in range(24)])
    values = {distiller(given).loss.item() for given in (BATCH, [[a, b], labels], batch)}
    assert len(values) == 1


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(4, 6), r"cannot read a tensor of shape \(4, 6\) in a batch: a tuple \(x, ..., labels\)"),
        ({"labels": SAMPLES.labels}, "nothing for the networks beside the labels.*remove_unused_columns=False"),
        ((*BATCH[:2], BATCH[2].float()), "labels of 'logits' are torch.float32"),
        ((*BATCH[:2], BATCH[2][:5]), "24 samples in argument 1, but 5 in labels"),
        (tuple(x[:0] for x in BATCH), "the batch has no samples"),
        (("x", BATCH[1], BATCH[2]), "cannot read a str in a batch: argument 1 must be a tensor"),
        ({"a": BATCH[0], "b": BATCH[1]}, "the batch has no labels, which cross entropy reads"),
        (Inputs(list(BATCH[:2]), BATCH[2], present={"c": BATCH[2]}), "present names 'c', which is no modality"),
        ((*BATCH[:2], BATCH[2] + 7), "the batch has label [789], but the networks give 3 logits"),
    ],
    ids=["tensor", "empty", "floats", "counts", "none", "text", "unlabelled", "present", "range"],
)
def test_a_batch_that_cannot_be_read_is_refused_in_one_line(batch, message):
    with pytest.raises(TaskError, match=message):
        made(example=None, losses={"extra": {"intra": 1.0}})(batch)


def test_labels_are_not_needed_where_no_loss_reads_them():
    distiller = made(losses={"ce": 0, "kd": 1})
    assert distiller(Inputs(list(BATCH[:2]))).loss.requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"taps": {"a": "encoders.q"}},
            TaskError,
            "student: tap of 'a': TwoTowers has no module 'encoders.q'; did you",
        ),
        ({"taps": {"a": ("encoder.a", "encoders.a")}}, TaskError, "teacher: tap of 'a': TwoTowers has no module"),
        ({"taps": {"a": ("x", "y", "z")}}, TaskError, "the tap of 'a' is 3 places"),
        ({"taps": {}}, TaskError, "the Distiller needs taps"),
        ({"losses": {"extras": {}}}, RecipeError, "losses: the top level has no key 'extras'; did you mean 'extra'"),
        ({"losses": {"extra": {"intro": 1.0}}}, RecipeError, "there is no loss 'intro'; did you mean 'intra'"),
        ({"losses": {"kd": -1}}, RecipeError, "losses: kd"),
        ({"losses": {"extra": {"fd": 1.0}}, "example": None}, TaskError, "'fd' learns a projection.*by example="),
        ({"outputs": {"logits": "class"}}, TaskError, "output 'logits': there is no kind 'class'; did you mean"),
        ({"outputs": {"boxes": "custom"}}, TaskError, "output 'boxes' of kind 'custom' has no loss"),
        ({"outputs": {}}, TaskError, "needs the networks' outputs"),
        ({"teacher": []}, TaskError, "needs a teacher"),
        ({"student": "net"}, TaskError, "the student is a str, must be an nn.Module"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(change, error, message):
    arguments = {"teacher": TwoTowers(), "student": TwoTowers(), "taps": WHERE, "losses": None, "example": BATCH}
    with pytest.raises(error, match=message):
        Distiller(**{**arguments, **change})


def test_a_teacher_with_nan_or_of_the_students_own_weights_is_refused():
    broken, student = TwoTowers(), TwoTowers()
    broken.head[1].bias.data[0] = torch.nan
    with pytest.raises(ModelError, match=r"'head.1.bias' of the teacher holds NaN"):
        Distiller(broken, student, WHERE)
    with pytest.raises(TaskError, match="teacher and student are one network"):
        Distiller(student, student, WHERE)
    shared = TwoTowers()
    shared.encoders = student.encoders
    with pytest.raises(TaskError, match=r"'encoders.a.0.weight' of the student and 'encoders.a.0.weight' of the teach"):
        Distiller(shared, student, WHERE)
    student.encoders.requires_grad_(False)
    with pytest.raises(TaskError, match="'intra' can train nothing"):
        Distiller(shared, student, WHERE, {"extra": {"intra": 1.0}})(BATCH)
    assert Distiller(shared, student, WHERE, {"extra": {}})(BATCH).loss.requires_grad  # a frozen stem of both


def test_a_schedule_needs_to_know_how_long_the_training_is():
    distiller = made(losses={"extra": {"intra": {"decay": "linear"}}})
    with pytest.raises(TaskError, match="'intra' has a schedule over the whole training: set the Distiller's steps"):
        distiller(BATCH)
    distiller.steps = 2
    losses = [distiller(BATCH).loss.item() for _ in range(3)]
    assert losses[0] > losses[1] > losses[2] - 1e-9


class ManyHeads(nn.Module):
    """Gives a class, some labels, a number for each of two axes, and a vector, as a tuple."""

    def __init__(self, width=8):
        super().__init__()
        self.towers = TwoTowers(width=width)
        self.labels, self.place, self.vector = (nn.Linear(3, count) for count in (4, 2, 6))

    def forward(self, a, b):
        logits = self.towers(a, b)
        return logits, self.labels(logits), self.place(logits), self.vector(logits)


MANY = {"class": "classes", "tags": "multilabel", "place": "regression", "vector": "embedding"}


def many(**options):
    torch.manual_seed(0)
    taps = {name: f"towers.encoders.{name}" for name in "ab"}
    return Distiller(ManyHeads(12), ManyHeads(), taps, outputs=MANY, **options)


def test_several_outputs_have_each_the_loss_of_its_kind():
    a, b, labels = BATCH
    targets = {
        "class": labels,
        "tags": (torch.arange(24)[:, None] % torch.tensor([2, 3, 4, 5]) == 0).float(),
        "place": torch.randn(24, 2, generator=torch.Generator().manual_seed(0)),
        "vector": labels,
    }
    distiller = many(example=Inputs([a, b], targets))
    output = distiller({"a": a, "b": b, "labels": targets})
    assert [tuple(output[name].shape) for name in MANY] == [(24, 3), (24, 4), (24, 2), (24, 6)]
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())
    first = output.loss.item()
    optimizer = torch.optim.Adam(distiller.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        distiller({"a": a, "b": b, "labels": targets}).loss.backward()
        optimizer.step()
    assert distiller({"a": a, "b": b, "labels": targets}).loss.item() < first
    with pytest.raises(TaskError, match="no labels of output 'tags'"):
        distiller(Inputs([a, b], {"class": labels}))
    with pytest.raises(TaskError, match="must be a dict with those of each output: class, tags, place, vector"):
        distiller(BATCH)


def test_without_labels_every_kind_learns_from_the_teacher_alone():
    distiller = many(losses={"ce": 0, "kd": 1})
    loss = distiller(Inputs(list(BATCH[:2]))).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in distiller.parameters())


def test_networks_that_disagree_on_the_classes_are_refused():
    student = TwoTowers()
    student.head[3] = nn.Linear(16, 4)
    with pytest.raises(TaskError, match=r"disagree: their logits are \(24, 3\) and \(24, 4\)"):
        made(student)


def test_a_loss_that_trains_nothing_is_warned_of():
    class Aside(TwoTowers):
        def forward(self, a, b):
            for name, x in (("a", a), ("b", b)):
                self.encoders[name](x)
            return self.head(torch.zeros(len(a), 16))

    distiller = made(Aside(), {"extra": {"intra": 1.0}})
    for _ in range(10):
        distiller(BATCH)
    with pytest.warns(UserWarning, match="the weight of the loss 'intra' fell to 0"):
        distiller(BATCH)


def test_a_loss_of_ones_own_is_named_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text(
        "from torch.nn import functional\nimport edgekd\n"
        "huber = edgekd.Loss('huber', 'embeddings', lambda ours, theirs: functional.huber_loss(ours, theirs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    term = {"loss": "own_loss:huber", "weight": 1.0}
    teacher, student = TwoTowers(), TwoTowers()
    distiller = edgekd.distillation.Distiller(teacher, student, WHERE, {"extra": {"own": term}}, example=BATCH)
    assert "loss.own" in distiller(BATCH) or float(distiller.figures["loss.own"]) > 0


def test_a_saved_module_is_read_back(tmp_path):
    buffer = io.BytesIO()
    torch.save(made().state_dict(), buffer)
    buffer.seek(0)
    made().load_state_dict(torch.load(buffer, weights_only=True))


def test_a_config_of_a_recipe_is_taken_as_it_is():
    config = replace(LossConfig(), extra={})
    assert made(losses=config)(BATCH).loss.isfinite()
