"""Engine libraries by name, and a user's own."""

import importlib
import inspect
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from engines import samples, save_engine

from edgekd.errors import ModelError, TargetError
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.backends.registry import BACKENDS, ORT, Runtime

OWN = textwrap.dedent(
    """
    from edgekd.runtime.backends.onnxruntime import open_engine

    seen = []

    def open_npu(engine, threads, name, *, gain=1.0):
        seen.append(gain)
        return open_engine(engine, threads, name)

    version = "1.0"
    """
)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "npu.py"
    path.write_text(OWN)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return save_engine(tmp_path_factory.mktemp("engine") / "e.onnx")


@pytest.mark.parametrize("name", BACKENDS)
def test_an_entry_says_what_its_module_takes(name):
    backend = BACKENDS[name]
    assert backend.name == name
    assert not Runtime(name).custom
    taken = inspect.signature(importlib.import_module(backend.module).open_engine).parameters
    assert [taken[option.name].default for option in backend.options] == [option.default for option in backend.options]
    assert ("cache" in taken) == backend.compiles
    assert backend.fixed.keys() <= taken.keys()


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-web"])
def test_onnx_runtime_is_behind_two_names(engine, name):
    with Runtime(name).open(engine) as session, open_engine(engine) as direct:
        np.testing.assert_array_equal(session.run(samples(3))["logits"], direct.run(samples(3))["logits"])


def test_a_users_own_runtime(own, engine):
    runtime = Runtime(f"{own}:open_npu", {"gain": 2.0})
    assert runtime.custom
    assert runtime.source == own
    with runtime.open(engine) as session:
        assert session.run(samples(2))["logits"].shape == (2, 3)
    assert sys.modules["edgekd_plugin_npu"].seen == [2.0]


BACKEND = OWN + textwrap.dedent(
    """
    import edgekd.runtime.backends.onnxruntime as onnxruntime
    from edgekd.runtime.backends.backend import Backend, BackendOption

    npu = Backend("npu", module=__name__, packages=("numpy",), options=(BackendOption("lanes", 2, "Lanes."),))
    elsewhere = Backend("npu", module="no_such_module")
    empty = Backend("npu", module="json")


    def open_engine(engine, threads, name, *, lanes=2):
        seen.append(lanes)
        return onnxruntime.open_engine(engine, threads, name)


    def absent(lanes=2):
        return f"this machine has no {lanes} lanes" if lanes > 4 else None


    def hardware(lanes=2):
        return {"npu": f"{lanes} lanes"}


    def layer_times(engine, threads, rows, *, lanes=2):
        return onnxruntime.layer_times(engine, threads, rows)
    """
)


@pytest.fixture
def own_backend(tmp_path):
    path = tmp_path / "npu_backend.py"
    path.write_text(BACKEND)
    return path


def test_a_users_own_backend_is_the_same_object_as_edgekds(own_backend, engine):
    runtime = Runtime(f"{own_backend}:npu", {"lanes": 4})
    with runtime.open(engine) as session:
        assert session.run(samples(2))["logits"].shape == (2, 3)
    assert sys.modules["edgekd_plugin_npu_backend"].seen == [4]
    assert runtime.absent() is None
    assert {"npu": "4 lanes", "numpy": np.__version__}.items() <= runtime.describe().items()
    assert len(runtime.layer_times(engine, 1, [samples(1)])) == 5
    assert Runtime(f"{own_backend}:npu", {"lanes": 8}).absent() == "this machine has no 8 lanes"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("npu", {"loud": True}, "cannot be given these options: .*loud"),
        ("elsewhere", {}, "its module no_such_module cannot be imported: No module named"),
        ("empty", {}, "its module json has no function 'open_engine'"),
    ],
)
def test_a_users_own_backend_that_cannot_be_opened(own_backend, engine, name, options, said):
    with pytest.raises(TargetError, match=said):
        Runtime(f"{own_backend}:{name}", options).open(engine)


