"""Odd models through stages after the import: none may ask for more than such a model has."""

import graphs
import msgspec
import numpy as np
import onnx
import pytest
from graphs import node, tensor

from edgekd import build
from edgekd.compress.partial import SAMPLES
from edgekd.config.recipe import ProfileConfig, Recipe
from edgekd.config.target import load_calibration
from edgekd.pipeline.imported_source import import_model
from edgekd.pipeline.onnx_import.samples import NpzSamples, split
from edgekd.stages.cache import Cache
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.progress import Silent
from edgekd.stages.stage import Runner
from edgekd.workflows.check import blame, suggest_limits


def recipe(model, samples):
    return msgspec.convert({"model": {"path": str(model), "calibration": str(samples)}}, Recipe)


@pytest.fixture(params=["n", 1], ids=["any batch", "one sample at a time"])
def classifier(tmp_path, request):
    """One image, two convolutions, three classes."""
    nodes = [
        node("Conv", ["image", "k"], ["map"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["map"], ["positive"]),
        node("Conv", ["positive", "l"], ["maps"], name="second"),
        node("GlobalAveragePool", ["maps"], ["pooled"]),
        node("Flatten", ["pooled"], ["features"]),
        node("Gemm", ["features", "h"], ["scores"], name="last"),
    ]
    inputs, outputs = [tensor("image", [request.param, 1, 8, 8])], [tensor("scores", [request.param, 3])]
    stored = graphs.weights(k=(8, 1, 3, 3), l=(16, 8, 3, 3), h=(16, 3))
    model = graphs.write(tmp_path / "classifier.onnx", nodes, inputs, outputs, stored)
    random = np.random.default_rng(0)
    images, labels = random.normal(size=(80, 1, 8, 8)).astype(np.float32), random.integers(0, 3, 80)
    return recipe(model, graphs.save_samples(tmp_path / "samples.npz", image=images, labels=labels))


def test_its_layers_are_blamed(classifier, tmp_path):
    found = blame(classifier, output=tmp_path / "out", cache=tmp_path / "cache", devices=["none"])["cpu"]
    assert sorted(suspect.name for suspect in found.of("layer")) == ["first", "last", "second"]
    assert (found.samples, found.kind) == (40, "classes")


def test_without_a_label_among_the_samples_no_metric_is_blamed(classifier, tmp_path):
    random = np.random.default_rng(0)
    labels = np.full(600, UNLABELLED)
    labels[_calibrating(600)[np.flatnonzero(~_looked_at(300))[0]]] = 0
    images = random.normal(size=(600, 1, 8, 8)).astype(np.float32)
    np.savez(classifier.model.calibration, image=images, labels=labels)
    np.savez(tmp_path / "test.npz", image=images[:20] + 1, labels=np.zeros(20, int))
    model = msgspec.structs.replace(classifier.model, test=str(tmp_path / "test.npz"))
    changed = msgspec.structs.replace(classifier, model=model)
    found = blame(changed, output=tmp_path / "out", cache=tmp_path / "cache", devices=["none"])["cpu"]
    assert (found.samples, found.kind) == (256, "classes")
    assert found.quantized.metric is None
    assert {suspect.gain for suspect in found.suspects} == {None}


def _calibrating(count):
    """Return which of so many samples an import keeps for calibration; the others are to choose on."""
    samples = NpzSamples({}, np.arange(count).astype(str), None, None)
    return split(samples, recipe("m.onnx", "s.npz").seed)[0].ids.astype(int)


def _looked_at(count):
    """Return which of so many calibration samples blame looks at."""
    chosen = np.random.default_rng(load_calibration("minmax").seed).permutation(count)[:SAMPLES]
    return np.isin(np.arange(count), chosen)


def test_limits_are_measured_where_there_is_one_branch_alone(classifier, tmp_path):
    alarm = suggest_limits(classifier, cache=tmp_path / "cache")
    assert {outcome.perturbation.where for outcome in alarm.outcomes} == {"network"}
    assert len(alarm.outcomes) > 61
    assert "max_missing_flips" not in alarm.limits


def test_other_weights_beside_the_model_are_another_model(tmp_path):
    model = tmp_path / "mlp.onnx"
    samples = graphs.save_samples(tmp_path / "samples.npz", x=graphs.normal(4))
    logits = []
    for _ in range(2):
        onnx.save(
            onnx.load(graphs.mlp(model)), model, save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        if logits:
            content = np.fromfile(tmp_path / "weights.bin", np.float32)
            (2 * content).tofile(tmp_path / "weights.bin")
        imported = import_model(Runner(Cache(tmp_path / "cache"), Silent()), recipe(model, samples))
        logits.append(imported.probes("test")["float"].answer)
    np.testing.assert_allclose(logits[1], 2 * logits[0], rtol=1e-6)


def test_several_outputs_none_of_classes_have_a_metric_of_nothing(tmp_path):
    nodes = [node("Gemm", ["x", "w"], ["hidden"]), node("Gemm", ["hidden", "a"], ["angle"])]
    outputs = [tensor("hidden", ["n", 6]), tensor("angle", ["n", 2])]
    model = graphs.write(
        tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], outputs, graphs.weights(w=(4, 6), a=(6, 2))
    )
    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    given = recipe(model, graphs.save_samples(tmp_path / "samples.npz", x=x))
    given = msgspec.structs.replace(given, profile=ProfileConfig(iterations=40, cold_starts=1, layers=False))
    (target,) = build(given, "cpu", output=tmp_path / "out", cache=tmp_path / "cache").targets
    row = target.ledger.rows[-1]
    assert row.metric is None
    assert list(row.answers) == ["hidden", "angle"]
