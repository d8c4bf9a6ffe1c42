"""What an output is told to be by what it ends in, by its name, and by labels: heads as exporters write them."""

import graphs
import numpy as np
import onnx
import pytest
from graphs import node, normal, tensor
from user import run_user

from edgekd.config.recipe import OutputConfig
from edgekd.pipeline.onnx_import.answers.kind import settle_kinds
from edgekd.pipeline.onnx_import.answers.last_operator import last_operators
from edgekd.pipeline.onnx_import.answers.told import labels_fit

X = normal(5, 16)
ONE = graphs.numpy_helper.from_array(np.float32(1e-9), "tiny")


def heads():
    """For each head: its nodes from "h" [n, 5, 16], and the shape of "y"."""
    pooled = node("ReduceMean", ["h"], ["p"], axes=[1], keepdims=0)
    squares = [node("Mul", ["p", "p"], ["pp"]), node("ReduceSum", ["pp", "last"], ["sum"], keepdims=1)]
    return {
        "softmax, moved": (
            [pooled, node("Softmax", ["p"], ["s"], axis=-1), node("Unsqueeze", ["s", "last"], ["u"]),
             node("Cast", ["u"], ["c"], to=graphs.FLOAT), node("Reshape", ["c", "flat"], ["y"])],
            "classes", "ends in Softmax over 16"),
        "log of softmax": ([pooled, node("LogSoftmax", ["p"], ["y"])], "classes", "ends in LogSoftmax over 16"),
        "softmax at every step": ([node("Softmax", ["h"], ["y"], axis=2)], "sequence-classes", "over 16 at every step"),
        "softmax over channels": (
            [node("Softmax", ["h"], ["y"], axis=1)], "dense-classes", "over 5 at every position"),
        "softmax over the last of four": (
            [node("Softmax", ["h"], ["s"], axis=2), node("Reshape", ["s", "grid"], ["y"])],
            "custom", "its classes are at no axis that a kind has them at"),
        "part of a softmax": (
            [pooled, node("Softmax", ["p"], ["s"]), node("Slice", ["s", "one", "two", "last"], ["y"])],
            "multilabel", "ends in a part of a Softmax of 1 label"),
        "sigmoid": ([pooled, node("Sigmoid", ["p"], ["y"])], "multilabel", "ends in Sigmoid of 16 labels"),
        "mean of a sigmoid over time": (
            [node("Sigmoid", ["h"], ["s"]), node("ReduceMean", ["s"], ["y"], axes=[1], keepdims=0)],
            "multilabel", "ends in Sigmoid of 16 labels"),
        "sigmoids of several heads": (
            [pooled, node("Sigmoid", ["p"], ["a"]), node("Neg", ["p"], ["n"]), node("Sigmoid", ["n"], ["b"]),
             node("Concat", ["a", "b"], ["y"], axis=1)],
            "multilabel", "ends in Sigmoid of 32 labels"),
        "sigmoid at every position": ([node("Sigmoid", ["h"], ["y"])], "custom", "which may be a heatmap's or a"),
        "by the length": ([pooled, node("LpNormalization", ["p"], ["y"], axis=1)], "embedding", "by their length"),
        "by ReduceL2": (
            [pooled, node("ReduceL2", ["p"], ["l"], axes=[1]), node("Clip", ["l", "tiny"], ["g"]),
             node("Shape", ["p"], ["shape"]), node("Expand", ["g", "shape"], ["e"]), node("Div", ["p", "e"], ["y"])],
            "embedding", "ends in a division of 16 numbers by their length"),
        "by the root of squares": (
            [pooled, *squares, node("Sqrt", ["sum"], ["l"]), node("Div", ["p", "l"], ["y"])],
            "embedding", "by their length"),
        "times the reciprocal root": (
            [pooled, *squares, node("Max", ["sum", "tiny"], ["g"]), node("Sqrt", ["g"], ["l"]),
             node("Reciprocal", ["l"], ["r"]), node("Mul", ["p", "r"], ["y"])],
            "embedding", "by their length"),
        "mean over tokens": ([pooled, node("Identity", ["p"], ["y"])], "embedding", "stand for a whole sequence"),
        "masked mean": (
            [node("ReduceSum", ["h", "first"], ["a"], keepdims=0), node("Abs", ["h"], ["m"]),
             node("ReduceSum", ["m", "first"], ["b"], keepdims=0), node("Max", ["b", "tiny"], ["g"]),
             node("Div", ["a", "g"], ["y"])],
            "embedding", "stand for a whole sequence"),
        "a token": (
            [node("LayerNormalization", ["h", "gain"], ["l"]), node("Gather", ["l", "zero"], ["y"], axis=1)],
            "embedding", "stand for a whole sequence"),
        "numbers of classes": (
            [pooled, node("ArgMax", ["p"], ["i"], axis=1), node("Cast", ["i"], ["y"], to=graphs.FLOAT)],
            "custom", "ends in ArgMax"),
        "a linear layer within 0 and 1": (
            [pooled, node("Sigmoid", ["p"], ["s"]), node("MatMul", ["s", "half"], ["m"]),
             node("Add", ["m", "tiny"], ["y"])],
            "regression", "ends in MatMul, which is not bounded"),
        "a linear layer": ([pooled, node("Gemm", ["p", "half"], ["y"])], "regression", "neither probabilities nor of"),
    }  # fmt: skip