#: Adds an entry to the table before anything else of edgekd is imported, and shows what derives from it.
ADDED = """
import sys

from edgekd.runtime.backends import registry
from edgekd.runtime.backends.backend import Backend, BackendOption

registry.BACKENDS["npu"] = Backend(
    "npu", "edgekd.runtime.backends.onnxruntime", ("npu-tools",), "ask its maker",
    (BackendOption("lanes", 2, "Lanes.", minimum=1),), import_name="npu_tools", emulated_arches=("aarch64",),
)

from click.testing import CliRunner

from edgekd.cli.main import main
from edgekd.devices.emulated.device import EmulatedDevice
from edgekd.devices.ssh import contact
from edgekd.devices.targets import load_target
from edgekd.errors import EdgekdError


def tell(check):
    try:
        print(check())
    except EdgekdError as error:
        print(type(error).__name__, error)


tell(lambda: load_target(sys.argv[1]).options)
tell(lambda: load_target(sys.argv[2]))
tell(lambda: contact.Contact("aarch64", "/", frozenset(), True).require(registry.find_backend("npu"), "ssh://pi"))
print(EmulatedDevice("cortex-a76").refusal(load_target(sys.argv[1]), registry.Runtime("openvino")))
print(CliRunner().invoke(main, ["verify", "--help"]).output)
"""


def test_checks_and_help_derive_from_the_table(tmp_path):
    board = 'description = ""\nruntime = "npu"\n[options]\nlanes = {lanes}\n[scheme]\nactivations = "int8"\n'
    for name, lanes in (("good", 3), ("bad", 0)):
        text = board.format(lanes=lanes) + "symmetric_activations = true\n"
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", ADDED, tmp_path / "good.toml", tmp_path / "bad.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, refused, on_board, emulated, *shown = done.stdout.splitlines()
    assert loaded == "{'lanes': 3}"
    assert (
        refused
        == f"TargetError {tmp_path / 'bad.toml'}: options.lanes: expected a whole number from 1 to 2,147,483,647, got 0"
    )
    assert on_board == "MissingDependency ssh://pi: has no npu_tools in its Python; ask its maker"
    assert "only of onnxruntime and npu: OpenVINO's INT8 is wrong on an emulated ARM processor" in emulated
    assert "npu" in " ".join(shown)


def test_the_digest_is_of_a_users_own_file(own):
    before = Runtime(f"{own}:open_npu").digest()
    own.write_text(OWN + "# changed\n")
    assert Runtime(f"{own}:open_npu").digest() != before
    assert ORT.digest() is None


def test_the_digest_is_of_a_module_on_the_path_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "board_runtimes"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "npu.py").write_text(OWN)
    runtime = Runtime("board_runtimes.npu:open_npu")
    assert runtime.source == package / "npu.py"
    before = runtime.digest()
    (package / "npu.py").write_text(OWN + "# changed\n")
    assert runtime.digest() != before


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("onnxruntimes", {}, "there is no runtime 'onnxruntimes'; did you mean 'onnxruntime'"),
        ("onnxruntime", {"device": "GPU"}, "cannot be given these options: .*device"),
        ("openvino", {"cache": "/tmp"}, "is not given 'cache' as an option"),
        ("tensorrt-rtx", {"flavor": "tensorrt"}, "is not given 'flavor' as an option"),
        ("openvino", {"precision": "f8"}, "precision must be one of f32, f16, bf16, not 'f8'"),
        ("{own}:open_cpu", {}, r"npu\.py has no 'open_cpu'; did you mean 'open_npu'"),
        ("{own}:version", {}, "must be a function that opens engines, or a Backend, not a str"),
        ("{own}:open_npu", {"loud": True}, "cannot be given these options: .*loud"),
        ("{own}x.py:open_npu", {}, "cannot be imported: .*no such file"),
        ("no_such_package.module:open", {}, "cannot be imported: No module named 'no_such_package'"),
        (":open_npu", {}, "write it as path/to/file.py:name"),
        (".npu:open_npu", {}, "write it as path/to/file.py:name"),
        ("{own}:", {}, "write it as path/to/file.py:name"),
    ],
)
def test_what_cannot_be_opened(own, engine, name, options, said):
    with pytest.raises(TargetError, match=said):
        Runtime(name.format(own=own), options).open(engine)


