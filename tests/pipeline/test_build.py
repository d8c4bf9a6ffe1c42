"""Whole builds, by the real command line on real data."""

import json
import math
import shutil
from contextlib import ExitStack

import jsonschema
import msgspec
import numpy as np
import pytest
from commands import (
    LEARNING,
    PREFLIGHT,
    ROOT,
    SETTINGS,
    SHIPPING,
    STAGES,
    build_arguments,
    copy_cache,
    edgekd,
    edgekd_begun,
    events,
    outcome,
    python,
    sha256,
    started,
)

from edgekd import load, load_recipe, load_target
from edgekd.devices.local import LocalDevice
from edgekd.errors import TargetError
from edgekd.gram.gate import Ledger
from edgekd.pipeline import trained_source
from edgekd.pipeline.build import build
from edgekd.pipeline.paths import BuildPaths
from edgekd.pipeline.preflight import Preflight
from edgekd.report.ledger_json import ledger_with_nan
from edgekd.stages.stage import Done
from edgekd.training.task.loading import LoadedTask


@pytest.fixture
def cache(built, tmp_path_factory):
    """A cache of its own in which all is up to date."""
    return copy_cache(built.cache, tmp_path_factory.mktemp("cache") / "cache")


def test_leaves_a_report_and_a_bundle(built):
    assert built.process.stderr == ""
    assert "PASS" in built.process.stdout
    found = sorted(path.relative_to(built.output).as_posix() for path in built.output.rglob("*") if path.is_file())
    bundle = ["branches.json", "deploy.onnx", "ledger.json", "manifest.json", "probe.onnx", "reference.npz"]
    latency = [f"{name}{part}.npy" for name in ("int8", "student", "teacher") for part in ("", ".compute")]
    expected = [*(f"cpu/bundle/{name}" for name in bundle), "cpu/gram/samples.npz"]
    expected += [
        *(f"cpu/latency/{name}" for name in sorted(latency)),
        "report.html",
        "report.json",
        "report.md",
        *(f"training/{name}.svg" for name in ("pruned", "student", "teacher")),
    ]
    assert [name for name in found if name not in (".lock", ".edgekd.json")] == expected


def test_prints_each_stage(built):
    said = built.process.stdout
    assert [stage for stage in STAGES if f"{stage}: done" in said or f"{stage} cpu: done" in said] == list(STAGES)


def test_a_report_row_has_every_figure(built):
    (row,) = built.report()["rows"]
    assert (row["target"], row["runtime"], row["precision"]) == ("cpu", "onnxruntime", "int8")
    assert row["device"]
    assert row["latency_ms"]["n"] == 400
    assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p90"] <= row["latency_ms"]["p99"]
    assert {"teacher", "student", "cut", "finetuned", "device"} <= row["metric"].keys()
    assert all(0 < row["metric"][stage] <= 1 for stage in ("teacher", "student", "cut", "finetuned", "device"))
    assert 0 <= row["gram"]["drift"] <= row["gram"]["bound"] <= row["gram"]["tau"]
    assert row["gram"]["verdict"] == row["verdict"] == "pass"
    assert row["size_bytes"] == (built.bundle / "deploy.onnx").stat().st_size
    assert row["peak_rss_bytes"] > 1e6
    assert "latency_ms.p50" not in row["not_measured"]
    assert row["throughput_per_s"] > 0


def test_the_manifest_meets_its_schema(built):
    schema = json.loads((ROOT / "edgekd" / "runtime" / "manifest.schema.json").read_text())
    manifest = json.loads((built.bundle / "manifest.json").read_text())
    jsonschema.validate(manifest, schema)
    assert manifest["verdict"] == "pass"
    for engine in manifest["measurements"]["profile"]["engines"]:
        assert engine["branches_ms"].keys() == {"fou", "mor", "zer", "fusion"}
        assert "layers" not in engine


RUN_BUNDLE = """
import sys, numpy as np, edgekd
with edgekd.load(sys.argv[1]) as engine:
    feeds = {spec.name: np.zeros([3, *spec.shape[1:]], np.float32) for spec in engine.inputs}
    assert engine.run(feeds)["logits"].shape == (3, 10)
    assert set(engine.predict(feeds)) <= set("0123456789")
    found = engine.verify()
    assert found.ok and found.flips == 0, found
print(*(name for name in ("torch", "onnx", "msgspec", "click", "rich") if name in sys.modules))
"""


def test_the_bundle_runs_and_verifies_without_torch(built, tmp_path):
    found = python("-c", RUN_BUNDLE, built.bundle, cwd=tmp_path)
    assert (found.returncode, found.stdout.strip(), found.stderr) == (0, "", "")


