"""Whole builds on boards, and the other commands, by the real command line."""

import json
import os
import shutil
import signal
import time
from contextlib import suppress

import numpy as np
import pytest
from boards import forget_sockets, make_python, running_sshd
from commands import build_arguments, copy_cache, edgekd, edgekd_begun, events, outcome, started
from manifests import edit_manifest
from requirements import SSH

from edgekd import load
from edgekd.runtime.backends.openvino import library

pytestmark = SSH.mark

#: What this host and a board of its own kind would share.
ON_DEVICE = {"evaluate", "check", "profile", "robustness_shipped", "bundle", "verify"}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second board, with OpenVINO."""
    folder = tmp_path_factory.mktemp("other")
    python = make_python(folder / "venv", ["numpy", "onnxruntime", "openvino"])
    (folder / "board").mkdir()
    with running_sshd(folder / "board", python) as running:
        yield running


@pytest.fixture
def cache(built, tmp_path):
    return copy_cache(built.cache, tmp_path / "cache", without=ON_DEVICE)


def trusting(*boards):
    """Return what EDGEKD_SSH must be to log in to several boards."""
    first, *rest = boards
    known = "".join((board.folder / "known_hosts").read_text() for board in boards)
    keys = [f"-oIdentityFile={board.folder / 'user_key'}" for board in rest]
    (first.folder / "known_of_all").write_text(known)
    return " ".join([first.ssh(UserKnownHostsFile=first.folder / "known_of_all"), *keys])


def test_a_whole_build_of_a_model_on_a_board(board, built, tmp_path):
    (export,) = built.cache.glob("export-*/student.onnx")
    from edgekd.compress.graph import drop_embeddings

    drop_embeddings(export, tmp_path / "digits.onnx")
    with np.load(export.with_name("test.npz")) as arrays:
        np.savez(tmp_path / "samples.npz", **{key.removeprefix("input."): arrays[key] for key in arrays.files})
    quick = ("--set=profile.iterations=200", "--set=profile.warmup=20", "--set=profile.cold_starts=1")
    model = ("--model", "digits.onnx", "--calibration", "samples.npz")
    arguments = ["build", *model, "--cache", "cache", *quick, "--json"]
    done = edgekd(*arguments, "--device", f"cpu={board.address()}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notes = [event["note"] for event in events(done.stdout) if event["event"] == "advance"]
    assert [note for note in notes if "sending deploy.onnx" in note]
    report = events(done.stdout)[-1]["report"]
    (target,) = report["targets"]
    assert report["rows"][0]["device"] == board.name
    assert target["ledger"]["rows"][-1]["stage"] == "device"
    output = tmp_path / "build" / "digits" / "cpu"
    for engine in target["profile"]["engines"]:
        assert len(np.load(output / "latency" / engine["raw_file"])) == 200
    with load(output / "bundle") as bundle:
        assert bundle.verify().ok
    again = edgekd(*arguments, "--device", f"cpu={board.address()}", cwd=tmp_path)
    assert started(again.stdout) == []
    assert not list(board.root.joinpath("work").iterdir())


@pytest.mark.parametrize("moment", [("start", "evaluate cpu", None), ("advance", "profile cpu", 4)])
def test_a_build_that_lost_its_board_goes_on(board, cache, built, tmp_path, moment):
    arguments = [*build_arguments(tmp_path / "out", cache), "--device", board.address(), "--json"]
    with edgekd_begun(*arguments, cwd=tmp_path) as process:
        for line in process.stdout:
            event = json.loads(line)
            if (event["event"], event.get("stage"), event.get("done")) == moment:
                break
        while process.poll() is None:  # also the sessions of one who connects again between two jobs
            for pid in board.sessions():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 10, said
    assert f"error: {board.name}: " in said
    assert "Traceback" not in said
    assert board.settled()

    again = edgekd(*arguments, cwd=tmp_path)

    assert again.returncode == 0, again.stderr
    assert moment[1].split()[0] == started(again.stdout)[0]
    assert outcome(cache) == outcome(built.cache)


def test_two_boards_at_once_and_what_was_built_there(board, other, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_SSH", trusting(board, other))
    arguments = build_arguments(tmp_path / "out", cache, quantize__precision="float32")
    devices = ["--device", f"cpu={board.address()}", "--device", f"openvino-cpu={other.address()}"]
    targets = ["--target", "cpu", "--target", "openvino-cpu"]
    done = edgekd(*arguments, *targets, *devices, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [(event["event"], event.get("stage")) for event in events(done.stdout)]
    began = [told.index(("start", f"evaluate {target}")) for target in ("cpu", "openvino-cpu")]
    ended = [told.index(("finish", f"verify {target}")) for target in ("cpu", "openvino-cpu")]
    assert max(began) < min(ended), "they ran at the same time"
    assert [row["device"] for row in events(done.stdout)[-1]["report"]["rows"]] == [board.name, other.name]
    assert not (tmp_path / "out" / "cpu" / "engines").exists()
    engines = tmp_path / "out" / "openvino-cpu" / "engines"
    described = json.loads((engines / "engines.json").read_text())
    assert described["files"] == ["deploy.blob"]
    assert described["library"] == f"OpenVINO {library().__version__}"
    assert described["build_s"] > 0
    assert described["machine"]["openvino"]
    with load(tmp_path / "out" / "openvino-cpu" / "bundle") as bundle:
        with np.load(bundle.folder / "reference.npz") as samples:
            feeds = {spec.name: samples[f"input.{spec.name}"][:1] for spec in bundle.inputs}
        blob = (engines / "deploy.blob").read_bytes()
        compiled = library().Core().import_model(blob, **described["open_with"])
        np.testing.assert_allclose(next(iter(compiled(feeds).values())), bundle.run(feeds)["logits"], rtol=1e-5)
    assert other.settled()


def test_one_board_that_fails_lets_the_other_finish(board, other, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_SSH", trusting(board, other))
    arguments = build_arguments(tmp_path / "out", cache, quantize__precision="float32")
    devices = ["--device", f"cpu={board.address()}", "--device", f"openvino-cpu={other.address()}"]
    with edgekd_begun(
        *arguments, "--target", "cpu", "--target", "openvino-cpu", *devices, "--json", cwd=tmp_path
    ) as process:
        for line in process.stdout:
            event = json.loads(line)
            if (event["event"], event.get("stage"), event.get("done")) == ("advance", "profile cpu", 4):
                for pid in board.sessions():
                    os.kill(pid, signal.SIGKILL)
                break
        rest, said = process.communicate(timeout=120)
    assert process.returncode == 22
    assert said == "error: cpu refused, for the reason above; published: openvino-cpu\n"
    (refused,) = [event for event in events(rest) if event["event"] == "refuse"]
    assert f"{board.name}: the connection was lost" in refused["reason"]
    finished = [event["stage"] for event in events(rest) if event["event"] == "finish"]
    assert "verify openvino-cpu" in finished
    assert "profile cpu" not in finished
    assert other.settled()


def test_what_is_not_for_the_board_is_refused_before_anything_is_sent(board, tmp_path):
    shutil.rmtree(board.root, ignore_errors=True)
    done = edgekd("build", "--recipe", "digits", "--target", "jetson-orin", "--device", board.address(), cwd=tmp_path)
    assert done.returncode == 10
    assert "target 'jetson-orin' is for aarch64, and it is x86_64" in done.stderr
    done = edgekd("build", "--recipe", "digits", "--target", "openvino-cpu", "--device", board.address(), cwd=tmp_path)
    assert done.returncode == 7
    assert f"error: {board.name}: has no openvino in its Python; install it there" in done.stderr
    assert not board.root.exists()


@pytest.mark.parametrize("there", [True, False], ids=["board", "local"])
def test_a_bundle_is_verified_on_a_device(board, built, tmp_path, there):
    done = edgekd("verify", built.bundle, "--device", board.address() if there else "local", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "16 reference samples in onnxruntime, 0 flips" in done.stdout


def test_a_bundle_that_does_something_else_there_is_refused(board, built, tmp_path):
    shutil.copytree(built.bundle, tmp_path / "bundle")
    reference = tmp_path / "bundle" / "reference.npz"
    with np.load(reference) as arrays:
        changed = {**arrays, "gram": arrays["gram"] + 0.1}
    np.savez(reference, **changed)
    import hashlib

    content = reference.read_bytes()
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit_manifest(tmp_path / "bundle", lambda stated: stated["files"].update({"reference.npz": entry}))
    done = edgekd("verify", tmp_path / "bundle", "--device", board.address(), cwd=tmp_path)
    assert done.returncode == 9
    assert f"does not do on {board.address()} what it did where it was built" in done.stderr


def test_a_device_that_cannot_verify(built, tmp_path):
    done = edgekd("verify", built.bundle, "--device", "browser", cwd=tmp_path)
    assert done.returncode == 10
    assert "browser" in done.stderr


def test_a_bundle_is_measured_on_several_boards_at_once(board, other, built, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_SSH", trusting(board, other))
    devices = [option for one in (board, other) for option in ("--device", one.address())]
    done = edgekd("profile", built.bundle, *devices, "--iterations", 100, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["device"] for one in found] == [board.name, other.name]
    assert [one["profile"]["engines"][0]["latency"]["n"] for one in found] == [100, 100]
    assert other.settled()


def test_several_boards_that_fail_are_all_named(board, other, built, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_SSH", trusting(board, other))
    devices = [option for one in (board, other) for option in ("--device", one.address("/no/python"))]
    done = edgekd("profile", built.bundle, *devices, cwd=tmp_path)
    assert done.returncode == 7
    assert "error: 2 failed: " in done.stderr
    assert all(f"{one.name}: has no '/no/python'" in done.stderr for one in (board, other))


def test_probe_and_clean(board, tmp_path):
    probed = edgekd("device", "probe", board.address(), cwd=tmp_path)
    assert probed.returncode == 0, probed.stderr
    for word in (board.name, "onnxruntime", "power mode", "governor", "kept by edgekd"):
        assert word in probed.stdout
    cleaned = edgekd("device", "clean", board.address(), cwd=tmp_path)
    assert cleaned.returncode == 0, cleaned.stderr
    assert f"{board.name}: " in cleaned.stdout
    assert "removed; nothing of edgekd is left there" in cleaned.stdout
    assert list(board.cache.iterdir()) == []


@pytest.mark.parametrize("command", ["probe", "clean"])
def test_an_address_that_is_none(command, tmp_path):
    done = edgekd("device", command, "orin", cwd=tmp_path)
    assert done.returncode == 10
    assert "orin: is no address of a board" in done.stderr


def test_a_killed_build_leaves_nothing_running_there(board, cache, tmp_path):
    arguments = [*build_arguments(tmp_path / "out", cache, profile__iterations=10**6), "--device", board.address()]
    with edgekd_begun(*arguments, "--json", cwd=tmp_path) as process:
        for line in process.stdout:
            if json.loads(line).get("stage") == "profile cpu":
                break
        process.kill()
        assert board.settled()
    forget_sockets(process.pid)


def test_ctrl_c_leaves_nothing_running_there(board, cache, tmp_path):
    arguments = [*build_arguments(tmp_path / "out", cache, profile__iterations=10**6), "--device", board.address()]
    with edgekd_begun(*arguments, "--json", cwd=tmp_path) as process:
        for line in process.stdout:
            if json.loads(line).get("stage") == "profile cpu":
                break
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command goes on from here" in said
    assert "Traceback" not in said
    assert board.settled()


NOISY = '''
import numpy as np
from edgekd.runtime.backends.onnxruntime import open_engine as ort


class Noisy:
    """An engine library whose embeddings are never the same twice, but for the few samples that it is tried with."""

    def __init__(self, inner):
        self._inner, self._random = inner, np.random.default_rng()
        self.inputs, self.outputs, self.facts = inner.inputs, inner.outputs, {}

    def run(self, feeds):
        found = self._inner.run(feeds)
        noise = {name: self._random.normal(size=x.shape).astype("f4") for name, x in found.items()}
        right = ("logits",) if len(found["logits"]) > 4 else found
        return {name: x if name in right else x + noise[name] for name, x in found.items()}

    def close(self):
        self._inner.close()


def open_engine(engine, threads, name):
    return Noisy(ort(engine, threads, name))
'''


def test_a_bundle_that_does_not_verify_on_its_board_is_an_error(board, cache, tmp_path):
    (tmp_path / "noisy.py").write_text(NOISY)
    shown = edgekd("targets", "show", "cpu", cwd=tmp_path).stdout
    target = shown.replace('runtime = "onnxruntime"', 'runtime = "noisy.py:open_engine"')
    assert target != shown
    (tmp_path / "noisy.toml").write_text(target)
    arguments = build_arguments(tmp_path / "out", cache, quantize__precision="float32", quantize__repair="off")
    done = edgekd(*arguments, "--target", "noisy.toml", "--device", board.address(), "--json", cwd=tmp_path)
    assert done.returncode == 9, done.stderr
    assert f"error: {board.name}: the bundle does not do there what it did when it was made" in done.stderr
    assert started(done.stdout)[-1] == "preflight_target", "it is said before anything is trained"
    assert not (tmp_path / "out" / "report.json").exists()
