"""Answers with a modality absent, of networks that are read, quantized and run as in a build."""

import math
from contextlib import contextmanager
from dataclasses import replace

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node as node

from edgekd.config.recipe import Recipe
from edgekd.devices.targets import load_target
from edgekd.gram.gate import keep_ledger
from edgekd.gram.metric import LedgerMetrics
from edgekd.pipeline.build import prepare
from edgekd.pipeline.target.missing import measure_missing, read_stand_ins, without
from edgekd.pipeline.target.outputs import join_probe, run_on_host
from edgekd.pipeline.target.quantize import QUANTIZE, write_candidates
from edgekd.stages.progress import Silent

FLOAT, INT64, ROWS = TensorProto.FLOAT, TensorProto.INT64, 900
SOFTMAX = [node("Softmax", ["scores"], ["y"])]


def tensor(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def stored(**arrays):
    return [numpy_helper.from_array(np.asarray(x), name) for name, x in arrays.items()]


def towers(path, head=SOFTMAX, masked=False, batch="n"):
    """Write two towers whose features are added; where there is an image, it decides."""
    random = np.random.default_rng(0)
    nodes = [
        node("Conv", ["image", "k"], ["map"], strides=[4, 4]),
        node("Relu", ["map"], ["positive"]),
        node("Flatten", ["positive"], ["image_features"]),
        node("MatMul", ["motion", "m"], ["hidden"]),
        node("Relu", ["hidden"], ["motion_features"]),
        node("Gemm", ["image_features", "v"], ["by_image"], name="by_image"),
        node("Gemm", ["motion_features", "w"], ["by_motion"], name="by_motion"),
        node("Add", ["by_image", "by_motion"], ["all_scores"]),
    ]
    inputs = [tensor("image", [batch, 1, 8, 8]), tensor("motion", [batch, 6])]
    if masked:
        nodes += [node("Cast", ["mask"], ["shown"], to=FLOAT), node("Mul", ["all_scores", "shown"], ["scores"])]
        inputs += [tensor("mask", [batch, 4], INT64)]
    else:
        nodes += [node("Identity", ["all_scores"], ["scores"])]
    weights = {
        "k": random.normal(size=(2, 1, 4, 4)),
        "v": 6 * random.normal(size=(8, 4)),
        "m": random.normal(size=(6, 8)),
        "w": 0.15 * random.normal(size=(8, 4)),
    }
    initializers = stored(**{name: x.astype(np.float32) for name, x in weights.items()})
    graph = helper.make_graph([*nodes, *head], "towers", inputs, [tensor("y", [batch, 4])], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def samples(path, repeated=1, **more):
    random, count = np.random.default_rng(1), ROWS // repeated
    arrays = {"image": random.normal(size=(count, 1, 8, 8)), "motion": random.normal(size=(count, 6))}
    np.savez(path, **{name: np.repeat(x.astype(np.float32), repeated, 0) for name, x in arrays.items()}, **more)
    return path


@contextmanager
def opened(tmp_path, **model):
    """Yield the context of a build of a model for a processor, and its float candidate."""
    content = {
        "model": {"path": str(tmp_path / "m.onnx"), "calibration": str(tmp_path / "s.npz"), **model},
        "quantize": {"precision": "float32"},
    }
    recipe = msgspec.convert(content, Recipe)
    with prepare(
        recipe, [load_target("cpu")], tmp_path / "cache", devices=["none"], observer=Silent(), only=(QUANTIZE,)
    ) as prepared:
        context = prepared.contexts["cpu"]
        yield context, write_candidates(context)[0][0]


def damaged(candidate, folder, **changes):
    """Return a candidate with other weights in its graphs; its key is another's, as of another network."""
    folder.mkdir()
    for variant in ("deploy.onnx", "probe.onnx"):
        model = onnx.load(candidate.folder / variant)
        for weights in model.graph.initializer:
            if weights.name in changes:
                changed = changes[weights.name](numpy_helper.to_array(weights)).astype(np.float32)
                weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
        onnx.save(model, folder / variant)
    return replace(candidate, folder=folder, key=folder.name)


def pruned(weights):
    """Zero every second unit."""
    return weights * (np.arange(weights.shape[1]) % 2)


def test_what_a_modality_hides_shows_where_it_is_absent(tmp_path):
    towers(tmp_path / "m.onnx")
    samples(tmp_path / "s.npz")
    with opened(tmp_path) as (context, candidate):
        whole = measure_missing(context, candidate, context.test).result
        assert {name: share.mean for name, share in whole.changed.items()} == {"image": 0, "motion": 0}
        assert whole.notes == ()

        broken = damaged(candidate, tmp_path / "broken", m=pruned)
        found = measure_missing(context, broken, context.test).result
        assert found.changed["image"].mean > 0.3
        assert found.changed["image"].low > context.limits.max_missing_flips
        assert found.changed["motion"].mean < 0.03

        probes = {
            "float": context.origin.probes("test")["float"],
            "exported": join_probe(run_on_host(broken.folder / "probe.onnx", context.test), context.test),
        }
        figures = LedgerMetrics(dict.fromkeys(probes))
        clean = keep_ledger(probes, figures, context.rules, None)
        assert clean.rows[-1].flips < 0.05 < found.changed["image"].mean / 5
        ledger = keep_ledger(probes, figures, context.rules, None, missing=found.changed)
        assert ledger.rows[-1].missing == found.changed


def test_a_network_that_passes_is_warned_of_for_an_absent_modality(tmp_path):
    """The damage is as small as that of rounding to three bits: with both modalities nothing shows."""
    towers(tmp_path / "m.onnx")
    samples(tmp_path / "s.npz")

    def rounded(weights):
        step = np.abs(weights).max() / 2
        return np.round(weights / step) * step

    taps = {"image": "image_features", "motion": "motion_features"}
    with opened(tmp_path, taps=taps) as (context, candidate):
        broken = damaged(candidate, tmp_path / "rounded", w=rounded)
        found = measure_missing(context, broken, context.test).result
        probes = {
            "float": context.origin.probes("test")["float"],
            "exported": join_probe(run_on_host(broken.folder / "probe.onnx", context.test), context.test),
        }
        figures = LedgerMetrics(dict.fromkeys(probes))
        verdicts = [
            keep_ledger(probes, figures, context.rules, None, missing=missing) for missing in ({}, found.changed)
        ]
        assert [ledger.verdict for ledger in verdicts] == ["pass", "warn"]
        assert any(reason.startswith("without image ") for reason in verdicts[1].reasons)


def test_a_finished_measurement_is_read_again(tmp_path):
    towers(tmp_path / "m.onnx")
    samples(tmp_path / "s.npz")
    with opened(tmp_path) as (context, candidate):
        first = measure_missing(context, candidate, context.test)
        assert measure_missing(context, candidate, context.test) == first
        assert measure_missing(context, candidate, context.validation).key != first.key


def test_one_sample_at_a_time(tmp_path):
    towers(tmp_path / "m.onnx", batch=1)
    samples(tmp_path / "s.npz")
    with opened(tmp_path) as (context, candidate):
        found = measure_missing(context, damaged(candidate, tmp_path / "broken", m=pruned), context.test).result
        assert found.changed["image"].mean > 0.3


def test_groups_widen_the_bounds(tmp_path):
    widths = []
    for name, more in (("single", {}), ("grouped", {"groups": np.arange(ROWS) // 9})):
        place = tmp_path / name
        place.mkdir()
        towers(place / "m.onnx")
        samples(place / "s.npz", repeated=9, **more)
        with opened(place) as (context, candidate):
            found = measure_missing(context, damaged(candidate, place / "broken", m=pruned), context.test).result
            widths.append(found.changed["image"].high - found.changed["image"].low)
    assert widths[1] > 2 * widths[0]


def test_a_mask_is_no_modality(tmp_path):
    towers(tmp_path / "m.onnx", masked=True)
    samples(tmp_path / "s.npz", mask=np.ones((ROWS, 4), np.int64))
    with opened(tmp_path) as (context, candidate):
        found = measure_missing(context, candidate, context.test).result
    assert set(found.changed) == {"image", "motion"}
    assert found.notes == ("Never left out, for a mask, a state or whole numbers are no modality: mask.",)


@pytest.mark.parametrize(
    ("head", "model", "told"),
    [
        ([node("Identity", ["scores"], ["y"])], {}, "the output is numbers, which decide nothing without a threshold"),
        ([node("LpNormalization", ["scores"], ["y"], axis=1)], {}, "an embedding decides nothing by itself"),
    ],
    ids=["regression", "embedding"],
)
def test_what_decides_nothing_is_not_measured(tmp_path, head, model, told):
    towers(tmp_path / "m.onnx", head)
    samples(tmp_path / "s.npz")
    with opened(tmp_path, **model) as (context, candidate):
        found = measure_missing(context, candidate, context.test).result
    assert found.changed == {}
    assert told in found.notes[0]


def test_numbers_with_a_threshold_decide(tmp_path):
    towers(tmp_path / "m.onnx", [node("Identity", ["scores"], ["y"])])
    samples(tmp_path / "s.npz")
    with opened(tmp_path, kind="regression", threshold=0.1) as (context, candidate):
        found = measure_missing(context, damaged(candidate, tmp_path / "broken", m=pruned), context.test).result
    assert found.changed["image"].mean > 0.1 > found.changed["motion"].mean


def test_a_single_modality_has_nothing_to_leave_out(tmp_path):
    graph = helper.make_graph(
        [node("MatMul", ["x", "w"], ["scores"]), *SOFTMAX], "one", [tensor("x", ["n", 4])], [tensor("y", ["n", 3])],
        stored(w=np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)),
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32))
    with opened(tmp_path) as (context, candidate):
        found = measure_missing(context, candidate, context.test).result
    assert (found.changed, found.notes) == ({}, ())


def test_a_network_that_fails_without_a_modality_does_not_end_a_build(tmp_path):
    """Where the image is the same number everywhere, its standardisation divides by nothing."""
    head = [
        node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3]),
        node("Sub", ["image", "mean"], ["centred"]),
        node("ReduceL2", ["centred"], ["length"], axes=[1, 2, 3], keepdims=0),
        node("Unsqueeze", ["length", "one"], ["column"]),
        node("Div", ["column", "column"], ["unit"]),
        node("Mul", ["unit", "scores"], ["scaled"]),
        node("Softmax", ["scaled"], ["y"]),
    ]
    model = onnx.load(towers(tmp_path / "m.onnx", head))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    onnx.save(model, tmp_path / "m.onnx")
    samples(tmp_path / "s.npz")
    with opened(tmp_path) as (context, candidate):
        found = measure_missing(context, candidate, context.test).result
        assert set(found.changed) == {"motion"}
        assert found.notes == (
            "Answers without image are not measured: the float network's output is not finite there.",
        )

        infinite = damaged(candidate, tmp_path / "infinite", v=lambda v: np.full_like(v, np.nan))
        found = measure_missing(context, infinite, context.test).result
        assert math.isnan(found.changed["motion"].mean)
        assert "Without motion what ships gives numbers that are not finite." in found.notes

        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "deploy.onnx").write_bytes(b"")
        found = measure_missing(context, replace(candidate, folder=tmp_path / "empty", key="empty"), context.test)
        assert found.result.changed == {}
        assert found.result.notes[0].startswith("Answers with a modality absent are not measured: ")


