"""Sessions that take turns, and what the bare libraries are called like: shared by the benchmarks of latency."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.gram.npz import INPUT_PREFIX
from edgekd.runtime.backends.telemetry import no_telemetry
from edgekd.runtime.feeds import FiniteCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.session import Array, Feeds, Session

    Run = Callable[[Feeds], Any]
    #: Opens an engine and returns what runs one inference of it; it crosses the border between two processes.
    Opener = Callable[[], Run]
    #: Reads what one of these is given for each sample; it crosses the border too.
    Reader = Callable[[Path, Run], Sequence[Feeds]]
    Nanoseconds = np.ndarray[Any, np.dtype[np.int64]]

THREADS = 1
#: Inferences of one session before the next takes its turn, and untimed ones at the start of a turn.
BLOCK, LEAD_IN = 50, 5
#: Untimed inferences after opening, and samples that the inferences cycle through.
WARMUP, ROWS = 200, 64


@dataclass(frozen=True)
class Pace:
    """How many inferences a session runs at a time.

    Attributes:
        block: In a turn, timed.
        lead_in: At the start of a turn, untimed.
        warmup: After opening, untimed.
    """

    block: int = BLOCK
    lead_in: int = LEAD_IN
    warmup: int = WARMUP


_PACE = Pace()
#: What edgekd asks of OpenVINO on a processor.
OPENVINO_OPTIONS = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
_RESAMPLES = 2000


def open_edgekd(engine: Path, runtime: Runtime) -> Callable[[Feeds], dict[str, Array]]:
    """Open an engine as :meth:`edgekd.runtime.bundle.Bundle.run` has it, which refuses inputs that are not finite."""
    session = runtime.open(engine, THREADS)
    check = FiniteCheck(session.inputs)

    def run(feeds: Feeds) -> dict[str, Array]:
        check(feeds)
        return session.run(feeds)

    return run


def open_unchecked(engine: Path, runtime: Runtime) -> Callable[[Feeds], dict[str, Array]]:
    """Open an engine as a bundle with ``check_finite=False`` has it."""
    return runtime.open(engine, THREADS).run


def open_unshared(engine: Path, runtime: Runtime) -> Callable[[Feeds], dict[str, Array]]:
    """Open an engine without what lets many threads use it."""
    backend = importlib.import_module(runtime.backend.module)
    session: Session = backend.open_engine(engine, THREADS, **runtime.options)
    return session.run


def open_onnxruntime(engine: Path) -> Callable[[Feeds], list[Array]]:
    """Open an engine in ONNX Runtime, and call it as its documentation does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def open_openvino(engine: Path, options: Mapping[str, Any]) -> Callable[[Feeds], list[Array]]:
    """Open an engine in OpenVINO for batch 1, and call it in the fastest way that we found.

    The request's own tensors are filled in place, and its results copied, since its next inference overwrites them.
    """
    request = _compile(engine, options).create_infer_request()
    inputs = {port.any_name: request.get_tensor(port).data for port in request.model_inputs}
    outputs = [request.get_tensor(port).data for port in request.model_outputs]

    def run(feeds: Feeds) -> list[Array]:
        for name, data in inputs.items():
            data[...] = feeds[name]
        request.infer(share_outputs=True)
        return [data.copy() for data in outputs]

    return run


def open_openvino_default(engine: Path, options: Mapping[str, Any]) -> Callable[[Feeds], Any]:
    """Open an engine in OpenVINO for batch 1, and call it as its documentation does."""
    return _compile(engine, options)


def _compile(engine: Path, options: Mapping[str, Any]) -> Any:
    with no_telemetry():
        import openvino

    core = openvino.Core()
    model = core.read_model(str(engine))
    model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
    return core.compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS, **options}
    )


def read_rows(samples: Path, _run: Run) -> list[Feeds]:
    """Return samples with a batch of 1 each, from ``.npz`` with ``input.<name>`` [N, ...]."""
    with np.load(samples, allow_pickle=False) as arrays:
        keys = [key for key in arrays.files if key.startswith(INPUT_PREFIX)]
        inputs = {key.removeprefix(INPUT_PREFIX): arrays[key][:ROWS] for key in keys}
    count = len(next(iter(inputs.values())))
    return [{name: x[row : row + 1] for name, x in inputs.items()} for row in range(count)]