def test_options_are_checked_before_there_is_an_engine(own):
    with pytest.raises(TargetError, match=r"cannot be given these options: .*loud"):
        Runtime(f"{own}:open_npu", {"loud": True}).load()


def test_a_file_that_is_not_python(own):
    own.write_text("def open_npu(:\n")
    with pytest.raises(TargetError, match=r"cannot be imported: .*line 1"):
        Runtime(f"{own}:open_npu").load()


def test_a_file_that_fails_when_it_is_imported(own):
    own.write_text("gain = undefined\n")
    with pytest.raises(TargetError, match=r"cannot be imported: NameError: name 'undefined' is not defined"):
        Runtime(f"{own}:open_npu").load()


def test_whatever_a_users_runtime_raises_is_told_with_its_name(own, engine):
    own.write_text("def open_npu(engine, threads, name):\n    raise KeyError('lane 3')\n")
    with pytest.raises(ModelError, match=r"npu\.py:open_npu: KeyError: 'lane 3'"):
        Runtime(f"{own}:open_npu").open(engine)


def test_what_a_users_runtime_returns_is_checked(own, engine):
    own.write_text("def open_npu(engine, threads, name):\n    return None\n")
    with pytest.raises(TargetError, match="returned a NoneType without 'inputs'"):
        Runtime(f"{own}:open_npu").open(engine)


def test_compiled_engines_are_kept_where_that_is_asked_for(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime = Runtime("openvino", {"device": "CPU", "precision": "f32"})
    runtime.open(engine).close()
    assert not list(tmp_path.rglob("*"))
    with runtime.open(engine, keep=True) as session:
        assert session.facts == {"inference_precision": "f32"}
        assert session.run(samples(1))["logits"].shape == (1, 3)
    assert list((tmp_path / "edgekd" / "engines").rglob("*.blob"))


def test_a_cache_that_cannot_be_written_is_done_without(engine, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with Runtime("openvino").open(engine, keep=True) as session:
        assert session.run(samples(1))["logits"].shape == (1, 3)


BAD = """
from edgekd.runtime.backends.onnxruntime import open_engine


class Session:
    def __init__(self, engine, answer):
        self._session = open_engine(engine)
        self.inputs, self.outputs, self.facts = self._session.inputs, self._session.outputs, {}
        self._answer = answer

    def run(self, feeds):
        return self._answer(self._session.run(feeds))

    def close(self):
        pass
"""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("lambda found: 1 / 0", "bad.py:open_bad: ZeroDivisionError: division by zero"),
        ("lambda found: list(found.values())", r"run\(\) must return a dict of .*, but returned list"),
        ("lambda found: {'logits': found['logits']}", r"run\(\) must return a dict of .*, but returned \['logits'\]"),
        ("lambda found: {**found, 'logits': 3.0}", r"run\(\) returned 'logits' as a float, not as rows of an array"),
    ],
)
def test_what_a_users_session_gives_is_checked(tmp_path, engine, answer, said):
    path = tmp_path / "bad.py"
    path.write_text(f"{BAD}\n\ndef open_bad(engine, threads, name):\n    return Session(engine, {answer})\n")
    with Runtime(f"{path}:open_bad").open(engine) as session, pytest.raises(ModelError, match=said):
        session.run(samples(2))


@pytest.mark.parametrize("value", [None, 1, [], {}, True])
def test_an_option_of_a_wrong_type_is_refused(tmp_path, value):
    """A bundle's manifest may state any value, which nothing else has looked at."""
    engine = save_engine(tmp_path / "e.onnx")
    with pytest.raises(TargetError, match="the runtime 'openvino' takes 'device' of type str, not"):
        Runtime("openvino", {"device": value}).open(engine)
