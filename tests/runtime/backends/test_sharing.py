"""One session, used by many threads, closed while it runs, and taken along into a forked process."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from engines import samples, save_engine

from edgekd.errors import ModelError
from edgekd.runtime.backends.backend import Backend
from edgekd.runtime.backends.registry import Runtime

#: A user's own library whose sessions have one set of buffers, as those of most neural units have.
OWN = """
import numpy as np
from edgekd.runtime.backends.onnxruntime import open_engine as open_onnx


class Buffered:
    def __init__(self, session):
        self._session, self.inputs, self.outputs, self.facts = session, session.inputs, session.outputs, {}
        self._buffers = {spec.name: np.zeros((8, *spec.shape[1:]), np.float32) for spec in session.inputs}

    def run(self, feeds):
        rows = {name: self._buffers[name][: len(array)] for name, array in feeds.items()}
        for name, array in feeds.items():
            rows[name][...] = array
        return self._session.run(rows)

    def close(self):
        self._session.close()


def open_engine(engine, threads, name):
    return Buffered(open_onnx(engine, threads, name))
"""
THREADS, CALLS = 16, 60


@pytest.fixture(params=["onnxruntime", "openvino", "own"])
def runtime(request, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return Runtime(f"{tmp_path / 'own.py'}:open_engine" if request.param == "own" else request.param)


@pytest.fixture
def engine(tmp_path):
    return save_engine(tmp_path / "e.onnx")


@pytest.fixture
def _hasty():
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize("rows", [[1], [8], [1, 2, 3, 8]], ids=["single", "batch", "mixed"])
def test_every_thread_gets_its_own_answers(runtime, engine, rows):
    with runtime.open(engine) as session:
        feeds = [samples(rows[index % len(rows)], seed=index) for index in range(THREADS)]
        expected = [session.run(given) for given in feeds]
        begin = threading.Barrier(THREADS)

        def ask(index):
            begin.wait()
            answers = (session.run(feeds[index]) for _ in range(CALLS))
            return sum(
                not all(np.array_equal(found[name], array) for name, array in expected[index].items())
                for found in answers
            )

        with ThreadPoolExecutor(THREADS) as pool:
            assert sum(pool.map(ask, range(THREADS))) == 0


def test_tasks_of_asyncio_may_share_one(runtime, engine):
    async def ask(session):
        return await asyncio.gather(*(asyncio.to_thread(session.run, samples(1, seed=index)) for index in range(32)))

    with runtime.open(engine) as session:
        for index, found in enumerate(asyncio.run(ask(session))):
            np.testing.assert_array_equal(found["logits"], session.run(samples(1, seed=index))["logits"])


def test_closing_lets_what_runs_finish_and_refuses_the_rest(runtime, engine):
    session = runtime.open(engine)
    feeds = samples(3)
    expected = session.run(feeds)["logits"]
    begin = threading.Barrier(THREADS + 1)

    def go_on():
        while True:
            np.testing.assert_array_equal(session.run(feeds)["logits"], expected)

    def ask(_):
        begin.wait()
        with pytest.raises(ModelError, match="the engine is closed"):
            go_on()

    with ThreadPoolExecutor(THREADS) as pool:
        answers = pool.map(ask, range(THREADS))
        begin.wait()
        session.close()
        assert list(answers) == [None] * THREADS


def test_computing_alone_does_not_disturb_other_threads(engine):
    with Runtime("openvino").open(engine) as session:
        expected = session.run(samples(1, seed=1))["logits"]
        compute = session.bind_inputs(samples(1, seed=2))
        done = threading.Event()

        def go_on():
            while not done.is_set():
                assert compute() > 0

        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(go_on)
            for _ in range(300):
                np.testing.assert_array_equal(session.run(samples(1, seed=1))["logits"], expected)
            done.set()
            busy.result()


def test_an_own_session_cannot_be_timed_alone(tmp_path, engine):
    (tmp_path / "own.py").write_text(OWN)
    with Runtime(f"{tmp_path / 'own.py'}:open_engine").open(engine) as session:
        assert session.bind_inputs(samples(1)) is None


def test_a_library_that_says_it_is_thread_safe_is_not_held_up(tmp_path, engine):
    """Two inferences are inside at once, which both wait for."""
    path = tmp_path / "safe.py"
    path.write_text(
        "import threading\n"
        "from edgekd.runtime.backends.backend import Backend\n"
        "from edgekd.runtime.backends.onnxruntime import open_engine as open_onnx\n"
        "both = threading.Barrier(2)\n"
        "def open_engine(engine, threads, name):\n"
        "    session = open_onnx(engine, threads, name)\n"
        "    session.run = lambda feeds, run=session.run: (both.wait(60), run(feeds))[1]\n"
        "    return session\n"
        "npu = Backend('npu', module=__name__, thread_safe=True)\n"
    )
    with Runtime(f"{path}:npu").open(engine) as session, ThreadPoolExecutor(2) as pool:
        first, second = pool.map(session.run, [samples(1)] * 2)
        np.testing.assert_array_equal(first["logits"], second["logits"])


def test_sessions_are_not_thread_safe_unless_their_library_says_so():
    assert not Backend("npu", module="npu").thread_safe


FORKED = """
import json, os, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from engines import samples
from edgekd.errors import ModelError
from edgekd.runtime.backends.registry import Runtime

runtime, engine = Runtime(sys.argv[1]), Path(sys.argv[2])
session = runtime.open(engine)
expected = [session.run(samples(rows))["logits"].tolist() for rows in (1, 5)]
child = os.fork()
said = []
for rows in (1, 5):
    try:
        said.append(session.run(samples(rows))["logits"].tolist())
    except ModelError as error:
        said.append(str(error))
session.close()
with runtime.open(engine) as again:
    answers = [again.run(samples(rows))["logits"].tolist() for rows in (1, 5)]
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert said == expected
else:
    print(json.dumps({"said": said, "expected": expected, "again": answers}))
"""


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_a_forked_process_gets_right_answers_or_is_told_to_open_its_own(engine, library):
    here = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    done = subprocess.run(
        [sys.executable, "-c", FORKED, library, engine, here], capture_output=True, text=True, check=True, timeout=120
    )
    child = json.loads(done.stdout)
    assert child["again"] == child["expected"]
    if library == "onnxruntime":
        assert child["said"] == child["expected"]
    else:
        told = f"{engine}: was opened before this process was forked; open it in this process"
        assert child["said"] == [told, told]
