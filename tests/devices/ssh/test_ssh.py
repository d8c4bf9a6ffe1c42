"""A board over SSH: a real sshd on loopback, whose Python has numpy and ONNX Runtime alone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from boards import eventually, forget_sockets, free_port, make_python, running_sshd
from requirements import OLD_PYTHON, SMALL_DISK, SSH, which

from edgekd.config.recipe import ProfileConfig
from edgekd.devices.local import LocalDevice
from edgekd.devices.ssh.address import parse_address
from edgekd.devices.ssh.device import SshDevice
from edgekd.devices.ssh.packing import pack_agent
from edgekd.errors import DeviceError, MissingDependency, ModelError, StorageError, TargetError
from edgekd.runtime.backends.registry import ORT, Runtime
from edgekd.runtime.measure.machine import identity

CONFIG = ProfileConfig(iterations=120, warmup=5, cold_starts=1)


@pytest.fixture
def device(board):
    found = SshDevice(board.address(), timeout_seconds=60)
    yield found
    found.close()


def evaluate(device, engines, folder, tell=lambda _: None, engine="a.onnx", runtime=ORT):
    device.evaluate(engines / engine, runtime, engines / "x.npz", folder / "y.npz", 1, tell)
    with np.load(folder / "y.npz") as outputs:
        return outputs["logits"]


def profile(device, engines, folder, advance=lambda *_: None, config=CONFIG):
    named = {name: engines / f"{name}.onnx" for name in ("a", "b")}
    return device.profile(named, ORT, engines / "x.npz", folder, config, advance)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


# --- addresses


@pytest.mark.parametrize(
    ("text", "name", "python"),
    [
        ("ssh://orin", "ssh://orin", "python3"),
        ("ssh://pi@orin:2222/", "ssh://pi@orin:2222", "python3"),
        ("ssh://pi@orin?python=~/venv/bin/python", "ssh://pi@orin", "~/venv/bin/python"),
        ("ssh://[fe80::1]:22?python=python3.11%20-s", "ssh://[fe80::1]:22", "python3.11 -s"),
    ],
)
def test_addresses(text, name, python):
    assert (parse_address(text).name, parse_address(text).python) == (name, python)


@pytest.mark.parametrize(
    "text",
    ["ssh://", "ssh://-oProxyCommand=reboot", "ssh://-l@orin", "ssh://pi:secret@orin", "ssh://orin:0",
     "ssh://orin:70000", "ssh://orin/home", "ssh://orin?pyton=python3", "ssh://or in", "ssh://`id`", "ssh://$(id)",
     "ssh://a|b", "ssh://a;b", "ssh://a&b", "ssh://'a'@b", "ssh://a$b@c", "ssh://a\nb", "ssh://a\x1b[2J", "ssh://a>b",
     "ssh://a\\b", "ssh://a:1٢", "ssh://a%b"],
)  # fmt: skip
def test_what_is_no_address(text):
    with pytest.raises(DeviceError, match=r"is no address of a board; write it as ssh://\[user@\]host\[:port\]"):
        SshDevice(text)


def test_a_command_of_several_lines_is_refused():
    with pytest.raises(DeviceError, match="is not one line of text"):
        parse_address("ssh://orin?python=python3%0Areboot")


# --- what works


def test_it_computes_what_this_host_does(device, engines, tmp_path):
    (tmp_path / "here").mkdir()
    np.testing.assert_array_equal(
        evaluate(device, engines, tmp_path), evaluate(LocalDevice(), engines, tmp_path / "here")
    )


def test_it_measures_engines_in_turns(device, engines, tmp_path):
    steps = []
    found = profile(device, engines, tmp_path, lambda *step: steps.append(step))
    assert [engine.name for engine in found.engines] == ["a", "b"]
    for engine in found.engines:
        raw = np.load(tmp_path / engine.raw_file)
        assert raw.shape == (120,)
        assert raw.min() > 0
        assert engine.latency.max_ms == raw.max() / 1e6
        assert engine.size_bytes == (engines / f"{engine.name}.onnx").stat().st_size
        assert 10e6 < engine.peak_rss_bytes < 1e9
    assert found.machine["onnxruntime"]
    turns = [note.split()[0] for _, _, note in steps if note.endswith("ms")]
    assert turns == [*"ab", *"abbaab"]


def test_it_says_what_tells_it_from_others_and_that_is_not_its_address(device, board):
    facts = device.describe(ORT)
    assert {"cpu", "arch", "logical_cores", "onnxruntime"} <= facts.keys()
    assert facts == {**LocalDevice().describe(ORT), "board": identity()}  # which this board is
    assert not any(str(board.port) in value for value in facts.values())


def test_a_probe_tells_what_is_there(device, board):
    probed = device.probe()
    assert {"python", "numpy", "onnxruntime", "power_mode", "gpu", "governor"} <= probed.facts.keys()
    assert "openvino" not in probed.facts
    assert probed.free_bytes > 0
    assert probed.used_bytes >= sum(path.stat().st_size for path in board.root.glob("agent-*/edgekd/**/*.py"))


def test_nothing_is_changed_there_but_one_folder(device, board, engines, tmp_path):
    home = files_of(board.home)
    evaluate(device, engines, tmp_path)
    profile(device, engines, tmp_path)
    device.close()
    assert files_of(board.home) == home
    assert [path.name for path in board.cache.iterdir()] == ["edgekd"]
    assert [path.name for path in board.cache.joinpath("edgekd").iterdir()] == ["board"]
    assert not list(board.root.joinpath("work").iterdir())
    assert not list(board.root.joinpath("tmp").iterdir())


def test_nothing_is_sent_twice(device, board, engines, tmp_path):
    evaluate(device, engines, tmp_path)
    device.close()
    told = []
    again = SshDevice(board.address())
    evaluate(again, engines, tmp_path, told.append)
    again.close()
    assert not [note for note in told if note.startswith("sending")]
    assert "running a.onnx there" in told
    assert [note for note in told if note.startswith("fetching y.npz")]


def test_what_a_failing_card_altered_is_sent_again(device, board, engines, tmp_path):
    expected = evaluate(device, engines, tmp_path)
    device.close()
    (kept,) = board.root.glob("files/*/a.onnx")
    kept.write_bytes(b"\0" * kept.stat().st_size)
    told = []
    np.testing.assert_array_equal(evaluate(device, engines, tmp_path, told.append), expected)
    assert [note for note in told if note.startswith("sending a.onnx")]


def test_a_board_whose_shell_talks(device, board, engines, tmp_path):
    (board.home / ".bashrc").write_text("echo Welcome to the board!\n")
    try:
        assert evaluate(device, engines, tmp_path).shape == (100, 3)
    finally:
        (board.home / ".bashrc").unlink()


CUSTOM = """
from pathlib import Path
from edgekd.runtime.backends.onnxruntime import open_engine as ort


