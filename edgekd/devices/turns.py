"""Measuring engines side by side: the same order of things on every device, so that their figures compare."""

from __future__ import annotations

import itertools
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgekd.gram.rows import INPUT_PREFIX
from edgekd.runtime.measure import EngineProfile, Profile, latency_from
from edgekd.runtime.session import open_arrays, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from edgekd.recipe import ProfileConfig

Nanoseconds = np.ndarray[Any, np.dtype[np.int64]]

#: Inferences of one engine before the next takes its turn: short, so that a drift of the machine's speed hits all.
_BLOCK = 50
#: Untimed inferences at the start of a turn: caches and threads were the other engines', which a p99 would show.
_LEAD_IN = 5
#: Rows that the timed inferences cycle through. Few, since they count towards the process's peak memory.
_ROWS = 64


class Opened(Protocol):
    """One engine, open in a process of its own. A context manager: at the end the process is gone."""

    @property
    def load_ms(self) -> float:
        """How long opening took."""

    def first(self, feeds: Path) -> float:
        """Read the rows that :meth:`measure` cycles through; return the time of one inference of the first, in ms."""

    def measure(self, iterations: int, warmup: int) -> Nanoseconds:
        """Time inferences of single rows, one after the other, in ns [iterations]."""

    def peak_rss_bytes(self) -> int:
        """Return the process's peak resident memory so far."""

    def machine(self) -> dict[str, str]:
        """Describe the machine and the libraries that it runs."""

    def __enter__(self) -> Opened: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class _Cold:
    load_ms: float
    first_run_ms: float


def take_turns(
    open_engine: Callable[[Path], Opened],
    engines: Mapping[str, Path],
    inputs: Path,
    folder: Path,
    config: ProfileConfig,
    advance: Callable[[int, int, str], None],
) -> Profile:
    """Measure engines side by side, at batch 1.

    Cold starts come first: fresh processes, though the engine's file may be in the system's cache. Then all engines
    stay open and take turns of a few inferences, in an order that rotates.

    Args:
        open_engine: opens an engine file in a process of its own.
        engines: engine files by name.
        inputs: ``.npz`` of real samples, ``input.<name>`` [N, ...].
        folder: receives ``<name>.npy`` with every timed inference in ns, in order.
        config: how many inferences, fresh starts, and untimed inferences before.
        advance: called after each step with steps done, steps in all, and what came out.
    """
    blocks = [min(_BLOCK, config.iterations - start) for start in range(0, config.iterations, _BLOCK)]
    total = len(engines) * (config.cold_starts + len(blocks))
    done = itertools.count(1)
    colds: dict[str, list[_Cold]] = {name: [] for name in engines}
    parts: dict[str, list[Nanoseconds]] = {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        feeds = Path(scratch) / "feeds.npz"
        _save_first_rows(inputs, feeds)
        for index in range(config.cold_starts):
            for name in _turn(engines, index):
                with open_engine(engines[name]) as opened:
                    colds[name].append(_Cold(opened.load_ms, opened.first(feeds)))
                advance(next(done), total, f"{name} opened in {colds[name][-1].load_ms:.1f} ms")
        running = {name: stack.enter_context(open_engine(engine)) for name, engine in engines.items()}
        for opened in running.values():
            opened.first(feeds)
            opened.measure(0, config.warmup)
        for index, block in enumerate(blocks):
            for name in _turn(engines, index):
                parts[name].append(running[name].measure(block, _LEAD_IN))
                advance(next(done), total, f"{name} {np.median(parts[name][-1]) / 1e6:.3f} ms")
        memory = {name: opened.peak_rss_bytes() for name, opened in running.items()}
        machine = next(iter(running.values())).machine()
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
    return Profile(machine=machine, threads=config.threads, block=_BLOCK, engines=tuple(profiles))


def _turn(engines: Mapping[str, Path], index: int) -> list[str]:
    """Return the engines' names in an order that begins with another one each turn."""
    names = list(engines)
    shift = index % len(names)
    return names[shift:] + names[:shift]


def _save_first_rows(inputs: Path, path: Path) -> None:
    with open_arrays(inputs) as archive:
        rows = {key: archive[key][:_ROWS] for key in archive if key.startswith(INPUT_PREFIX)}
    write_arrays(path, rows)
