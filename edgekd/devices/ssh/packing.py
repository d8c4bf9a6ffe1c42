"""The part of edgekd that a board gets: its runtime, and what that imports."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import edgekd

#: Files of the package. They need numpy, and nothing else until an engine library is asked for.
_PARTS = ("__init__.py", "errors.py", "files.py", "plugins.py", "gram/**/*.py", "runtime/**/*.py")

#: The script that ``python FOLDER`` runs. Byte code is made when the agent is unpacked, so that none is written later.
_MAIN = """import sys

sys.dont_write_bytecode = True

from edgekd.runtime.agent.board import main

main()
"""

#: The same content gives the same bytes, whenever it is packed.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class PackedAgent:
    """The agent as a ZIP.

    Attributes:
        name: The name of its folder on a board; it differs for each content.
        base64: The ZIP in base64.
    """

    name: str
    base64: str


@functools.cache
def pack_agent() -> PackedAgent:
    """Pack this very edgekd's agent."""
    package = Path(edgekd.__file__).resolve().parent
    files = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for part in _PARTS
        for path in sorted(package.glob(part))
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in {**files, "__main__.py": _MAIN.encode()}.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    content = stream.getvalue()
    return PackedAgent(f"agent-{hashlib.sha256(content).hexdigest()[:16]}", base64.b64encode(content).decode())
