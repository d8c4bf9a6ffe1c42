"""Boards for tests: a real sshd on loopback, whose Python is a virtual environment without torch.

Nothing of the system is changed: keys, configuration, home and cache folders are temporary, and where sshd wants its
folder below /run, it gets one in a mount namespace of its own.
"""

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
import venv
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from onnx.helper import make_node, make_tensor_value_info
from requirements import which


@dataclass(frozen=True)
class Sshd:
    """A running sshd, and the machine that one gets to through it."""

    folder: Path
    port: int
    pid: int
    python: Path

    @property
    def home(self):
        return self.folder / "home"

    @property
    def cache(self):
        return self.folder / "cache"

    @property
    def root(self):
        """The one folder that edgekd has there."""
        return self.cache / "edgekd" / "board"

    def address(self, python=None, port=None):
        return f"ssh://127.0.0.1:{port or self.port}?python={python or self.python}"

    @property
    def name(self):
        return f"ssh://127.0.0.1:{self.port}"

    def ssh(self, **options):
        """Return what EDGEKD_SSH must be; options replace those of a client that is trusted and trusts."""
        told = {
            "IdentityFile": self.folder / "user_key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            **options,
        }
        return shlex.join(["ssh", "-F", "/dev/null", *(f"-o{key}={value}" for key, value in told.items())])

    def sessions(self):
        """Return the processes of sshd that serve connections."""
        return [pid for pid in descendants(self.pid) if "sshd" in _command(pid)]

    def agents(self):
        """Return the agents that live there."""
        there = ((pid, _command(pid)) for pid in processes())
        return [pid for pid, command in there if f"{self.root}/agent-" in command and not command.startswith("ssh ")]

    def settled(self):
        """Whether nobody is logged in, and no agent lives, after what may take a moment."""
        return eventually(lambda: not self.sessions() and not self.agents())


@contextmanager
def running_sshd(folder, python, disk_bytes=None):
    """Run sshd until the end of the ``with``.

    Args:
        folder: for all that it has, an empty one.
        python: the interpreter there.
        disk_bytes: what the disk with the cache folder there holds; None for as much as here.
    """
    for name in ("home", "cache"):
        (folder / name).mkdir(exist_ok=True)
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    port = free_port()
    public = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
    shutil.copyfile(folder / "user_key.pub", folder / "authorized_keys")
    environment = {"HOME": folder / "home", "XDG_CACHE_HOME": folder / "cache"}
    config = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": folder / "pid",
        "UsePAM": "no",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "SetEnv": " ".join(f"{name}={value}" for name, value in environment.items()),
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))
    command = [which("sshd"), "-f", str(folder / "config"), "-E", str(folder / "log")]
    if getpass.getuser() == "root":
        steps = ["mount -t tmpfs tmpfs /run", "mkdir /run/sshd"]
        if disk_bytes:
            steps.append(f"mount -t tmpfs -o size={disk_bytes} tmpfs {shlex.quote(str(folder / 'cache'))}")
        prepare = " && ".join([*steps, f"exec {shlex.join(command)}"])
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", prepare]
    subprocess.run(command, check=True)  # it goes on by itself, as no child of the tests, which count theirs
    written = folder / "pid"
    assert eventually(lambda: written.is_file() and written.read_text().strip()), (folder / "log").read_text()
    pid = int(written.read_text())
    try:
        yield Sshd(folder, port, pid, python)
    finally:
        for left in (pid, *descendants(pid)):
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)


def make_python(folder, packages):
    """Make a virtual environment with the packages of this very Python, and nothing else; return its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in packages:
        distribution = metadata.distribution(package)
        tops = {file.parts[0] for file in distribution.files or () if ".." not in file.parts}
        for top in tops - {"__pycache__"}:
            (site / top).symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


def save_engine(path, classes=3):
    """Write an engine of two modalities: logits = (x + y) W."""
    weight = numpy_helper.from_array(np.eye(4, classes, dtype=np.float32), "w")
    nodes = [make_node("Add", ["x", "y"], ["sum"]), make_node("MatMul", ["sum", "w"], ["logits"])]
    inputs = [make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    outputs = [make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])]
    graph = helper.make_graph(nodes, "sum", inputs, outputs, [weight])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def forget_sockets(pid):
    """Remove the folder of a process that was killed, and could not."""
    for left in Path("/tmp").glob(f"edgekd-ssh-{pid}-*"):
        shutil.rmtree(left)


def eventually(condition, seconds=30):
    """Wait until something is so; return whether it came to be."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def processes():
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def descendants(pid):
    """Return the children of a process, and theirs."""
    parents = {one: _parent(one) for one in processes()}
    found, added = set(), {pid}
    while added:
        added = {one for one, parent in parents.items() if parent in added}
        found |= added
    return sorted(found)


def _parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
