"""An npm registry on this host that holds one package, for the real npm to ask."""

import base64
import hashlib
import io
import json
import os
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: A registry that nobody serves.
NOWHERE = "http://127.0.0.1:9/"


def pack_package(name, version, files):
    """Return a tarball as npm's registry keeps it; ``files`` are contents by their paths in the package."""
    stream = io.BytesIO()
    manifest = json.dumps({"name": name, "version": version}).encode()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for path, content in {"package.json": manifest, **files}.items():
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@contextmanager
def serve_package(name, version, archive, monkeypatch, cache):
    """Serve a tarball for as long as this holds; npm asks here, and keeps what it likes in ``cache``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = archive if self.path.endswith(".tgz") else json.dumps(packument(self.headers["Host"])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    def packument(host):
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
        dist = {"tarball": f"http://{host}/{name}.tgz", "integrity": integrity}
        versions = {version: {"name": name, "version": version, "dist": dist}}
        return {"name": name, "dist-tags": {"latest": version}, "versions": versions}

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        settings = {
            "registry": f"http://127.0.0.1:{running.server_port}/",
            "cache": str(cache),
            "userconfig": os.devnull,
            "fetch_retries": "0",
        }
        for key, value in settings.items():
            monkeypatch.setenv(f"npm_config_{key}", value)
        yield
        running.shutdown()
