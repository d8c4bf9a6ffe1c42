"""A page in a browser that is given jobs, and answers each.

Tensors travel both ways as: length of the header (8 bytes, little-endian), header (JSON, padded with spaces), then the
content of each tensor in C order, each part padded to 8 bytes. The header's ``tensors`` are ``{name, dtype, dims}``.
"""

from __future__ import annotations

import json
import queue
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.devices.browser.chromium import Chromium, find_chromium
from edgekd.devices.browser.library import read_library
from edgekd.devices.browser.server import Server
from edgekd.errors import DeviceError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from edgekd.files import JsonObject
    from edgekd.runtime.session import Array, Feeds

_HERE = Path(__file__).parent
_ALIGN = 8
#: The seconds between two looks whether the browser still runs.
_LOOK_SECONDS = 0.25
#: The longest time to open a page of a few kilobytes on a loaded machine.
_START_SECONDS = 60.0


@dataclass(frozen=True)
class PageAnswer:
    """The page's answer to a job.

    Attributes:
        values: The JSON values by name.
        arrays: The tensors by name.
    """

    values: JsonObject
    arrays: Mapping[str, Array]


class Page:
    """One page with one engine, in a Chromium of its own. Use it as a context manager: at the end nothing is left.

    Args:
        engine: The engine's file, which the page opens at the job "open".
        timeout_seconds: The longest time that one answer may take.

    Raises:
        DeviceError: there is no Chromium or no onnxruntime-web, or the page does not open.
        ModelError: the file cannot be read.
    """

    def __init__(self, engine: Path, timeout_seconds: float) -> None:
        self._engine = engine
        self.timeout_seconds = timeout_seconds
        try:
            content = engine.read_bytes()
        except OSError as error:
            raise ModelError(f"{engine}: cannot be read: {error.strerror}") from error
        program = find_chromium()
        files = {name: (_HERE / name).read_bytes() for name in ("page.html", "page.js")}
        with ExitStack() as stack:
            self._server = stack.enter_context(Server({**files, **read_library(), "engine": content}))
            self.chromium = stack.enter_context(Chromium(program, self._server.url("page.html")))
            self._await("open its page", min(_START_SECONDS, timeout_seconds))
            self._stack = stack.pop_all()

    def ask(self, job: str, tensors: Feeds | None = None, **arguments: object) -> PageAnswer:
        """Give the page a job and return its answer.

        Args:
            job: The job's name, as in ``page.js``.
            tensors: The tensors that it works on.
            arguments: The job's arguments.

        Raises:
            DeviceError: the browser or the page was lost, or took longer than its timeout.
            ModelError: onnxruntime-web failed.
        """
        self._server.files["tensors"] = encode_tensors(tensors or {})
        self._server.send({"job": job, **arguments})
        answer = decode_tensors(self._await(f"answer '{job}'", self.timeout_seconds))
        if "error" in answer.values:
            what = "cannot open it" if job == "open" else "failed to run it"
            raise ModelError(f"{self._engine}: onnxruntime-web {what}: {answer.values['error']}")
        return answer

    def peak_rss_bytes(self) -> int:
        """Return the peak resident memory of the process that runs the page, Chromium's own part in it included.

        Raises:
            DeviceError: the system does not report it; only Linux does.
        """
        peaks = self.chromium.peak_rss_bytes()  # before the worker, which takes memory too
        self.ask("start_worker")
        workers = self.chromium.processes_with_worker()
        if len(workers) != 1 or workers[0] not in peaks:
            raise DeviceError(
                "the memory of a browser's page is that of the process with its worker, which Linux alone tells; "
                f"found {len(workers)} such processes"
            )
        return peaks[workers[0]]

    def close(self) -> None:
        """End the browser and the server."""
        self._stack.close()

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await(self, what: str, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                answer = self._server.said.get(timeout=min(left, _LOOK_SECONDS))
            except queue.Empty:
                answer = None if self.chromium.ended else b""
            if answer is None:
                raise DeviceError(f"the browser did not {what}: {self.chromium.end()}")
            if answer:
                return answer
        raise DeviceError(f"the browser did not {what} in {seconds:g} s")


def encode_tensors(tensors: Feeds) -> bytes:
    """Return tensors as bytes, in the form in which they travel."""
    items = [{"name": name, "dtype": x.dtype.name, "dims": x.shape} for name, x in tensors.items()]
    head = json.dumps({"tensors": items}).encode()
    head += b" " * (-len(head) % _ALIGN)
    parts = [np.ascontiguousarray(x, x.dtype.newbyteorder("<")).tobytes() for x in tensors.values()]
    padded = [part + bytes(-len(part) % _ALIGN) for part in parts]
    return b"".join([len(head).to_bytes(8, "little"), head, *padded])


def decode_tensors(content: bytes) -> PageAnswer:
    """Return the values and tensors of an answer; see :func:`encode_tensors`."""
    offset = 8 + int.from_bytes(content[:8], "little")
    values = json.loads(content[8:offset])
    arrays = {}
    for item in values.pop("tensors"):
        dtype, dims = np.dtype(item["dtype"]).newbyteorder("<"), item["dims"]
        count = int(np.prod(dims, dtype=np.int64))
        array = np.frombuffer(content, dtype, count, offset).reshape(dims)
        arrays[item["name"]] = array.astype(array.dtype.newbyteorder("="))  # the caller's own, and writable
        offset += array.nbytes + -array.nbytes % _ALIGN
    return PageAnswer(values, arrays)
