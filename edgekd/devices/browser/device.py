"""Headless Chromium on this host as a device."""

from __future__ import annotations

import itertools
import os
import platform
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.devices.browser import library
from edgekd.devices.browser.chromium import find_chromium, version
from edgekd.devices.browser.page import Page
from edgekd.devices.local import save_first_rows
from edgekd.errors import DeviceError, ModelError, TargetError
from edgekd.runtime.measure import EngineProfile, Profile, cpu_model, latency_from, machine_facts
from edgekd.runtime.session import FeedCheck, TensorSpec, read_feeds, run_rows, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from edgekd.recipe import ProfileConfig
    from edgekd.runtime.registry import Runtime
    from edgekd.runtime.session import Array, Feeds

_RUNTIME = "onnxruntime-web"
#: As of :class:`~edgekd.devices.local.LocalDevice`, so that their figures compare.
_BLOCK = 50
_LEAD_IN = 5
_BATCH = 64
_PATIENCE_SECONDS = 600.0

#: What of this machine matters to a page. It does not reach the processor's INT8 instructions.
_FACTS = ("cpu", "logical_cores", "governor", "memory", "os", "arch")
#: What onnxruntime-web says of a dimension without a name or size: -1, which it reads as unsigned.
_UNNAMED = 2**32 - 1
#: What a page can be fed and returns.
_DTYPES = {"float32", "float64", "bool"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class BrowserDevice:
    """Chromium, which runs engines through onnxruntime-web: WebAssembly with SIMD, no GPU.

    Each engine gets a browser of its own that lives as long as one call below.
    """

    name = "browser"
    no_latency = None

    def __init__(self, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds

    @property
    def arch(self) -> str:
        """The processor's architecture."""
        return platform.machine()

    def missing(self) -> str | None:
        """Say what must be installed, and how; None where Chromium and onnxruntime-web are."""
        try:
            find_chromium()
        except DeviceError as error:
            return str(error)
        return None if library.installed() else library.NOT_INSTALLED

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return what tells it from another browser or machine.

        Raises:
            DeviceError: there is no Chromium, or onnxruntime-web is not installed.
        """
        _check(runtime)
        if reason := self.missing():
            raise DeviceError(reason)
        host = {"logical_cores": str(os.cpu_count()), "arch": self.arch}
        return {"cpu": cpu_model(), **host, **_versions()}

    def evaluate(self, engine: Path, runtime: Runtime, inputs: Path, outputs: Path, threads: int) -> None:
        """Run every row of ``inputs`` through an engine; see :class:`~edgekd.devices.device.Device`."""
        with self._open(engine, runtime, threads) as session:
            write_arrays(outputs, run_rows(session, read_feeds(inputs, session.inputs), _BATCH))

    def profile(
        self,
        engines: Mapping[str, Path],
        runtime: Runtime,
        inputs: Path,
        folder: Path,
        config: ProfileConfig,
        advance: Callable[[int, int, str], None],
    ) -> Profile:
        """Measure engines side by side, at batch 1; see :class:`~edgekd.devices.device.Device`.

        Cold starts come first, each in a fresh browser with an empty profile: ``load_ms`` is the time of creating a
        session from bytes at hand, in which onnxruntime-web also fetches its WebAssembly, from this host, and compiles
        it. Then the engines take turns of a few inferences, in an order that rotates. The page's clock moves in steps,
        whose size is among the machine's facts. Memory is that of the process that runs the page.
        """
        blocks = [min(_BLOCK, config.iterations - start) for start in range(0, config.iterations, _BLOCK)]
        total = len(engines) * (config.cold_starts + len(blocks))
        done = itertools.count(1)

        def step(note: str) -> None:
            advance(next(done), total, note)

        with TemporaryDirectory() as scratch, ExitStack() as stack:
            feeds = Path(scratch) / "feeds.npz"
            save_first_rows(inputs, feeds)
            colds: dict[str, list[_Cold]] = {name: [] for name in engines}
            for index in range(config.cold_starts):
                for name in _turn(list(engines), index):
                    with self._open(engines[name], runtime, config.threads) as session:
                        colds[name].append(_Cold(session.load_ms, session.first(feeds)))
                    step(f"{name} opened in {colds[name][-1].load_ms:.1f} ms")
            sessions = {}
            for name, engine in engines.items():
                sessions[name] = stack.enter_context(self._open(engine, runtime, config.threads))
                sessions[name].first(feeds)
                sessions[name].measure(0, config.warmup)
            parts: dict[str, list[Array]] = {name: [] for name in engines}
            for index, block in enumerate(blocks):
                for name in _turn(list(engines), index):
                    ns = sessions[name].measure(block, _LEAD_IN)
                    parts[name].append(ns)
                    step(f"{name} {np.median(ns) / 1e6:.3f} ms")
            memory = {name: session.page.peak_rss_bytes() for name, session in sessions.items()}
            clock = next(iter(sessions.values())).page.ask("clock").values["step_ms"]
        facts = {name: value for name, value in machine_facts().items() if name in _FACTS}
        profiles = []
        for name, engine in engines.items():
            ns = np.concatenate(parts[name])
            np.save(folder / f"{name}.npy", ns)
            profiles.append(
                EngineProfile(
                    name=name,
                    latency=latency_from(ns),
                    load_ms=tuple(cold.load_ms for cold in colds[name]),
                    first_run_ms=tuple(cold.first_run_ms for cold in colds[name]),
                    peak_rss_bytes=memory[name],
                    size_bytes=engine.stat().st_size,
                    raw_file=f"{name}.npy",
                )
            )
        machine = {**facts, **_versions(), "clock_step": f"{clock * 1e3:.3g} us"}
        return Profile(machine=machine, threads=config.threads, block=_BLOCK, engines=tuple(profiles))

    def _open(self, engine: Path, runtime: Runtime, threads: int) -> _Session:
        _check(runtime)
        return _Session(engine, threads, self._patience_seconds)


@dataclass(frozen=True)
class _Cold:
    load_ms: float
    first_run_ms: float


class _Session:
    """A :class:`~edgekd.runtime.session.Session` in a browser of its own."""

    def __init__(self, engine: Path, threads: int, patience_seconds: float) -> None:
        with ExitStack() as stack:
            self.page = stack.enter_context(Page(engine, patience_seconds))
            opened = self.page.ask("open", threads=threads).values
            if opened["threads"] != threads:
                raise DeviceError(f"the browser gives onnxruntime-web {opened['threads']} threads, not {threads}")
            self.inputs = tuple(_spec(item, engine) for item in opened["inputs"])
            self.outputs = tuple(_spec(item, engine) for item in opened["outputs"])
            self.load_ms: float = opened["load_ms"]
            stack.pop_all()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        FeedCheck(self.inputs)(feeds)
        arrays = self.page.ask("run", feeds).arrays
        return {spec.name: arrays[spec.name] for spec in self.outputs}

    def first(self, feeds: Path) -> float:
        """Send the rows that :meth:`measure` cycles through; return the time of one inference of the first, in ms."""
        first_run_ms: float = self.page.ask("first", read_feeds(feeds, self.inputs)).values["first_run_ms"]
        return first_run_ms

    def measure(self, iterations: int, warmup: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Time inferences of single rows, one after the other, in ns [iterations]."""
        ms = self.page.ask("measure", iterations=iterations, warmup=warmup).arrays["ms"]
        return np.rint(ms * 1e6).astype(np.int64)

    def close(self) -> None:
        self.page.close()

    def __enter__(self) -> _Session:
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


def _turn(names: Sequence[str], index: int) -> Sequence[str]:
    """Return the names in an order that begins with another one each turn."""
    shift = index % len(names)
    return [*names[shift:], *names[:shift]]


def _spec(item: Mapping[str, Any], engine: Path) -> TensorSpec:
    name, dtype = item["name"], item.get("type")
    if dtype not in _DTYPES:
        raise ModelError(f"{engine}: '{name}' is a {dtype or 'value that is no tensor'}, which a page cannot be fed")
    # A dimension without a name is like no other, so it gets a name of its own.
    shape = tuple(f"{name}.{axis}" if size == _UNNAMED else size for axis, size in enumerate(item["shape"]))
    return TensorSpec(name, dtype, shape)
