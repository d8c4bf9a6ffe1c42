"""What the gate rejects is repaired, step by step in the ledger; `edgekd check` and `edgekd blame` show the work."""

import json

import pytest
from commands import SETTINGS, copy_cache, edgekd, events, started

from edgekd.config.target import find_target, load_calibration

#: Ranges of three samples clip much of all others.
STARVED = 'description = "Three samples"\nranges = "minmax"\nrounding = "nearest"\nsamples = 3\nchunk = 3\n'
#: A user's own device that takes the INT8 of two networks, the untrained one and the next that it meets, and no other.
NPU = """
import hashlib
from pathlib import Path

import onnx

from edgekd.errors import ModelError
from edgekd.runtime.backends.onnxruntime import open_engine


def open_npu(engine, threads, name=None):
    model = onnx.load_from_string(engine) if isinstance(engine, bytes) else onnx.load(engine)
    taken = Path(__file__).with_suffix(".taken")
    levels = [tensor.raw_data for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    digest = hashlib.sha256(b"".join(levels)).hexdigest()
    known = taken.read_text().split() if taken.exists() else []
    if levels and digest not in known and len(known) < 2:
        taken.write_text(" ".join([*known, digest]))
    elif levels and digest not in known:
        raise ModelError("another network")
    return open_engine(engine, threads, name)
"""
#: The float network is the student itself, so that INT8 alone can break anything.
UNPRUNED = {"prune.ratio": 0, "profile.iterations": 200}
#: Limits that no network keeps which computes anything else than the student.
NO_CHANGE = {"gate__structure": "strict", "gate__tau_pass": 1e-7, "gate__tau_fail": 1e-6}


def arguments(command, cache, *more, **changes):
    settings = {**SETTINGS, **UNPRUNED, **{key.replace("__", "."): value for key, value in changes.items()}}
    overrides = [f"--set={key}={value}" for key, value in settings.items()]
    return [command, "--recipe", "digits", "--output", "out", "--cache", cache, *overrides, *more]


