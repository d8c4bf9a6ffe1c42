"""How much is done about INT8: where it cannot win, where a repair does not pay, where the user wants it quick."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

import edgekd
from edgekd.cli.main import main
from edgekd.config.loading import model_recipe
from edgekd.config.recipe import ModelConfig
from edgekd.pipeline.target.repair import outlook
from edgekd.pipeline.target.repair.outlook import Outlook
from edgekd.runtime.measure.results import Quantile

WIDTH, DEPTH = 12, 20
QUICK = (
    "profile.iterations=60", "profile.warmup=5", "profile.cold_starts=1", "profile.energy_s=0", "profile.layers=false",
    "gate.resamples=200",
)  # fmt: skip
#: A limit that no INT8 keeps.
STRICT = "gate.max_divergence=1e-9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A chain of layers so small that INT8 makes it slower, and samples of it."""
    folder, random = tmp_path_factory.mktemp("chain"), np.random.default_rng(0)
    nodes, stored, last = [], [], "x"
    for layer in range(DEPTH):
        weights = random.normal(size=(WIDTH, WIDTH)) * np.sqrt(2 / WIDTH)
        stored.append(numpy_helper.from_array(weights.astype(np.float32), f"w{layer}"))
        nodes.append(make_node("MatMul", [last, f"w{layer}"], [f"y{layer}"], name=f"layer{layer}"))
        nodes.append(make_node("Tanh", [f"y{layer}"], [f"t{layer}"]))
        last = f"t{layer}"
    value, output = (make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", last))
    graph = helper.make_graph(nodes, "chain", [value], [output], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "m.onnx")
    np.savez(folder / "samples.npz", x=random.normal(size=(80, WIDTH)).astype(np.float32))
    return folder


class Told(edgekd.stages.progress.Silent):
    """Keeps the stages that ran, and the warnings."""

    def __init__(self):
        self.stages, self.warnings = [], []

    def start(self, stage):
        self.stages.append(stage.partition(" ")[0])

    def warn(self, _stage, message):
        self.warnings.append(message)


@pytest.fixture
def build(folder, tmp_path):
    def build(*overrides):
        model = ModelConfig(path=str(folder / "m.onnx"), calibration=str(folder / "samples.npz"), kind="regression")
        told, recipe = Told(), model_recipe(model, (*QUICK, *overrides))
        report = edgekd.build(recipe, "cpu", output=tmp_path / "out", cache=tmp_path / "cache", observer=told)
        (target,) = report.targets
        return target, told

    return build


def candidates(target):
    return [candidate.name for candidate in target.candidates]


@pytest.mark.parametrize(
    ("int8", "exact", "hopeless"),
    [
        ((10, 9.9, 10.1), (10, 9.9, 10.1), True),
        ((12, 11, 13), (10, 9, 11), True),
        ((10, 9, 11), (10, 9, 11), False),  # who knows
        ((9, 8.9, 9.1), (10, 9.9, 10.1), False),
        (None, (10, 9.9, 10.1), False),
    ],
)
def test_int8_is_hopeless_where_its_favourable_end_is_no_faster(int8, exact, hopeless):
    times = {} if int8 is None else {"int8": Quantile(*int8)}
    reason = Outlook(Quantile(*exact), times).hopeless("int8")
    assert (reason is not None) == hopeless
    assert Outlook(None, {}).hopeless("int8") is None


def test_int8_that_cannot_win_is_left_out_before_minutes_are_spent(build, monkeypatch):
    monkeypatch.setattr(outlook, "_LEAST_BYTES", 0)
    monkeypatch.setattr(outlook, "_HOPELESS", 0.0)  # whatever the processor
    target, told = build(STRICT)
    assert candidates(target) == ["float32"]
    assert "outlook" in told.stages
    assert not {"blame", "repair"} & set(told.stages)
    assert any("Not tried: int8, since INT8 throughout takes" in fact for fact in target.facts)


@pytest.mark.parametrize("more", ["quantize.effort=best", "quantize.precision=int8"])
def test_int8_that_is_asked_for_is_tried_all_the_same(build, monkeypatch, more):
    monkeypatch.setattr(outlook, "_LEAST_BYTES", 0)
    target, told = build(more, "quantize.repair=off")
    assert "int8" in candidates(target)
    assert "outlook" not in told.stages


def test_a_small_network_is_simply_tried(build):
    target, told = build()
    assert candidates(target) == ["int8", "float32"]
    assert "outlook" not in told.stages


def test_a_repair_that_is_no_faster_than_float_ends(build):
    target, told = build(STRICT)
    assert candidates(target) == ["int8", "float32"]  # no "int8-repaired"
    (warning,) = [text for text in told.warnings if text.startswith("int8 was not repaired: with ")]
    assert re.search(r"with \d+ layers? in float it takes [\d.]+ ms, and the float network [\d.]+ ms$", warning)
    assert f"{warning}." in target.facts
    assert target.chosen == "float32"


def test_the_repair_keeps_its_time(build):
    target, told = build(STRICT, "quantize.precision=int8", "quantize.budget_s=0.001")
    (warning,) = [text for text in told.warnings if "int8-repaired: its repair ended after " in text]
    assert f"{warning}." in target.facts
    assert candidates(target) == ["int8", "int8-repaired"]


def test_quick_mends_nothing_and_says_so(build):
    target, told = build(STRICT, "quantize.effort=quick")
    assert not {"blame", "repair"} & set(told.stages)
    assert "int8 was not repaired: quantize.effort is 'quick'." in target.facts


def test_an_effort_that_there_is_not_is_one_error(folder):
    from click.testing import CliRunner

    arguments = ["build", "--model", str(folder / "m.onnx"), "--calibration", str(folder / "samples.npz")]
    outcome = CliRunner().invoke(main, [*arguments, "--effort", "fast"])
    assert outcome.exit_code == 2
    assert "'fast' is not one of 'quick', 'normal', 'best'" in outcome.output
