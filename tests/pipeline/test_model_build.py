"""`edgekd build --model`: a trained ONNX network, without PyTorch, by the real command line."""

import numpy as np
import pytest
from commands import edgekd, events, stage_folder, started

from edgekd import load
from edgekd.compress.graph import drop_embeddings

QUICK = ("--set=profile.iterations=200", "--set=profile.warmup=20", "--set=profile.cold_starts=1")


def arguments(*more, model="digits.onnx", calibration="samples.npz"):
    return ["build", "--model", model, "--calibration", calibration, "--cache", "cache", *QUICK, *more]


@pytest.fixture(scope="module")
def folder(built, tmp_path_factory):
    """A network as users have it: the float student of a finished build, its logits alone, and real samples."""
    folder, exported = tmp_path_factory.mktemp("model"), stage_folder(built.cache, "export")
    drop_embeddings(exported / "student.onnx", folder / "digits.onnx")
    drop_embeddings(stage_folder(built.cache, "quantize") / "int8" / "probe.onnx", folder / "int8.onnx")
    with np.load(exported / "test.npz") as arrays:
        samples = {key.removeprefix("input."): arrays[key] for key in arrays.files}
    np.savez(folder / "samples.npz", **samples)
    np.savez(folder / "unlabelled.npz", **{key: x for key, x in samples.items() if key != "labels"})
    np.savez(folder / "short.npz", fou=samples["fou"], mor=samples["mor"])
    (folder / "text.onnx").write_text("not a graph", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def imported(folder):
    process = edgekd(*arguments("--json"), cwd=folder)
    assert process.returncode == 0, process.stderr
    return process


def test_a_model_is_quantized_checked_profiled_and_bundled(imported, folder):
    report = events(imported.stdout)[-1]["report"]
    (target,) = report["targets"]
    stages = [row["stage"] for row in target["ledger"]["rows"]]
    assert (stages[0], stages[-1]) == ("float", "device")
    assert target["ledger"]["reference"] == "float"
    row = report["rows"][0]
    assert row["metric"]["name"] == "accuracy"
    assert row["gram"]["scope"] == "sample"
    assert row["latency_ms"]["p50"] > 0
    assert {"int8", "float32"} <= {one["name"] for one in target["candidates"]}
    with load(folder / "build" / "digits" / "cpu" / "bundle") as bundle, np.load(folder / "samples.npz") as samples:
        feeds = {spec.name: samples[spec.name][:5] for spec in bundle.inputs}
        assert bundle.run(feeds)["logits"].shape == (5, 10)
        assert bundle.verify().ok


def test_the_taps_are_where_the_inputs_meet_and_are_shown(imported):
    (imported,) = [event for event in events(imported.stdout) if event.get("stage") == "import" and "summary" in event]
    for name in ("fou", "mor", "zer"):
        assert f"{name} at " in imported["summary"]


def test_a_finished_build_is_up_to_date_and_needs_no_torch(imported, folder):
    again = edgekd(*arguments("--json"), cwd=folder)
    assert started(again.stdout) == []


def test_without_labels_the_metric_is_not_measured_and_flips_gate(folder):
    process = edgekd(*arguments("--json", "--kind", "classes", calibration="unlabelled.npz"), cwd=folder)
    assert process.returncode == 0, process.stderr
    report = events(process.stdout)[-1]["report"]
    last = report["targets"][0]["ledger"]["rows"][-1]
    assert last["metric"] is None
    answers = last["answers"]["logits"]
    assert (answers["kind"], answers["changed"] is not None) == ("classes", True)
    assert set(last["missing"]) == {"fou", "mor", "zer"}
    assert report["rows"][0]["not_measured"]["metric.shipped"] == "not measured: there are no labels"


def test_what_is_called_logits_is_of_classes_without_labels_too_and_the_user_is_told(folder):
    process = edgekd(*arguments("--json", calibration="unlabelled.npz"), cwd=folder)
    assert process.returncode == 0, process.stderr
    said = [event["message"] for event in events(process.stdout) if event["event"] == "warn"]
    assert any("taken for 'classes', since its name says 'logits'; --kind says otherwise" in words for words in said)
    (done,) = [event for event in events(process.stdout) if event.get("stage") == "import" and "summary" in event]
    assert done["summary"].startswith("logits: classes (its name says 'logits'); taps:")


def test_numbers_decide_nothing_and_the_user_is_told(folder):
    process = edgekd(*arguments("--json", "--kind", "regression", calibration="unlabelled.npz"), cwd=folder)
    assert process.returncode == 0, process.stderr
    target = events(process.stdout)[-1]["report"]["targets"][0]
    last = target["ledger"]["rows"][-1]
    answers = last["answers"]["logits"]
    assert (answers["kind"], answers["changed"], last["missing"]) == ("regression", None, {})
    assert any("decide nothing without a threshold" in fact for fact in target["facts"])


def test_the_report_of_a_model_reads_well(folder, imported):
    process = edgekd(*arguments(), cwd=folder)
    assert process.returncode == 0, process.stderr
    assert "  float   " in process.stdout
    assert "teacher" not in process.stdout
    (page,) = folder.rglob("report.md")
    assert "Not measured: a model that is imported has no training split" in page.read_text()


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--model", "no.onnx"], 8, "no.onnx: no such file"),
        (["--calibration", "no.npz"], 8, "no.npz: no such file"),
        (["--model", "text.onnx"], 8, "text.onnx"),
        (["--model", "int8.onnx"], 8, "or --as-is (as_is in [model])"),
        (["--model", "int8.onnx", "--reference", "digits.onnx"], 2, "--reference is for --as-is"),
        (["--as-is", "--reference", "no.onnx"], 8, "no.onnx: no such file"),
        (["--set", "model.reference=digits.onnx"], 3, "set model.as_is"),
        (["--calibration", "short.npz"], 8, "'zer'"),
        (["--tap", "fou"], 2, "write it as NAME=TENSOR"),
        (["--state", "fou"], 2, "write it as IN=OUT, or --state none alone"),
        (["--state", "none", "--state", "fou=logits"], 2, "--state none: write it as IN=OUT"),
        (["--state", "fou=logits"], 8, "what is carried has one type and one size"),
        (["--fix", "fou=often"], 2, "write it as INPUT=NUMBER"),
        (["--fix", "fuo=1"], 4, "the model has no input 'fuo'; did you mean 'fou'"),
        (["--tap", "fou=no_such_tensor"], 4, "no_such_tensor"),
        (["--metric", "nowhere.py:mine"], 4, "nowhere.py cannot be imported"),
        (["--kind", "scores"], 2, "'scores' is not one of 'auto', 'classes'"),
        (
            ["--kind", "classes", "--threshold", "0.5"],
            8,
            "threshold = 0.5 is for 'multilabel', 'regression' and 'custom'",
        ),
        (["--recipe", "digits"], 2, "give --model or --recipe, not both"),
        (["--set", "task.name=digits"], 3, "either a [task] to train for or a [model]"),
        (["--set", "model.outptu=x"], 3, "did you mean 'outputs'?"),
    ],
)
def test_what_is_wrong_with_a_model_is_said_in_one_line(folder, more, code, words):
    process = edgekd(*arguments(*more), cwd=folder)
    assert process.returncode == code, process.stderr
    assert words in process.stderr
    assert "Traceback" not in process.stderr