@pytest.fixture(scope="module")
def folder(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repair")
    copy_cache(built.cache, folder / "cache")
    (folder / "starved.toml").write_text(STARVED, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def starved(folder):
    """Settings of INT8 that was calibrated on too few samples, and a limit that it breaks on every processor.

    What processors compute differs in the last bits, and networks that were trained with them in much more. The limit
    is of the structure, which no labels excuse where it is strict, and so far below what INT8 does that it breaks it on
    other samples, too.
    """
    calibration = {"quantize__calibration": "starved.toml"}
    process = edgekd(*arguments("check", "cache", "--json", **calibration), cwd=folder)
    assert process.returncode == 0, process.stderr
    (found,) = events(process.stdout)[-1]["checks"]
    drift = found["ledgers"]["int8"]["rows"][-1]["to_reference"]["mean"]
    limits = {"gate__structure": "strict", "gate__tau_pass": drift / 4, "gate__tau_fail": drift * 0.9}
    return {**calibration, **limits}


@pytest.fixture(scope="module")
def repaired(folder, starved):
    """A build whose INT8 was calibrated on too few samples."""
    process = edgekd(*arguments("build", "cache", "--json", **starved), cwd=folder)
    assert process.returncode == 0, process.stderr
    return process


@pytest.fixture(scope="module")
def checked(repaired, folder, starved):
    """The same build's candidates as `edgekd check` has them, on the validation samples."""
    process = edgekd(*arguments("check", "cache", "--json", **starved), cwd=folder)
    assert process.returncode == 0, process.stderr
    (found,) = events(process.stdout)[-1]["checks"]
    return found


def test_the_starved_calibration_is_one(folder):
    assert load_calibration(str(folder / "starved.toml")).samples == 3


def test_int8_that_the_gate_rejects_is_repaired_and_ships(repaired):
    report = events(repaired.stdout)[-1]["report"]
    verdicts = {one["name"]: one["verdict"] for one in report["targets"][0]["candidates"]}
    assert verdicts["int8"] == "fail"
    assert verdicts["int8-repaired"] != "fail"
    assert report["rows"][0]["candidate"] == "int8-repaired"
    assert {"blame", "repair"} <= set(started(repaired.stdout))


def test_best_returns_layers_that_the_gate_does_not_ask_for(folder):
    more = {"quantize__repair": "best", "quantize__slack": 1.0, "quantize__precision": "int8"}
    process = edgekd(*arguments("build", "cache", "--json", **more), cwd=folder)
    assert process.returncode == 0, process.stderr
    report = events(process.stdout)[-1]["report"]
    plain, better = report["targets"][0]["candidates"]
    assert (plain["name"], better["name"]) == ("int8", "int8-repaired")
    assert plain["verdict"] != "fail"
    assert better["divergence"]["high"] < plain["divergence"]["high"]
    assert report["rows"][0]["candidate"] == "int8-repaired"
    steps = [row for row in report["targets"][0]["ledger"]["rows"] if row["stage"].startswith("repair ")]
    assert steps
    assert all(row["note"].endswith(" to float32") for row in steps)


def test_each_step_of_a_repair_is_in_the_candidates_ledger(checked):
    ledger = checked["ledgers"]["int8-repaired"]
    rows = {row["stage"]: row for row in ledger["rows"]}
    assert list(rows)[:3] == ["teacher", "student", "quantized"]
    assert list(rows)[-1] == "device"
    steps = [row for stage, row in rows.items() if stage.startswith("repair ")]
    assert [row["stage"] for row in steps] == [f"repair {number}" for number in range(1, len(steps) + 1)]
    assert all(row["note"].endswith(" to float32") for row in steps)
    assert rows["quantized"]["verdict"] == "fail"
    assert [row["verdict"] == "fail" for row in steps] == [True] * (len(steps) - 1) + [False]
    assert steps[-1]["to_reference"]["mean"] < rows["quantized"]["to_reference"]["mean"]
    assert ledger["verdict"] == rows["device"]["verdict"] != "fail"


def test_only_what_ships_is_judged_on_the_test_samples(repaired, checked):
    candidate = checked["ledgers"]["int8-repaired"]["rows"]
    ledger = events(repaired.stdout)[-1]["report"]["targets"][0]["ledger"]
    assert [row["stage"] for row in ledger["rows"]] == ["teacher", "student", candidate[-2]["stage"], "device"]
    assert ledger["rows"][-2]["note"] == candidate[-2]["note"]
    samples = [rows[-1]["answers"]["logits"]["samples"] for rows in (candidate, ledger["rows"])]
    assert samples == [200, 400]
    assert ledger["verdict"] == ledger["rows"][-1]["verdict"] != "fail"


def test_a_finished_repair_is_up_to_date(repaired, folder, starved):
    again = edgekd(*arguments("build", "cache", "--json", **starved), cwd=folder)
    assert again.returncode == 0, again.stderr
    assert started(again.stdout) == []


def test_repair_off_leaves_int8_rejected(repaired, folder, starved):
    process = edgekd(*arguments("build", "cache", "--json", **starved, quantize__repair="off"), cwd=folder)
    assert process.returncode == 20
    assert "the gate rejected the build: cpu: " in process.stderr
    assert "repair" not in started(process.stdout)


def test_int8_that_no_layers_save_is_tuned_with_fake_quantization(folder):
    process = edgekd(*arguments("check", "cache", "--json", quantize__qat__epochs=1, **NO_CHANGE), cwd=folder)
    assert process.returncode == 20
    (found,) = events(process.stdout)[-1]["checks"]
    assert list(found["ledgers"]) == ["int8", "int8-repaired", "int8-qat"]
    assert [ledger["verdict"] for ledger in found["ledgers"].values()] == ["fail", "fail", "fail"]
    stages = [row["stage"] for row in found["ledgers"]["int8-qat"]["rows"]]
    assert stages == ["teacher", "student", "quantized", "qat", "requantized", "device"]
    assert "int8 could not be repaired; every attempt is in the table." in found["facts"]


def test_where_the_float_network_is_rejected_its_int8_is_left_as_it_is(folder):
    changes = {"prune__ratio": 0.5, "prune__epochs": 1, "prune__repair": "off", **NO_CHANGE}
    process = edgekd(*arguments("check", "cache", "--json", **changes), cwd=folder)
    assert process.returncode == 20
    (found,) = events(process.stdout)[-1]["checks"]
    (name,) = found["ledgers"]
    verdicts = {row["stage"]: row["verdict"] for row in found["ledgers"][name]["rows"]}
    assert list(verdicts) == ["teacher", "student", "finetuned", "quantized", "device"]
    assert verdicts["finetuned"] == "fail"
    assert not {"blame", "repair", "qat"} & set(started(process.stdout))
    assert "int8 was not repaired: the pruned network is rejected in float already." in found["facts"]


def test_repaired_and_tuned_networks_that_the_device_refuses_are_left_out(folder):
    (folder / "npu.py").write_text(NPU, encoding="utf-8")
    text = find_target("cpu").read_text(encoding="utf-8")
    text = text.replace('runtime = "onnxruntime"', 'runtime = "npu.py:open_npu"')
    (folder / "npu.toml").write_text(text, encoding="utf-8")
    changes = {"quantize__qat__epochs": 1, **NO_CHANGE}
    process = edgekd(*arguments("check", "cache", "--json", "--target", "npu.toml", **changes), cwd=folder)
    assert "Traceback" not in process.stderr, process.stderr
    assert process.returncode == 20, process.stderr
    (found,) = events(process.stdout)[-1]["checks"]
    assert list(found["ledgers"]) == ["int8"]
    for name in ("int8-repaired", "int8-qat"):
        assert f"{name} was left out: another network" in found["facts"]
    told = [event["message"] for event in events(process.stdout) if event["event"] == "warn"]
    assert any(text.startswith("the time of ") and text.endswith(" is left out: another network") for text in told)


def test_check_shows_every_candidate_and_bundles_nothing(repaired, folder, starved):
    process = edgekd(*arguments("check", "cache", **starved), cwd=folder)
    assert process.returncode == 0, process.stderr
    assert "FAIL  cpu  int8\n" in process.stdout
    assert "  cpu  int8-repaired\n" in process.stdout
    assert "repair 1" in process.stdout
    assert "bundle" not in process.stdout


def test_check_rejects_when_no_candidate_passes(folder, starved):
    process = edgekd(*arguments("check", "cache", "-q", **starved, quantize__repair="off"), cwd=folder)
    assert process.returncode == 20
    assert process.stderr.strip() == "error: the gate rejects every candidate of cpu"


def test_limits_are_measured_on_the_users_task(folder):
    process = edgekd(
        *arguments("check", "cache", "--suggest-limits", "--json", gate__max_metric_drop=0.015), cwd=folder
    )
    assert process.returncode == 0, process.stderr
    alarm = events(process.stdout)[-1]["alarm"]
    assert alarm["judged_by"] == "metric"
    assert len(alarm["outcomes"]) > 100
    lost = [outcome["loss"] > alarm["max_loss"] for outcome in alarm["outcomes"]]
    assert 0 < sum(lost) < len(lost)
    assert list(alarm["limits"]) == ["max_divergence", "max_flips", "max_missing_flips", "tau_fail", "tau_pass"]


def test_blame_is_a_table_json_and_a_picture(folder):
    process = edgekd(*arguments("blame", "cache", quantize__calibration="starved.toml"), cwd=folder)
    assert process.returncode == 0, process.stderr
    assert "encoders.zer" in process.stdout
    found = json.loads((folder / "out" / "cpu" / "blame.json").read_text(encoding="utf-8"))
    branches = [suspect["name"] for suspect in found["suspects"] if suspect["scope"] == "branch"]
    assert sorted(branches) == ["fou", "fusion", "mor", "zer"]
    assert all(suspect["latency"] is not None for suspect in found["suspects"])
    assert (folder / "out" / "cpu" / "blame.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--cpu", "haswell", "--device", "local"], "give --cpu or --device, not both"),
        (["--calibration", "x.npz"], "--calibration is for --model"),
        (["--tap", "a=b"], "--tap is for --model"),
        (["--kind", "regression"], "--kind is for --model"),
        (["--threshold", "0"], "--threshold is for --model"),
    ],
)
def test_options_that_contradict_each_other_are_refused(folder, more, words):
    process = edgekd(*arguments("check", "cache", *more), cwd=folder)
    assert process.returncode == 2
    assert words in process.stderr


def test_blame_needs_int8(folder):
    process = edgekd(*arguments("blame", "cache", quantize__precision="float32"), cwd=folder)
    assert process.returncode == 6
    said = (
        "error: target 'cpu' is built without INT8 of Q/DQ pairs here, such as that of 'qdq': there is nothing to blame"
    )
    assert process.stderr.strip() == said


def test_an_unknown_processor_is_refused_with_those_that_there_are(folder):
    process = edgekd(*arguments("check", "cache", "--cpu", "haswel"), cwd=folder)
    assert process.returncode == 10
    assert "haswell" in process.stderr
