"""Models that are built as they are: in INT8 or float16, as the tools of others write them."""

import shutil

import forms
import graphs
import msgspec
import numpy as np
import onnx
import pytest
from graphs import node, tensor

import edgekd
from edgekd.compress.precision import count_quantized, precision_of
from edgekd.config.recipe import Recipe
from edgekd.devices.targets import load_target
from edgekd.errors import ModelError
from edgekd.pipeline.build import try_build
from edgekd.pipeline.onnx_import.as_is import import_as_is
from edgekd.pipeline.onnx_import.file.read import read_model
from edgekd.pipeline.onnx_import.source import OnnxSource
from edgekd.stages.progress import Silent, StageReporter
from edgekd.workflows.check import blame, check

#: Of each form: its precision, its layers that compute in integers, and whether it ships byte for byte.
EXPECTED = {
    "qdq": ("int8", 4, True),
    "qoperator": ("int8", 4, True),
    "dynamic": ("int8", 4, False),
    "nbits": ("int4-weights", 0, True),
    "half": ("float16", 0, True),
    "half_inside": ("float16", 0, True),
    "half_stored": ("float16", 0, True),
    "cast_and_mul": ("int8-weights", 0, True),
    "dequantized": ("int8-weights", 0, True),
    "fake_quantized": ("float32", 0, True),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The network in every form."""
    folder = tmp_path_factory.mktemp("forms")
    source = forms.network(folder / "float.onnx")
    for name, write in forms.FORMS.items():
        write(source, folder / f"{name}.onnx")
    np.savez(folder / "samples.npz", **forms.samples())
    np.savez(folder / "half.npz", **forms.samples(dtype=np.float16))
    return folder


def samples_of(folder, name):
    return folder / ("half.npz" if name == "half" else "samples.npz")


def imported(model, samples, reference, out):
    out.mkdir()
    return import_as_is(OnnxSource(model, samples), reference, out, StageReporter(Silent(), "import"))


def recipe(folder, name, reference="float", **more):
    model = {
        "path": str(folder / f"{name}.onnx"),
        "calibration": str(samples_of(folder, name)),
        "as_is": True,
        "reference": str(folder / f"{reference}.onnx") if reference else "",
    }
    return msgspec.convert({"model": model, **more}, Recipe)


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_taken_beside_its_float_reference(folder, tmp_path, name):
    precision, layers, same = EXPECTED[name]
    model = folder / f"{name}.onnx"
    done = imported(model, samples_of(folder, name), folder / "float.onnx", tmp_path / "out")
    candidate = done.given
    assert (candidate.name, candidate.precision) == ("as-is", precision)
    assert (candidate.quantized_nodes, candidate.weight_nodes) == (layers, 4)
    assert list(done.exported.parity) == ["float"]
    assert done.exported.facts.outputs["scores"].name == "classes"
    deploy = tmp_path / "out" / "as-is" / "deploy.onnx"
    assert (deploy.read_bytes() == model.read_bytes()) == same
    assert any("written anew" in note for note in done.notes) != same
    (spec,) = done.exported.facts.inputs
    assert spec["dtype"] == ("float16" if name == "half" else "float32")
    assert spec["shape"][0] == ("batch" if same else 1)


@pytest.mark.parametrize("name", ["qdq", "dynamic", "half", "cast_and_mul"])
def test_the_gate_judges_it_against_the_reference(folder, tmp_path, name):
    (target,) = check(recipe(folder, name), cache=tmp_path / "cache", devices=["none"])
    (ledger,) = target.ledgers.values()
    assert [row.stage for row in ledger.rows] == ["float", "as is"]
    assert ledger.verdict in ("pass", "warn", "undecided"), ledger.reasons
    assert 0 < ledger.rows[-1].first.divergence.mean < 0.02


def test_one_that_is_broken_is_rejected(folder, tmp_path):
    """Its last weights are half of what they should be."""
    shutil.copytree(folder, tmp_path / "f")
    model = onnx.load(folder / "dequantized.onnx")
    (scale,) = [item for item in model.graph.initializer if item.name == "m2_scale"]
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) / 4, "m2_scale"))
    onnx.save(model, tmp_path / "f" / "broken.onnx")
    (target,) = check(recipe(tmp_path / "f", "broken"), cache=tmp_path / "cache", devices=["none"])
    (ledger,) = target.ledgers.values()
    assert ledger.verdict == "fail"
    assert any("the model was so when it was given" in text for text in ledger.advice)


def test_without_a_reference_nothing_is_compared_and_the_ledger_says_so(folder, tmp_path):
    (target,) = check(recipe(folder, "qdq", reference=""), cache=tmp_path / "cache", devices=["none"])
    (ledger,) = target.ledgers.values()
    assert [row.stage for row in ledger.rows] == ["given"]
    assert (ledger.reference, ledger.verdict) == ("given", "warn")
    assert any("none was given (--reference FLOAT.onnx)" in text and "not measured" in text for text in ledger.reasons)


@pytest.mark.parametrize("reference", ["float", ""])
def test_a_build_ships_the_very_file_with_the_reference_timed_beside_it(folder, tmp_path, reference):
    quick = {"iterations": 20, "warmup": 2, "cold_starts": 1, "layers": False, "compute": False}
    given = recipe(folder, "qoperator", reference, profile=quick)
    report = edgekd.build(given, "cpu", output=tmp_path / "out", cache=tmp_path / "cache")
    (target,) = report.targets
    assert (target.chosen, target.precision, target.choice) == ("as-is", "int8", "the only candidate")
    rows = ["float", "as is", "device"] if reference else ["given", "device"]
    assert [row.stage for row in target.ledger.rows] == rows
    assert {engine.name for engine in target.profile.engines} == {"shipped", *([reference] if reference else [])}
    bundle = tmp_path / "out" / "cpu" / "bundle"
    assert (bundle / "deploy.onnx").read_bytes() == (folder / "qoperator.onnx").read_bytes()
    with edgekd.load(bundle) as engine:
        assert engine.verify().ok
        assert engine.run({"image": forms.samples()["image"][:3]})["scores"].shape == (3, 5)


def test_a_dry_run_takes_it(folder, tmp_path):
    given = recipe(folder, "qoperator")
    refused = try_build(given, [load_target("cpu")], tmp_path / "cache", devices=["none"], observer=Silent())
    assert refused == {}


def test_there_is_nothing_to_blame(folder, tmp_path):
    with pytest.raises(ModelError, match="nothing to blame: the model is built as it is"):
        blame(recipe(folder, "qdq"), output=tmp_path / "out", cache=tmp_path / "cache", devices=["none"])


@pytest.mark.parametrize("name", forms.QUANTIZED)
def test_what_computes_in_integers_is_refused_otherwise_and_the_way_is_named(folder, name):
    with pytest.raises(ModelError, match=r"is quantized already \(.*or --as-is \(as_is in \[model\]\)"):
        read_model(folder / f"{name}.onnx")


def relu(path, inputs="image", output="scores", kind=graphs.FLOAT, shape=(1, 12, 12)):
    nodes = [node("Flatten", [inputs], ["f"]), node("MatMul", ["f", "w"], [output])]
    nodes = nodes if kind == graphs.FLOAT else [node("Cast", [inputs], ["c"], to=graphs.FLOAT), *nodes]
    nodes[-2].input[0] = inputs if kind == graphs.FLOAT else "c"
    return graphs.write(
        path, nodes, [tensor(inputs, ["n", *shape], kind)], [tensor(output, ["n", 5])], graphs.weights(w=(144, 5))
    )


def test_a_reference_that_is_of_another_model_is_refused(folder, tmp_path):
    def refused(reference):
        return imported(folder / "qdq.onnx", folder / "samples.npz", reference, tmp_path / reference.stem)

    with pytest.raises(ModelError, match=r"has no output 'scores', which .*qdq.onnx has; did you mean 'score'"):
        refused(relu(tmp_path / "output.onnx", output="score"))
    with pytest.raises(ModelError, match=r"has the inputs picture, and .*qdq.onnx image"):
        refused(relu(tmp_path / "input.onnx", inputs="picture"))
    with pytest.raises(ModelError, match=r"input 'image' is int64, and float32 in .*: samples cannot be both"):
        refused(relu(tmp_path / "type.onnx", kind=graphs.INT64))


def test_outputs_of_other_sizes_are_refused(folder, tmp_path):
    nodes = [node("Flatten", ["image"], ["f"]), node("MatMul", ["f", "w"], ["scores"])]
    graphs.write(
        tmp_path / "wide.onnx", nodes, [tensor("image", ["n", 1, 12, 12])], [tensor("scores", ["n", 6])],
        graphs.weights(w=(144, 6)),
    )  # fmt: skip
    shutil.copytree(folder, tmp_path / "f")
    shutil.copy(tmp_path / "wide.onnx", tmp_path / "f" / "wide.onnx")
    with pytest.raises(ModelError, match=r"its output 'scores' is \[5\] a sample, and \[6\] in its float reference"):
        check(recipe(tmp_path / "f", "qdq", "wide"), cache=tmp_path / "cache", devices=["none"])


def test_one_that_is_another_each_time_or_not_finite_is_refused(folder, tmp_path):
    model = onnx.load(folder / "float.onnx")
    model.graph.node[-1].output[0] = "sure"
    model.graph.node.append(node("RandomUniformLike", ["sure"], ["noise"]))
    model.graph.node.append(node("Add", ["sure", "noise"], ["scores"]))
    onnx.save(model, tmp_path / "random.onnx")
    with pytest.raises(ModelError, match=r"gives another output 'scores' each time for the same sample|another result"):
        imported(tmp_path / "random.onnx", folder / "samples.npz", None, tmp_path / "out")
    shutil.copytree(folder, tmp_path / "f")
    model = onnx.load(folder / "float.onnx")
    model.graph.node[-1].op_type, model.graph.node[-1].input[0] = "Log", "h"
    model.graph.node.insert(len(model.graph.node) - 1, node("Add", ["h", "far"], ["i"]))
    model.graph.node[-1].input[0] = "i"
    values = forms.samples()["image"]
    from user import run_user

    first = float(run_user(folder / "float.onnx", "scores", {"image": values[:1]}).max())  # of the first it is finite
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(3 + first), "far"))
    onnx.save(model, tmp_path / "f" / "log.onnx")
    with pytest.raises(ModelError, match="is not finite"):
        check(recipe(tmp_path / "f", "log", ""), cache=tmp_path / "cache", devices=["none"])


def test_layers_count_where_their_weights_are_stored_in_8_bits_and_they_compute_in_integers(folder):
    counted = {name: count_quantized(onnx.load(folder / f"{name}.onnx")) for name in forms.FORMS}
    assert counted == {name: (layers, 4) for name, (_, layers, _) in EXPECTED.items()}
    run_time = onnx.load(folder / "qdq.onnx")  # the same with a weight that is rounded each time it runs
    (pair,) = [item for item in run_time.graph.node if item.op_type == "DequantizeLinear" and "m1" in item.input[0]]
    stored = {item.name: item for item in run_time.graph.initializer}
    run_time.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((400, 64), np.float32), "plain"))
    run_time.graph.node.insert(0, node("QuantizeLinear", ["plain", *pair.input[1:]], ["at_run_time"], axis=1))
    assert pair.input[0] in stored
    pair.input[0] = "at_run_time"
    assert count_quantized(run_time) == (3, 4)
    assert precision_of(run_time) == "int8"