def test_the_bundle_holds_no_path_of_this_machine(built):
    for name in ("manifest.json", "ledger.json"):
        assert str(built.output.parent) not in (built.bundle / name).read_text()
    assert str(built.output.parent) not in (built.output / "report.json").read_text()


IDLE = """
import sys
from edgekd.cli import main
code = main(sys.argv[1:], standalone_mode=False)
heavy = [name for name in ("torch", "onnx", "onnxruntime", "scipy") if name in sys.modules]
print(code, *heavy, file=sys.stderr)
"""


def test_again_does_no_work_and_imports_nothing_heavy(built):
    before = outcome(built.cache), sha256(built.bundle / "manifest.json")
    found = python("-c", IDLE, *build_arguments("out", "cache"), cwd=built.output.parent)
    assert found.stderr.split() == ["None"]
    assert found.stdout.count("up to date") == len(STAGES)
    assert "started" not in found.stdout
    assert (outcome(built.cache), sha256(built.bundle / "manifest.json")) == before


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"gate__resamples": 300}, ["prune_check", "check", "missing", "judge", "details", "bundle", "verify"]),
        (
            {"gate__tau_fail": 0.9, "gate__tau_pass": 0.8},
            ["prune_check", "check", "judge", "details", "bundle", "verify"],
        ),
        ({"profile__iterations": 300}, ["profile", "bundle", "verify"]),
        ({"quantize__calibration": "entropy"}, [stage for stage in SHIPPING if stage != "agree"]),
        (
            {"prune__ratio": 0.5},
            ["preflight", *PREFLIGHT[2:], "prune", "prune_check", "export", "robustness", *SHIPPING],
        ),
        ({"robustness__noise": 0.5}, ["robustness", "robustness_shipped"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_key_runs_its_stage_and_those_after_it(cache, tmp_path, change, stages):
    found = edgekd(*build_arguments(tmp_path, cache, **change), "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert started(found.stdout) == stages
    assert events(found.stdout)[0] == {
        "event": "plan",
        "stages": [*PREFLIGHT[:3], "preflight_target cpu", *LEARNING, *(f"{stage} cpu" for stage in SHIPPING)],
    }
    assert [e["stage"].split()[0] for e in events(found.stdout) if e["event"] == "finish"] == list(STAGES)
    last = events(found.stdout)[-1]
    assert last["event"] == "report"
    assert last["report"] == json.loads((tmp_path / "report.json").read_text())


#: Limits that no pruned network keeps, and nothing that would repair it.
REJECTED = {
    "gate__tau_pass": 1e-7, "gate__tau_fail": 2e-7, "gate__structure": "strict", "gate__max_divergence": 1e-6,
    "prune__repair": "off", "quantize__repair": "off",
}  # fmt: skip


def test_a_build_that_the_gate_rejects(cache, tmp_path):
    found = edgekd(*build_arguments(tmp_path, cache, **REJECTED), cwd=tmp_path)
    assert found.returncode == 20
    (error,) = found.stderr.splitlines()
    assert error.startswith("error: the gate rejected the build: cpu: ")
    assert "Gram drift" in error
    assert "on the validation samples: Gram drift" in error
    assert "FAIL" in found.stdout
    assert sorted(path.name for path in (tmp_path / "cpu").iterdir()) == ["gram", "latency", "rejected"]
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "fail"
    refused = python("-c", "import sys, edgekd; edgekd.load(sys.argv[1])", tmp_path / "cpu" / "rejected", cwd=tmp_path)
    assert "BundleError" in refused.stderr
    assert "the gate rejected this bundle" in refused.stderr


def test_a_student_that_learned_nothing_is_rejected_and_not_repaired(cache, tmp_path):
    change = {"distill__epochs": 1, "distill__learning_rate": 1e-9, "robustness__measure": "false"}
    found = edgekd(*build_arguments(tmp_path, cache, **change), "--json", cwd=tmp_path)
    assert found.returncode == 20
    assert "the student learned nothing: its accuracy" in found.stderr
    ran = [*PREFLIGHT[2:], "distill", "prune", "prune_check", "export", *SHIPPING]
    assert started(found.stdout) == [stage for stage in ran if stage != "robustness_shipped"]
    (target,) = json.loads((tmp_path / "report.json").read_text())["targets"]
    assert "int8 was not repaired: the student learned nothing." in target["facts"]


def test_a_rejected_build_leaves_the_last_good_bundle_where_it_was(built, cache, tmp_path):
    shutil.copytree(built.output, tmp_path / "out")
    good = {path.name: path.read_bytes() for path in (tmp_path / "out" / "cpu" / "bundle").iterdir()}
    rejected = edgekd(*build_arguments("out", cache, **REJECTED), cwd=tmp_path)
    assert rejected.returncode == 20
    assert "(kept in out/cpu/rejected)" in rejected.stderr
    assert "the bundle of an earlier build is still in" in rejected.stdout
    folders = ["bundle", "gram", "latency", "rejected"]
    assert sorted(path.name for path in (tmp_path / "out" / "cpu").iterdir()) == folders
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "cpu" / "bundle").iterdir()} == good
    assert edgekd(*build_arguments("out", cache), cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "out" / "cpu").iterdir()) == ["bundle", "gram", "latency"]


