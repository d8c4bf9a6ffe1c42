"""The benchmark of published networks: contestants on a small network with a state, what is watched, and the goals."""

import importlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import ROOT
from onnx import TensorProto, helper, numpy_helper

BENCHMARKS = ROOT / "benchmarks"
QUICK = {
    "profile.iterations": 100, "profile.cold_starts": 1, "profile.warmup": 5, "profile.layers": "false",
    "quantize.calibration": "minmax",
}  # fmt: skip


@pytest.fixture(scope="module")
def modules():
    """The benchmark's modules by name; other tests do not find them afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).is_relative_to(BENCHMARKS):
            del sys.modules[name]


def network_with_state(path):
    """Write a classifier of [batch, 16] with a state [2, batch, 8] that it passes on."""
    random = np.random.default_rng(0)
    weights = {"a": (16, 64), "b": (64, 4), "s": (8, 8)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["wide"], "widen"),
            helper.make_node("Relu", ["wide"], ["hidden"], "relu"),
            helper.make_node("MatMul", ["hidden", "b"], ["scores"], "classify"),
            helper.make_node("MatMul", ["state", "s"], ["turned"], "turn"),
            helper.make_node("Tanh", ["turned"], ["next"], "squash"),
        ],
        "small",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, "batch", 8]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, "batch", 8]),
        ],
        [
            numpy_helper.from_array(random.normal(scale=0.3, size=size).astype(np.float32), name)
            for name, size in weights.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def float_scores(x):
    random = np.random.default_rng(0)
    a, b = (random.normal(scale=0.3, size=size).astype(np.float32) for size in ((16, 64), (64, 4)))
    return np.maximum(x @ a, 0) @ b


@pytest.fixture
def brought(modules, tmp_path):
    networks = modules("real_networks")
    random = np.random.default_rng(1)
    network = replace(networks.NETWORKS["ocr-cls"], outputs={"scores": "classes", "next": "regression"})
    made = networks.Brought("small", network, tmp_path)
    network_with_state(made.model)
    for path, count in ((made.calibration, 32), (made.test, 64)):
        x = random.normal(size=(count, 16)).astype(np.float32)
        labels = {"labels": float_scores(x).argmax(1)} if path == made.test else {}
        np.savez(path, x=x, state=random.normal(size=(count, 2, 1, 8)).astype(np.float32), **labels)
    return made


def test_every_contestant_quantizes_and_is_measured_as_what_it_is(modules, brought, monkeypatch, tmp_path):
    contests = modules("real_contest")
    quickly = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    monkeypatch.setitem(contests.EDGEKD, "edgekd", tuple(quickly))
    contestants = ("float32", "edgekd", "ONNX Runtime, default", "ONNX Runtime, dynamic", "NNCF in OpenVINO, best")
    rows = {name: contests.contest(brought, name, brought.folder / "venv", 300) for name in contestants}
    assert {name: row["failed"] for name, row in rows.items() if "failed" in row} == {}
    assert rows["float32"]["divergence_limits"] < 1e-6
    assert rows["float32"]["metrics"] == {"accuracy": 1.0}
    assert rows["edgekd"]["precision"] in ("float32", "int8")
    assert [rows[name]["quantized_layers"] for name in contestants[2:]] == [3, 3, None]
    for name in contestants[2:]:
        assert 1e-6 < rows[name]["divergence_limits"] < 1, name
        assert set(rows[name]["answers"]) == {"scores", "next"}, name
        assert rows[name]["size_bytes"] > 0, name
    for name in contestants[1:]:
        assert rows[name]["wall_s"] > rows[name]["seconds"] > 0, name
        assert 30e6 < rows[name]["peak_tree_bytes"] < 4e9, name
    results = modules("real").Results(type("Options", (), {"quick": False, "output": tmp_path / "out.json"}))
    results.of(brought)["contestants"] |= rows
    modules("real").time_all(brought, results, type("Options", (), {"again": False, "rounds": 1}))
    latency = results.of(brought)["latency"]
    assert list(latency["contestants"]) == list(contestants)
    assert set(latency["p50_ratios"]["edgekd"]) == {*contestants} - {"edgekd"}
    assert set(latency["p50_ratios"]["ONNX Runtime, default"]) == {"float32"}
    modules("real_page").write_page(json.loads((tmp_path / "out.json").read_text()), tmp_path)
    page = (tmp_path / "known-models.md").read_text(encoding="utf-8")
    assert all(f"| {name}" in page for name in contestants)


def test_what_the_gate_rejects_is_measured_all_the_same(modules, brought, monkeypatch):
    contests = modules("real_contest")
    strict = {**QUICK, "quantize.precision": "int8", "gate.max_divergence": 1e-9, "gate.max_flips": 0}
    told = tuple(part for key, value in strict.items() for part in ("--set", f"{key}={value}"))
    monkeypatch.setitem(contests.EDGEKD, "edgekd, INT8", told)
    contests.contest(brought, "float32", brought.folder, 60)
    row = contests.contest(brought, "edgekd, INT8", brought.folder, 300)
    assert row.get("failed") is None
    assert (row["released"], row["precision"]) == (False, "int8")
    assert row["quantized_layers"] == 3
    assert 0 < row["divergence_limits"] < 1


def test_weights_by_channel_are_had_of_a_network_of_an_older_opset(modules, brought):
    contests = modules("real_contest")
    model = onnx.load(brought.model)
    model.opset_import[0].version = 11
    onnx.save(model, brought.model)
    contests.contest(brought, "float32", brought.folder, 60)
    row = contests.contest(brought, "ONNX Runtime, best", brought.folder, 120)
    assert row.get("failed") is None
    assert row["quantized_layers"] == 3
    assert row["divergence_limits"] < 1


def test_a_contestant_that_breaks_a_network_is_measured_as_broken(modules, brought):
    contests = modules("real_contest")
    contests.contest(brought, "float32", brought.folder, 60)
    place = contests.place_of(brought, "ONNX Runtime, default")
    place.mkdir()
    model = onnx.load(brought.model)
    for tensor in model.graph.initializer:
        if tensor.name == "b":  # as a saturating product would
            tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1, axis=1), "b"))
    onnx.save(model, place / "quantized.onnx")
    row = contests.measure(brought, "ONNX Runtime, default")
    assert row["divergence_limits"] > 10
    assert row["metrics"]["accuracy"] < 0.5


def test_a_contestant_that_fails_says_why_and_leaves_the_others_alone(modules, brought):
    brought.model.write_bytes(b"no network")
    row = modules("real_contest").contest(brought, "ONNX Runtime, default", brought.folder / "venv", 60)
    assert "Error" in row["failed"]
    assert row["wall_s"] > 0


def test_results_of_other_files_are_void(modules, brought, monkeypatch, tmp_path):
    real = modules("real")
    options = type("Options", (), {"quick": False, "output": tmp_path / "out.json"})
    results = real.Results(options)
    results.of(brought)["contestants"]["float32"] = {"failed": "once"}
    results.write()
    assert real.Results(options).of(brought)["contestants"] == {"float32": {"failed": "once"}}
    np.savez(brought.test, x=np.zeros((4, 16), np.float32), state=np.zeros((4, 2, 1, 8), np.float32))
    assert real.Results(options).of(brought)["contestants"] == {}


def test_memory_of_processes_below_is_counted_and_a_late_command_is_killed_with_them(modules, tmp_path):
    watch = modules("watching").watch
    starts = [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"]
    ended = watch([*starts, "x = b'1' * 200_000_000; import time; time.sleep(1.5)"], os.environ)
    assert ended.failed is None
    assert 200e6 < ended.peak_bytes < 300e6
    mark = tmp_path / "late"
    late = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    assert watch([*starts, late], os.environ, timeout_s=1).failed == "not finished in 1 s"
    time.sleep(3)
    assert not mark.exists()


def test_a_command_that_fails_says_its_last_words(modules):
    watch = modules("watching").watch
    assert watch([sys.executable, "-c", "raise SystemExit('no samples')"], os.environ).failed == "no samples"
    assert watch([sys.executable, "-c", "raise SystemExit(20)"], os.environ, success=(0, 20)).failed is None
    assert watch([sys.executable, "-c", "raise SystemExit(20)"], os.environ).failed == "ended with 20"


PEER, OTHER = "ONNX Runtime, default", "NNCF, default"


def found(precision, ours, peers, p50_us, **more):
    """Return results as the benchmark keeps them: divergences in limits, and p50 without noise to speak of."""
    rows = {"float32": {"divergence_limits": 0.0, "quantized_layers": 0, "size_bytes": 10_000_000}}
    rows["edgekd"] = {"divergence_limits": ours, "quantized_layers": 1, "precision": precision, "released": True}
    rows["edgekd"] |= {"wall_s": 100.0, "peak_tree_bytes": 400e6, "seconds": 3.0, **more}
    rows["edgekd, quick"] = {**rows["edgekd"], "seconds": 0.9}
    rows |= {name: {"divergence_limits": x, "quantized_layers": 1, "seconds": 1.0} for name, x in peers.items()}
    for name, row in rows.items():
        row["engine_sha256"] = [name]
    ratios = {
        name: {
            other: {"value": p50_us[name] / p50_us[other], "low": p50_us[name] / p50_us[other] * 0.98,
                    "high": p50_us[name] / p50_us[other] * 1.02}
            for other in p50_us if other != name
        }
        for name in p50_us
    }  # fmt: skip
    latency = {
        "engine_sha256": {name: [name] for name in p50_us},
        "contestants": {name: {"p50_us": x} for name, x in p50_us.items()},
        "p50_ratios": ratios,
    }
    return {"contestants": rows, "latency": latency}


@pytest.mark.parametrize(
    ("precision", "p50_us", "peers", "met"),
    [
        ("int8", {"float32": 100, "edgekd": 60, PEER: 50}, {PEER: 0.5}, True),
        ("int8", {"float32": 100, "edgekd": 101, PEER: 50}, {PEER: 0.5}, False),
        ("int8", {"float32": 100, "edgekd": 99, PEER: 50}, {PEER: 0.5}, False),
        ("float32", {"float32": 100, "edgekd": 90, PEER: 50}, {PEER: 0.5}, False),
        ("float32", {"float32": 100, "edgekd": 100, PEER: 50}, {PEER: 1.5}, None),
        ("float32", {"float32": 100, "edgekd": 100, PEER: 100}, {PEER: 0.5}, None),
    ],
)
def test_int8_must_ship_faster_than_float_where_a_peer_manages_it(modules, precision, p50_us, peers, met):
    assert modules("real_goals").ships(found(precision, 0.4, peers, p50_us)).met is met


def test_a_rejected_build_ships_nothing(modules):
    p50_us = {"float32": 100, "edgekd": 50, PEER: 50}
    assert modules("real_goals").ships(found("int8", 0.4, {PEER: 0.5}, p50_us, released=False)).met is False


@pytest.mark.parametrize(
    ("ours", "peers", "met"),
    [
        (0.4, {PEER: 0.5, OTHER: 0.1}, True),  # the closer one is slower
        (0.6, {PEER: 0.5, OTHER: 0.1}, False),
        (0.5004, {PEER: 0.5, OTHER: 0.1}, True),  # the same up to rounding
    ],
)
def test_no_peer_as_fast_may_be_closer(modules, ours, peers, met):
    p50_us = {"float32": 100, "edgekd": 60, PEER: 60, OTHER: 90}
    assert modules("real_goals").closest(found("int8", ours, peers, p50_us)).met is met


def test_latency_of_an_engine_that_is_no_longer_the_same_is_not_measured(modules):
    goals, results = modules("real_goals"), found("int8", 0.4, {PEER: 0.5}, {"float32": 100, "edgekd": 60, PEER: 50})
    results["contestants"]["edgekd"]["engine_sha256"] = ["another"]
    assert goals.ships(results).met is None
    assert goals.ships(results).found == "not measured"


def test_cost_is_judged_by_the_fastest_peer_and_the_model(modules):
    goals, p50_us = modules("real_goals"), {"float32": 100, "edgekd": 60, PEER: 60}
    results = found("int8", 0.4, {PEER: 0.5, "ONNX Runtime, dynamic": 0.5}, p50_us)
    results["contestants"]["ONNX Runtime, dynamic"]["seconds"] = 0.1  # calibrates nothing
    assert goals.seconds(results).met is True
    results["contestants"]["edgekd, quick"]["seconds"] = 1.1
    assert goals.seconds(results).met is False
    assert goals.memory(results).met is True
    results["contestants"]["edgekd"]["peak_tree_bytes"] = 541e6
    assert goals.memory(results).met is False
    assert goals.whole_build(results).met is True


def test_layers_in_integers_and_in_branches_are_counted(modules, tmp_path):
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, 4])
    branch = helper.make_graph([helper.make_node("MatMul", ["y", "w"], ["z"])], "branch", [], [output], [weight])
    nodes = [
        helper.make_node("MatMulInteger", ["q", "v"], ["n"]),
        helper.make_node("If", ["condition"], ["z"], then_branch=branch, else_branch=branch),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "graph", [], [output])), tmp_path / "layers.onnx")
    assert modules("contestants").count_layers(tmp_path / "layers.onnx") == (1, 3)


def test_a_read_text_costs_its_edits(modules, tmp_path):
    texts = modules("real_texts")
    assert texts.edit_distance("kitten", "sitting") == 3
    assert texts.edit_distance("", "abc") == 3
    network_with_state(tmp_path / "reader.onnx")
    model = onnx.load(tmp_path / "reader.onnx")
    model.metadata_props.add(key="character", value="a\nb")
    onnx.save(model, tmp_path / "reader.onnx")
    steps = np.eye(4, dtype=np.float32)[[[1, 1, 0, 1, 2, 3, 2]]]  # "aab b" with a blank between two of the same
    assert texts.character_error_rate(tmp_path / "reader.onnx", steps, ["aab b"]) == 0
    assert texts.character_error_rate(tmp_path / "reader.onnx", steps, ["aab bb"]) == pytest.approx(1 / 6)


def test_sounds_and_texts_of_both_parts_differ(modules):
    sounds, texts = modules("real_sounds"), modules("real_texts")
    assert not set(texts.sentences("calibration")) & set(texts.sentences("test"))
    assert len(texts.sentences("calibration")) > 200
    clips = [sounds.music(part, 8000, 0.5, 3) for part in ("calibration", "test")]
    assert clips[0].shape == (3, 4000)
    assert np.abs(clips[0] - clips[1]).max() > 0.01
    string = sounds.pluck(200.0, 8000, 8000, np.random.default_rng(0))
    loudest = np.abs(np.fft.rfft(string))[1:].argmax() + 1
    assert loudest % 200 < 8 or loudest % 200 > 192  # a harmonic of the string


def test_every_network_is_pinned_and_told_of(modules):
    networks = modules("real_networks").NETWORKS
    assert len(networks) >= 12
    assert len({network.family for network in networks.values()}) >= 10
    for name, network in networks.items():
        for digest in (network.package.sha256, network.member_sha256):
            assert len(bytes.fromhex(digest)) == 32, name
        assert network.package.licence, name
        assert network.outputs, name
