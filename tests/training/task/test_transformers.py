"""Real transformers from a teacher to ONNX: their outputs, their attention, their export. Nothing is downloaded."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from pruned import widths
from small import reporter

from edgekd.config.recipe import DistillConfig, ExportConfig, LossConfig, PruneConfig, Recipe, TaskConfig, TeacherConfig
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.trained import Trained
from edgekd.training.distillation import distill, teacher
from edgekd.training.distillation.half_precision import tapped_teacher
from edgekd.training.export import stage as export
from edgekd.training.export.onnx import ExportNetwork
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.preflight import check as preflight
from edgekd.training.pruning import stage as prune
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps, resolve_taps
from edgekd.training.task.loading import LoadedTask, load_task

TASK = TaskConfig(name=f"{Path(__file__).parents[1] / 'transformers_task.py'}:TransformerDigits")
EPOCHS = 8


@dataclass(frozen=True)
class Bench:
    """The task, and a trained teacher in its folder."""

    task: LoadedTask
    taps: Taps
    teacher: Trained
    folder: Path

    def load_teacher(self):
        return load_weights(build(self.task.task.teacher, 0), self.folder / WEIGHTS)

    def distil(self, folder, **loss):
        config = DistillConfig(epochs=EPOCHS, loss=LossConfig(**loss))
        return distill.run(self.task, self.load_teacher(), self.taps, config, StageRun(0, folder, reporter()))

    def far_from_teacher(self, folder):
        """How far Grams of the test samples are from the teacher's, between the modalities and within them."""
        ours, theirs = (Probe.load(place / PROBE) for place in (folder, self.folder))
        within = [np.abs(gram(z) - gram(theirs.embeddings[name])).mean() for name, z in ours.embeddings.items()]
        return measure_drift(ours, theirs, None, Bootstrap()).mean, np.mean(within)


def gram(embeddings):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    task, folder = load_task(TASK), tmp_path_factory.mktemp("teacher")
    given = task.task.teacher_taps, task.task.student_taps
    taps = Taps(*(resolve_taps("network", {}, of_task, task.modalities) for of_task in given))
    preflight.check(task, taps, Recipe(task=TASK), reporter())
    trained = teacher.run(task, taps.teacher, TeacherConfig(epochs=EPOCHS), StageRun(0, folder, reporter()))
    return Bench(task, taps, trained, folder)


@pytest.fixture(scope="module")
def student(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    return bench.distil(folder), folder


def test_they_learn(bench, student):
    assert bench.teacher.metric > 0.8  # of ten classes
    assert student[0].metric > 0.7
    assert student[0].parameters < 0.5 * bench.teacher.parameters


def test_the_gram_draws_the_student_to_the_teachers(bench, student, tmp_path):
    trained, folder = student
    first, last = trained.history[0], trained.history[-1]
    assert last["loss.intra"] < 0.3 * first["loss.intra"]
    bench.distil(tmp_path, extra={})
    between, within = bench.far_from_teacher(folder)
    without_between, without_within = bench.far_from_teacher(tmp_path)
    assert between < 0.9 * without_between
    assert within < 0.75 * without_within


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_teacher_in_half_is_near(bench, precision):
    model = bench.load_teacher().eval()
    inputs = [x[:64] for x in bench.task.splits["test"].inputs.values()]
    with torch.inference_mode():
        with TappedModel(copy.deepcopy(model), bench.taps.teacher) as tapped:
            expected = tapped(inputs)[0]["logits"]
        with tapped_teacher(model, bench.taps.teacher, precision) as tapped:
            found = tapped(inputs)[0]["logits"]
    assert 0 < (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_the_student_is_pruned_around_its_attention_and_exported(bench, student, tmp_path):
    trained, folder = student
    make = bench.task.task.student
    copies = (load_weights(build(make, 0), folder / WEIGHTS) for _ in range(2))
    networks = prune.PruningNetworks(bench.load_teacher(), *copies)
    config = PruneConfig(epochs=2, ratio=0.5, round_to=8)
    pruned = prune.run(bench.task, networks, bench.taps, config, StageRun(0, tmp_path, reporter()))
    assert pruned.metric > trained.metric - 0.1
    model = prune.rebuild(build(make, 0), bench.task, tmp_path)
    before, after = widths(networks.student), widths(model)
    narrower = {name for name in before if after[name] < before[name]}
    # The tokens between the layers as well, since the taps are behind the poolers.
    assert narrower >= {"image.layers.0.mlp.fc1", "sequence.encoder.layer.0.intermediate.dense", "tokens"}
    assert not [name for name in narrower if name.endswith(("q_proj", "k_proj", "v_proj", "query", "key", "value"))]
    networks = {"pruned": ExportNetwork(model, bench.taps.student)}
    exported = export.run(bench.task, networks, ExportConfig(), 18, tmp_path, reporter())
    assert 0 < exported.parity["pruned"] < 1e-5
    assert exported.sizes["pruned"] < 0.8 * (folder / WEIGHTS).stat().st_size
