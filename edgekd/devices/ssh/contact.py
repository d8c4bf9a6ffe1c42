"""The first contact with a board: a script that any Python since 2.7 can read reports what is there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.devices.ssh.packing import pack_agent
from edgekd.errors import DeviceError, MissingDependency, StorageError
from edgekd.runtime.backends.registry import BACKENDS

if TYPE_CHECKING:
    from edgekd.devices.ssh.connection import Connection
    from edgekd.files import JsonObject
    from edgekd.runtime.backends.backend import Backend

_OLDEST = (3, 10)

#: The modules by which a board's engine libraries are recognised.
_MODULES = tuple(backend.import_name for backend in BACKENDS.values() if backend.import_name)

#: The beginning of the answer's line; the board's shell may have written anything before it.
_MARK = "edgekd-answer "

# A script from stdin would import what lies in the home folder before what is installed.
_HEAD = """
import json, os, sys
sys.path[:] = [path for path in sys.path if path]
def answer(**found):
    print("\\n%s%s" % ("{mark}", json.dumps(found)))
cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
root = os.path.join(os.path.abspath(cache), "edgekd", "board")
""".replace("{mark}", _MARK)

_LOOK = """
import platform
found = {"python": list(sys.version_info[:3]), "machine": platform.machine(), "root": root}
if sys.version_info >= (3, 10):
    from importlib.util import find_spec
    found["modules"] = [name for name in modules if find_spec(name)]
    found["unpacked"] = os.path.isdir(os.path.join(root, agent))
answer(**found)
"""

_UNPACK = """
import base64, compileall, io, shutil, tempfile, zipfile
final, temporary = os.path.join(root, agent), None
try:
    for folder in ("cache", "tmp"):
        os.makedirs(os.path.join(root, folder), exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".agent-", dir=root)
    zipfile.ZipFile(io.BytesIO(base64.b64decode(content))).extractall(temporary)
    compileall.compile_dir(temporary, quiet=2, stripdir=temporary, prependdir=final)
    os.rename(temporary, final)
    answer()
except OSError as error:
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)
    answer(**({} if os.path.isdir(final) else {"error": error.strerror, "at": error.filename or root}))
"""

_CLEAN = """
import fcntl, glob, shutil
def size():
    walked = [os.path.join(at, name) for at, _, names in os.walk(root) for name in names]
    return sum(os.lstat(path).st_size for path in walked if os.path.exists(path))
busy = [os.path.join(root, "busy.lock")] + glob.glob(os.path.join(root, "work", "*", "busy.lock"))
locks = [open(path, "r+") for path in busy if os.path.exists(path)]
try:
    for lock in locks:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            answer(holder=lock.read())
            sys.exit()
    freed = size()
    if os.path.isdir(root):
        shutil.rmtree(root)
    try:
        os.rmdir(os.path.dirname(root))
    except OSError:
        pass
    answer(freed=freed)
except OSError as error:
    answer(error=error.strerror, at=error.filename or root)
"""


@dataclass(frozen=True)
class Contact:
    """A board's description of itself.

    Attributes:
        machine: Its architecture, as ``uname -m`` prints it.
        root: The one folder that edgekd has there.
        modules: The engine libraries that its Python finds, by their modules' names.
        unpacked: Whether this very agent is there already.
    """

    machine: str
    root: str
    modules: frozenset[str]
    unpacked: bool

    def require(self, backend: Backend, board: str) -> None:
        """Check that an engine library is there; the agent checks a user's own.

        Raises:
            MissingDependency: it is not.
        """
        module = backend.import_name
        if module and module not in self.modules:
            raise MissingDependency(f"{board}: has no {module} in its Python; {backend.install_hint}")


def inspect_board(connection: Connection) -> Contact:
    """Ask a board what is there, without leaving anything on it.

    Raises:
        MissingDependency: it has no Python, one that is too old, or no numpy.
        DeviceError: the connection was lost, or something else answers.
    """
    board, python = connection.address.name, connection.address.python
    modules = ["numpy", *_MODULES]
    answer = _ask(connection, _LOOK, modules=modules, agent=pack_agent().name)
    version = tuple(answer["python"])
    if version < _OLDEST:
        named, oldest = ".".join(map(str, version)), ".".join(map(str, _OLDEST))
        raise MissingDependency(
            f"{board}: '{python}' there is Python {named}, and edgekd needs {oldest} or newer; "
            f"name another with {board}?python=COMMAND"
        )
    if "numpy" not in answer["modules"]:
        raise MissingDependency(
            f"{board}: '{python}' there has no numpy; install it ({python} -m pip install numpy), or name the Python "
            f"that has it with {board}?python=COMMAND"
        )
    return Contact(answer["machine"], answer["root"], frozenset(answer["modules"]), answer["unpacked"])


def unpack_agent(connection: Connection) -> None:
    """Unpack the agent into its folder on the board.

    Raises:
        StorageError: the board's disk is full, or the folder may not be written.
        DeviceError: the connection was lost.
    """
    packed = pack_agent()
    _refuse(connection, _ask(connection, _UNPACK, agent=packed.name, content=packed.base64))


def clean_board(connection: Connection) -> int:
    """Remove everything of edgekd's from a board, and return the number of bytes.

    Raises:
        DeviceError: somebody uses it, it may not be removed, or the connection was lost.
    """
    answer = _ask(connection, _CLEAN)
    if "holder" in answer:
        raise DeviceError(f"{connection.address.name}: is in use by {answer['holder']}; try again when that is done")
    _refuse(connection, answer)
    freed: int = answer["freed"]
    return freed


def _refuse(connection: Connection, answer: JsonObject) -> None:
    if "error" in answer:
        raise StorageError(f"{connection.address.name}: {answer['at']}: {answer['error']}; make room there")


def _ask(connection: Connection, script: str, **variables: object) -> JsonObject:
    """Run a script in the board's Python, with these variables, and return its answer."""
    board, python = connection.address.name, connection.address.python
    # JSON's text, numbers and lists mean the same in Python.
    names = "".join(f"{name} = {json.dumps(value)}\n" for name, value in variables.items())
    completed = connection.run(f"{python} -", names + _HEAD + script)
    for line in completed.stdout.splitlines():
        if line.startswith(_MARK):
            answer: JsonObject = json.loads(line.removeprefix(_MARK))
            return answer
    if not connection.alive:
        raise DeviceError(f"{board}: the connection was lost; run the same command again")
    said = completed.stderr.strip().splitlines()[-1:] or [f"nothing, exit code {completed.returncode}"]
    if completed.returncode in (126, 127):
        raise MissingDependency(
            f"{board}: has no '{python}': {said[0]}; install Python 3.10 or newer with numpy there, or name the one "
            f"that is there with {board}?python=COMMAND"
        )
    raise DeviceError(f"{board}: '{python}' there did not run edgekd's first script; it said: {said[0]}")
