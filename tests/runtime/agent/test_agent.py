import base64
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from engines import EMBEDDINGS, samples, save_engine, save_samples
from requirements import LINUX

from edgekd.runtime.backends.onnxruntime import open_engine

AGENT = ("-m", "edgekd.runtime.agent.agent")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    save_engine(folder / "e.onnx")
    save_samples(folder / "x.npz", 5, labels=np.arange(5))
    return folder


def run_agent(text, executable=AGENT):
    command = [sys.executable, *executable]
    return subprocess.run(command, check=False, input=text, capture_output=True, text=True)


def talk(*jobs, executable=AGENT):
    """Send jobs to a real agent, a line each, close its stdin, and return every line of its stdout."""
    lines = [job if isinstance(job, str) else json.dumps(job) for job in jobs]
    done = run_agent("".join(f"{line}\n" for line in lines), executable)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


OPEN = {"job": "open", "threads": 1, "runtime": "onnxruntime", "options": {}}


def opened(files):
    return {**OPEN, "engine": str(files / "e.onnx")}


def test_a_whole_session(files):
    first = {"job": "first", "feeds": str(files / "x.npz")}
    measure = {"job": "measure", "iterations": 7, "warmup": 2}
    answers = talk(opened(files), first, measure, {"job": "facts"}, {"job": "memory"}, {"job": "quit"})
    assert all(answer["ok"] for answer in answers)
    load, run, timed, facts, memory, _ = answers
    assert 0 < load["load_ms"] < 10_000
    assert 0 < run["first_run_ms"] < 10_000
    ns = np.frombuffer(base64.b64decode(timed["ns"]), "<i8")
    assert ns.shape == (7,)
    assert ns.min() > 0
    assert ns.max() < 10**9
    assert {"cpu", "onnxruntime"} <= facts["facts"].keys()
    assert 10e6 < memory["peak_rss_bytes"] < 1e9


def test_what_else_an_engine_is_measured_by(files):
    first = {"job": "first", "feeds": str(files / "x.npz")}
    compute = {"job": "compute", "iterations": 7, "warmup": 2}
    pace = {"job": "pace", "rate_hz": 500, "iterations": 9}
    sustain = {"job": "sustain", "seconds": 0.05}
    energy = {"job": "energy", "seconds": 0.1, "rails": ["no such rail"]}
    answers = talk(
        opened(files), first, compute, pace, sustain, energy, {"job": "layers", "runs": 3}, {"job": "memory"}
    )
    assert all(answer["ok"] for answer in answers)
    load, _, computed, paced, sustained, used, layers, _ = answers
    assert load["import_ms"] > 0

    def times(answer):
        return np.frombuffer(base64.b64decode(answer["ns"]), "<i8")

    assert len(times(computed)) == 7
    assert len(times(paced)) == 9
    assert 0 <= paced["late"] <= 9
    assert times(sustained).sum() <= 0.5e9
    assert {"temperature_c", "clock_mhz", "throttled"} < sustained.keys()
    assert used["energy"] is None
    assert "no power sensor" in used["reason"]
    assert [layer["kind"] for layer in layers["layers"]].count("MatMul") == 2


def test_the_layers_are_of_another_engine_in_place_of_the_one_that_was_open(files):
    first = {"job": "first", "feeds": str(files / "x.npz")}
    answers = talk(opened(files), first, {"job": "layers", "runs": 3}, {"job": "measure", "iterations": 1, "warmup": 0})
    assert answers[2]["ok"]
    assert "send it 'open' first" in answers[3]["error"]


def test_a_users_own_runtime_is_timed_as_a_whole(files, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from edgekd.runtime.backends.onnxruntime import open_engine as o\ndef mine(*a, **k):\n    return o(*a, **k)\n"
    )
    job = {**opened(files), "runtime": f"{tmp_path / 'mine.py'}:mine"}
    first = {"job": "first", "feeds": str(files / "x.npz")}
    answers = talk(job, first, {"job": "compute", "iterations": 3, "warmup": 1}, {"job": "layers", "runs": 3})
    assert answers[2] == {"ok": True, "ns": None}
    assert answers[3] == {"ok": True, "layers": None}


def test_evaluation_keeps_every_row_and_output(files):
    outputs = files / "y.npz"
    job = {"job": "evaluate", "inputs": str(files / "x.npz"), "outputs": str(outputs), "batch": 2}
    assert talk(opened(files), job)[1] == {"ok": True, "rows": 5}
    with open_engine(files / "e.onnx") as session, np.load(outputs) as found:
        assert set(found.files) == {"logits", *EMBEDDINGS}
        for name, expected in session.run(samples(5)).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("job", "kind", "message"),
    [
        ("not json", "DeviceError", "not JSON"),
        ("[1]", "DeviceError", "without a 'job'"),
        ({"job": "mesure"}, "DeviceError", "no job 'mesure'; did you mean 'measure'"),
        ({"job": ["open"]}, "DeviceError", "no job"),
        ({"job": "open", "engine": "x"}, "DeviceError", "wrong arguments: missing a required argument: 'threads'"),
        ({**OPEN, "engine": "/nowhere.onnx"}, "ModelError", "/nowhere.onnx"),
        ({"job": "first", "feeds": "x.npz"}, "DeviceError", "send it 'open' first"),
        ({"job": "measure", "iterations": 1, "warmup": 0}, "DeviceError", "send it 'open' first"),
        ({"job": "compute", "iterations": 1, "warmup": 0}, "DeviceError", "send it 'open' first"),
        ({"job": "pace", "rate_hz": 1, "iterations": 1}, "DeviceError", "send it 'open' first"),
        ({"job": "sustain", "seconds": 1}, "DeviceError", "send it 'open' first"),
        ({"job": "energy", "seconds": 1, "rails": []}, "DeviceError", "send it 'open' first"),
        ({"job": "layers", "runs": 3}, "DeviceError", "send it 'open' first"),
    ],
)
def test_a_failed_job_is_answered_and_the_agent_lives_on(job, kind, message):
    failed, memory = talk(job, {"job": "memory"})
    assert (failed["ok"], failed["kind"]) == (False, kind)
    assert message in failed["error"]
    assert memory["ok"]


