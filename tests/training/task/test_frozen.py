"""Networks of which a part, or all, does not train: what the user's factory froze stays as it was."""

import pytest
import torch
from small import SHAPES, TAPS, TwoTowers, loaded, reporter
from torch import nn

from edgekd.config.recipe import (
    DistillConfig,
    LossConfig,
    PruneConfig,
    QatConfig,
    QuantizeConfig,
    Recipe,
    TaskConfig,
    TeacherConfig,
    Training,
)
from edgekd.config.target import Scheme
from edgekd.errors import TaskError
from edgekd.stages.artifacts import WEIGHTS
from edgekd.training.distillation import distill
from edgekd.training.distillation.objective import SupervisedObjective
from edgekd.training.loop.evaluate import Validation
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.preflight import check as preflight
from edgekd.training.pruning import stage as prune
from edgekd.training.qat import stage as qat
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps

WITHOUT_GRAM = LossConfig(extra={})
SCHEME = Scheme(activations="uint8", symmetric_activations=False)


class WithNorms(TwoTowers):
    """Both encoders normalise, and of each the second norm has nothing to learn."""

    def __init__(self):
        super().__init__()
        for name, (inputs,) in SHAPES.items():
            self.encoders[name] = nn.Sequential(
                *(nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)),
                nn.BatchNorm1d(8, affine=False),
            )


