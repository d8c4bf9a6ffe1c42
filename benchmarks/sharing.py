"""What one session does when many threads use it, and the memory that many sizes of a batch and many opens take.

Each runs on the INT8 engine of a shipped task. Threads: 16 of them ask one session, each its own samples, and every
answer is compared bit by bit with the one that a single thread got; the same calls by one thread, and by 16 threads
with a session each, tell what sharing costs. Memory: the process's own (RssAnon) while an OpenVINO session gets every
size of a batch up to 800 and then 100,000 sizes drawn at random, and while an engine is opened 10,000 times.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from common import arguments, export, parse, write_result

import edgekd
from edgekd.compress import quantize
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.feeds import read_feeds
from edgekd.stages.artifacts import CALIBRATION, DEPLOY, TEST, onnx_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.runtime.session import Array, Feeds, Session

TASKS = ("digits",)
TARGETS = ("cpu", "openvino-cpu")
THREADS = 16
#: Rows of a call, by what is asked: a thread keeps its size.
ASKED = {"batch 1": (1,), "batch 8": (8,), "batches of 1 to 8": tuple(range(1, 9))}
LARGEST, DRAWN_UP_TO = 800, 200


def run_threads(sessions: Sequence[Session], feeds: Sequence[Feeds], calls: int) -> dict[str, Any]:
    """Let each feed be asked ``calls`` times by a thread of its own, of the session of its number."""
    expected = [session.run(given) for session, given in zip(sessions, feeds, strict=True)]
    begin = threading.Barrier(len(feeds) + 1)

    def ask(index: int) -> int:
        session, given, right = sessions[index], feeds[index], expected[index]
        begin.wait()
        wrong = 0
        for _ in range(calls):
            found = session.run(given)
            wrong += not all(np.array_equal(found[name], array) for name, array in right.items())
        return wrong

    with ThreadPoolExecutor(len(feeds)) as pool:
        asked = [pool.submit(ask, index) for index in range(len(feeds))]
        begin.wait()
        start = time.perf_counter()
        wrong = sum(task.result() for task in asked)
        elapsed = time.perf_counter() - start
    return {"calls": calls * len(feeds), "wrong": wrong, "us_per_call": 1e6 * elapsed / (calls * len(feeds))}


def share(engine: Path, samples: Path, runtime: Runtime, calls: int) -> dict[str, Any]:
    """Ask one session by many threads, and the same of one thread, and of a session for each thread."""
    found = {}
    sessions = [runtime.open(engine) for _ in range(THREADS)]
    rows = read_feeds(samples, sessions[0].inputs)
    for name, sizes in ASKED.items():
        feeds = [_rows(rows, index, sizes[index % len(sizes)]) for index in range(THREADS)]
        each = calls // THREADS
        found[name] = {
            "shared": run_threads(sessions[:1] * THREADS, feeds, each),
            "one_thread": run_threads(sessions[:1], feeds[-1:], each),
            "own_sessions": run_threads(sessions, feeds, each),
        }
    for session in sessions:
        session.close()
    return found


def _rows(rows: Feeds, start: int, count: int) -> dict[str, Array]:
    return {name: array[start : start + count] for name, array in rows.items()}


def run_batches(engine: Path, samples: Path, calls: int, report: Callable[[str, int], None]) -> None:
    """Give a session of OpenVINO every size of a batch in its turn, and then sizes at random."""
    random = np.random.default_rng(0)
    with Runtime("openvino").open(engine) as session:
        read = read_feeds(samples, session.inputs)
        rows = {name: np.resize(array, (LARGEST, *array.shape[1:])) for name, array in read.items()}
        for size in (1, 2):
            session.run(_rows(rows, 0, size))
        report("before", 0)
        for size in range(1, LARGEST + 1):
            session.run(_rows(rows, 0, size))
        report("every size", LARGEST)
        for call in range(1, calls + 1):
            session.run(_rows(rows, 0, int(random.integers(1, DRAWN_UP_TO + 1))))
            if call % max(calls // 10, 1) == 0:
                report("sizes at random", call)


def run_opens(engine: Path, _samples: Path, calls: int, report: Callable[[str, int], None]) -> None:
    """Open and close an engine in OpenVINO, over and over."""
    runtime, content = Runtime("openvino"), engine.read_bytes()
    for call in range(1, calls + 1):
        with runtime.open(content):
            pass
        if call % max(calls // 10, 1) == 0:
            report("opened", call)


MEMORY = {"batches": run_batches, "opens": run_opens}


def _watch(name: str, engine: Path, samples: Path, calls: int) -> list[dict[str, Any]]:
    readings: list[dict[str, Any]] = []
    begin = time.perf_counter()

    def report(step: str, done: int) -> None:
        seconds = round(time.perf_counter() - begin, 1)
        readings.append({"step": step, "done": done, "memory_mb": _own_memory_mb(), "seconds": seconds})
        print(name, readings[-1], flush=True)

    MEMORY[name](engine, samples, calls, report)
    return readings


def _own_memory_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def watch_memory(name: str, engine: Path, samples: Path, calls: int) -> list[dict[str, Any]]:
    """Read the memory of a fresh process that runs one of :data:`MEMORY`."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_watch, (name, engine, samples, calls))


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--calls", type=int, default=100_000, help="calls of the threads of one session")
    parser.add_argument("--batches", type=int, default=100_000, help="batches of sizes at random")
    parser.add_argument("--opens", type=int, default=10_000, help="opens of one engine")
    options = parse(parser, calls=800, batches=20, opens=20)
    rows = []
    for task in options.tasks:
        exported = export(task, settings=options.recipe)[1].folder
        samples = exported / TEST
        for target in map(edgekd.load_target, TARGETS):
            with TemporaryDirectory() as scratch:
                way = CandidateSpec("int8", "qdq")
                model, calibration = exported / onnx_name("pruned"), load_calibration("minmax")
                quantize.run(way, model, exported / CALIBRATION, target.scheme, calibration, Path(scratch))
                engine = Path(scratch) / way.name / DEPLOY
                runtime = Runtime(target.runtime, target.options)
                found: dict[str, Any] = {"threads": share(engine, samples, runtime, options.calls)}
                for name, shared in found["threads"].items():
                    print(f"{task}, {runtime.name}, {name}: {shared}", flush=True)
                if runtime.name == "openvino":
                    found["batches"] = watch_memory("batches", engine, samples, options.batches)
                    found["opens"] = watch_memory("opens", engine, samples, options.opens)
                rows.append({"task": task, "runtime": runtime.name, "engine_bytes": engine.stat().st_size, **found})
    settings = {"threads": THREADS, "calls": options.calls, "batches": options.batches, "opens": options.opens}
    write_result(__file__, {**settings, "largest": LARGEST, "drawn_up_to": DRAWN_UP_TO, "rows": rows}, options)


if __name__ == "__main__":
    main()
