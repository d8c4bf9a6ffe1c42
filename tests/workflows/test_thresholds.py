import json
import re
from dataclasses import replace

import msgspec
import numpy as np
import onnx
import pytest
import tomllib
from commands import stage_folder

from edgekd.cli.terminal.checks import print_alarm
from edgekd.compress.perturb import Perturbation, perturb, perturbations
from edgekd.config.recipe import GateConfig
from edgekd.errors import ModelError
from edgekd.gram.answers import compare_answers
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.limits import Suggestion
from edgekd.gram.npz import embeddings_of
from edgekd.gram.output_kind import MAX_DIVERGENCE, OutputKind
from edgekd.gram.probe import Probe, top1
from edgekd.gram.verdict import GateLimits
from edgekd.report.table import markdown
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.feeds import read_feeds
from edgekd.stages.metrics import accuracy
from edgekd.stages.progress import Silent, StageReporter
from edgekd.workflows import thresholds
from edgekd.workflows.threshold_table import alarm_table, recipe_lines
from edgekd.workflows.thresholds import Alarm, AlarmSamples, measure_alarm

LIMITS = GateLimits(tau_pass=0.005, tau_fail=0.02, max_flips=0.03, max_metric_drop=0.015)
REPORT = StageReporter(Silent(), "alarm")
VIEWS = ["fou", "mor", "zer"]
CLASSES = {"logits": OutputKind()}
FEW = (Perturbation("rounding", 3), Perturbation("noise", 0.2, "fou"), Perturbation("rounding", 3, "fusion"))


@pytest.fixture(scope="module")
def exported(built):
    return stage_folder(built.cache, "export")


@pytest.fixture(scope="module")
def alarm(exported):
    """The alarm of a student of real digits, four epochs old."""
    graph, samples = exported / "student.onnx", exported / "test.npz"
    given = AlarmSamples(samples, accuracy, modalities=VIEWS)
    return measure_alarm(graph, given, LIMITS, REPORT, perturbations(VIEWS, repeats=2))


def measure(exported, metric=accuracy, limits=LIMITS, samples=None, kinds=CLASSES, modalities=VIEWS):
    given = AlarmSamples(samples or exported / "test.npz", metric, kinds, modalities)
    return measure_alarm(exported / "student.onnx", given, limits, REPORT, FEW)


def arrays(exported, **changes):
    with np.load(exported / "test.npz") as archive:
        return {**archive, **changes}


def test_each_limit_lets_few_of_the_lost_through(alarm):
    assert list(alarm.limits) == ["max_divergence", "max_flips", "max_missing_flips", "tau_fail", "tau_pass"]
    for name, found in alarm.limits.items():
        assert found.now > 0, name
        tally = found.at_suggested or found.at_now
        assert tally.missed <= 0.1 * tally.lost, name
        assert 0 < tally.kept < len(alarm.outcomes), name
    decided = [found.suggestion.limit for found in alarm.limits.values() if found.at_suggested]
    assert len(decided) >= 3
    assert min(decided) > 0


def test_a_divergence_that_is_suggested_refuses_fewer_than_the_drift(alarm):
    divergence, drift = (alarm.limits[name].at_suggested for name in ("max_divergence", "tau_fail"))
    assert divergence.refused / divergence.kept < drift.refused / drift.kept


def test_drift_is_blind_to_the_fusion_and_divergence_is_not(alarm):
    fusion = [outcome for outcome in alarm.outcomes if outcome.perturbation.where == "fusion"]
    assert {outcome.drift for outcome in fusion} == {0.0}
    assert max(outcome.divergence for outcome in fusion) > 0.02
    assert alarm.limits["tau_fail"].at_now.lost < alarm.limits["max_divergence"].at_now.lost


def test_limits_together_miss_no_more_than_any_of_them(alarm):
    alone = [alarm.limits[name].at_now for name in ("max_divergence", "max_flips")]
    assert alarm.together.missed <= min(tally.missed for tally in alone)
    assert alarm.together.refused >= max(tally.refused for tally in alone)
    assert alarm.suggested_together.lost == alarm.together.lost