def _serve(pipe: Connection, openers: Mapping[str, Opener], samples: Path, read: Reader) -> None:
    """Open sessions in this process, and time as many inferences as the pipe asks for, until it asks for none."""
    runs = {name: opener() for name, opener in openers.items()}
    rows = {name: itertools.cycle(read(samples, run)) for name, run in runs.items()}
    pipe.send(None)
    while job := pipe.recv():
        name, untimed, timed = job
        run, row = runs[name], rows[name]
        for _ in range(untimed):
            run(next(row))
        ns = np.empty(timed, np.int64)
        for index in range(timed):
            given = next(row)
            start = time.perf_counter_ns()
            run(given)
            ns[index] = time.perf_counter_ns() - start
        pipe.send(ns)


class _Process:
    """A fresh process with some sessions; a context manager."""

    def __init__(self, openers: Mapping[str, Opener], samples: Path, read: Reader) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(other, openers, samples, read), daemon=True)
        self._process.start()
        other.close()  # so that the process's death ends the waiting below
        self._pipe.recv()

    def time(self, name: str, untimed: int, timed: int) -> Nanoseconds:
        """Return what each inference of a session takes."""
        self._pipe.send((name, untimed, timed))
        return self._pipe.recv()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_error: object) -> None:
        with suppress(OSError):  # it is gone already
            self._pipe.send(None)
        self._process.join()


def take_turns(
    groups: Sequence[Mapping[str, Opener]],
    samples: Path,
    rounds: int,
    calls: int,
    *,
    pace: Pace = _PACE,
    read: Reader = read_rows,
) -> dict[str, Nanoseconds]:
    """Time sessions in turns of some inferences, in an order that rotates.

    Args:
        groups: sessions by name; those of one group share a process.
        samples: ``.npz`` of real samples.
        rounds: how often all start again in fresh processes.
        calls: inferences of each session in a round.
        pace: how many of them in a turn.
        read: reads the samples.

    Returns:
        For each session the times [rounds, calls / block, block].
    """
    names = [name for group in groups for name in group]
    times = {name: np.empty((rounds, calls // pace.block, pace.block), np.int64) for name in names}
    for done in range(rounds):
        with ExitStack() as stack:
            homes = {}
            for group in groups:
                process = stack.enter_context(_Process(group, samples, read))
                homes.update(dict.fromkeys(group, process))
            for name in names:
                homes[name].time(name, pace.warmup, 0)
            for block in range(calls // pace.block):
                first = (done + block) % len(names)
                for name in names[first:] + names[:first]:
                    times[name][done, block] = homes[name].time(name, pace.lead_in, pace.block)
    return times


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval: a percentile bootstrap over blocks, those of both sessions drawn together."""

    value: float
    low: float
    high: float


def compare_p50(
    times: Nanoseconds, reference: Nanoseconds, figure: Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], Any]
) -> dict[str, float]:
    """Return ``figure(p50, p50 of the reference)``, p50 in us, with its interval.

    Args:
        times: of one session [rounds, blocks, n] in ns.
        reference: of another session in the same run.
        figure: of two arrays of p50, e.g. their ratio.
    """
    both = np.stack([x.reshape(-1, x.shape[-1]) for x in (times, reference)]) / 1e3
    drawn = np.random.default_rng(0).integers(0, both.shape[1], (_RESAMPLES, both.shape[1]))
    medians = np.array([np.median(both[:, blocks].reshape(2, -1), axis=1) for blocks in drawn])
    low, high = np.quantile(figure(medians[:, 0], medians[:, 1]), (0.025, 0.975))
    value = figure(*np.median(both.reshape(2, -1), axis=1))
    return asdict(Interval(float(value), float(low), float(high)))


def summarize(times: Nanoseconds) -> dict[str, Any]:
    """Return p50 and p90 of all times, and the raw figures: each round's p50 and each block's median, in us."""
    return {
        "p50_us": round(float(np.median(times)) / 1e3, 3),
        "p90_us": round(float(np.quantile(times, 0.9)) / 1e3, 3),
        "p50_us_by_round": [round(float(np.median(x)) / 1e3, 3) for x in times],
        "median_us_by_block": [[round(float(np.median(block)) / 1e3, 2) for block in x] for x in times],
    }
