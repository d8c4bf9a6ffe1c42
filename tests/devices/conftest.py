import os
import pathlib

import numpy as np
import pytest
from boards import make_python, running_sshd, save_engine
from requirements import SSH


@pytest.fixture(scope="session")
def board_python(tmp_path_factory):
    """A Python as a board has it: numpy and an engine library."""
    return make_python(tmp_path_factory.mktemp("python") / "venv", ["numpy", "onnxruntime"])


@pytest.fixture(scope="session")
def sshd(board_python, tmp_path_factory):
    SSH.demand()
    with running_sshd(tmp_path_factory.mktemp("board"), board_python) as running:
        yield running


@pytest.fixture
def board(sshd, monkeypatch):
    """A board that this host may log in to; in the end nothing runs there or here any more."""
    monkeypatch.setenv("EDGEKD_SSH", sshd.ssh())
    yield sshd
    assert sshd.settled(), "agents or sessions are left on the board"
    assert not list(pathlib.Path("/tmp").glob(f"edgekd-ssh-{os.getpid()}-*"))
    assert not [pid for pid in _children() if _command(pid).startswith(b"ssh\0")]


@pytest.fixture(scope="session")
def engines(tmp_path_factory):
    """A folder with engines of two inputs, and samples for them."""
    folder = tmp_path_factory.mktemp("engines")
    save_engine(folder / "a.onnx")
    save_engine(folder / "b.onnx", classes=2)
    (folder / "broken.onnx").write_text("broken")
    rows = np.random.default_rng(0).normal(size=(2, 100, 4)).astype(np.float32)
    np.savez(folder / "x.npz", **{"input.x": rows[0], "input.y": rows[1]})
    return folder


def _children():
    return [int(pid) for pid in pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _command(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
