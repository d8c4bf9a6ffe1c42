"""Outputs of every kind, one and several: read from any answer, trained, distilled, exported; refused by name."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch
from small import TAPS, SmallTask, TwoTowers, reporter
from torch import nn

from edgekd.config.recipe import DistillConfig, ExportConfig, LossConfig, Recipe, TaskConfig, TeacherConfig
from edgekd.errors import TaskError
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import PROBE, TEST
from edgekd.stages.progress import StageReporter
from edgekd.training.distillation import distill, teacher
from edgekd.training.distillation.cached_teacher import write_outputs
from edgekd.training.distillation.task_losses import losses_of
from edgekd.training.export import stage as export
from edgekd.training.export.onnx import ExportNetwork
from edgekd.training.loop.weights import build
from edgekd.training.preflight.check import check
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.answers import read_answers
from edgekd.training.taps.taps import NetworkTaps, Taps
from edgekd.training.task.checked_split import checked_split
from edgekd.training.task.checks import check_task
from edgekd.training.task.loading import LoadedTask
from edgekd.training.task.protocol import ArraySplit, Output
from edgekd.training.task.targets import target_nest

#: One output of each kind: its options, the shape that a network gives for a sample, and the target of a sample.
KINDS = {
    "classes": ({}, (3,), lambda x: x.long() % 3),
    "multilabel": ({}, (2,), lambda x: torch.stack([x > 0, x > 0.5], -1)),
    "regression": ({}, (2,), lambda x: torch.stack([x, 100 * x], -1).double()),
    "dense-classes": ({}, (3, 2, 2), lambda x: (x.long() % 3).view(-1, 1, 1).expand(-1, 2, 2)),
    "sequence-classes": ({}, (4, 3), lambda x: (x.long() % 3).view(-1, 1).expand(-1, 4)),
    "ctc": ({"blank": 0}, (4, 3), lambda x: torch.stack([1 + x.long() % 2, torch.full(x.shape, -100)], -1)),
    "embedding": ({}, (5,), lambda x: (x > 0).long()),
}


class Answers(TwoTowers):
    """Outputs of any shapes, returned in any way."""

    def __init__(self, shapes, wrap):
        super().__init__()
        self.shapes, self.wrap = shapes, wrap
        self.heads = nn.ModuleList(nn.Linear(16, int(np.prod(shape))) for shape in shapes)

    def forward(self, a, b):
        z = torch.cat([self.encoders["a"](a), self.encoders["b"](b)], 1)
        return self.wrap([head(z).view(-1, *shape) for head, shape in zip(self.heads, self.shapes, strict=True)])


@dataclass
class Named:
    what: torch.Tensor
    where: torch.Tensor


@dataclass(slots=True)
class Slots:
    what: torch.Tensor
    where: torch.Tensor


def target_rows(split, make):
    return make(split.inputs["a"][:, 0])


class OutputTask(SmallTask):
    """A task of outputs by kind."""

    def __init__(self, kinds, wrap=None, **functions):
        names = list(kinds) if len(kinds) > 1 else ["answer"]
        self.kinds = dict(zip(names, kinds.values(), strict=True))
        self.outputs = [
            Output(name, "sequence-classes" if kind == "ctc" else kind, **KINDS[kind][0])
            for name, kind in self.kinds.items()
        ]
        shapes = [KINDS[kind][1] for kind in self.kinds.values()]
        alone = (lambda outputs: outputs[0]) if len(shapes) == 1 else tuple
        super().__init__(lambda: Answers(shapes, wrap or alone))
        for name, function in functions.items():
            setattr(self, name, function)

    def splits(self):
        made = {}
        for name, split in super().splits().items():
            targets = {key: target_rows(split, KINDS[kind][2]) for key, kind in self.kinds.items()}
            made[name] = ArraySplit(split.ids, split.inputs, targets=targets if len(targets) > 1 else targets["answer"])
        return made


def loaded(task):
    check_task("the task", task)
    return LoadedTask(task, {n: checked_split(f"split '{n}'", task, s) for n, s in task.splits().items()}, ())


def taps_of(task):
    taps = NetworkTaps(TAPS, task.outputs)
    return Taps(taps, taps)


RECIPE = Recipe(
    task=TaskConfig("any"),
    teacher=TeacherConfig(epochs=2, batch_size=30),
    distill=DistillConfig(epochs=2, batch_size=30, loss=LossConfig(extra={})),
)


def run_all(task, folder):
    """Check, train, distil and export; return the teacher, the student and the export."""
    taps = taps_of(task)
    check(task, taps, RECIPE, reporter())
    taught = teacher.run(task, taps.teacher, RECIPE.teacher, StageRun(0, folder / "teacher", reporter()))
    network = build(task.task.teacher, 0)
    learned = distill.run(task, network, taps, RECIPE.distill, StageRun(0, folder / "student", reporter()))
    exported = export.run(
        task, {"student": ExportNetwork(network, taps.student)}, ExportConfig(), 18, folder, reporter()
    )
    return taught, learned, exported


@pytest.mark.parametrize("kind", ["regression", "dense-classes"])
def test_one_output_of_another_kind_goes_all_the_way(kind, tmp_path):
    task = loaded(OutputTask({"answer": kind}))
    taught, learned, exported = run_all(task, tmp_path)
    assert np.isfinite([taught.metric, learned.metric]).all()
    assert exported.facts.outputs["answer"].name == kind
    probe = Probe.load(tmp_path / "student" / PROBE)
    assert probe.answer.shape == (30, *KINDS[kind][1])
    with np.load(tmp_path / TEST) as arrays:
        assert len(arrays["target"]) == 30
    assert exported.parity["student"] < 1e-5


WRAPPED = {
    "tuple": tuple,
    "list": list,
    "dict": lambda outputs: {"where": outputs[1], "more": 3, "what": outputs[0]},
    "dataclass": lambda outputs: Named(*outputs),
    "slots": lambda outputs: Slots(*outputs),
    "namedtuple": lambda outputs: namedtuple("Swapped", "where what")(outputs[1], outputs[0]),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_several_outputs_are_read_however_they_are_returned(wrap):
    task = OutputTask({"what": "classes", "where": "regression"}, wrap)
    network, batch = task.teacher(), [torch.zeros(4, 6), torch.ones(4, 5)]
    kinds = {"what": OutputKind(), "where": OutputKind("regression")}
    answers = read_answers(network(*batch), kinds)
    assert list(answers) == ["what", "where"]
    assert [tuple(x.shape) for x in answers.values()] == [(4, 3), (4, 2)]


def test_two_outputs_go_all_the_way_by_their_names(tmp_path):
    task = loaded(OutputTask({"what": "classes", "where": "regression"}, WRAPPED["dict"]))
    _, _, exported = run_all(task, tmp_path)
    assert task.metric_name == "mean of accuracy and R2"
    assert exported.facts.classes == {"what": ["0", "1", "2"]}
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    assert [output.name for output in session.get_outputs()] == ["what", "where", "embedding.a", "embedding.b"]
    assert list(Probe.load(tmp_path / "student" / PROBE).answer) == ["what", "where"]
    with np.load(tmp_path / TEST) as arrays:
        assert arrays["target.where"].shape == (30, 2)


def test_several_teachers_and_their_cached_outputs_are_of_all_outputs(tmp_path):
    task = loaded(OutputTask({"what": "classes", "where": "regression"}))
    taps, config = taps_of(task), TeacherConfig(epochs=1, batch_size=30, members=2)
    teacher.run(task, taps.teacher, config, StageRun(0, tmp_path / "teacher", reporter()))
    from edgekd.training.distillation.ensemble import Ensemble

    networks = [build(task.task.teacher, seed) for seed in (1, 2)]
    both = Ensemble(networks, taps.teacher)
    with torch.no_grad():
        joined = both(*task.splits["val"].inputs.values())
        apart = [network(*task.splits["val"].inputs.values()) for network in networks]
    torch.testing.assert_close(joined["where"], (apart[0][1] + apart[1][1]) / 2)
    mean = (apart[0][0].softmax(1) + apart[1][0].softmax(1)) / 2
    torch.testing.assert_close(joined["what"].softmax(1), mean)
    (tmp_path / "outputs").mkdir()
    write_outputs(both, taps.teacher, task.splits["train"], tmp_path / "outputs", reporter())
    histories = [
        distill.run(task, both, taps, RECIPE.distill, StageRun(3, tmp_path / name, reporter()), outputs).history
        for name, outputs in (("live", None), ("cached", tmp_path / "outputs"))
    ]
    assert [epoch["kd"] for epoch in histories[0]] == pytest.approx([epoch["kd"] for epoch in histories[1]], rel=1e-4)


def test_a_tasks_own_functions_are_what_trains_and_measures(tmp_path):
    called = set()

    def loss(outputs, targets):
        called.add("loss")
        return ((outputs["what"][:, 0] - targets["what"]) ** 2).mean() + outputs["where"].square().mean()

    def distilled(student, teacher):
        called.add("distill")
        return (student["where"] - teacher["where"]).abs().mean()

    def metric(outputs, targets):
        called.add("metric")
        assert isinstance(outputs["where"], np.ndarray)
        return float(np.abs(outputs["where"] - targets["where"]).mean())

    task = OutputTask({"what": "classes", "where": "regression"}, loss=loss, distill=distilled, metric=metric)
    task.outputs[1] = Output("where", "custom")
    run_all(loaded(task), tmp_path)
    assert called == {"loss", "distill", "metric"}


@pytest.mark.parametrize(
    ("same", "said"),
    [
        (lambda outputs, reference: (outputs == reference).all(1), "the very same answers that 1 of them changed"),
        (lambda outputs, reference: outputs != reference, r"of shape \(30,\), but it returned bool of shape \(30, 2\)"),
    ],
    ids=["inverted", "of each number"],
)
def test_a_word_on_what_is_the_same_is_tried_on_the_same(same, said):
    task = loaded(OutputTask({"answer": "regression"}, same=same))
    with pytest.raises(TaskError, match=said):
        check(task, taps_of(task), RECIPE, reporter())


def test_answers_that_are_like_nothing_pass_for_those_of_an_untrained_network():
    task = loaded(OutputTask({"answer": "regression"}, same=lambda outputs, _: np.ones(len(outputs))))
    check(task, taps_of(task), RECIPE, reporter())


def test_a_loss_that_returns_no_scalar_is_named():
    task = loaded(OutputTask({"answer": "regression"}, loss=lambda outputs, targets: outputs))
    with pytest.raises(
        TaskError, match=r"the task's loss returned torch.float32 of shape \(30, 2\), must return a scalar"
    ):
        check(task, taps_of(task), RECIPE, StageReporter(reporter().observer, "check"))


@pytest.mark.parametrize(
    ("output", "kind", "said"),
    [
        (None, "classes", "must give 'x', as a tensor or under that name, but gave a NoneType; is the 'return'"),
        ({"y": torch.zeros(2, 3)}, "classes", r"gave a dict of 'y' \(2, 3\): 'x' is not there"),
        ({"x": 3}, "classes", "output 'x' of the model is a int, must be a tensor"),
        (
            torch.zeros(2, 3).long(),
            "classes",
            "output 'x' of the model is torch.int64, but classes are floats: give scores",
        ),
        (
            torch.zeros(2, 3),
            "dense-classes",
            r"is of shape \(2, 3\), but dense-classes are \[batch, classes, height, width\]",
        ),
        (torch.zeros(2), "embedding", r"is of shape \(2,\), but embedding are \[batch, width\]"),
    ],
)
def test_an_answer_that_is_none_of_the_kind_is_named(output, kind, said):
    with pytest.raises(TaskError, match=said):
        read_answers(output, {"x": OutputKind(kind)})


def test_a_tuple_of_too_few_outputs_is_named():
    with pytest.raises(
        TaskError, match=r"must give 'x', 'y', in a tuple in this order or by name, but gave a tuple of \(2, 3\)"
    ):
        read_answers((torch.zeros(2, 3),), {"x": OutputKind(), "y": OutputKind()})


def test_the_places_of_a_namedtuple_are_not_guessed_where_some_of_its_names_are_those_of_outputs():
    swapped = namedtuple("Swapped", "scores x")
    with pytest.raises(TaskError, match=r"gave a Swapped of 'scores' .*: 'score' is not there; did you mean 'scores'"):
        read_answers(swapped(torch.zeros(2, 3), torch.ones(2, 3)), {"x": OutputKind(), "score": OutputKind()})


def test_doubles_and_whole_numbers_of_custom_outputs_become_floats():
    kinds = {"x": OutputKind("regression"), "y": OutputKind("custom")}
    answers = read_answers((torch.zeros(2, 3).double(), torch.ones(2).long()), kinds)
    assert {x.dtype for x in answers.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "labels"}, "an output may not be named so"),
        ({"name": "embedding.x"}, "an output may not be named so"),
        ({"kind": "class"}, "has the kind 'class', must be one of .*did you mean 'classes'"),
        ({"blank": 0}, "blank is no option of the kind 'classes', but of sequence-classes"),
        ({"threshold": 0.5}, "threshold is no option of the kind 'classes'"),
        ({"index": "own"}, "its index is 'own', must be 'float', or 'own' of an embedding"),
        ({"kind": "multilabel", "threshold": 5}, "its threshold is 5, must be a number between 0 and 1"),
        ({"kind": "regression", "threshold": float("nan")}, "its threshold is nan, must be a finite number"),
        ({"kind": "regression", "threshold": "3"}, "its threshold is '3', must be a finite number"),
        ({"kind": "sequence-classes", "blank": -1}, "its blank is -1, must be the number of a class, from 0"),
        ({"kind": "sequence-classes", "blank": True}, "its blank is True, must be the number of a class"),
        ({"probabilities": "no"}, "its probabilities is 'no', must be True or False"),
        ({"description": 3}, "its description is an int, must be a text"),
        ({"weight": -1}, "its weight is -1, must be a number from 0"),
        ({"classes": "ab"}, "its classes are a str, must be a list of names"),
    ],
)
def test_an_output_that_cannot_be_is_refused(options, said):
    with pytest.raises(TaskError, match=said):
        Output(**{"name": "x", **options})


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([], "it needs one at least, each named once"),
        ([Output("x"), Output("x")], "has outputs .*each named once"),
        ([Output("a")], "'a' is an input and an output"),
        (["x"], "its outputs hold a str, each must be an edgekd.Output"),
        (
            [Output("x", "custom")],
            "output 'x' is custom, .* it lacks a function loss, a function distill, a function metric",
        ),
        ([Output("x", weight=0)], "all outputs have weight 0"),
    ],
)
def test_outputs_that_no_task_can_have_are_refused(outputs, said):
    task = SmallTask()
    task.outputs = outputs
    with pytest.raises(TaskError, match=said):
        check_task("the task", task)


class Untargeted(OutputTask):
    """Two outputs, and labels alone."""

    def splits(self):
        return SmallTask.splits(self)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            lambda: Untargeted({"what": "classes", "where": "regression"}),
            "the target of output 'what' is not there: with several outputs a sample's target is a dict by their",
        ),
        (
            lambda: changed("classes", lambda x: x),
            "target of output 'answer' is torch.float32, must be classes in whole",
        ),
        (lambda: changed("classes", lambda x: x.long() % 3 + 1), "has the label 3, but the networks give 3 classes"),
        (lambda: changed("regression", lambda x: x), r"is of shape \(\) for a sample, but the output is of \(2,\)"),
        (lambda: changed("dense-classes", lambda x: x.long() % 3), r"dense-classes needs \(2, 2\)"),
        (lambda: changed("multilabel", lambda x: torch.full((len(x), 2), 3)), "holds 3; a label holds"),
        (lambda: changed("regression", lambda x: torch.full((len(x), 2), torch.inf)), "is infinite in some sample"),
        (lambda: changed("ctc", lambda x: torch.ones(len(x), 4).long()), "has 4 tokens, for which CTC needs 7 steps"),
    ],
)
def test_targets_that_do_not_fit_are_named_before_training(task, said):
    made = loaded(task())
    with pytest.raises(TaskError, match=said):
        check(made, taps_of(made), RECIPE, reporter())


def test_numbers_of_any_units_count_alike_and_constant_ones_are_bounded():
    def make(x):
        varying = [x * 1e9 + 5e9, x * 1e-9]
        return torch.stack([*varying, torch.full_like(x, 7), torch.zeros_like(x)], 1)

    class Units(SmallTask):
        outputs = (Output("answer", "regression"),)

        def splits(self):
            made = super().splits()
            return {key: ArraySplit(x.ids, x.inputs, targets=target_rows(x, make)) for key, x in made.items()}

    made = loaded(Units())
    targets = made.splits["train"].targets
    mean = targets.double().mean(0).float()
    assert float(losses_of(made).supervised({"answer": mean.expand(90, 4)}, targets)) == pytest.approx(0.5, rel=1e-3)
    assert float(losses_of(made).supervised({"answer": mean.expand(90, 4) * 0}, targets)) < 100


def test_a_whole_number_that_an_int64_does_not_hold_is_no_target():
    with pytest.raises(TaskError, match="must be a tensor, an array or a number"):
        target_nest("the target", np.array([2**63 + 5], np.uint64))


def test_a_blank_that_is_no_class_of_the_network_is_named_before_training():
    task = OutputTask({"answer": "ctc"})
    task.outputs = [Output("answer", "sequence-classes", blank=3)]
    made = loaded(task)
    with pytest.raises(TaskError, match="the blank of output 'answer' is 3, but the networks give 3 classes"):
        check(made, taps_of(made), RECIPE, reporter())


def changed(kind, make):
    """A task of one output whose targets are other than those of the kind, in the validation split alone."""

    class Changed(OutputTask):
        def splits(self):
            made = super().splits()
            val = made["val"]
            return {**made, "val": ArraySplit(val.ids, val.inputs, targets=target_rows(val, make))}

    return Changed({"answer": kind})


def test_a_loss_of_logits_is_refused_where_there_are_none():
    task = loaded(OutputTask({"answer": "regression"}))
    recipe = Recipe(task=TaskConfig("any"), distill=DistillConfig(loss=LossConfig(extra={"dkd": 1.0})))
    with pytest.raises(
        TaskError, match=r"loss 'dkd': 'dkd' is of scores of classes, .* are none: 'answer' \(regression\)"
    ):
        check(task, taps_of(task), recipe, reporter())


def test_teacher_and_student_must_agree_on_shapes():
    task = OutputTask({"answer": "regression"})
    task.student = lambda: Answers([(3,)], lambda outputs: outputs[0])
    with pytest.raises(
        TaskError, match=r"teacher and student disagree on the shape of output 'answer': \(2,\) and \(3,\)"
    ):
        check(loaded(task), taps_of(loaded(task)), RECIPE, reporter())