def settled(path, labels=None, **asked):
    model = onnx.load(path)
    outputs = {value.name: run_user(path, value.name, {"x": X}) for value in model.graph.output}
    said = {name: OutputConfig(**config) for name, config in asked.items()}
    return settle_kinds(said, outputs, last_operators(model.graph), labels)


def write(path, nodes, *outputs):
    stored = [
        *graphs.weights(w=(16, 16)), ONE,
        *graphs.integers(last=[1], first=[1], flat=[-1, 16], one=[1], two=[2], zero=0, grid=[-1, 5, 4, 4]),
        graphs.numpy_helper.from_array(np.full((16, 16), 1 / 16, np.float32), "half"),
        graphs.numpy_helper.from_array(np.ones(16, np.float32), "gain"),
    ]  # fmt: skip
    made = [onnx.ValueInfoProto(name=name) for name in outputs or ("y",)]
    path = graphs.write(path, [node("MatMul", ["x", "w"], ["h"]), *nodes], [tensor("x", ["n", 5, 16])], [], stored)
    model = onnx.load(path)
    model.graph.output.extend(made)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", heads())
def test_what_an_output_ends_in_tells_its_kind(tmp_path, name):
    nodes, kind, reason = heads()[name]
    found = settled(write(tmp_path / "m.onnx", nodes))
    assert found.kinds["y"].name == kind
    assert reason in found.reasons["y"]
    assert found.reasons["y"] in found.notes[0]


NAMES = {
    "pred_boxes": ("custom", "name says 'boxes'"),
    "head/bboxPred:0": ("custom", "name says 'bbox'"),
    "landmarks_8": ("custom", "name says 'landmarks'"),
    "sentence_embedding": ("embedding", "name says 'embedding'"),
    "image_embeds": ("embedding", "name says 'embeds'"),
    "logits": ("classes", "name says 'logits'"),
    "feature_extractor/dense/BiasAdd:0": ("regression", "neither"),
    "regulator": ("regression", "neither"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_an_output_tells_what_is_clear(tmp_path, name):
    nodes = [node("ReduceMax", ["h"], ["p"], axes=[1], keepdims=0), node("Gemm", ["p", "w"], [name])]
    found = settled(write(tmp_path / "m.onnx", nodes, name))
    assert (found.kinds[name].name, NAMES[name][1] in found.reasons[name]) == (NAMES[name][0], True)


def test_a_mask_of_sigmoids_is_of_labels_and_logits_of_a_map_of_its_classes(tmp_path):
    nodes = [
        node("Sigmoid", ["h"], ["mask"]),
        node("Identity", ["h"], ["logits"]),
        node("Conv", ["h", "k"], ["c"]),
        node("Identity", ["c"], ["channel_logits"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, "mask", "logits", "channel_logits")
    model = onnx.load(path)
    model.graph.initializer.extend(graphs.weights(k=(3, 5, 1)))
    onnx.save(model, path)
    kinds = {name: kind.name for name, kind in settled(path).kinds.items()}
    assert kinds == {"mask": "multilabel", "logits": "sequence-classes", "channel_logits": "dense-classes"}


def test_what_the_user_says_is_taken_and_shown_so(tmp_path):
    nodes, *_ = heads()["mean over tokens"]
    found = settled(write(tmp_path / "m.onnx", nodes), y={"kind": "regression"})
    assert (found.kinds["y"].name, found.reasons, found.notes) == ("regression", {"y": "as you say"}, [])


def test_labels_are_of_the_output_that_ends_in_classes(tmp_path):
    """Not of the first vector, which is an embedding; and never of an embedding alone, whatever labels there are."""
    nodes = [
        node("ReduceMean", ["h"], ["p"], axes=[1], keepdims=0),
        node("LpNormalization", ["p"], ["vector"], axis=1),
        node("Gemm", ["p", "w"], ["numbers"]),
        node("Softmax", ["numbers"], ["scores"]),
    ]
    labels = np.arange(len(X)) % 3
    found = settled(write(tmp_path / "m.onnx", nodes, "vector", "numbers", "scores"), labels)
    assert {name: kind.name for name, kind in found.kinds.items()} == {
        "vector": "embedding", "numbers": "regression", "scores": "classes",
    }  # fmt: skip
    found = settled(write(tmp_path / "m.onnx", nodes[:2], "vector"), labels)
    assert found.kinds["vector"].name == "embedding"


def test_labels_that_a_wide_vector_does_not_know_are_not_its_classes():
    random = np.random.default_rng(0)
    vectors, labels = random.normal(size=(200, 384)), np.arange(200) % 4
    assert not labels_fit(vectors, labels)
    assert labels_fit(vectors, np.full(200, -100))
    assert labels_fit(vectors[:, :10], labels)
    vectors[np.arange(200), labels] += 9
    assert labels_fit(vectors, labels)
