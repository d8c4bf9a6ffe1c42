"""A target that refuses ends alone, with a reason in the user's terms."""

import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.devices.refusals import Refusals
from edgekd.errors import DeviceError, ModelError, TaskError
from edgekd.pipeline.refusal import in_users_terms, name_node
from edgekd.stages.node_origin import NodeOrigin


def chain(path, operators):
    """Write a graph of operators, one after the other."""
    names = ["x", *(f"t{index}" for index in range(len(operators)))]
    nodes = [
        helper.make_node(operator, [names[i]], [names[i + 1]], f"node_{i}") for i, operator in enumerate(operators)
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in (names[0], names[-1]))
    onnx.save(helper.make_model(helper.make_graph(nodes, "chain", [x], [y])), str(path))
    return path


@pytest.mark.parametrize("at", range(7))
def test_the_node_that_a_library_fails_at_is_found_where_it_names_none(tmp_path, at):
    operators = ["Relu"] * 7
    operators[at] = "Erf"
    built = []

    def build(path):
        built.append(path)
        if any(node.op_type == "Erf" for node in onnx.load(str(path)).graph.node):
            raise ModelError("an error inside")

    named = name_node(ModelError("an error inside"), chain(tmp_path / "deploy.onnx", operators), build)
    assert str(named).startswith(f"an error inside, at node 'node_{at}' (Erf); what comes before it can be built")
    assert len(built) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["deploy.onnx"]


def test_a_node_that_is_named_is_not_looked_for(tmp_path):
    error = ModelError("refuses node 'node_1' (Erf): UNSUPPORTED_NODE")
    assert name_node(error, tmp_path / "none.onnx", None) is error


def test_a_reason_has_the_module_and_the_line_and_no_path_of_the_cache(tmp_path):
    error = ModelError(f"{tmp_path}/int8/deploy.onnx: refuses node 'val_3' (STFT): no")
    origins = {"val_3": NodeOrigin("audio.spectrum", "task.py:49"), "val_4": NodeOrigin("", "")}
    assert in_users_terms(error, [tmp_path / "int8"], origins) == (
        "deploy.onnx: refuses node 'val_3' (STFT) of module 'audio.spectrum', task.py:49: no"
    )
    assert in_users_terms(error, [], {}) == str(error)


def fail(error):
    raise error


def test_one_of_several_that_refuses_ends_alone():
    told = []
    refusals = Refusals(2, lambda name, reason: told.append((name, reason)))
    assert refusals.attempt("cpu", lambda: 3) == 3
    assert refusals.attempt("board", lambda: fail(DeviceError("it is away"))) is None
    assert (told, refusals.reasons, str(refusals)) == (
        [("board", "it is away")],
        {"board": "it is away"},
        "board refused: it is away",
    )


def test_what_concerns_all_is_no_refusal():
    with pytest.raises(TaskError):
        Refusals(2, lambda *_: None).attempt("cpu", lambda: fail(TaskError("the metric fails")))


def test_where_all_refuse_the_error_is_the_firsts_and_names_each():
    refusals = Refusals(2, lambda *_: None)
    refusals.attempt("cpu", lambda: fail(ModelError("no such kernel")))
    with pytest.raises(ModelError, match="2 failed: cpu: no such kernel; board: it is away"):
        refusals.attempt("board", lambda: fail(DeviceError("it is away")))
    with pytest.raises(DeviceError, match=r"^it is away$"):
        Refusals(1, lambda *_: None).attempt("board", lambda: fail(DeviceError("it is away")))
