import json
from dataclasses import replace

import msgspec
import numpy as np
import onnx
import pytest
from commands import stage_folder

from edgekd.compress.perturb import Perturbation, perturb, perturbations
from edgekd.errors import ModelError
from edgekd.gram.answers import OutputKind
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe, top1
from edgekd.gram.verdict import GateLimits
from edgekd.report.table import markdown
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.feeds import read_feeds
from edgekd.stages.labels import accuracy
from edgekd.stages.progress import Silent, StageReporter
from edgekd.workflows.thresholds import Alarm, Bin, alarm_table, measure_alarm, summarize

LIMITS = GateLimits(tau_pass=0.005, tau_fail=0.02, max_flips=0.03, max_metric_drop=0.015)
REPORT = StageReporter(Silent(), "alarm")
VIEWS = ["fou", "mor", "zer"]
FEW = (Perturbation("rounding", 3), Perturbation("noise", 0.2, "fou"), Perturbation("rounding", 3, "fusion"))


@pytest.fixture(scope="module")
def exported(built):
    return stage_folder(built.cache, "export")


@pytest.fixture(scope="module")
def alarm(exported):
    """The alarm of a student of real digits, four epochs old."""
    graph, samples = exported / "student.onnx", exported / "test.npz"
    return measure_alarm(graph, samples, accuracy, LIMITS, REPORT, perturbations(VIEWS, repeats=2))


def measure(exported, metric=accuracy, grid=FEW, samples=None, limits=LIMITS):
    return measure_alarm(exported / "student.onnx", samples or exported / "test.npz", metric, limits, REPORT, grid)


def arrays(exported, **changes):
    with np.load(exported / "test.npz") as archive:
        return {**archive, **changes}


def test_drift_tells_of_flips_and_of_loss(alarm):
    assert alarm.drift_to_flips > 0.8
    assert alarm.drift_to_loss > 0.3
    shares = [found.lost / found.count for found in alarm.bins if found.count]
    assert shares[0] < 0.1
    assert shares[-1] > 0.8


def test_drift_is_blind_to_the_fusion_and_flips_are_not(alarm):
    assert {outcome.drift for outcome in alarm.fusion} == {0.0}
    assert max(outcome.flips for outcome in alarm.fusion) > LIMITS.max_flips
    assert all(outcome.perturbation.where != "fusion" for outcome in alarm.outcomes)


def test_the_grid_reaches_from_harmless_to_fatal(alarm):
    drifts = sorted(outcome.drift for outcome in alarm.outcomes if outcome.perturbation.where == "network")
    assert drifts[0] < 0.005
    assert drifts[-1] > 0.05


def test_figures_are_those_of_the_ledger(exported):
    found = measure(exported)
    rounded = onnx.load(exported / "student.onnx")
    damaged = perturb(rounded, FEW[0])

    def probe(graph):
        with open_engine(graph.SerializeToString()) as session:
            outputs = session.run(read_feeds(exported / "test.npz", session.inputs))
        return Probe(arrays(exported)["ids"], outputs["logits"], {n: outputs[f"embedding.{n}"] for n in VIEWS})

    exact, broken = probe(rounded), probe(damaged)
    outcome = found.outcomes[0]
    assert outcome.drift == pytest.approx(measure_drift(broken, exact, None, Bootstrap(resamples=1)).mean, rel=1e-6)
    assert outcome.flips == (top1(exact.logits) != top1(broken.logits)).mean()
    labels = arrays(exported)["labels"]
    assert found.metric == accuracy(exact.logits, labels)
    assert outcome.loss == pytest.approx(found.metric - accuracy(broken.logits, labels))
    assert found.samples == 400


def test_a_metric_of_which_less_is_better(exported):
    def errors(logits, labels):
        return 1 - accuracy(logits, labels)

    found = measure(exported, errors, limits=replace(LIMITS, higher_is_better=False))
    assert [o.loss for o in found.outcomes] == pytest.approx([o.loss for o in measure(exported).outcomes])


@pytest.mark.parametrize("labels", ["no metric", "none", "not given"])
def test_without_labels_flips_stand_in(exported, tmp_path, labels):
    content = arrays(exported)
    if labels == "none":
        content["labels"] = np.full_like(content["labels"], -100)
    if labels == "not given":
        del content["labels"]
    np.savez(tmp_path / "samples.npz", **content)
    found = measure(exported, None if labels == "no metric" else accuracy, samples=tmp_path / "samples.npz")
    assert (found.judged_by, found.max_loss, found.metric) == ("flips", LIMITS.max_flips, None)
    assert [o.loss for o in found.outcomes] == [o.flips for o in found.outcomes]


def test_what_is_no_classifier_needs_labels(exported, tmp_path):
    model = onnx.load(exported / "student.onnx")
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["logits"], ["score"], keepdims=1))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("score", 1, ["rows", 1]))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"logits": "inner", "score": "logits"}.get(name, name) for name in names]
    model.graph.output[0].name = "logits"
    onnx.save(model, tmp_path / "score.onnx")
    with pytest.raises(
        ModelError, match=r"test\.npz: has no labels for a metric, and .*score\.onnx is 'values', which"
    ):
        measure_alarm(tmp_path / "score.onnx", exported / "test.npz", None, LIMITS, REPORT, FEW, OutputKind("values"))


def test_samples_of_another_network_are_refused(exported, tmp_path):
    content = arrays(exported)
    del content["input.mor"]
    np.savez(tmp_path / "samples.npz", **content)
    with pytest.raises(ModelError, match=r"samples\.npz: has no array 'input\.mor'"):
        measure(exported, samples=tmp_path / "samples.npz")


def test_what_is_no_graph_is_refused(exported, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"broken\.onnx: ONNX Runtime cannot open it"):
        measure_alarm(tmp_path / "broken.onnx", exported / "test.npz", accuracy, LIMITS, REPORT, FEW)


def test_progress_is_reported(exported):
    told = []

    class Listener(Silent):
        def advance(self, stage, done, total, note):
            told.append((stage, done, total))

    measure_alarm(
        exported / "student.onnx", exported / "test.npz", None, LIMITS, StageReporter(Listener(), "alarm"), FEW
    )
    assert told == [("alarm", 1, 3), ("alarm", 2, 3), ("alarm", 3, 3)]


def test_bins_are_closed_below_and_open_above(alarm):
    (outcome, *_) = alarm.outcomes
    drifts = (0.0, 0.005, 0.0099, 0.01, 0.1, 0.7)
    outcomes = [replace(outcome, drift=drift, loss=0.02) for drift in drifts]
    found = summarize(outcomes, LIMITS, 0.9, 400)
    assert [b.count for b in found.bins] == [1, 2, 1, 0, 0, 0, 2]
    assert found.bins[1] == Bin(0.005, 0.01, 2, 2)
    assert (found.bins[0].low, found.bins[-1].high) == (0.0, None)


def test_an_alarm_survives_json(alarm):
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(alarm))), Alarm) == alarm


@pytest.mark.parametrize("metric", [accuracy, None], ids=["metric", "flips"])
def test_the_table_reads_well(exported, metric):
    found = measure(exported, metric)
    table = alarm_table(found)
    page = markdown(table)
    assert max(len(line) for line in page.splitlines() if line.startswith("|")) <= 84
    assert table.columns[-1].name == ("metric drop > 0.015" if metric else "flips > 0.03")
    assert "none there" in page  # an empty bin is not one where nothing was lost
    assert "tau_fail not decided: 2 perturbations, of which 61 or more are needed." in page
    assert "The fusion alone, which drift does not see: 1 of 1 perturbations lost as much." in page