def test_the_grid_reaches_from_harmless_to_fatal(alarm):
    drifts = sorted(outcome.drift for outcome in alarm.outcomes if outcome.perturbation.where == "network")
    assert drifts[0] < 0.005
    assert drifts[-1] > 0.05


def test_figures_are_those_of_the_ledger(exported):
    found = measure(exported)
    rounded = onnx.load(exported / "student.onnx")
    damaged = perturb(rounded, FEW[0])

    def probe(graph):
        with open_engine(graph.SerializeToString(), fused=False) as session:
            outputs = session.run(read_feeds(exported / "test.npz", session.inputs))
        return Probe(arrays(exported)["ids"], {"logits": outputs["logits"]}, embeddings_of(outputs))

    exact, broken = probe(rounded), probe(damaged)
    outcome = found.outcomes[0]
    assert outcome.drift == pytest.approx(measure_drift(broken, exact, None, Bootstrap(resamples=1)).mean, rel=1e-6)
    assert outcome.flips == (top1(exact.answer) != top1(broken.answer)).mean()
    answers = compare_answers(broken, exact, "logits", OutputKind(), None, Bootstrap(resamples=1))
    assert outcome.divergence == pytest.approx(answers.divergence.mean, rel=1e-6)
    labels = arrays(exported)["labels"]
    assert found.metric == accuracy(exact.answer, labels)
    assert outcome.loss == pytest.approx(found.metric - accuracy(broken.answer, labels))
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
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "of_classes"))
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["logits", "of_classes"], ["score"], keepdims=1))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("score", 1, ["rows", 1]))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"logits": "inner", "score": "logits"}.get(name, name) for name in names]
    model.graph.output[0].name = "logits"
    onnx.save(model, tmp_path / "score.onnx")
    with pytest.raises(
        ModelError, match=r"test\.npz: has no labels for a metric, and .*score\.onnx is 'regression', which"
    ):
        measure_alarm(
            tmp_path / "score.onnx",
            AlarmSamples(exported / "test.npz", None, {"logits": OutputKind("regression")}),
            LIMITS,
            REPORT,
            FEW,
        )


def test_samples_of_another_network_are_refused(exported, tmp_path):
    content = arrays(exported)
    del content["input.mor"]
    np.savez(tmp_path / "samples.npz", **content)
    with pytest.raises(ModelError, match=r"samples\.npz: has no array 'input\.mor'"):
        measure(exported, samples=tmp_path / "samples.npz")


def test_what_is_no_graph_is_refused(exported, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"broken\.onnx: ONNX Runtime cannot open it"):
        measure_alarm(tmp_path / "broken.onnx", AlarmSamples(exported / "test.npz", accuracy), LIMITS, REPORT, FEW)


def test_progress_is_reported(exported):
    told = []

    class Listener(Silent):
        def advance(self, stage, done, total, note):
            told.append((stage, done, total))

    samples = AlarmSamples(exported / "test.npz", None)
    measure_alarm(exported / "student.onnx", samples, LIMITS, StageReporter(Listener(), "alarm"), FEW)
    assert told == [("alarm", 1, 3), ("alarm", 2, 3), ("alarm", 3, 3)]


def test_a_modality_is_absent_in_both_networks_and_the_worst_counts(exported):
    (outcome, noise, _) = measure(exported).outcomes
    content = arrays(exported)
    model = onnx.load(exported / "student.onnx")

    def logits(graph, name):
        absent = content[f"input.{name}"]
        over = tuple(axis for axis in range(absent.ndim) if axis != 1)
        feeds = {view: content[f"input.{view}"] for view in VIEWS}
        feeds[name] = np.broadcast_to(absent.mean(over, dtype=np.float64, keepdims=True), absent.shape)
        with open_engine(graph.SerializeToString(), fused=False) as session:
            return session.run({view: np.ascontiguousarray(x, np.float32) for view, x in feeds.items()})["logits"]

    pairs = [(logits(model, name), logits(perturb(model, FEW[0]), name)) for name in VIEWS]
    assert outcome.missing_flips == max((top1(a) != top1(b)).mean() for a, b in pairs)
    labels = content["labels"]
    assert outcome.missing_loss == pytest.approx(max(accuracy(a, labels) - accuracy(b, labels) for a, b in pairs))
    assert noise.missing_flips >= noise.flips / 2


