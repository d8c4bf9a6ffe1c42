import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from onnx.helper import make_node, make_tensor_value_info

from edgekd.config.recipe import ProfileConfig
from edgekd.devices.agent_process import AgentProcess
from edgekd.devices.local import LocalDevice
from edgekd.errors import DeviceError, ModelError
from edgekd.runtime.backends.registry import ORT
from edgekd.runtime.measure.results import latency_from

AGENT = [sys.executable, "-m", "edgekd.runtime.agent.agent"]


def save_engine(path, width=4):
    """Write an engine of two modalities: logits = x W + y W."""
    weight = numpy_helper.from_array(np.eye(width, 3, dtype=np.float32), "w")
    nodes = [
        make_node("Add", ["x", "y"], ["sum"]),
        make_node("MatMul", ["sum", "w"], ["logits"]),
    ]
    inputs = [make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")]
    outputs = [make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "sum", inputs, outputs, [weight])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    save_engine(folder / "a.onnx")
    save_engine(folder / "b.onnx")
    save_engine(folder / "wide.onnx", width=5)
    (folder / "broken.onnx").write_text("broken")
    rows = np.random.default_rng(0).normal(size=(2, 100, 4)).astype(np.float32)
    np.savez(folder / "x.npz", **{"input.x": rows[0], "input.y": rows[1]}, ids=np.array([object()] * 100))
    return folder


@pytest.fixture(autouse=True)
def _no_orphans():
    yield
    assert children() == []


def children():
    """Return the pids of this process's children, those that wait to be reaped included."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.append(int(path.name))
    return found


def profile(files, folder, engines=("a", "b"), device=None, advance=lambda *_: None, **options):
    paths = {name: files / f"{name}.onnx" for name in engines}
    config = ProfileConfig(**{"iterations": 120, "warmup": 5, "cold_starts": 1, **options})
    return (device or LocalDevice()).profile(paths, ORT, files / "x.npz", folder, config, advance)


# --- evaluate


def test_every_row_is_evaluated(files, tmp_path):
    LocalDevice().evaluate(files / "a.onnx", ORT, files / "x.npz", tmp_path / "y.npz", 1)
    with np.load(files / "x.npz") as inputs, np.load(tmp_path / "y.npz") as outputs:
        assert outputs.files == ["logits"]
        np.testing.assert_allclose(outputs["logits"], (inputs["input.x"] + inputs["input.y"])[:, :3], rtol=1e-6)


def test_a_broken_engine_is_a_model_error(files, tmp_path):
    with pytest.raises(ModelError, match=r"broken\.onnx: ONNX Runtime cannot open it"):
        LocalDevice().evaluate(files / "broken.onnx", ORT, files / "x.npz", tmp_path / "y.npz", 1)


def test_inputs_that_do_not_fit_are_a_model_error(files, tmp_path):
    with pytest.raises(ModelError, match=r"'x' must be float32 \[batch, 5\], but is float32 \[100, 4\]"):
        LocalDevice().evaluate(files / "wide.onnx", ORT, files / "x.npz", tmp_path / "y.npz", 1)
    assert not (tmp_path / "y.npz").exists()


# --- profile


@pytest.fixture(scope="module")
def profiled(files, tmp_path_factory):
    """One profile, its folder, and at each step what was reported and which processes lived."""
    folder = tmp_path_factory.mktemp("profile")
    steps, processes = [], []

    def advance(*step):
        steps.append(step)
        processes.append(children())

    return profile(files, folder, cold_starts=2, advance=advance), folder, steps, processes


def test_a_profile_reports_every_engine_with_its_raw_times(files, profiled):
    result, folder, _, _ = profiled
    assert (result.threads, result.block, result.processes) == (1, 50, 2)
    assert {"cpu", "governor", "onnxruntime"} <= result.machine.keys()
    assert [engine.name for engine in result.engines] == ["a", "b"]
    for engine in result.engines:
        raw = np.load(folder / engine.raw_file)
        assert raw.shape == (120,)
        assert (raw > 0).all()
        assert engine.latency.n == 120
        assert engine.latency.max_ms == raw.max() / 1e6
        assert engine.latency.p50 is not None
        assert engine.latency.p50.low_ms <= np.median(raw) / 1e6 <= engine.latency.p50.high_ms
        assert engine.latency.p99 is None
        assert len(engine.load_ms) == len(engine.first_run_ms) == 2
        assert min(engine.load_ms + engine.first_run_ms) > 0
        assert engine.peak_rss_bytes > 10e6
        assert engine.size_bytes == (files / f"{engine.name}.onnx").stat().st_size


def test_engines_take_turns_in_an_order_that_rotates(profiled):
    _, _, steps, _ = profiled
    assert [done for done, _, _ in steps] == list(range(1, 17))
    assert {total for _, total, _ in steps} == {16}
    # Two rounds, each with two cold starts and two turns of 30; then energy and layers of both.
    assert "".join(note[0] for _, _, note in steps) == "ab" + "abba" + "ba" + "baab" + "bbaa"
    assert ["opened" in note for _, _, note in steps[:6]] == [True] * 2 + [False] * 4


def test_each_round_has_fresh_processes_that_stay_for_their_share(profiled):
    _, _, _, processes = profiled
    first, second = processes[1:6], processes[7:]
    assert all(len(pids) == 2 and set(pids) == set(first[0]) for pids in first)
    assert all(len(pids) == 2 and set(pids) == set(second[0]) for pids in second)
    assert not set(first[0]) & set(second[0])


def test_the_processes_share_the_inferences(files, tmp_path):
    result = profile(files, tmp_path, ("a",), iterations=101, cold_starts=4, layers=False, energy_s=0)
    (engine,) = result.engines
    raw = np.load(tmp_path / "a.npy")
    assert result.processes == len(engine.load_ms) == len(engine.import_ms) == 4
    assert len(raw) == engine.latency.n == 101
    assert engine.latency == latency_from(*np.array_split(raw, 4))
    assert latency_from(raw).p50.high_ms <= engine.latency.p50.high_ms


def test_fewer_inferences_than_processes(files, tmp_path):
    (engine,) = profile(files, tmp_path, ("a",), iterations=2, cold_starts=3, layers=False, energy_s=0).engines
    assert (engine.latency.n, len(engine.load_ms)) == (2, 3)


def test_a_profile_keeps_its_limit(files, tmp_path):
    begin = time.monotonic()
    result = profile(files, tmp_path, iterations=10**7, warmup=10**6, cold_starts=3, limit_s=8)
    assert time.monotonic() - begin < 3 * 8  # what it is held to, on a machine that others slow down
    for engine in result.engines:
        raw = np.load(tmp_path / engine.raw_file)
        assert 6 <= engine.latency.n == len(raw) < 10**7
        assert len(engine.load_ms) == result.processes
        assert engine.latency == latency_from(*np.array_split(raw, result.processes))
        assert engine.layers


def test_computing_alone_is_timed_beside(profiled):
    result, folder, _, _ = profiled
    for engine in result.engines:
        raw = np.load(folder / f"{engine.name}.compute.npy")
        assert engine.compute.n == len(raw) == 120
        assert engine.compute == latency_from(*np.array_split(raw, 2))
        assert np.median(raw) < np.median(np.load(folder / engine.raw_file))


def test_layers_are_those_of_the_graph(profiled):
    for engine in profiled[0].engines:
        assert [(layer.kind, layer.nodes) for layer in engine.layers] == [
            ("Add", ("Add_0",)),
            ("MatMul", ("MatMul_1",)),
        ]
        assert all(layer.mean_ms > 0 for layer in engine.layers)


def test_what_was_not_measured_has_its_reason(profiled):
    for engine in profiled[0].engines:
        assert engine.not_measured["paced"] == "not measured: no rate was asked for (--rate, profile.rate_hz)"
        assert engine.not_measured["sustained"].startswith("not measured: no time was asked for (--sustained")
        assert (engine.paced, engine.sustained) == (None, None)
        if engine.energy is None:  # as on most machines of those who are not root
            assert engine.not_measured["energy"].startswith("not measured: ")


def test_what_is_switched_off_is_not_measured(files, tmp_path):
    options = {"compute": False, "layers": False, "energy_s": 0}
    (engine,) = profile(files, tmp_path, ("a",), **options).engines
    for name in ("compute", "layers", "energy"):
        assert engine.not_measured[name].startswith("not measured: it is switched off (profile.")
    assert (engine.compute, engine.layers) == (None, ())
    assert not (tmp_path / "a.compute.npy").exists()


def test_at_a_sensors_rate(files, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekd.devices.extra_measurements._PACED_SECONDS", 0.5)
    (engine,) = profile(files, tmp_path, ("a",), rate_hz=200, layers=False, energy_s=0).engines
    raw = np.load(tmp_path / engine.paced.raw_file)
    assert (engine.paced.rate_hz, len(raw)) == (200, 100)
    assert engine.paced.latency == latency_from(raw)
    assert engine.paced.late < 100
    assert "paced" not in engine.not_measured


def test_a_rate_that_no_engine_keeps_is_late_and_ever_later(files, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekd.devices.extra_measurements._PACED_SECONDS", 1e-4)
    (engine,) = profile(files, tmp_path, ("a",), rate_hz=5e6, layers=False, energy_s=0).engines
    raw = np.load(tmp_path / engine.paced.raw_file)
    assert engine.paced.late >= 0.9 * len(raw)
    assert raw[-1] > raw[0]


def test_a_sustained_run_is_told_in_windows(files, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekd.devices.extra_measurements._WINDOW_SECONDS", 0.2)
    steps = []
    (engine,) = profile(
        files, tmp_path, ("a",), sustained_s=0.5, layers=False, energy_s=0, advance=lambda *step: steps.append(step)
    ).engines
    run, raw = engine.sustained, np.load(tmp_path / "a.sustained.npy")
    assert len(run.windows) == 3
    assert sum(window.n for window in run.windows) == len(raw)
    begins = [window.at_s for window in run.windows]
    assert begins[1] >= begins[0] + 0.2
    assert begins[2] >= begins[1] + 0.2
    assert run.windows[0].p50_ms == np.median(raw[: run.windows[0].n]) / 1e6
    assert run.seconds >= max(0.5, raw.sum() / 1e9)
    assert run.slowdown == pytest.approx(run.windows[2].p50_ms / run.windows[0].p50_ms)
    assert steps[-1][0] == steps[-1][1]


def test_a_broken_engine_ends_the_profile(files, tmp_path):
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        profile(files, tmp_path, engines=("a", "broken"))


def test_absent_inputs_are_named(files, tmp_path):
    with pytest.raises(ModelError, match=r"none\.npz: cannot be read"):
        LocalDevice().profile(
            {"a": files / "a.onnx"}, ORT, tmp_path / "none.npz", tmp_path, ProfileConfig(), lambda *_: None
        )


def test_an_agent_killed_between_turns_is_a_device_error(files, tmp_path):
    def kill_one(done, _total, _note):
        if done == 4:
            os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(
        DeviceError, match=r"ended \(SIGKILL\) instead of answering 'measure'; it said nothing on stderr"
    ):
        profile(files, tmp_path, advance=kill_one)


def test_what_advance_raises_leaves_no_process(files, tmp_path):
    def interrupt(done, _total, _note):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(files, tmp_path, advance=interrupt)


def test_a_slow_answer_is_a_device_error(files, tmp_path):
    with pytest.raises(DeviceError, match=r"did not answer 'open' in 0\.02 s"):
        LocalDevice(timeout_seconds=0.02).evaluate(files / "a.onnx", ORT, files / "x.npz", tmp_path / "y.npz", 1)


def test_agents_run_this_very_edgekd_from_any_folder(files, tmp_path, monkeypatch):
    (tmp_path / "edgekd").mkdir()
    (tmp_path / "edgekd" / "__init__.py").write_text("raise SystemExit('another edgekd')")
    (tmp_path / "json.py").write_text("raise SystemExit('another json')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    LocalDevice().evaluate(files / "a.onnx", ORT, files / "x.npz", tmp_path / "y.npz", 1)


def test_describing_starts_nothing_and_loads_nothing():
    code = (
        "import sys\nfrom edgekd.devices.local import LocalDevice\n"
        "from edgekd.runtime.backends.registry import ORT\n"
        "starts = ('subprocess', 'os.fork', 'os.posix_spawn', 'os.system')\n"
        "sys.addaudithook(lambda event, _: event.startswith(starts) and sys.exit(event))\n"
        "facts = LocalDevice().describe(ORT)\nassert facts == LocalDevice().describe(ORT)\n"
        "assert not {'onnxruntime', 'torch'} & set(sys.modules)\nprint(sorted(facts), all(facts.values()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "['arch', 'cpu', 'logical_cores', 'onnxruntime'] True"


# --- one agent


def agent(command=AGENT, timeout_seconds=60.0):
    return AgentProcess(command, dict(os.environ), timeout_seconds)


def python(code):
    return agent([sys.executable, "-c", code])


def test_an_agent_killed_in_the_middle_of_a_job_is_a_device_error(files):
    with agent() as running:
        running.ask("open", engine=str(files / "a.onnx"), threads=1, runtime="onnxruntime", options={})
        running.ask("first", feeds=str(files / "x.npz"))
        threading.Timer(0.3, os.kill, (running.pid, signal.SIGKILL)).start()
        with pytest.raises(DeviceError, match=r"ended \(SIGKILL\) instead of answering 'measure'"):
            running.ask("measure", iterations=10**8, warmup=0)


def test_a_dead_agent_stays_a_device_error():
    with agent() as running:
        os.kill(running.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(DeviceError, match="SIGKILL"):
                running.ask("memory")


def test_last_words_are_quoted():
    code = "import sys; print('noise', file=sys.stderr); sys.exit('the cable came loose')"
    with python(code) as running, pytest.raises(DeviceError, match=r"exit code 1.*said: noise / the cable came loose"):
        running.ask("memory")


@pytest.mark.parametrize("reply", ["Welcome to the board!", "[]", '{"fine": true}', '{"ok": "yes"}', "\\xff"])
def test_garbage_is_a_device_error(reply):
    with python(f"print({reply!r}); input()") as running, pytest.raises(DeviceError, match="which is no answer"):
        running.ask("memory")


def test_an_answer_that_lacks_what_was_asked_for_is_a_device_error():
    code = "print('{\"ok\": true}'); input()"
    with python(code) as running, pytest.raises(DeviceError, match="has no 'peak_rss_bytes'; is it of another version"):
        running.ask("memory", "peak_rss_bytes")


@pytest.mark.parametrize("kind", ["KeyError", "nearest", "ClassVar", None])
def test_an_error_of_an_unknown_kind_is_a_device_error(kind):
    answer = {"ok": False, "kind": kind, "error": "why"}
    with (
        python(f"import json; print(json.dumps({answer})); input()") as running,
        pytest.raises(DeviceError, match="why"),
    ):
        running.ask("memory")


def test_a_hung_agent_is_killed_when_patience_ends():
    start = time.monotonic()
    with (
        agent([sys.executable, "-c", "import time; time.sleep(600)"], timeout_seconds=0.5) as running,
        pytest.raises(DeviceError, match=r"did not answer 'memory' in 0\.5 s"),
    ):
        running.ask("memory")
    assert time.monotonic() - start < 100, "it was not waited for"


def test_much_talk_on_stderr_does_not_block():
    code = "import sys; sys.stderr.write('x' * 1_000_000); print('{\"ok\": true}', flush=True); input()"
    with python(code) as running:
        assert running.ask("memory") == {"ok": True}


def test_a_command_that_is_not_there():
    with pytest.raises(DeviceError, match="cannot be started: /no/such/python"):
        agent(["/no/such/python"])


def test_an_agent_ends_when_its_starter_is_killed():
    code = (
        "import os, signal\nfrom edgekd.devices.agent_process import AgentProcess\n"
        f"agent = AgentProcess({AGENT!r}, dict(os.environ), 60)\nagent.ask('memory')\n"
        "print(agent.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.PIPE).stdout)
    deadline = time.monotonic() + 60
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid):
    try:
        return (Path(f"/proc/{pid}/stat")).read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
