"""One recipe for many targets, by the real command line, with the engine libraries themselves."""

import json
import re
import shutil
from importlib.metadata import version

import numpy as np
import pytest
from commands import (
    LEARNING,
    ROOT,
    Built,
    build_arguments,
    copy_cache,
    documented,
    edgekd,
    events,
    python,
    started,
)
from manifests import edit_manifest
from requirements import ARM, BROWSER, RTX_PACKAGE

from edgekd import load
from edgekd.runtime.backends.openvino import library

pytestmark = RTX_PACKAGE.mark

TARGETS = ("cpu", "openvino-cpu", "jetson-orin", "nvidia-rtx")


@pytest.fixture(scope="module")
def cache(built, tmp_path_factory):
    """A cache in which the first half is up to date; tests add to it."""
    return copy_cache(built.cache, tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture(scope="module")
def fan(cache, tmp_path_factory):
    """One build for four targets, in all their precisions."""
    folder = tmp_path_factory.mktemp("fan")
    arguments = build_arguments("out", cache, quantize__precision="best", profile__iterations=300)
    process = edgekd(*arguments, *(f"--target={name}" for name in TARGETS), "--json", cwd=folder)
    assert process.returncode == 0, process.stderr
    return Built(folder / "out", cache, process)


def rows(output):
    return {row["target"]: row for row in json.loads((output / "report.json").read_text())["rows"]}


def targets(output):
    return {target["target"]: target for target in json.loads((output / "report.json").read_text())["targets"]}


def test_everything_before_quantize_is_shared(fan):
    assert not set(LEARNING) & set(started(fan.process.stdout))
    planned = events(fan.process.stdout)[0]["stages"]
    assert [name for name in planned if name in LEARNING] == list(LEARNING)
    of_board = ["preflight_target", "agree", "quantize", "compile", "check", "missing", "judge", "details"]
    of_board += ["robustness_shipped", "bundle"]
    assert [name for name in planned if name.endswith(" jetson-orin")] == [f"{stage} jetson-orin" for stage in of_board]
    assert "profile openvino-cpu" in planned


def test_every_precision_is_a_candidate(fan):
    found = {name: [c["name"] for c in target["candidates"]] for name, target in targets(fan.output).items()}
    assert found == {
        "cpu": ["int8", "float32"],
        "openvino-cpu": ["int8", "int8-nncf", "float32"],
        "jetson-orin": ["int8", "float16"],
        "nvidia-rtx": ["int8", "float16"],
    }


@pytest.mark.parametrize("name", ["cpu", "openvino-cpu"])
def test_what_ships_is_the_fastest_or_as_fast(fan, name):
    target = targets(fan.output)[name]
    p50 = {c["name"]: c["p50"] for c in target["candidates"]}
    chosen = p50[rows(fan.output)[name]["candidate"]]
    assert chosen["low_ms"] <= min(p["high_ms"] for p in p50.values())
    assert rows(fan.output)[name]["latency_ms"]["p50"] == chosen["value_ms"]
    assert target["choice"]


def test_openvino_ran_its_own_engine(fan):
    profile = targets(fan.output)["openvino-cpu"]["profile"]
    assert {"teacher", "student", "shipped"} < {engine["name"] for engine in profile["engines"]}
    manifest = json.loads((fan.output / "openvino-cpu" / "bundle" / "manifest.json").read_text())
    assert manifest["runtime"] == "openvino"
    assert manifest["options"] == {"device": "CPU", "precision": "f32"}
    said = edgekd("verify", fan.output / "openvino-cpu" / "bundle", cwd=fan.output)
    assert said.returncode == 0, said.stderr
    assert "reference samples in openvino, 0 flips" in said.stdout


@pytest.mark.parametrize("name", ["jetson-orin", "nvidia-rtx"])
def test_nvidias_parser_proved_the_graph(fan, name):
    target = targets(fan.output)[name]
    built_for = {"jetson-orin": "for SM86 on this host", "nvidia-rtx": "for SM86, SM89, SM120 on this host"}
    assert any(fact.startswith("TensorRT-RTX ") and built_for[name] in fact for fact in target["facts"])
    layers = json.loads((fan.output / name / "bundle" / "layers.json").read_text())
    assert len(layers["layers"]) > 10


def test_only_a_target_that_ships_engines_does(fan):
    plans = {name: sorted(p.name for p in (fan.output / name / "bundle").glob("*.plan")) for name in TARGETS}
    assert plans == {"cpu": [], "openvino-cpu": [], "jetson-orin": [], "nvidia-rtx": ["deploy.plan", "probe.plan"]}
    assert (fan.output / "nvidia-rtx" / "bundle" / "deploy.plan").read_bytes()[:4] in (b"ftrt", b"vtrt")


@pytest.mark.parametrize("name", ["jetson-orin", "nvidia-rtx"])
def test_without_a_board_the_bundle_is_whole_and_nothing_is_made_up(fan, name):
    row = rows(fan.output)[name]
    assert row["device"] == "no device"
    assert row["latency_ms"]["p50"] is None
    assert row["peak_rss_bytes"] is None
    reason = row["not_measured"]["latency_ms.p50"]
    assert reason.startswith("not measured: no device")
    assert reason.endswith(f"run: edgekd profile {name}/bundle")
    assert row["metric"]["device"] is None
    assert row["metric"]["shipped"] > 0.2
    assert row["gram"]["stage"] == "quantized"
    assert row["gram"]["bound"] >= row["gram"]["drift"] >= 0
    stages = [entry["stage"] for entry in targets(fan.output)[name]["ledger"]["rows"]]
    assert stages == ["teacher", "student", "cut", "finetuned", "quantized"]


def test_a_bundle_for_a_board_verifies_on_the_host(fan):
    bundle = fan.output / "jetson-orin" / "bundle"
    said = edgekd("verify", bundle, "--runtime", "onnxruntime", cwd=fan.output)
    assert said.returncode == 0, said.stderr
    assert "in onnxruntime, 0 flips" in said.stdout


def test_a_bundle_for_a_board_without_its_library(fan):
    said = edgekd("verify", fan.output / "jetson-orin" / "bundle", cwd=fan.output)
    assert said.returncode == 7
    assert 'pip install "edgekd[tensorrt]"; on a Jetson it comes with JetPack' in said.stderr
    assert "runtime 'onnxruntime' (--runtime) runs its ONNX on any machine" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_finished_bundle_is_profiled_where_it_is(fan, tmp_path):
    bundle = fan.output / "openvino-cpu" / "bundle"
    said = edgekd("profile", bundle, "--iterations", 400, "--output", tmp_path / "p", "--json", cwd=fan.output)
    assert said.returncode == 0, said.stderr
    content = json.loads(said.stdout)
    assert content == json.loads((tmp_path / "p" / "profile.json").read_text())
    assert (content["schema_version"], content["task"], content["device"]) == (2, "digits", "local")
    assert (content["target"], content["runtime"]) == ("openvino-cpu", "openvino")
    assert content["drift_bound"] == content["ledger"]["rows"][-1]["to_reference"]["bound"]
    assert content["metric"]["value"] == content["ledger"]["rows"][-1]["metric"]
    (engine,) = content["profile"]["engines"]
    assert engine["latency"]["n"] == engine["compute"]["n"] == len(np.load(tmp_path / "p" / "engine.npy")) == 400
    assert engine["latency"]["p50"]["value_ms"] > engine["compute"]["p50"]["value_ms"] > 0
    assert content["size_bytes"] == engine["size_bytes"]


def test_a_profile_is_shown_with_time_by_branch_and_reasons(fan):
    options = ("--iterations", 100, "--rate", 100, "--sustained", "2s")
    shown = edgekd("profile", fan.output / "cpu" / "bundle", *options, cwd=fan.output, COLUMNS="80")
    assert shown.returncode == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    words = " ".join(shown.stdout.split())
    for expected in ("end to end", "compute", "at 100 Hz", "p90 bound", "Cold start, 8 fresh processes", "Peak RSS"):
        assert expected in words
    for branch in ("fou", "mor", "zer", "fusion"):
        assert re.search(rf"^ +{branch} +[\d.]+ \(\d", shown.stdout, re.MULTILINE)
    assert "Sustained: over 2" in words
    assert "other" not in words


def test_an_engine_of_a_bundle_of_before_has_no_branches(fan, tmp_path):
    bundle = shutil.copytree(fan.output / "cpu" / "bundle", tmp_path / "bundle")
    (bundle / "branches.json").unlink()
    edit_manifest(bundle, lambda stated: stated["files"].pop("branches.json"))
    said = edgekd("profile", bundle, "--iterations", 50, "--json", cwd=tmp_path)
    (engine,) = json.loads(said.stdout)["profile"]["engines"]
    assert engine["branches_ms"].keys() == {"other"}


@pytest.mark.parametrize("option", [("--rate", "0"), ("--rate", "1e9"), ("--sustained", "0s"), ("--sustained", "soon")])
def test_a_rate_or_time_that_is_none_is_refused(fan, option):
    said = edgekd("profile", fan.output / "cpu" / "bundle", *option, cwd=fan.output)
    assert said.returncode == 2
    assert option[0] in said.stderr
    assert "Traceback" not in said.stderr


def test_an_output_that_cannot_be_made_is_refused(fan, tmp_path):
    (tmp_path / "file").write_text("")
    said = edgekd("profile", fan.output / "cpu" / "bundle", "--output", tmp_path / "file" / "p", cwd=fan.output)
    assert said.returncode == 12
    assert "choose another with --output" in said.stderr


def test_a_build_reports_time_by_branch(fan):
    page = (fan.output / "report.md").read_text()
    assert "### Time by branch" in page
    profile = targets(fan.output)["cpu"]["profile"]
    for engine in profile["engines"]:
        assert {layer["branch"] for layer in engine["layers"]} == {"fou", "mor", "zer", "fusion"}
        assert engine["compute"]["n"] == engine["latency"]["n"]


def test_the_report_says_all_of_it_in_words(fan):
    page = (fan.output / "report.md").read_text()
    assert "### Candidates" in page
    assert "No device ran the engine" in page
    assert "not measured: no device" in page


def test_a_budget_that_is_missed_is_named(cache, tmp_path):
    text = (ROOT / "targets" / "cpu.toml").read_text()
    (tmp_path / "tight.toml").write_text(text + "\n[budgets]\nlatency_ms = 1e-4\nsize_mb = 100\nmemory_mb = 1\n")
    arguments = build_arguments(tmp_path / "out", cache, profile__iterations=300)
    said = edgekd(*arguments, "--target=./tight.toml", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    (row,) = rows(tmp_path / "out").values()
    assert row["verdict"] == "warn"
    assert [reason.split(" ")[0] for reason in row["reasons"]] == ["latency", "peak"]
    assert "budget 0.0001 ms" in said.stdout


OWN = """
from edgekd.runtime.backends.onnxruntime import open_engine


def open_npu(engine, threads, name, *, gain=1.0):
    session = open_engine(engine, threads, name)
    return session if gain == 1.0 else None
"""


def test_a_users_own_runtime(cache, tmp_path):
    (tmp_path / "npu.py").write_text(OWN)
    text = (ROOT / "targets" / "cpu.toml").read_text().replace('"onnxruntime"', '"npu.py:open_npu"')
    (tmp_path / "npu.toml").write_text(text + "\n[options]\ngain = 1.0\n")
    arguments = build_arguments(tmp_path / "out", cache, profile__iterations=300)
    said = edgekd(*arguments, "--target=./npu.toml", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    bundle = tmp_path / "out" / "npu" / "bundle"
    assert json.loads((bundle / "manifest.json").read_text())["runtime"] == "npu.py:open_npu"
    refused = edgekd("verify", bundle, cwd=tmp_path)
    assert refused.returncode == 9
    assert "name that code with runtime=" in refused.stderr
    assert edgekd("verify", bundle, "--runtime", "npu.py:open_npu", cwd=tmp_path).returncode == 0
    assert edgekd("verify", bundle, "--runtime", "onnxruntime", cwd=tmp_path).returncode == 0
    (tmp_path / "npu.py").write_text(OWN + "\n# changed\n")
    again = edgekd(*arguments, "--target=./npu.toml", "--json", cwd=tmp_path)
    ran = ["preflight_target", "agree", "evaluate", "check", "profile", "judge", "details", "bundle", "verify"]
    assert started(again.stdout) == ran, (
        "the graph is as it was: its robustness is not measured again, nor are its answers with a modality absent"
    )
    (tmp_path / "npu.toml").write_text(text + "\n[options]\ngain = 2.0\n")
    failed = edgekd(*arguments, "--target=./npu.toml", "--json", cwd=tmp_path)
    assert started(failed.stdout) == ["preflight_target"], "it is said before anything is trained"
    assert failed.returncode == 6
    assert "returned a NoneType without 'inputs'" in failed.stderr


BACKEND = """
from edgekd.runtime.backends import onnxruntime
from edgekd.runtime.backends.backend import Backend, BackendOption

npu = Backend("npu", module=__name__, packages=("onnx",), options=(BackendOption("lanes", 2, "Lanes."),))


def open_engine(engine, threads, name, *, lanes=2):
    return onnxruntime.open_engine(engine, threads, name)


def absent(lanes=2):
    return f"this machine has no {lanes} lanes" if lanes > 4 else None


def hardware(lanes=2):
    return {"npu": f"{lanes} lanes"}


def layer_times(engine, threads, rows, *, lanes=2):
    return onnxruntime.layer_times(engine, threads, rows)
"""


def test_a_users_own_backend(cache, tmp_path):
    (tmp_path / "npu.py").write_text(BACKEND)
    text = (ROOT / "targets" / "cpu.toml").read_text().replace('"onnxruntime"', '"npu.py:npu"')
    (tmp_path / "npu.toml").write_text(text + "\n[options]\nlanes = 4\n")
    arguments = build_arguments(tmp_path / "out", cache, profile__iterations=300)
    said = edgekd(*arguments, "--target=./npu.toml", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    profile = targets(tmp_path / "out")["npu"]["profile"]
    assert profile["machine"]["npu"] == "4 lanes"
    assert profile["machine"]["onnx"] == version("onnx")
    assert all(engine["layers"] for engine in profile["engines"])
    (tmp_path / "npu.toml").write_text(text + "\n[options]\nlanes = 8\n")
    refused = edgekd(*arguments, "--target=./npu.toml", "--device=local", cwd=tmp_path)
    assert (refused.returncode, "this machine has no 8 lanes" in refused.stderr) == (10, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--target=cpu", "--device=emulated:cortex-a77"], 10, "no processor 'cortex-a77' can be emulated"),
        (["--target=cpu", "--device=gpu=local"], 6, "'gpu' is not among the targets of this build"),
        (["--target=jetson-orin", "--device=local"], 10, "target 'jetson-orin' is for aarch64"),
        (["--target=cpu", "--set=quantize.precision=float16"], 6, "target 'cpu' has int8, float32 only"),
        (["--target=cpu", "--set=quantize.precision=int4"], 3, "there is no 'int4'"),
    ],
)
def test_a_wrong_wish_is_said_before_training(tmp_path, arguments, code, said):
    found = edgekd("build", "--recipe", "digits", *arguments, cwd=tmp_path)
    assert found.returncode == code
    assert said in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""


def test_what_openvino_compiled_is_opened_as_documented(fan):
    """Its blob alone would compute in bf16 on the processors that have it."""
    library()  # as edgekd imports it, which reports to nobody
    engines = fan.output / "openvino-cpu" / "engines"
    code = documented("import_model", **{"build/digits/openvino-cpu/engines": engines})
    opened = {}
    exec(code, opened)
    assert (
        json.loads((engines / "engines.json").read_text())["open_with"]["config"]["INFERENCE_PRECISION_HINT"] == "f32"
    )
    with load(fan.output / "openvino-cpu" / "bundle") as bundle, np.load(bundle.folder / "reference.npz") as samples:
        for row in range(len(samples["ids"])):
            feeds = {spec.name: samples[f"input.{spec.name}"][row : row + 1] for spec in bundle.inputs}
            (logits,) = opened["compiled"](feeds).values()
            np.testing.assert_allclose(logits, bundle.run(feeds)["logits"], rtol=1e-5, atol=1e-6)


@ARM.mark
def test_another_processor_gives_accuracy_and_no_latency(cache, tmp_path):
    arguments = build_arguments(tmp_path / "out", cache)
    said = edgekd(*arguments, "--target=raspberry-pi-5", "--device=emulated:cortex-a76", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    (row,) = rows(tmp_path / "out").values()
    assert row["device"] == "emulated:cortex-a76"
    assert row["metric"]["device"] == pytest.approx(row["metric"]["finetuned"], abs=0.02)
    assert row["latency_ms"]["p50"] is None
    assert row["not_measured"]["latency_ms.p50"].startswith("not measured: ")
    assert row["gram"]["stage"] == "device"


@BROWSER.mark
def test_a_browser_runs_and_times_the_engine(cache, tmp_path):
    arguments = build_arguments(tmp_path / "out", cache, profile__iterations=300)
    said = edgekd(*arguments, "--target=browser", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    (row,) = rows(tmp_path / "out").values()
    assert (row["device"], row["runtime"]) == ("browser", "onnxruntime-web")
    assert row["latency_ms"]["n"] == 300
    assert row["latency_ms"]["p50"] > 0
    bundle = tmp_path / "out" / "browser" / "bundle"
    code = (
        "import sys, numpy as np, edgekd\n"
        "with edgekd.load(sys.argv[1]) as b:\n    print(b.runtime.name, b.verify().flips)\n"
    )
    assert python("-c", code, bundle, cwd=tmp_path).stdout.split() == ["onnxruntime-web", "0"]


def test_every_timed_inference_is_kept(fan):
    for name in ("cpu", "openvino-cpu"):
        files = {path.stem: np.load(path) for path in (fan.output / name / "latency").glob("*.npy")}
        assert {"teacher", "student", "int8", "float32"} <= files.keys()
        assert all(len(ns) == 300 and (ns > 0).all() for ns in files.values())


PICKY = """
from pathlib import Path

from edgekd.runtime.backends.onnxruntime import open_engine


def open_npu(engine, threads, name):
    if isinstance(engine, Path) and engine.parent.name == "int8-nncf":  # a bundle's is given as bytes
        raise RuntimeError("this unit has no such kernel")
    return open_engine(engine, threads, name)
"""


def test_a_second_quantizer_that_the_device_cannot_run_is_left_out_and_said(cache, tmp_path):
    (tmp_path / "npu.py").write_text(PICKY)
    text = (ROOT / "targets" / "cpu.toml").read_text().replace('"onnxruntime"', '"npu.py:open_npu"')
    text = text.replace('quantizers = ["qdq", "dynamic", "weights8", "weights4"]', "")
    (tmp_path / "npu.toml").write_text(f'quantizers = ["qdq", "nncf"]\n{text}')
    arguments = build_arguments(tmp_path / "out", cache, profile__iterations=300)
    said = edgekd(*arguments, "--target=./npu.toml", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "int8-nncf is left out: runtime" in said.stderr + said.stdout
    (target,) = targets(tmp_path / "out").values()
    assert [candidate["name"] for candidate in target["candidates"]] == ["int8"]
    assert any("int8-nncf was left out" in fact and "no such kernel" in fact for fact in target["facts"])


def test_a_first_quantizer_that_the_device_cannot_run_ends_the_build(cache, tmp_path):
    (tmp_path / "npu.py").write_text(PICKY.replace("int8-nncf", "int8"))
    text = (ROOT / "targets" / "cpu.toml").read_text().replace('"onnxruntime"', '"npu.py:open_npu"')
    (tmp_path / "npu.toml").write_text(text)
    said = edgekd(*build_arguments(tmp_path / "out", cache), "--target=./npu.toml", cwd=tmp_path)
    assert said.returncode == 8
    assert "no such kernel" in said.stderr
    assert "Traceback" not in said.stderr


def test_the_first_quantizer_may_be_left_out_where_another_can_ship(cache, tmp_path):
    (tmp_path / "npu.py").write_text(PICKY)
    text = (ROOT / "targets" / "cpu.toml").read_text().replace('"onnxruntime"', '"npu.py:open_npu"')
    text = text.replace('quantizers = ["qdq", "dynamic", "weights8", "weights4"]', "")
    for quantizers, code in (('["nncf"]', 8), ('["nncf", "qdq"]', 0)):
        (tmp_path / "npu.toml").write_text(f"quantizers = {quantizers}\n{text}")
        said = edgekd(*build_arguments(tmp_path / "out", cache), "--target=./npu.toml", cwd=tmp_path)
        assert said.returncode == code
        assert "no such kernel" in (said.stderr if code else said.stdout)
        assert "Traceback" not in said.stderr
