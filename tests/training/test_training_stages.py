"""The stages teacher and distill, whole; prune and export have files of their own."""

import pytest
import torch
from small import TAPS, TwoTowers, loaded, reporter

from edgekd.config.recipe import DistillConfig, LossConfig, TeacherConfig
from edgekd.errors import ModelError
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.pipeline.trained_source import TEACHER
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.cache import CHECKPOINT
from edgekd.training.distillation import distill, teacher
from edgekd.training.loop.evaluate import probe
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps


def run_teacher(folder, task, taps=TAPS, observer=None, seed=0, **config):
    settings = TeacherConfig(**{"epochs": 2, "batch_size": 16, **config})
    return teacher.run(task, taps, settings, StageRun(seed, folder, reporter(observer)))


def test_a_teacher_is_trained_and_kept_with_what_it_says_of_the_test_split(tmp_path):
    task = loaded()
    trained = run_teacher(tmp_path, task, epochs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT, WEIGHTS, PROBE]
    assert len(trained.history) == 3
    assert trained.parameters == sum(p.numel() for p in TwoTowers().parameters())
    model = load_weights(build(TwoTowers, 9), tmp_path / WEIGHTS)
    again, stored = probe(model, TAPS, task.splits["test"]), Probe.load(tmp_path / PROBE)
    assert again.modalities == stored.modalities
    assert (again.ids == stored.ids).all()
    assert (again.answer == stored.answer).all()
    assert trained.metric == task.metric(stored.answer, task.splits["test"].labels.numpy())


def test_a_training_that_is_longer_than_usual_says_so_in_its_outcome(tmp_path):
    trained = run_teacher(tmp_path, loaded(), epochs="auto", min_steps=200)
    assert len(trained.history) == 34
    assert TEACHER.summary(trained).endswith("34 epochs instead of 30, since 90 samples make few steps: 204 of them")


def test_a_teacher_of_the_users_own_is_loaded_and_not_trained(tmp_path):
    torch.save(build(TwoTowers, 4).state_dict(), tmp_path / "mine.pt")
    trained = run_teacher(tmp_path / "stage", loaded(), weights=str(tmp_path / "mine.pt"))
    assert trained.history == []
    model = load_weights(build(TwoTowers, 0), tmp_path / "stage" / WEIGHTS)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), build(TwoTowers, 4).parameters(), strict=True))
    with pytest.raises(ModelError, match="no such weights file"):
        run_teacher(tmp_path / "stage", loaded(), weights=str(tmp_path / "other.pt"))


def test_the_seed_decides_the_teacher(tmp_path):
    def weights(folder, seed):
        run_teacher(tmp_path / folder, loaded(network=lambda: TwoTowers(dropout=0.3)), seed=seed)
        return (tmp_path / folder / WEIGHTS).read_bytes()

    first, again, other = weights("first", 0), weights("again", 0), weights("other", 1)
    assert first == again != other


def test_distilling_brings_the_students_gram_to_the_teachers(tmp_path):
    task = loaded(counts=(200, 20, 20, 60))
    run_teacher(tmp_path / "teacher", task, epochs=10)
    drifts = {}
    for name, extra in {"with": {"intra": 1.0, "sample": 1.0}, "without": {}}.items():
        network = load_weights(build(TwoTowers, 0), tmp_path / "teacher" / WEIGHTS)
        config = DistillConfig(epochs=8, batch_size=16, loss=LossConfig(extra=extra))
        distill.run(task, network, Taps(TAPS, TAPS), config, StageRun(3, tmp_path / name, reporter()))
        student, reference = (Probe.load(tmp_path / folder / PROBE) for folder in (name, "teacher"))
        drifts[name] = measure_drift(student, reference, None, Bootstrap(resamples=200)).mean
    assert drifts["with"] < 0.5 * drifts["without"]