def frozen(*paths, network=WithNorms):
    """A factory of students whose modules at these paths do not train."""

    def student():
        model = network()
        for path in paths:
            model.get_submodule(path).requires_grad_(False)
        return model

    return student


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def changed(model, before):
    """Names of the entries of a network's state that are not as before."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def of(model, *paths):
    return {name for name in model.state_dict() if name.startswith(tuple(f"{path}." for path in paths))}


def train(model, folder, epochs=2):
    task = loaded()
    with TappedModel(model, TAPS) as tapped:
        run = Fit(Training(epochs=epochs, batch_size=16), 0, folder, reporter())
        fit(model, SupervisedObjective(tapped), task.splits["train"], Validation(task, model, TAPS), run)


def test_a_frozen_encoder_keeps_its_weights_and_its_statistics(tmp_path):
    model = build(frozen("encoders.a"), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, tmp_path)
    # All else moves; and in the frozen encoder neither the norm with a scale nor the one without.
    assert changed(model, before) == set(before) - of(model, "encoders.a")


def test_a_norm_frozen_by_itself_keeps_its_statistics_and_others_do_not(tmp_path):
    model = build(frozen("encoders.b.1"), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, tmp_path)
    assert changed(model, before) == set(before) - of(model, "encoders.b.1")


def test_dropout_of_a_frozen_encoder_and_other_norms_stay_in_training_mode(tmp_path):
    class Dropping(WithNorms):
        def __init__(self):
            super().__init__()
            self.encoders["a"].append(nn.Dropout(0.5))

    model = build(frozen("encoders.a", network=Dropping), 0)
    seen = set()
    for path in ("encoders.a.1", "encoders.a.4", "encoders.a.5", "encoders.b.1"):
        hook = lambda module, _, path=path: seen.add((path, module.training)) if model.training else None  # noqa: E731
        model.get_submodule(path).register_forward_pre_hook(hook)
    train(model, tmp_path)
    assert seen == {("encoders.a.1", False), ("encoders.a.4", False), ("encoders.a.5", True), ("encoders.b.1", True)}


def test_the_head_alone_learns(tmp_path):
    task = loaded(counts=(300, 20, 20, 100))
    task.task.student = frozen("encoders.a", "encoders.b", network=lambda: TwoTowers(hidden=32, width=16))
    teacher = build(lambda: TwoTowers(width=12), 1)
    config = DistillConfig(epochs=20, batch_size=16, learning_rate=1e-2, loss=LossConfig(ce=1, kd=0, extra={}))
    trained = distill.run(task, teacher, Taps(TAPS, TAPS), config, StageRun(0, tmp_path, reporter()))
    untrained = build(task.task.student, 0)
    student = load_weights(build(task.task.student, 0), tmp_path / WEIGHTS)
    assert changed(student, untrained.state_dict()) == of(student, "head")
    assert trained.metric > 0.7  # of three classes


def test_flags_outlive_pruning_and_loading(tmp_path):
    task = loaded()
    task.task.student = frozen("encoders.a.0", "encoders.b")
    expected = flags(build(task.task.student, 0))
    student, pruned = (build(task.task.student, 0) for _ in range(2))
    networks = prune.PruningNetworks(build(lambda: TwoTowers(width=12), 1), student, pruned)
    config = PruneConfig(epochs=1, batch_size=16, ratio=0.5, round_to=4, loss=WITHOUT_GRAM)
    trained = prune.run(task, networks, Taps(TAPS, TAPS), config, StageRun(0, tmp_path, reporter()))
    assert trained.parameters < sum(p.numel() for p in student.parameters())
    rebuilt = prune.rebuild(build(task.task.student, 5), task, tmp_path)
    assert flags(pruned) == flags(rebuilt) == expected
    assert not changed(rebuilt, pruned.state_dict())


def test_fake_quantization_trains_what_is_not_frozen(tmp_path):
    task = loaded()
    task.task.student = frozen("encoders.a")
    tuned = build(task.task.student, 0)
    before, expected = {name: x.clone() for name, x in tuned.state_dict().items()}, flags(tuned)
    networks = qat.QatNetworks(build(TwoTowers, 1), build(task.task.student, 0), tuned)
    config = QatConfig(epochs=1, batch_size=16, loss=WITHOUT_GRAM)
    qat.run(task, networks, Taps(TAPS, TAPS), SCHEME, config, StageRun(0, tmp_path, reporter()))
    assert flags(tuned) == expected
    moved = changed(tuned, before)
    assert not moved & of(tuned, "encoders.a")
    assert "head.1.weight" in moved


def check(student=WithNorms, trained=WithNorms, **sections):
    task = loaded()
    task.task.student, task.task.teacher = student, trained
    preflight.check(task, Taps(TAPS, TAPS), Recipe(task=TaskConfig(name="small"), **sections), reporter())


def test_a_network_that_is_all_frozen_is_refused():
    with pytest.raises(TaskError, match="the student, WithNorms, has no trainable parameter: nothing to train; unfree"):
        check(frozen(""))
    with pytest.raises(TaskError, match=r"the teacher, WithNorms, has no trainable .* as \[teacher\] weights"):
        check(trained=frozen(""))


def test_a_frozen_teacher_that_is_not_to_be_trained_is_right():
    check(trained=frozen(""), teacher=TeacherConfig(weights="teacher.safetensors"))


BOTH = frozen("encoders.a", "encoders.b")


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({}, ["distill.loss", "prune.loss", "quantize.qat.loss"]),
        ({"prune": PruneConfig(ratio=0)}, ["distill.loss", "quantize.qat.loss"]),
        (
            {"distill": DistillConfig(loss=WITHOUT_GRAM), "prune": PruneConfig(ratio=0, ratios={"a": 0.5})},
            ["prune.loss", "quantize.qat.loss"],
        ),
        (
            {"distill": DistillConfig(loss=WITHOUT_GRAM), "prune": PruneConfig(loss=WITHOUT_GRAM)},
            ["quantize.qat.loss"],
        ),
        ({"prune": PruneConfig(ratio=0), "quantize": QuantizeConfig(repair="off")}, ["distill.loss"]),
    ],
    ids=["all", "no pruning", "pruning of one encoder", "repair alone", "no repair"],
)
def test_a_gram_of_frozen_taps_alone_is_refused_with_what_switches_it_off(sections, named):
    switches = ", ".join(rf"{section}.extra = \{{\}}" for section in named)
    with pytest.raises(TaskError, match=f"all lie behind frozen layers, .* or set {switches}$"):
        check(BOTH, **sections)


def test_frozen_taps_are_right_without_a_gram():
    qat_config = QuantizeConfig(qat=QatConfig(loss=WITHOUT_GRAM))
    check(BOTH, distill=DistillConfig(loss=WITHOUT_GRAM), prune=PruneConfig(loss=WITHOUT_GRAM), quantize=qat_config)


def test_one_tap_that_trains_is_enough_for_a_gram():
    check(frozen("encoders.a"))
