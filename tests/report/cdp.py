"""One page in the real Chromium, driven by its DevTools protocol over a pipe."""

import json
import os
import subprocess
import tempfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from edgekd.devices.browser.chromium import FLAGS, find_chromium

_TIMEOUT_SECONDS = 60


class Tab:
    """A page that is driven; ``requests`` are the URLs that it asked for."""

    def __init__(self, process):
        self._process = process
        self._ids = count(1)
        self._buffer = b""
        self._session = {}
        self._events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Call a method and return its result; events that come meanwhile are kept."""
        ident = next(self._ids)
        message = {"id": ident, "method": method, "params": params, **self._session}
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._read()).get("id") != ident:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, url, width=1600, height=1000, scheme="light", script=True):
        """Open a page in a window of that size, and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self._events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())

    def run(self, expression):
        """Return the JSON value of a JavaScript expression, which may be a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    @property
    def requests(self):
        sent = [event["params"] for event in self._events if event.get("method") == "Network.requestWillBeSent"]
        return [event["request"]["url"] for event in sent]

    @property
    def complaints(self):
        """What the page's script threw, and what the browser logged of it."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self._events if event.get("method") in kinds]

    def _read(self):
        while b"\0" not in self._buffer:
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            assert chunk, "Chromium ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def chromium_tab():
    """Yield a tab of a Chromium of its own, of which nothing is left in the end."""
    with tempfile.TemporaryDirectory(prefix="edgekd-tab-", dir="/tmp", ignore_cleanup_errors=True) as profile:
        flags = [*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        shell = ["/bin/sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 >/dev/null']
        process = subprocess.Popen(
            [*shell, find_chromium(), *flags],
            env={**os.environ, "HOME": profile},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Tab(process)
        finally:
            process.stdin.close()
            process.wait(_TIMEOUT_SECONDS)
            process.stdout.close()


def file_url(path):
    return Path(path).resolve().as_uri()
