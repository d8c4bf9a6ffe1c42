"""Headless Chromium on this host as a device."""

from __future__ import annotations

import os
import platform
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from edgekd.devices.browser import library
from edgekd.devices.browser.chromium import find_chromium, version
from edgekd.devices.browser.page import Page
from edgekd.devices.interleave import profile_interleaved
from edgekd.errors import DeviceError, ModelError, TargetError
from edgekd.runtime.feeds import FeedCheck, read_feeds
from edgekd.runtime.measure.machine import cpu_model, machine_facts
from edgekd.runtime.sequences import run_samples
from edgekd.runtime.session import TensorSpec, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from edgekd.config.recipe import ProfileConfig
    from edgekd.config.target import Target
    from edgekd.files import JsonObject
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.measure.results import Nanoseconds, Profile
    from edgekd.runtime.session import Array, Feeds

_RUNTIME = "onnxruntime-web"
#: V8 goes on optimising a page's code for some hundred inferences.
_WARMUP = 500
_BATCH = 64
_TIMEOUT_SECONDS = 600.0

#: The reason why nothing but latency is measured.
_NO_EXTRAS = "not measured: a page in a browser has no profiler and no sensors, and its timers keep no pace"
#: The facts of this machine that matter to a page, which does not reach the processor's INT8 instructions.
_FACTS = ("cpu", "logical_cores", "governor", "memory", "os", "arch")
#: onnxruntime-web's size of a dimension without a name or size: -1, which it reads as unsigned.
_UNNAMED = 2**32 - 1
#: The types that a page takes and returns.
_DTYPES = {"float32", "float64", "bool"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class BrowserDevice:
    """Chromium, which runs engines through onnxruntime-web: WebAssembly with SIMD, no GPU.

    Each engine gets a browser of its own that lives as long as one call below.
    """

    name = "browser"
    no_latency = None

    def __init__(self, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        self._timeout_seconds = timeout_seconds

    @property
    def arch(self) -> str:
        """The processor's architecture."""
        return platform.machine()

    def missing(self) -> str | None:
        """Return what must be installed, and how; None where Chromium and onnxruntime-web are."""
        try:
            find_chromium()
        except DeviceError as error:
            return str(error)
        return None if library.installed() else library.NOT_INSTALLED

    def refusal(self, target: Target, runtime: Runtime) -> str | None:
        """Return the reason why a browser cannot run a target's engines; None where it can."""
        return (
            None if runtime.backend.in_browser else f"target '{target.name}' is for {runtime.name}, not for a browser"
        )

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return what tells its results from those of another browser or machine.

        Raises:
            DeviceError: there is no Chromium, or onnxruntime-web is not installed.
        """
        _check(runtime)
        if reason := self.missing():
            raise DeviceError(reason)
        host = {"logical_cores": str(os.cpu_count()), "arch": self.arch}
        return {"cpu": cpu_model(), **host, **_versions()}

    def close(self) -> None:
        """Free what it holds: nothing."""

    def evaluate(
        self,
        engine: Path,
        runtime: Runtime,
        inputs: Path,
        outputs: Path,
        threads: int,
        notify: Callable[[str], None] = lambda _: None,  # noqa: ARG002 - there is no news while an engine runs
    ) -> None:
        """Run every row of ``inputs`` through an engine; see :class:`~edgekd.devices.base.Device`."""
        with self._open(engine, runtime, threads) as session:
            write_arrays(outputs, run_samples(session, inputs, _BATCH))

    def profile(
        self,
        engines: Mapping[str, Path],
        runtime: Runtime,
        inputs: Path,
        folder: Path,
        config: ProfileConfig,
        advance: Callable[[int, int, str], None],
    ) -> Profile:
        """Measure engines side by side, at batch 1; see :func:`~edgekd.devices.interleave.profile_interleaved`.

        A cold start is a fresh browser with an empty profile: ``load_ms`` is the time of creating a session from bytes
        in memory, in which onnxruntime-web also fetches its WebAssembly, from this host, and compiles it. The page's
        clock moves in steps, whose size is among the machine's facts. Memory is that of the process of the page.
        """
        config = replace(config, warmup=max(config.warmup, _WARMUP))
        return profile_interleaved(
            lambda engine: self._open(engine, runtime, config.threads),
            engines, inputs, folder, config, advance, _NO_EXTRAS,
        )  # fmt: skip

    def _open(self, engine: Path, runtime: Runtime, threads: int) -> _BrowserSession:
        _check(runtime)
        return _BrowserSession(engine, threads, self._timeout_seconds)


class _BrowserSession:
    """A :class:`~edgekd.runtime.session.Session` in a browser of its own."""

    import_ms = None

    def __init__(self, engine: Path, threads: int, timeout_seconds: float) -> None:
        with ExitStack() as stack:
            self.page = stack.enter_context(Page(engine, timeout_seconds))
            opened = self.page.ask("open", threads=threads).values
            if opened["threads"] != threads:
                raise DeviceError(f"the browser gives onnxruntime-web {opened['threads']} threads, not {threads}")
            self.inputs = tuple(_spec(item, engine) for item in opened["inputs"])
            self.outputs = tuple(_spec(item, engine) for item in opened["outputs"])
            self.load_ms: float = opened["load_ms"]
            stack.pop_all()

    @property
    def facts(self) -> dict[str, str]:
        """Facts of how onnxruntime-web runs the engine: it has none."""
        return {}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        FeedCheck(self.inputs)(feeds)
        arrays = self.page.ask("run", feeds).arrays
        return {spec.name: arrays[spec.name] for spec in self.outputs}

    def first(self, feeds: Path) -> float:
        """Send the rows that :meth:`measure` cycles through; return the time of one inference of the first, in ms."""
        first_run_ms: float = self.page.ask("first", read_feeds(feeds, self.inputs)).values["first_run_ms"]
        return first_run_ms

    def measure(self, iterations: int, warmup: int) -> Nanoseconds:
        """Time inferences of single rows, one after the other, in ns [iterations]."""
        ms = self.page.ask("measure", iterations=iterations, warmup=warmup).arrays["ms"]
        return np.rint(ms * 1e6).astype(np.int64)

    def ask(self, job: str, *_wanted: str, **arguments: object) -> JsonObject:
        return dict(self.page.ask(job, None, **arguments).values)

    def compute(self, iterations: int, warmup: int) -> None:
        """Time nothing: onnxruntime-web offers only ``session.run``."""

    def peak_rss_bytes(self) -> int:
        """Return the peak resident memory of the process that runs the page."""
        return self.page.peak_rss_bytes()

    def machine(self) -> dict[str, str]:
        """Describe the machine, the browser and its clock."""
        clock_ms = self.page.ask("clock").values["step_ms"]
        facts = {name: value for name, value in machine_facts().items() if name in _FACTS}
        return {**facts, **_versions(), "clock_step": f"{clock_ms * 1e3:.3g} us"}

    def close(self) -> None:
        self.page.close()

    def __enter__(self) -> _BrowserSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check(runtime: Runtime) -> None:
    if runtime.name != _RUNTIME:
        raise TargetError(f"a browser runs engines of the runtime '{_RUNTIME}', not of '{runtime.name}'")
    if runtime.options:
        raise TargetError(f"the runtime '{_RUNTIME}' takes no options, but was given {', '.join(runtime.options)}")


def _versions() -> dict[str, str]:
    return {"browser": version(find_chromium()), library.PACKAGE: library.VERSION}


def _spec(item: JsonObject, engine: Path) -> TensorSpec:
    name, dtype = item["name"], item.get("type")
    if dtype not in _DTYPES:
        raise ModelError(f"{engine}: '{name}' is a {dtype or 'value that is no tensor'}, which a page cannot be fed")
    # A dimension without a name is like no other, so it gets a name of its own.
    shape = tuple(f"{name}.{axis}" if size == _UNNAMED else size for axis, size in enumerate(item["shape"]))
    return TensorSpec(name, dtype, shape)
