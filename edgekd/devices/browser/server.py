"""The server on this host that gives the page a few files and its jobs, and takes its answers."""

from __future__ import annotations

import json
import queue
import secrets
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}
#: Chromium grants threads and its finest clock only to pages that are isolated from other origins.
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """A server of files for whoever knows the token, on this host only, that passes jobs and answers.

    Attributes:
        said: Receives ``b"ready"`` when the page asks for jobs, each answer, and None when the page is gone.
    """

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.host = f"127.0.0.1:{self.server_port}"
        self.token = secrets.token_urlsafe(16)
        self.jobs: _Handler | None = None
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def url(self, name: str) -> str:
        """Return the address of a file, with the token."""
        return f"http://{self.host}/{self.token}/{name}"

    def send(self, job: Mapping[str, object]) -> None:
        """Send a job to the page, as an event of the stream that it holds open."""
        if self.jobs is not None:
            with suppress(OSError):  # it is gone, as whoever waits for the answer learns
                self.jobs.wfile.write(f"data: {json.dumps(job)}\n\n".encode())

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a connection that broke off, as happens when a browser is killed."""

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        name = self._name()
        if name == "jobs" and self.server.jobs is None:
            self._stream()
        elif name in self.server.files:
            self._reply(HTTPStatus.OK, self.server.files[name], _MEDIA_TYPES.get(Path(name).suffix))
        else:
            self._reply(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        if self._name() == "answer":
            self.server.said.put(self.rfile.read(int(self.headers["Content-Length"])))
            self._reply(HTTPStatus.NO_CONTENT)
        else:
            self.close_connection = True  # with its content unread
            self._reply(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def _name(self) -> str | None:
        """Return the requested name; None without the token, or by another name of this host."""
        _, token, name = (self.path + "//").split("/", 2)
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        return name.rstrip("/") if known and self.headers.get("Host") == self.server.host else None

    def _reply(self, status: HTTPStatus, content: bytes = b"", media_type: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self._end(media_type or "application/octet-stream")
        self.wfile.write(content)

    def _stream(self) -> None:
        """Hold the stream of jobs open until the page ends, in whatever way."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Connection", "close")
        self._end("text/event-stream")
        self.server.jobs = self
        self.server.said.put(b"ready")
        with suppress(OSError):
            self.connection.recv(1)
        self.server.said.put(None)

    def _end(self, media_type: str) -> None:
        for name, value in {**_HEADERS, "Content-Type": media_type}.items():
            self.send_header(name, value)
        self.end_headers()