def test_the_stand_in_is_what_samples_without_the_modality_have(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    np.savez(tmp_path / "s.npz", **{"input.a": x, "input.b": x, "present.b": np.array([True, False, True, False])})
    found = read_stand_ins(tmp_path / "s.npz", ["a", "b"], {})
    np.testing.assert_array_equal(found["a"]["a"], [[10], [13]])
    np.testing.assert_array_equal(found["b"]["b"], (x[1] + x[3]) / 2)
    assert found["a"]["a"].dtype == np.float32


def test_ids_and_their_mask_take_the_numbers_that_the_task_says(tmp_path):
    words = np.arange(12, dtype=np.int64).reshape(4, 3)
    arrays = {"input.words": words, "input.mask": words > 0, "input.image": np.ones((4, 2), np.float32)}
    np.savez(tmp_path / "s.npz", ids=np.arange(4), **arrays)
    found = read_stand_ins(tmp_path / "s.npz", ["words", "image"], {"words": {"words": 7, "mask": 0}})
    assert {name: sorted(inputs) for name, inputs in found.items()} == {"words": ["mask", "words"], "image": ["image"]}
    feeds = {key.removeprefix("input."): x for key, x in arrays.items()}
    absent = without(feeds, found["words"])
    assert (absent["words"] == 7).all()
    assert not absent["mask"].any()
    assert {name: x.dtype for name, x in absent.items()} == {name: x.dtype for name, x in feeds.items()}
    assert absent["image"] is feeds["image"]