def test_a_users_files_in_the_output_stay(cache, tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "thesis.txt").write_text("years of work")
    assert edgekd(*build_arguments(tmp_path, cache), cwd=tmp_path).returncode == 0
    assert (tmp_path / "cpu" / "thesis.txt").read_text() == "years of work"


def test_an_altered_bundle_is_written_again(built, cache, tmp_path):
    shutil.copytree(built.output, tmp_path / "out")
    engine = tmp_path / "out" / "cpu" / "bundle" / "probe.onnx"
    engine.write_bytes(engine.read_bytes()[:-1])
    assert edgekd(*build_arguments("out", cache), cwd=tmp_path).returncode == 0
    assert sha256(engine) == sha256(built.bundle / "probe.onnx")


def test_two_builds_at_once_share_one_cache(built, tmp_path):
    cache = copy_cache(built.cache, tmp_path / "cache", without=SHIPPING)
    with ExitStack() as running:
        processes = [
            running.enter_context(edgekd_begun(*build_arguments(tmp_path / name, cache), "--json", cwd=tmp_path))
            for name in ("one", "two")
        ]
        said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    work = [kind for stdout, _ in said for kind in started(stdout)]
    assert sorted(work) == sorted(SHIPPING), "each stage ran once, in one of them"
    engines = [sha256(tmp_path / name / "cpu" / "bundle" / "probe.onnx") for name in ("one", "two")]
    assert engines[0] == engines[1] == sha256(built.bundle / "probe.onnx")


def test_two_builds_at_once_into_one_output(built, cache, tmp_path):
    arguments = [*build_arguments(tmp_path / "out", cache), "--quiet"]
    with ExitStack() as running:
        processes = [running.enter_context(edgekd_begun(*arguments, cwd=tmp_path)) for _ in range(3)]
        said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert sha256(tmp_path / "out" / "cpu" / "bundle" / "manifest.json") == sha256(built.bundle / "manifest.json")


