import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small import CLASSES, TAPS, Remembers, TwoTowers, loaded, mlp, reporter, split
from torch import nn

from edgekd.config.recipe import ExportConfig, Tap
from edgekd.errors import ModelError
from edgekd.gram.probe import Probe
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.stages.artifacts import validation_probe
from edgekd.training.export import stage as export
from edgekd.training.export.onnx import ExportNetwork, write_onnx
from edgekd.training.export.stage import save_samples
from edgekd.training.loop.evaluate import probe
from edgekd.training.loop.weights import build
from edgekd.training.taps.taps import TappedModel
from edgekd.training.task.models import Conv1dEncoder, Conv2dEncoder, LateFusion, MlpEncoder, Standardize
from edgekd.training.task.protocol import ArraySplit, Modality, Sample

OPSET = 18


class ThreeKinds(nn.Module):
    """A convolution over an image, one over time, an MLP; two taps name maps and are pooled; dropout and norms."""

    SHAPES = {"image": (1, 8, 9), "motion": (3, 20), "vector": (6,)}  # noqa: RUF012
    TAPS = {  # noqa: RUF012
        "image": Tap(module="image.features"),
        "motion": Tap(module="motion.features", pool="spatial"),
        "vector": Tap(module="vector"),
    }

    def __init__(self):
        super().__init__()
        self.image = Conv2dEncoder((1, 4, 8), 8)
        self.motion = Conv1dEncoder((3, 4, 8), 8)
        self.vector = nn.Sequential(Standardize(torch.randn(50, 6)), MlpEncoder(6, (8,), 8))
        self.fusion = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(24), nn.Linear(24, CLASSES))

    def forward(self, image, motion, vector):
        return self.fusion(torch.cat([self.image(image), self.motion(motion), self.vector(vector)], 1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    shapes = ThreeKinds.SHAPES
    task = loaded(network=ThreeKinds, shapes=shapes, counts=(16, 8, 9, 80))
    model = build(ThreeKinds, 0)
    with torch.no_grad():  # so that the norms' statistics are other than at the start
        model(*task.splits["train"].inputs.values())
    fusion = LateFusion(
        {"image": Conv2dEncoder((1, 4), 8), "motion": Conv1dEncoder((3, 4), 8), "vector": MlpEncoder(6, (), 8)},
        8,
        8,
        CLASSES,
    )
    networks = {
        "teacher": ExportNetwork(model.train(), ThreeKinds.TAPS),
        "student": ExportNetwork(fusion, {name: Tap(module=f"encoders.{name}") for name in shapes}),
    }
    return export.run(task, networks, ExportConfig(), OPSET, folder, reporter()), folder, task, networks


def test_the_graph_agrees_with_torch(exported):
    result, folder, _, networks = exported
    assert set(result.parity) == set(result.sizes) == {"teacher", "student"}
    assert all(0 <= parity <= 1e-5 for parity in result.parity.values())
    assert all(result.sizes[name] == (folder / f"{name}.onnx").stat().st_size for name in networks)


def test_inputs_and_outputs_are_named_in_order(exported):
    _, folder, _, _ = exported
    graph = onnx.load(folder / "teacher.onnx").graph
    assert [value.name for value in graph.input] == ["image", "motion", "vector"]
    assert [value.name for value in graph.output] == [
        "logits", "embedding.image", "embedding.motion", "embedding.vector",
    ]  # fmt: skip
    batches = {value.type.tensor_type.shape.dim[0].dim_param for value in [*graph.input, *graph.output]}
    assert len(batches) == 1
    assert batches != {""}


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("name", ["teacher", "student"])
def test_any_batch_runs_and_gives_evaluation_mode_and_pooled_embeddings(exported, name, batch):
    _, folder, task, networks = exported
    inputs = {key: x[:batch] for key, x in task.splits["test"].inputs.items()}
    with open_engine(folder / f"{name}.onnx") as session:
        found = session.run({key: x.numpy() for key, x in inputs.items()})
    network = networks[name]
    with torch.no_grad(), TappedModel(network.model.eval(), network.taps) as tapped:
        answers, embeddings = tapped(list(inputs.values()))
    np.testing.assert_allclose(found["logits"], answers["logits"].numpy(), atol=1e-5)
    for key, z in embeddings.items():
        assert found[f"embedding.{key}"].shape == (batch, 8)
        np.testing.assert_allclose(found[f"embedding.{key}"], z.numpy(), atol=1e-5)


def test_nothing_of_this_machine_is_in_the_graph(exported):
    """The exporter notes for each node its stack, with paths and lines of the user's own source."""
    _, folder, _, _ = exported
    for path in folder.glob("*.onnx"):
        content = path.read_bytes()
        assert b"stack_trace" not in content
        assert b"pkg.torch" not in content
        assert str(Path(__file__).parent).encode() not in content
        assert b".py" not in content


def test_the_graph_has_the_opset_that_was_asked_for_and_carries_its_weights(exported):
    _, folder, _, _ = exported
    model = onnx.load(folder / "teacher.onnx")
    assert {opset.version for opset in model.opset_import if not opset.domain} == {OPSET}
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.npz",
        "student.onnx",
        "student.onnx.origins.json",
        "teacher.onnx",
        "teacher.onnx.origins.json",
        "test.npz",
        "validation.npz",
        "validation.student.npz",
        "validation.teacher.npz",
    ]
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Dropout", "If"}


def test_the_task_is_described(exported):
    facts = exported[0].facts
    assert (facts.metric, facts.higher_is_better, facts.classes) == ("accuracy", True, {"logits": ["0", "1", "2"]})
    assert facts.modalities == ["image", "motion", "vector"]
    assert facts.inputs[1] == {"name": "motion", "dtype": "float32", "shape": ["batch", 3, 20], "preprocessing": ""}


def test_samples_are_kept_for_the_stages_without_torch(exported):
    _, folder, task, _ = exported
    for name in ("test", "calibration"):
        with np.load(folder / f"{name}.npz") as arrays:
            assert arrays["ids"].tolist() == task.splits[name].ids
            np.testing.assert_array_equal(arrays["labels"], task.splits[name].labels)
            assert set(arrays.files) == {"ids", "labels", "input.image", "input.motion", "input.vector"}
            np.testing.assert_array_equal(arrays["input.motion"], task.splits[name].inputs["motion"])


def test_groups_are_kept_too(tmp_path):
    inputs = {"a": torch.ones(2, 6), "b": torch.ones(2, 5)}
    save_samples(ArraySplit(["x", "y"], inputs, torch.tensor([0, 1]), ["anna", "ben"]), tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["groups"].tolist() == ["anna", "ben"]


def test_which_samples_lack_a_modality_is_kept_too(tmp_path):
    inputs = {"a": torch.ones(3, 6), "b": torch.ones(3, 5)}
    present = {"a": torch.tensor([True, True, True]), "b": torch.tensor([True, False, True])}
    save_samples(ArraySplit(["x", "y", "z"], inputs, torch.tensor([0, 1, 0]), present=present), tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["present.b"].tolist() == [True, False, True]
        assert "present.a" not in arrays


def test_the_probe_of_any_dataset_is_in_its_order_and_leaves_the_mode():
    array = split("test", 30)
    samples: list[Sample] = [array[index] for index in range(30)]
    model = TwoTowers(dropout=0.5, norm=True).train()
    first, second = probe(model, TAPS, array), probe(model, TAPS, samples)
    assert first.ids.tolist() == second.ids.tolist() == array.ids
    np.testing.assert_array_equal(first.answer, second.answer)
    assert model.training
    assert {name: z.shape for name, z in first.embeddings.items()} == {"a": (30, 8), "b": (30, 8)}


INPUTS = {"a": torch.randn(8, 6), "b": torch.randn(8, 5)}


def test_one_tapped_object_may_be_entered_again_for_the_export(tmp_path):
    # A shared encoder: were hooks registered twice, call 1 would be call 0 again.
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = mlp(6, 8, 8), nn.Linear(16, CLASSES)

        def forward(self, a, b):
            return self.head(torch.cat([self.encoder(a), self.encoder(b)], 1))

    taps = {"a": Tap(module="encoder"), "b": Tap(module="encoder", call=1)}
    network = ExportNetwork(build(Shared, 0), taps)
    inputs = {name: torch.randn(8, 6) for name in "ab"}
    with TappedModel(network.model, taps) as tapped:
        write_onnx(network, inputs, OPSET, tmp_path / "m.onnx")
        expected = tapped(list(inputs.values()))[1]
    with open_engine(tmp_path / "m.onnx") as session:
        found = session.run({name: x.numpy() for name, x in inputs.items()})
    for name, z in expected.items():
        np.testing.assert_allclose(found[f"embedding.{name}"], z.detach().numpy(), atol=1e-5)


class Branches(TwoTowers):
    def forward(self, a, b):
        return super().forward(a * 2 if a.sum() > 0 else a, b)


def test_what_cannot_be_exported_is_one_line_and_nothing_is_printed(tmp_path, capfd):
    with pytest.raises(ModelError) as caught:
        write_onnx(ExportNetwork(Branches(), TAPS), INPUTS, OPSET, tmp_path / "m.onnx")
    message = str(caught.value)
    assert message.startswith("torch cannot export Branches to ONNX: values of the inputs decide what is computed")
    assert re.search(r"torch\.where.* \(.*test_export\.py:\d+\)$", message)
    assert "\n" not in message
    assert "\x1b" not in message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


class FixedBatch(TwoTowers):
    def forward(self, a, b):
        return super().forward(a.view(8, 6), b)


def test_a_fixed_batch_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"FixedBatch works for batches of 8 only: its code fixes the batch.*write -1"):
        write_onnx(ExportNetwork(FixedBatch(), TAPS), INPUTS, OPSET, tmp_path / "m.onnx")


class OtherAlone(TwoTowers):
    """Right for the batch that it is traced with, and for no other side of its branch."""

    def forward(self, a, b):
        logits = super().forward(a, b)
        return logits + 1 if a.shape[0] > 4 else logits


@pytest.mark.parametrize(
    ("make", "tolerance"), [(OtherAlone, 1e-4), (TwoTowers, 1e-12)], ids=["other at batch 1", "no tolerance"]
)
def test_a_graph_that_differs_from_torch_is_refused(tmp_path, make, tolerance):
    network = ExportNetwork(build(make, 0), TAPS)
    with pytest.raises(ModelError, match=r"student: the exported ONNX differs from torch by .*export.tolerance = "):
        export.run(loaded(), {"student": network}, ExportConfig(tolerance=tolerance), OPSET, tmp_path, reporter())


def test_what_is_not_a_number_differs(tmp_path):
    model = build(TwoTowers, 0)
    with torch.no_grad():
        model.encoders["b"][2].bias[3] = torch.nan
    with pytest.raises(ModelError, match=r"differs from torch by nan"):
        export.run(loaded(), {"student": ExportNetwork(model, TAPS)}, ExportConfig(), OPSET, tmp_path, reporter())


def test_facts_of_a_task_with_numpy_in_it_are_plain():
    task = loaded()
    task.task.classes = np.arange(CLASSES)
    task.task.modalities = [Modality("a", (np.int64(6),)), Modality("b", np.array([5]))]
    facts = export._facts(task, {"logits": CLASSES})
    assert facts.classes == {"logits": ["0", "1", "2"]}
    assert json.loads(json.dumps(facts.inputs))[1]["shape"] == ["batch", 5]


class Undecided(TwoTowers):
    """What it computes is decided by values, which no graph can hold."""

    def forward(self, a, b):
        return super().forward(a, b) if a.sum() > 0 else super().forward(a, b) * 2


def test_a_teacher_that_cannot_be_exported_is_compared_all_the_same(tmp_path):
    task, observer = loaded(counts=(8, 6, 6, 6)), Remembers()
    teacher = ExportNetwork(build(Undecided, 0), TAPS, optional=True)
    networks = {"teacher": teacher, "student": ExportNetwork(build(TwoTowers, 0), TAPS)}
    result = export.run(task, networks, ExportConfig(), OPSET, tmp_path, reporter(observer))
    assert list(result.sizes) == list(result.parity) == result.timed(networks) == ["student"]
    assert re.match(r"torch cannot export Undecided to ONNX: values of the inputs decide", result.refused["teacher"])
    assert observer.warnings == [
        f"the teacher is not exported, so it is compared in torch, and not timed: {result.refused['teacher']}"
    ]
    stored = Probe.load(tmp_path / validation_probe("teacher"))
    assert (stored.logits == probe(teacher.model, TAPS, task.splits["val"]).logits).all()
    required = {**networks, "student": ExportNetwork(build(Undecided, 0), TAPS)}
    with pytest.raises(ModelError, match=r"torch cannot export Undecided"):
        export.run(task, required, ExportConfig(), OPSET, tmp_path, reporter(observer))
