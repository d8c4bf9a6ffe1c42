import msgspec
import pytest

from edgekd.config.target import DEFAULT_OPERATORS, find_target, load_calibration, shipped_targets
from edgekd.config.toml import read_toml
from edgekd.devices.targets import load_target
from edgekd.errors import TargetError
from edgekd.files import data_dir
from edgekd.workflows.arguments import resolve_targets

BOARD = """
description = "My board"
runtime = "onnxruntime"
[scheme]
activations = "int8"
symmetric_activations = true
bias = "float"
[budgets]
latency_ms = 5.0
"""


@pytest.fixture
def board(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text(BOARD, encoding="utf-8")
    return path


def _same(read, loaded):
    """Whether everything that a file says is what was loaded from it."""
    if isinstance(read, dict):
        return all(_same(value, loaded[key]) for key, value in read.items())
    return read == loaded


@pytest.mark.parametrize("name", shipped_targets())
def test_shipped_targets_say_what_is_loaded(name):
    target = load_target(name)
    assert target.name == name
    assert _same(read_toml(find_target(name), TargetError), msgspec.to_builtins(target))
    assert target.notes, "a target states the facts behind its choices"


@pytest.mark.parametrize("path", sorted(data_dir("calibration").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_calibrations_say_what_is_loaded(path):
    calibration = load_calibration(path.stem)
    assert calibration == load_calibration(str(path))
    assert _same(read_toml(path, TargetError), msgspec.to_builtins(calibration))


def test_the_data_folders_hold_data_alone():
    for name in ("targets", "calibration"):
        assert {path.suffix for path in data_dir(name).iterdir()} == {".toml"}


def test_a_users_own_target(board, monkeypatch):
    target = load_target(str(board))
    assert (target.name, target.description, target.budgets.latency_ms) == ("board", "My board", 5.0)
    assert target.scheme.operators == list(DEFAULT_OPERATORS)
    monkeypatch.chdir(board.parent)
    assert load_target("./board.toml") == target


def test_several_targets_each_once(board):
    assert [target.name for target in resolve_targets(["cpu", str(board), "cpu"])] == ["cpu", "board"]


def test_two_targets_of_one_name(board):
    board.write_text('name = "cpu"\n' + BOARD, encoding="utf-8")
    with pytest.raises(TargetError, match="two targets are called 'cpu'"):
        resolve_targets(["cpu", str(board)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("runtime = ", "runtim = "), "the top level has no key 'runtim'; did you mean 'runtime'"),
        (("bias = ", "biases = "), "[scheme] has no key 'biases'; did you mean 'bias'"),
        (('"int8"', '"int4"'), "scheme.activations"),
        (("5.0", "0.0"), "budgets.latency_ms"),
        (("5.0", '"fast"'), "budgets.latency_ms"),
        (("5.0", "nan"), "budgets.latency_ms"),
        (('description = "My board"', ""), "description"),
        (("[scheme]", "[scheme]\noperators = []"), "scheme.operators"),
        (("[scheme]", '[scheme]\noperators = ["Conv", "Gemmm"]'), "there is no 'Gemmm'; did you mean 'Gemm'"),
        (('description = "My board"', 'description = ""\nopset = 3'), "opset"),
        (("[budgets]", "[budgets"), "not valid TOML"),
        (('description = "My board"', 'description = ""\nname = "../../x"'), "name"),
        (("[scheme]", "[options]\ncores = 2\n[scheme]"), "[options] has no key 'cores'"),
        (('description = "My board"', 'description = ""\nprecisions = ["int8", "int8"]'), "precisions: each may be"),
        (('description = "My board"', 'description = ""\nquantizers = ["qdq", "qdq"]'), "quantizers: each may be"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(board, change, said):
    board.write_text(BOARD.replace(*change), encoding="utf-8")
    with pytest.raises(TargetError) as error:
        load_target(str(board))
    assert str(error.value).startswith(str(board))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("load", "reference", "said"),
    [
        (load_target, "cpus", "no target 'cpus'; did you mean 'cpu'"),
        (load_target, "xyz", "known: "),
        (load_target, "none/such.toml", "no such target file"),
        (load_calibration, "minmix", "no calibration 'minmix'; did you mean 'minmax'"),
        (load_calibration, "none/such.toml", "no such calibration file"),
    ],
)
def test_what_is_not_there(load, reference, said):
    with pytest.raises(TargetError, match=said):
        load(reference)


@pytest.mark.parametrize("line", ['ranges = "luck"', "samples = 0", "chunk = 0", "seed = -1", "sample = 3"])
def test_a_wrong_calibration(tmp_path, line):
    path = tmp_path / "mine.toml"
    path.write_text('description = ""\n' + ("" if line.startswith("ranges") else 'ranges = "minmax"\n') + line)
    with pytest.raises(TargetError, match=line.split()[0]):
        load_calibration(str(path))


def test_a_calibrations_old_key_is_refused_with_its_new_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('description = ""\nmethod = "minmax"\n')
    with pytest.raises(TargetError, match=r"mine\.toml: method is now ranges$"):
        load_calibration(str(path))