class Doubled:
    def __init__(self, inner, factor):
        self._inner, self._factor = inner, factor
        self.inputs, self.outputs, self.facts = inner.inputs, inner.outputs, {}

    def run(self, feeds):
        return {name: self._factor * array for name, array in self._inner.run(feeds).items()}

    def close(self):
        self._inner.close()


def open_engine(engine, threads, name, factor):
    return Doubled(ort(engine, threads, name), factor)
"""


def test_a_runtime_of_ones_own_is_sent(device, engines, tmp_path):
    (tmp_path / "mine.py").write_text(CUSTOM)
    runtime = Runtime(f"{tmp_path / 'mine.py'}:open_engine", {"factor": 2})
    doubled = evaluate(device, engines, tmp_path, runtime=runtime)
    np.testing.assert_array_equal(doubled, 2 * evaluate(device, engines, tmp_path))


def test_a_runtime_of_ones_own_that_is_not_there(device, tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(TargetError, match=r"ssh://127.*mine.py cannot be imported: No module named"):
        device.describe(Runtime(f"{tmp_path / 'mine.py'}:open_engine"))


def test_a_broken_engine_is_a_model_error_that_names_the_board(device, board, engines, tmp_path):
    with pytest.raises(ModelError, match=rf"{board.name}: .*broken\.onnx: ONNX Runtime cannot open it"):
        evaluate(device, engines, tmp_path, engine="broken.onnx")
    assert evaluate(device, engines, tmp_path).shape == (100, 3)


def test_clean_removes_all_and_says_how_much(device, board, engines, tmp_path):
    evaluate(device, engines, tmp_path)
    with pytest.raises(DeviceError, match=f"is in use by {socket.gethostname()}"):  # it is connected
        SshDevice(board.address()).clean()
    device.close()
    kept = sum(path.stat().st_size for path in board.root.rglob("*") if path.is_file())
    assert device.clean() == kept
    assert list(board.cache.iterdir()) == []
    assert device.clean() == 0
    assert evaluate(device, engines, tmp_path).shape == (100, 3)


def test_more_engines_than_sshd_takes_on_one_connection(device, engines, tmp_path):
    named = {str(index): engines / "a.onnx" for index in range(9)}
    found = device.profile(named, ORT, engines / "x.npz", tmp_path, CONFIG, lambda *_: None)
    assert [engine.latency.n for engine in found.engines] == [120] * 9


# --- two at once


def test_a_second_one_waits_until_the_board_is_free(device, board, engines, tmp_path):
    told, order = [], []
    second = SshDevice(board.address())

    def evaluate_too():
        evaluate(second, engines, tmp_path, told.append)
        order.append("second")

    other = threading.Thread(target=evaluate_too)

    def advance(done, _total, note):
        if done == 3:
            other.start()
            assert eventually(lambda: told)
            with pytest.raises(DeviceError, match=rf"is in use by {socket.gethostname()}"):
                SshDevice(board.address()).clean()
        if done == 8:
            order.append("first")

    profile(device, engines, tmp_path, advance)
    other.join(60)
    second.close()
    assert told[0].startswith("waiting: ")
    assert socket.gethostname() in told[0]
    assert order == ["first", "second"]


# --- what goes wrong on the way


def refused(error, match, address, **described):
    device = SshDevice(address)
    with pytest.raises(error, match=match):
        device.describe(described.get("runtime", ORT))
    device.close()


def test_a_wrong_host_key(board, monkeypatch, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    public = (tmp_path / "other.pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{board.port} {public}")
    monkeypatch.setenv("EDGEKD_SSH", board.ssh(UserKnownHostsFile=tmp_path / "known"))
    refused(DeviceError, rf"{board.name}: its host key is not the one that is known; .*ssh-keygen -R", board.address())


@pytest.mark.parametrize("checking", ["yes", "ask"])
def test_an_unknown_host_key(board, monkeypatch, checking):
    changed = {"UserKnownHostsFile": "/dev/null", "StrictHostKeyChecking": checking}
    monkeypatch.setenv("EDGEKD_SSH", board.ssh(**changed))
    refused(DeviceError, rf"{board.name}: its host key is not known; connect once by hand", board.address())


def test_a_refused_key(board, monkeypatch, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    monkeypatch.setenv("EDGEKD_SSH", board.ssh(IdentityFile=tmp_path / "other"))
    refused(DeviceError, rf"{board.name}: it refuses your keys; install one with 'ssh-copy-id'", board.address())


def test_a_port_at_which_nothing_answers(board):
    port = free_port()
    refused(
        DeviceError, rf"ssh://127.0.0.1:{port}: nothing answers on this port; check the port", board.address(port=port)
    )


def test_a_host_that_there_is_not(board):
    refused(DeviceError, "ssh://no-such-host.invalid: there is no host of this name", "ssh://no-such-host.invalid")


def test_a_board_that_does_not_answer(board, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        monkeypatch.setenv("EDGEKD_SSH", board.ssh(ConnectTimeout=1))
        refused(DeviceError, "it does not answer; check that it is switched on", board.address(port=port))


def test_no_ssh_on_this_host(board, monkeypatch):
    monkeypatch.setenv("EDGEKD_SSH", "/nowhere/ssh")
    refused(MissingDependency, "/nowhere/ssh cannot be started: No such file.*install OpenSSH", board.address())


def test_a_variable_that_no_shell_would_take(board, monkeypatch):
    monkeypatch.setenv("EDGEKD_SSH", "ssh -o 'unfinished")
    refused(DeviceError, "EDGEKD_SSH=ssh -o 'unfinished: No closing quotation; write it as a shell", board.address())


def test_no_python_there(board):
    refused(
        MissingDependency, rf"{board.name}: has no '/no/python': .*install Python 3.10", board.address("/no/python")
    )


@OLD_PYTHON.mark
def test_an_old_python_there(board):
    before = files_of(board.cache)
    refused(
        MissingDependency,
        r"is Python [23]\.\d+\.\d+, and edgekd needs 3\.10 or newer; name another",
        board.address(which("pypy3")),
    )
    assert files_of(board.cache) == before


def test_a_python_without_numpy_there(board, tmp_path):
    bare = make_python(tmp_path / "venv", [])
    before = files_of(board.cache)
    refused(MissingDependency, "there has no numpy; install it .* -m pip install numpy", board.address(bare))
    assert files_of(board.cache) == before


@pytest.mark.parametrize(
    ("runtime", "advice"),
    [
        ("tensorrt", "has no tensorrt in its Python; JetPack brings it"),
        ("openvino", "has no openvino in its Python; install"),
    ],
)
def test_an_engine_library_that_is_not_there(board, runtime, advice):
    before = files_of(board.cache)
    refused(MissingDependency, rf"{board.name}: {advice}", board.address(), runtime=Runtime(runtime))
    assert files_of(board.cache) == before


def test_a_python_that_is_something_else(board):
    refused(DeviceError, "'cat' there did not run edgekd's first script", board.address("cat"))


@SMALL_DISK.mark
@SSH.mark
def test_a_full_disk_and_the_same_again_with_room(board_python, engines, tmp_path, monkeypatch):
    large = tmp_path / "large.npz"
    rows = np.random.default_rng(0).normal(size=(2, 100_000, 4)).astype(np.float32)
    np.savez(large, **{"input.x": rows[0], "input.y": rows[1]})
    (tmp_path / "board").mkdir()
    with running_sshd(tmp_path / "board", board_python, disk_bytes=2 << 20) as small:
        monkeypatch.setenv("EDGEKD_SSH", small.ssh())
        device = SshDevice(small.address())
        said = rf"{small.name}: .*large\.npz.*: No space left on device; make room there, or .*edgekd device clean"
        with pytest.raises(StorageError, match=said):
            device.evaluate(engines / "a.onnx", ORT, large, tmp_path / "y.npz", 1)
        assert evaluate(device, engines, tmp_path).shape == (100, 3)
        assert device.clean() > 0
        device.close()
        assert small.settled()


@SMALL_DISK.mark
@SSH.mark
def test_a_disk_that_is_too_full_for_the_agent(board_python, tmp_path, monkeypatch):
    (tmp_path / "board").mkdir()
    with running_sshd(tmp_path / "board", board_python, disk_bytes=64 << 10) as small:
        monkeypatch.setenv("EDGEKD_SSH", small.ssh())
        refused(StorageError, rf"{small.name}: .*: No space left on device", small.address())


# --- what is lost in the middle


def test_a_transfer_that_was_cut_goes_on_where_it_stopped(device, board, engines, tmp_path):
    large = tmp_path / "large.npz"
    rows = np.random.default_rng(1).normal(size=(2, 200_000, 4)).astype(np.float32)
    np.savez(large, **{"input.x": rows[0], "input.y": rows[1]})

    def cut(note):
        if note.startswith("sending large.npz: 3"):
            kill(board.sessions())

    with pytest.raises(DeviceError, match=rf"{board.name}: the connection was lost at 'receive'; .*same command again"):
        device.evaluate(engines / "a.onnx", ORT, large, tmp_path / "y.npz", 1, cut)
    assert board.settled()
    told = []
    device.evaluate(engines / "a.onnx", ORT, large, tmp_path / "y.npz", 1, told.append)
    sent = [float(note.split()[2]) for note in told if note.startswith("sending large.npz")]
    assert 2 < sent[0] < 5
    with np.load(tmp_path / "y.npz") as outputs:
        np.testing.assert_allclose(outputs["logits"], (rows[0] + rows[1])[:, :3], rtol=1e-6)


def test_a_killed_session_is_a_lost_connection_and_leaves_nothing(device, board, engines, tmp_path):
    def cut(done, _total, _note):
        if done == 4:
            kill(board.sessions())

    with pytest.raises(DeviceError, match=rf"{board.name}: the connection was lost at '.*same command again"):
        profile(device, engines, tmp_path, cut)
    assert board.settled()
    assert profile(device, engines, tmp_path).engines


def test_a_killed_agent_is_not_a_lost_connection(device, board, engines, tmp_path):
    def end_agents(done, _total, _note):
        if done == 4:
            kill(board.agents())

    with pytest.raises(DeviceError, match=rf"{board.name}: the agent (was killed|ended \(SIGKILL\)) at 'measure'"):
        profile(device, engines, tmp_path, end_agents)
    assert profile(device, engines, tmp_path).engines


def test_agents_end_with_their_host_whatever_they_do(board, engines):
    """Also those in the middle of a long job, and the board is free then."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgekd.devices.ssh.device import SshDevice\n"
        "from edgekd.runtime.backends.registry import ORT\nfrom edgekd.config.recipe import ProfileConfig\n"
        f"engines = Path({str(engines)!r})\n"
        f"SshDevice({board.address()!r}).profile({{'a': engines / 'a.onnx'}}, ORT, engines / 'x.npz', engines,\n"
        "    ProfileConfig(iterations=1, warmup=10**9, cold_starts=1, limit_s=0),\n"
        "    lambda *step: print(*step, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "opened" in line:
            break
    assert eventually(lambda: len(board.agents()) >= 2)
    process.kill()
    process.communicate()
    assert board.settled()
    forget_sockets(process.pid)
    told = []
    device = SshDevice(board.address())
    device.evaluate(engines / "a.onnx", ORT, engines / "x.npz", engines / "y.npz", 1, told.append)
    device.close()
    assert not [note for note in told if note.startswith("waiting")]


