import numpy as np
import onnx
import pytest
from broken import round_weights, scale_ranges
from fusion import MODALITIES, make_inputs
from int8 import int8, run
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress.blame import blame
from edgekd.compress.graph import save
from edgekd.compress.partial import SAMPLES, Examiner, SampleFacts, enough_samples
from edgekd.compress.switchboard import restore_float
from edgekd.gram.answers import compare_answers
from edgekd.gram.blame import AddedLatency
from edgekd.gram.drift import flips, measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe

FEEDS = make_inputs(200)
#: Ways to break one branch.
BREAK = {
    "2 bits": lambda *graphs: round_weights(*graphs, bits=2),
    "ranges too small": lambda *graphs: scale_ranges(*graphs, 0.2),
    "ranges too large": lambda *graphs: scale_ranges(*graphs, 30),
}


@pytest.fixture(scope="module")
def graphs(model, samples, tmp_path_factory):
    """Return QDQ and float graph."""
    return int8(model, samples, tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def found(graphs):
    return blame(Examiner(*graphs, [FEEDS]))


def probe(graph, feeds=FEEDS):
    outputs = run(graph, feeds)
    ids = np.arange(len(outputs["logits"])).astype(str)
    embeddings = {name.removeprefix("embedding."): z for name, z in outputs.items() if name != "logits"}
    return Probe(ids, {"logits": outputs["logits"]}, embeddings)


def accuracy(logits, labels):
    return float((logits.argmax(1) == labels).mean())


@pytest.mark.parametrize("branch", MODALITIES)
@pytest.mark.parametrize("how", BREAK)
def test_the_broken_branch_is_to_blame(graphs, found, branch, how):
    broken = blame(Examiner(BREAK[how](*graphs, branch), graphs[1], [FEEDS]))
    assert broken.quantized.divergence > 3 * found.quantized.divergence
    first, second, _ = broken.of("branch")
    assert (first.name, first.relief.rank, second.relief.rank) == (branch, 1, 2)
    assert first.relief.value > 0.7
    assert first.undone.divergence < 1.1 * found.quantized.divergence
    assert first.undone.drift < found.quantized.drift
    worst = broken.of("layer")[0]
    assert set(worst.tensors) & set(first.tensors)  # it may be the one that reads the branch's embedding
    of_kind = {suspect.name: suspect.relief.rank for suspect in broken.of("kind")}
    assert of_kind["weights" if how == "2 bits" else "activations"] == 1
    assert set(of_kind.values()) == {1, 2}


def test_of_many_layers_the_most_suspect_are_measured_and_no_less_well(graphs):
    broken = round_weights(*graphs, "motion", bits=2)
    steps = []
    every = blame(Examiner(broken, graphs[1], [FEEDS]))
    few = blame(Examiner(broken, graphs[1], [FEEDS]), None, lambda *step: steps.append(step), 3)
    assert len(few.of("layer")) == 3
    assert few.of("layer")[0].name == every.of("layer")[0].name
    assert few.of("branch") == every.of("branch")
    assert few.layers == every.layers
    measured = {suspect.name: suspect.undone for suspect in every.of("layer")}
    assert all(suspect.undone == measured[suspect.name] for suspect in few.of("layer"))
    assert steps == [(done, 7 + 3 + 3 + 2) for done in range(1, 16)]  # a look at seven; three layers, branches, kinds


def test_the_first_samples_alone(graphs):
    examiner = Examiner(*graphs, [{name: x[start : start + 64] for name, x in FEEDS.items()} for start in (0, 64, 128)])
    few, same = examiner.on_first(70), Examiner(*graphs, [{name: x[:70] for name, x in FEEDS.items()}])
    assert few.samples == 70
    assert few.measure().effect.error == pytest.approx(same.measure().effect.error, rel=1e-6)
    assert examiner.samples == 192


def test_a_branch_calibrated_on_the_other_modality_is_to_blame(model, found, tmp_path):
    wrong = FEEDS["image"].reshape(200, -1)[:, :96].reshape(FEEDS["motion"].shape)
    np.savez(tmp_path / "wrong.npz", **{"input.image": FEEDS["image"], "input.motion": wrong})
    broken = blame(Examiner(*int8(model, tmp_path / "wrong.npz", tmp_path / "work"), [FEEDS]))
    first, second, _ = broken.of("branch")
    assert (first.name, first.relief.rank, second.relief.rank) == ("motion", 1, 2)
    assert broken.quantized.drift > 10 * found.quantized.drift


def test_figures_are_those_of_the_gate(graphs, found):
    qdq, floats = graphs
    exact = probe(floats)
    for effect, graph in [
        (found.quantized, qdq),
        *((suspect.undone, restore_float(qdq, floats, suspect.tensors)) for suspect in found.suspects),
    ]:
        drift = measure_drift(probe(graph), exact, None, Bootstrap(resamples=200))
        answers = compare_answers(probe(graph), exact, "logits", OutputKind(), None, Bootstrap(resamples=200))
        assert effect.drift == pytest.approx(drift.mean, abs=1e-9)
        assert effect.worst_pair == drift.worst_pair
        assert effect.worst_pair_drift == pytest.approx(drift.worst_pair_mean, abs=1e-9)
        assert effect.flips == flips(probe(graph), exact)
        assert effect.divergence == pytest.approx(answers.divergence.mean, rel=1e-3)
        assert effect.error == pytest.approx(answers.error.mean, rel=1e-4)


def test_relief_is_the_share_of_the_loss_that_goes(found):
    whole = found.quantized
    assert found.kind == "classes"
    for suspect in found.suspects:
        left = suspect.undone.divergence / whole.divergence + suspect.undone.error / whole.error
        assert suspect.relief.value == pytest.approx(1 - left / 2)


def test_what_the_output_is_decides_how_its_loss_is_measured(graphs):
    exact, kind = probe(graphs[1]), OutputKind("regression")
    values = Examiner(*graphs, [FEEDS], SampleFacts(kinds={"logits": kind}))
    answers = compare_answers(probe(graphs[0]), exact, "logits", kind, None, Bootstrap(resamples=200))
    assert values.measure().effect.divergence == pytest.approx(answers.divergence.mean, rel=1e-3)
    assert blame(values).kind == "regression"


def test_eight_samples_find_the_layer_that_the_drift_does_not_see(graphs):
    broken = round_weights(*graphs, "fusion", bits=2)
    for start in range(0, 40, 8):
        found = blame(Examiner(broken, graphs[1], [{name: x[start : start + 8] for name, x in FEEDS.items()}]))
        assert [suspect.name for suspect in found.of("branch") if suspect.relief.rank == 1] == ["fusion"]
        assert found.of("branch")[0].undone.drift == found.quantized.drift


def test_a_float_network_has_nothing_to_relieve(graphs):
    qdq, floats = graphs
    examiner = Examiner(qdq, floats, [FEEDS])
    nothing = examiner.measure([item.tensor for item in examiner.board.tensors])
    assert (nothing.effect.divergence, nothing.effect.error) == (0, 0)
    assert nothing.loss(nothing).value == 0


def test_the_samples_of_many_layers_are_bounded():
    assert enough_samples(0) == enough_samples(8) == SAMPLES
    assert 48 * enough_samples(48) <= 2 * 8 * SAMPLES
    assert enough_samples(10_000) == 32


def test_alone_and_undone_share_the_network(graphs, found):
    """What one part alone does is what undoing all others leaves."""
    tensors = {name for branch in found.of("branch") for name in branch.tensors}
    for suspect in found.of("branch") + found.of("kind"):
        alone = probe(restore_float(*graphs, tensors.difference(suspect.tensors)))
        drift = measure_drift(alone, probe(graphs[1]), None, Bootstrap(resamples=200))
        assert suspect.alone.drift == pytest.approx(drift.mean, abs=1e-9)


def test_every_layer_is_there_once_and_drift_is_blind_to_the_fusion(found):
    layers = {layer.name: layer for layer in found.layers}
    assert sorted(suspect.name for suspect in found.of("layer")) == sorted(layers)
    assert len(layers) == 7
    for suspect in found.of("layer"):
        if layers[suspect.name].branch == "fusion":
            assert suspect.relief.value > 0
            assert suspect.alone.drift == 0
            assert suspect.alone.error > 0
            assert suspect.undone.snr_db > found.quantized.snr_db
    last = [layer for layer in found.layers if not layer.following]
    assert [layer.branch for layer in last] == ["fusion"]


def test_chunks_do_not_matter(graphs, found):
    chunks = [{name: x[start : start + 64] for name, x in FEEDS.items()} for start in range(0, 200, 64)]
    again = blame(Examiner(*graphs, chunks))
    assert again.samples == found.samples == 200
    assert [s.name for s in again.suspects] == [s.name for s in found.suspects]
    assert again.quantized.drift == pytest.approx(found.quantized.drift, rel=1e-4)


def test_the_metric_is_ranked_where_there_are_labels(graphs, found):
    labels = run(graphs[1], FEEDS)["logits"].argmax(1)
    broken = scale_ranges(*graphs, "motion", 0.05)
    higher = blame(Examiner(broken, graphs[1], [FEEDS], SampleFacts(labels, None, accuracy)))
    assert higher.quantized.metric == pytest.approx(1 - higher.quantized.flips)
    gains = {suspect.name: suspect.gain for suspect in higher.of("branch")}
    assert gains["motion"].value > 0.1
    assert (gains["motion"].rank, gains["image"].rank) == (1, 2)
    lower = blame(
        Examiner(
            broken, graphs[1], [FEEDS], SampleFacts(labels, None, lambda *x: 1 - accuracy(*x), higher_is_better=False)
        )
    )
    for one, other in zip(higher.suspects, lower.suspects, strict=True):
        assert other.gain.value == pytest.approx(one.gain.value)
        assert other.undone.metric == pytest.approx(1 - one.undone.metric)
    assert {suspect.gain for suspect in found.suspects} == {None}


def test_relief_for_time(graphs, found):
    worst, second = found.of("layer")[:2]
    times = {
        worst.name: AddedLatency(0.1, 0.08, 0.12),
        second.name: AddedLatency(0.001, 0.0005, 0.0015),
        found.of("layer")[2].name: AddedLatency(0.02, -0.01, 0.05),
    }
    told: list[tuple[int, int]] = []
    given = blame(Examiner(*graphs, [FEEDS]), lambda _: times, lambda *part: told.append(part))
    assert told[-1] == (len(found.suspects), len(found.suspects))
    layers = {suspect.name: suspect for suspect in given.of("layer")}
    assert layers[worst.name].relief_per_ms.value == pytest.approx(worst.relief.value / 0.1)
    assert layers[second.name].relief_per_ms.rank == 1
    assert layers[worst.name].relief_per_ms.rank == 2
    free, unknown = (layers[found.of("layer")[index].name] for index in (2, 3))
    assert (free.latency.value_ms, free.relief_per_ms) == (0.02, None)
    assert (unknown.latency, unknown.relief_per_ms) == (None, None)


def test_groups_widen_the_errors(graphs, found):
    groups = np.repeat(np.arange(4), 50)
    grouped = blame(Examiner(*graphs, [FEEDS], SampleFacts(groups=groups)))
    assert grouped.of("branch")[0].relief.value == found.of("branch")[0].relief.value
    assert grouped.of("branch")[0].relief.error != found.of("branch")[0].relief.error


def test_no_samples(graphs):
    with pytest.raises(ValueError, match="no samples"):
        Examiner(*graphs, [])


@pytest.fixture
def alone(tmp_path):
    """Return QDQ and float graph of one modality, whose embedding two layers read."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=(8, 8)).astype(np.float32) for name in "abc"}
    nodes = [
        make_node("MatMul", ["x", "a"], ["embedding.x"], "first"),
        make_node("Relu", ["embedding.x"], ["r"]),
        make_node("MatMul", ["r", "b"], ["s"], "second"),
        make_node("MatMul", ["r", "c"], ["t"], "third"),
        make_node("Mul", ["s", "t"], ["logits"]),
    ]
    ends = {
        name: make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("x", "logits", "embedding.x")
    }
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [ends.pop("x")], list(ends.values()), stored)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    feeds = {"x": random.normal(size=(100, 8)).astype(np.float32)}
    np.savez(tmp_path / "samples.npz", **{"input.x": feeds["x"]})
    return (*int8(tmp_path / "m.onnx", tmp_path / "samples.npz", tmp_path / "work"), feeds)


def test_one_modality_is_compared_within_itself(alone):
    qdq, floats, feeds = alone
    found = blame(Examiner(qdq, floats, [feeds]))
    drift = measure_drift(probe(qdq, feeds), probe(floats, feeds), None, Bootstrap(resamples=200))
    assert drift.scope == "intra"
    assert found.quantized.drift == pytest.approx(drift.mean, rel=1e-6)
    assert (found.quantized.worst_pair, drift.worst_pair) == ("x", "x")
    assert found.quantized.worst_pair_drift == pytest.approx(drift.worst_pair_mean, rel=1e-6)
    assert found.quantized.drift > 0
    assert [suspect.name for suspect in found.of("branch")] == ["x"]


def test_what_two_layers_read_goes_with_both(alone):
    qdq, floats, feeds = alone
    examiner = Examiner(qdq, floats, [feeds])
    assert "r" not in examiner.tensors_of(["second"]) | examiner.tensors_of(["third"])
    assert "r" in examiner.tensors_of(["second", "third"])
    tensors = {suspect.name: suspect.tensors for suspect in blame(examiner).of("layer")}
    assert tensors["second"] == ("b",), "float arithmetic alone reads what it gives, which is not rounded"
    undone = restore_float(qdq, floats, examiner.tensors_of(["first", "second", "third"]))
    assert {node.op_type for node in undone.graph.node} == {node.op_type for node in floats.graph.node}
    onnx.checker.check_model(undone, full_check=True)