def test_two_targets_share_what_does_not_depend_on_them(cache, tmp_path):
    (tmp_path / "board.toml").write_text((ROOT / "targets" / "cpu.toml").read_text())
    arguments = build_arguments(tmp_path / "out", cache, profile__iterations=300)
    found = edgekd(*arguments, "--target=cpu", "--target=./board.toml", "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert not {"teacher", "distill", "prune", "export"} & set(started(found.stdout))
    report = events(found.stdout)[-1]["report"]
    assert [row["target"] for row in report["rows"]] == ["cpu", "board"]
    for name in ("cpu", "board"):
        manifest = json.loads((tmp_path / "out" / name / "bundle" / "manifest.json").read_text())
        assert (manifest["target"], manifest["runtime"]) == (name, "onnxruntime")


def test_two_opsets_are_two_exports_of_one_training(cache, tmp_path):
    text = (ROOT / "targets" / "cpu.toml").read_text()
    (tmp_path / "old.toml").write_text(text.replace("opset = 20", "opset = 18"))
    arguments = build_arguments(tmp_path / "out", cache, profile__iterations=300)
    found = edgekd(*arguments, "--target=cpu", "--target=./old.toml", "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    said = events(found.stdout)
    shipping = (f"{stage} {name}" for name in ("cpu", "old") for stage in SHIPPING)
    tried = (
        "preflight_export opset 18",
        "rehearsal",
        "rehearsal opset 18",
        "preflight_target cpu",
        "preflight_target old",
    )
    learning = [*LEARNING]
    learning.insert(LEARNING.index("export") + 1, "export opset 18")
    planned = [*PREFLIGHT[:2], *tried, *learning, *shipping]
    assert said[0]["stages"] == planned
    assert [event["stage"] for event in said if event["event"] == "finish"] == planned
    assert [stage["name"] for stage in said[-1]["report"]["stages"]] == planned


REFUSING = """
from edgekd.errors import ModelError

def open_engine(engine, threads, name, **options):
    raise ModelError(f"{name}: this library has no node 'head.3'")
"""


def test_a_target_that_refuses_ends_alone_and_the_others_are_published(cache, tmp_path):
    text = (ROOT / "targets" / "cpu.toml").read_text()
    arguments = build_arguments(tmp_path / "out", cache)
    (tmp_path / "odd.toml").write_text(text)
    assert edgekd(*arguments, "--target=./odd.toml", cwd=tmp_path).returncode == 0
    manifest = tmp_path / "out" / "odd" / "bundle" / "manifest.json"
    earlier = manifest.read_bytes()
    (tmp_path / "refusing.py").write_text(REFUSING)
    (tmp_path / "odd.toml").write_text(text.replace('runtime = "onnxruntime"', 'runtime = "refusing.py:open_engine"'))
    found = edgekd(*arguments, "--target=cpu", "--target=./odd.toml", "--json", cwd=tmp_path)
    assert found.returncode == 22, found.stderr
    assert found.stderr == "error: odd refused, for the reason above; published: cpu\n"
    (refused,) = [event for event in events(found.stdout) if event["event"] == "refuse"]
    assert refused["target"] == "odd"
    assert "this library has no node 'head.3' of module 'head.3'" in refused["reason"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["target"] for row in report["rows"]] == ["cpu"]
    assert report["refused"] == {"odd": refused["reason"]}
    assert (tmp_path / "out" / "cpu" / "bundle" / "manifest.json").is_file()
    assert manifest.read_bytes() == earlier
    assert "quantize odd" not in {event.get("stage") for event in events(found.stdout)}
    alone = edgekd(*arguments, "--target=./odd.toml", cwd=tmp_path)
    assert (alone.returncode, alone.stderr.startswith("error: ")) == (8, True)
    settings = [argument for argument in arguments if str(argument).startswith("--set=")]
    both = ("--target=cpu", "--target=./odd.toml")
    checked = edgekd("check", "--recipe", "digits", "--cache", cache, *settings, *both, cwd=tmp_path)
    assert checked.returncode == 22, checked.stderr
    assert "REFUSED  odd" in checked.stdout


def quick_recipe(overrides=()):
    return load_recipe("digits", (*(f"{key}={value}" for key, value in SETTINGS.items()), *overrides))


def test_no_target(tmp_path):
    with pytest.raises(TargetError, match="no target given"):
        build(load_recipe("digits"), [], BuildPaths(tmp_path / "out", tmp_path / "cache"))


class Rounding(LocalDevice):
    """A device on which deploy.onnx gives other logits than probe.onnx, by a hair."""

    def describe(self, runtime):
        return {**super().describe(runtime), "rounds": "otherwise"}

    def evaluate(self, engine, runtime, inputs, outputs, threads, tell=None):
        super().evaluate(engine, runtime, inputs, outputs, threads)
        if engine.name == "deploy.onnx":
            with np.load(outputs) as arrays:
                logits = arrays["logits"]
            np.savez(outputs, logits=logits + np.float32(1e-3))


def test_the_gate_judges_what_is_shipped(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekd.devices.local.LocalDevice", Rounding)
    report = build(quick_recipe(), [load_target("cpu")], BuildPaths(tmp_path / "out", cache))
    assert report.targets[0].deploy_logit_error == pytest.approx(1e-3, rel=0.1)
    ran = max(cache.glob("evaluate-*/int8/outputs.npz"), key=lambda path: path.stat().st_mtime)
    with np.load(ran) as gated, np.load(ran.with_name("probe.onnx.npz")) as engine:
        assert np.allclose(gated["logits"], engine["logits"] + 1e-3, atol=1e-5)
        assert not np.array_equal(gated["logits"], engine["logits"])


def test_a_metric_that_is_not_a_number_fails_the_gate(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(LoadedTask, "metric", lambda *_: math.nan)
    monkeypatch.setattr(LoadedTask, "scoring", lambda *_: math.nan)
    in_order = Done("", tmp_path, Preflight(()))
    monkeypatch.setattr(trained_source, "check_task", lambda *_: in_order)  # it would refuse such a metric
    recipe = quick_recipe(("gate.resamples=250", "prune.repair=off", "quantize.repair=off"))
    report = build(recipe, [load_target("cpu")], BuildPaths(tmp_path / "out", cache))
    assert report.verdict == "fail"
    rejected = tmp_path / "out" / "cpu" / "rejected"
    with load(rejected, allow_rejected=True) as bundle:
        assert bundle.manifest.measurements["accuracy"] is None
    ledger = json.loads((rejected / "ledger.json").read_text())
    assert {row["metric"] for row in ledger["rows"]} == {None}
    judged = msgspec.convert(ledger_with_nan(ledger), Ledger)
    assert judged.reasons[0].startswith("the student's accuracy is not a number on these samples")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["verdict"] == "fail"