class Link:
    """A link to a port that can be cut as a cable is: nothing arrives any more, and nobody is told."""

    def __init__(self, port):
        self._to = port
        self._cut = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        self._cut.set()

    def _accept(self):
        while True:
            near, _ = self._server.accept()
            far = socket.create_connection(("127.0.0.1", self._to))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source, sink):
        while data := source.recv(1 << 16):
            if self._cut.is_set():
                time.sleep(3600)
            sink.sendall(data)
        sink.close()


def test_a_cut_cable_is_noticed_at_both_ends(board, engines, tmp_path, monkeypatch):
    link = Link(board.port)
    quick = {"ServerAliveInterval": 1, "ServerAliveCountMax": 2, "HostKeyAlias": f"[127.0.0.1]:{board.port}"}
    monkeypatch.setenv("EDGEKD_SSH", board.ssh(**quick))
    device = SshDevice(board.address(port=link.port), silence_seconds=3)

    def cut(done, _total, _note):
        if done == 4:
            link.cut()

    with pytest.raises(DeviceError, match="the connection was lost at 'measure'"):
        profile(device, engines, tmp_path, cut)
    device.close()
    assert eventually(lambda: not board.agents()), "they hear nothing any more"
    told = []
    again = SshDevice(board.address())
    evaluate(again, engines, tmp_path, told.append)
    again.close()
    kill(board.sessions())  # sshd itself waits for its TCP to give up


def kill(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


# --- the agent that is sent


def test_the_agent_needs_numpy_and_nothing_else(tmp_path):
    import base64
    import io
    import zipfile

    python = make_python(tmp_path / "venv", ["numpy"])
    zipfile.ZipFile(io.BytesIO(base64.b64decode(pack_agent().base64))).extractall(tmp_path / "agent")
    modules = [
        ".".join(path.relative_to(tmp_path / "agent").with_suffix("").parts)
        for path in sorted((tmp_path / "agent").rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert {"edgekd.runtime.agent.board", "edgekd.gram.matrix", "edgekd.errors"} <= set(modules)
    code = (
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(tops - set(sys.stdlib_module_names) - {'edgekd', '__main__'}))"
    )
    command = [python, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path / "agent", capture_output=True, text=True, check=True, env={"PYTHONPATH": "."}
    )
    assert set(done.stdout.split()) <= {"numpy", "_virtualenv", "sitecustomize", "usercustomize"}


def test_the_same_agent_has_the_same_name():
    pack_agent.cache_clear()
    first = pack_agent()
    pack_agent.cache_clear()
    assert pack_agent() == first