def test_int8_is_built_as_it_is_beside_the_float_network(folder):
    more = ("--as-is", "--reference", "digits.onnx", "--output", "as-is")
    process = edgekd(*arguments("--json", *more, model="int8.onnx"), cwd=folder)
    assert process.returncode == 0, process.stderr
    (target,) = events(process.stdout)[-1]["report"]["targets"]
    assert [row["stage"] for row in target["ledger"]["rows"]] == ["float", "as is", "device"]
    assert [(one["name"], one["precision"]) for one in target["candidates"]] == [("as-is", "int8")]
    assert not any(name.startswith("quantize") for name in started(process.stdout))
    assert {engine["name"] for engine in target["profile"]["engines"]} == {"float", "shipped"}
    shipped = folder / "as-is" / "cpu" / "bundle" / "deploy.onnx"
    assert shipped.read_bytes() == (folder / "int8.onnx").read_bytes()


def test_a_model_needs_calibration_samples(folder):
    process = edgekd("build", "--model", "digits.onnx", cwd=folder)
    assert process.returncode == 2
    assert "--model needs --calibration" in process.stderr


def test_a_recipe_can_name_the_model(folder, imported):
    text = '[model]\npath = "digits.onnx"\ncalibration = "samples.npz"\n'
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    process = edgekd("build", "--recipe", "mine.toml", "--cache", "cache", "--json", *QUICK, cwd=folder)
    assert process.returncode == 0, process.stderr
    assert "import" not in started(process.stdout)