def test_inputs_are_named_when_absent(files):
    answers = talk(opened(files), {"job": "measure", "iterations": 1, "warmup": 0}, {"job": "first", "feeds": "no.npz"})
    assert "send it 'first'" in answers[1]["error"]
    assert (answers[2]["kind"], answers[2]["error"][:6]) == ("ModelError", "no.npz")


def test_quit_ends_it_and_later_jobs_are_not_read():
    assert talk({"job": "quit"}, {"job": "memory"}) == [{"ok": True}]


def test_the_end_of_stdin_ends_it():
    assert talk() == []


def test_what_a_library_prints_does_not_reach_stdout():
    code = (
        "import os; from edgekd.runtime.agent import agent; from edgekd.runtime.measure import machine\n"
        "machine.peak_rss_bytes = lambda: (print('noise', flush=True), os.write(1, b'more'), 5)[2]\nagent.main()"
    )
    assert talk({"job": "memory"}, executable=("-c", code)) == [{"ok": True, "peak_rss_bytes": 5}]


def test_a_defect_ends_it_with_a_traceback():
    done = run_agent('{"job": "open", "engine": 3, "threads": 1, "runtime": "onnxruntime", "options": {}}\n')
    assert (done.returncode, done.stdout) == (1, "")
    assert "TypeError" in done.stderr


def test_empty_lines_are_no_jobs(files):
    assert talk("", {"job": "quit"}, "") == [{"ok": True}]


def begun(*jobs, executable=AGENT):
    """Start an agent, give it jobs, and leave its stdin open."""
    process = subprocess.Popen([sys.executable, *executable], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write("".join(f"{json.dumps(job)}\n" for job in jobs))
    process.stdin.flush()
    return process


def test_it_ends_in_the_middle_of_a_job_whose_answer_nobody_will_read(files):
    endless = {"job": "measure", "iterations": 10**9, "warmup": 10**9}
    process = begun(opened(files), {"job": "first", "feeds": str(files / "x.npz")}, endless)
    assert process.stdout.readline()
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 3
    process.stdin.close()


def test_a_remote_one_ends_with_its_stdin_in_the_middle_of_a_job(files):
    code = "from edgekd.runtime.agent.agent import JOBS, Agent, serve\nserve(Agent(), JOBS, silence_s=3600)"
    endless = {"job": "measure", "iterations": 10**9, "warmup": 10**9}
    first = {"job": "first", "feeds": str(files / "x.npz")}
    process = begun(opened(files), first, endless, executable=("-c", code))
    assert process.stdout.readline()
    assert process.stdout.readline()
    process.stdin.close()
    assert process.wait(timeout=60) == 3
    process.stdout.close()


def test_it_ends_when_it_hears_nothing_for_too_long():
    code = "from edgekd.runtime.agent.agent import JOBS, Agent, serve\nserve(Agent(), JOBS, 'hello', silence_s=3)"
    process = begun(executable=("-c", code))
    assert process.stdout.readline() == "hello\n"
    for _ in range(16):  # for longer than it would bear silence
        time.sleep(0.25)
        process.stdin.write("\n")
        process.stdin.flush()
    process.stdin.write('{"job": "memory"}\n')
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["ok"]
    assert process.wait(timeout=60) == 3
    process.stdin.close()
    process.stdout.close()


@LINUX.mark
def test_a_full_disk_is_answered(files, tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    code = (
        "from edgekd.runtime.agent import agent\n"
        "agent.write_arrays = lambda path, arrays: path.write_bytes(b'x' * 9999)\nagent.main()"
    )
    job = {"job": "evaluate", "inputs": str(files / "x.npz"), "outputs": str(tmp_path / "full"), "batch": 2}
    failed, memory = talk(opened(files), job, {"job": "memory"}, executable=("-c", code))[1:]
    assert (failed["ok"], failed["kind"]) == (False, "StorageError")
    assert "No space left on device" in failed["error"]
    assert memory["ok"]


def test_a_machine_tells_itself_from_others():
    (described,) = talk({"job": "describe", "runtime": "onnxruntime", "options": {}})
    assert described["absent"] is None
    assert {"cpu", "arch", "logical_cores", "onnxruntime"} <= described["facts"].keys()