def test_one_modality_alone_is_never_absent(exported):
    found = measure(exported, modalities=["fou"])
    assert {outcome.missing_flips for outcome in found.outcomes} == {None}
    assert "max_missing_flips" not in found.limits


def test_numbers_have_no_flips_and_the_limit_of_their_kind(exported):
    def closeness(outputs, labels):
        return -float(((outputs.argmax(1) - labels) ** 2).mean())

    found = measure(exported, closeness, kinds={"logits": OutputKind("regression")})
    assert list(found.limits) == ["max_divergence", "tau_fail", "tau_pass"]
    assert found.limits["max_divergence"].now == MAX_DIVERGENCE["regression"]


def test_a_recipes_own_limit_is_the_one_compared(exported):
    found = measure(exported, limits=replace(LIMITS, max_divergence=0.5))
    assert found.limits["max_divergence"].now == 0.5


def test_graphs_run_as_they_are_written(exported, monkeypatch):
    seen = []
    opened = thresholds.AS_WRITTEN.__class__.open

    def open_and_note(self, *arguments, **named):
        seen.append(self.options)
        return opened(self, *arguments, **named)

    monkeypatch.setattr(thresholds.AS_WRITTEN.__class__, "open", open_and_note)
    measure(exported)
    assert seen
    assert all(options == {"fused": False} for options in seen)


def test_few_samples_are_told_how_many_would_sharpen_the_limits(exported, tmp_path):
    content = {name: x[:60] for name, x in arrays(exported).items()}
    np.savez(tmp_path / "samples.npz", **content)
    few, many = measure(exported, samples=tmp_path / "samples.npz"), measure(exported)
    assert few.needed > 60
    assert many.needed is None or many.needed > 400


def test_an_alarm_survives_json(alarm):
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(alarm))), Alarm) == alarm


@pytest.mark.parametrize("metric", [accuracy, None], ids=["metric", "flips"])
def test_the_table_reads_well(exported, metric):
    found = measure(exported, metric)
    table = alarm_table(found)
    page = markdown(table)
    assert max(len(line) for line in page.splitlines() if line.startswith("|")) <= 84
    assert ("max_flips" in [row[0] for row in table.rows]) == (metric is not None)
    what = "0.015 of the metric lost" if metric else "0.03 of the answers changed"
    assert f"Of 3 ways to damage the float network, on 400 calibration samples; too much is more than {what}." in page
    assert "tau_fail is not decided: 2 perturbations, of which 61 or more are needed." in page
    assert recipe_lines(found) == []


def test_the_suggested_limits_are_a_recipes_gate(alarm):
    lines = recipe_lines(alarm)
    gate = msgspec.convert(tomllib.loads("\n".join(lines))["gate"], GateConfig)
    suggested = {name: found.suggestion.limit for name, found in alarm.limits.items()}
    assert lines[0] == "[gate]"
    assert gate.max_divergence == suggested["max_divergence"]
    assert gate.tau_fail == suggested["tau_fail"]
    assert gate.tau_pass <= gate.tau_fail
    assert max(map(len, lines)) <= 80


def test_a_tau_pass_above_the_recipes_tau_fail_is_not_printed(alarm):
    limits = alarm.limits
    undecided = replace(limits["tau_fail"], suggestion=Suggestion(None, "not decided"), now=0.01)
    high = replace(limits["tau_pass"], suggestion=Suggestion(0.03, ""))
    lines = recipe_lines(replace(alarm, limits={**limits, "tau_fail": undecided, "tau_pass": high}))
    assert tomllib.loads("\n".join(lines))["gate"]["tau_pass"] == 0.01


def test_the_terminal_holds_it_in_80_columns(alarm, capsys):
    print_alarm(alarm, width=80)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for name in (*alarm.limits, "together"):
        assert re.search(rf"^  {name} +[\d.]* +\d+/\d+ +\d+/\d+ ", said, re.MULTILINE), name
    assert "\n[gate]\nmax_divergence" in said
