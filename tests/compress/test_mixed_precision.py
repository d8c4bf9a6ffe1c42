import itertools

import numpy as np
import onnx
import pytest
from broken import round_weights, scale_ranges
from chain import deep, inputs
from fusion import make_inputs
from int8 import int8, run

from edgekd.compress.mixed_precision import ALL_HARM, repair_steps, spare_steps
from edgekd.compress.partial import Examiner
from edgekd.gram.drift import flips, measure_drift
from edgekd.gram.gate import judge
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import GateLimits

FEEDS, UNSEEN = make_inputs(200), make_inputs(400, seed=1)
LIMITS = GateLimits(tau_pass=0.005, tau_fail=0.01, max_flips=0.05, max_metric_drop=1)


@pytest.fixture(scope="module")
def graphs(model, samples, tmp_path_factory):
    """Return QDQ and float graph."""
    return int8(model, samples, tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def gate(graphs):
    """Return what the gate says of a graph, on samples that the repair does not see."""

    def probe(graph):
        outputs = run(graph, UNSEEN)
        embeddings = {name.removeprefix("embedding."): z for name, z in outputs.items() if name != "logits"}
        return Probe(np.arange(400), outputs["logits"], embeddings)

    exact = probe(graphs[1])

    def gate(graph):
        found = probe(graph)
        drift = measure_drift(found, exact, None, Bootstrap(resamples=200))
        return judge(drift, flips(found, exact), None, LIMITS)[0]

    return gate


def branch_of(examiner, layer):
    return next(item.branch for item in examiner.board.tensors if item.kind == "weight" and layer in item.layers)


@pytest.mark.parametrize(
    ("breaks", "branch"),
    [
        (round_weights, "motion"),
        (lambda *graphs: scale_ranges(*graphs, 30), "motion"),
        (lambda *graphs: scale_ranges(*graphs, 30), "image"),
    ],
    ids=["3 bits", "ranges too large", "ranges too large, image"],
)
def test_what_was_broken_is_repaired_and_passes_the_gate(graphs, gate, breaks, branch):
    qdq, floats = graphs
    broken = breaks(qdq, floats, branch)
    assert gate(qdq) != "fail"
    assert gate(broken) == "fail"
    examiner = Examiner(broken, floats, [FEEDS])
    steps = list(repair_steps(examiner, gate))
    assert [step.verdict for step in steps[:-1]] == ["fail"] * (len(steps) - 1)
    assert steps[-1].verdict != "fail"
    assert branch in {branch_of(examiner, layer) for layer in steps[-1].layers}
    assert steps[-1].effect.drift < 2 * Examiner(qdq, floats, [FEEDS]).measure().effect.drift
    assert 0 < len(steps[-1].layers) <= 4
    onnx.checker.check_model(steps[-1].graph, full_check=True)


def test_each_step_is_what_its_graph_does(graphs):
    broken = round_weights(*graphs, "motion")
    examiner = Examiner(broken, graphs[1], [FEEDS])
    before = 2.0
    for step in repair_steps(examiner, lambda _: "fail"):
        again = Examiner(step.graph, graphs[1], [FEEDS])
        assert again.measure().effect == step.effect
        assert not again.tensors_of(step.layers)
        assert step.harm < before
        before = step.harm


def test_it_stops_when_most_layers_are_float(graphs):
    steps = list(repair_steps(Examiner(*graphs, [FEEDS]), lambda _: "fail"))
    assert len(steps[-1].layers) == 4  # of 7
    assert {step.verdict for step in steps} == {"fail"}
    # Layers that are float already count too.
    first = steps[0]
    more = list(repair_steps(Examiner(first.graph, graphs[1], [FEEDS]), lambda _: "fail"))
    assert len(first.layers) + len(more[-1].layers) == 4


def test_layers_of_a_branch_that_all_clip_are_returned_together(graphs, gate):
    examiner = Examiner(scale_ranges(*graphs, "motion", 0.05), graphs[1], [FEEDS])
    first = next(repair_steps(examiner, gate))
    assert first.name == "motion"
    assert {branch_of(examiner, layer) for layer in first.layers} == {"motion"}
    assert len(first.layers) == 2


def test_the_fusion_is_repaired_though_drift_does_not_see_it(graphs):
    broken = round_weights(*graphs, "fusion")
    examiner = Examiner(broken, graphs[1], [FEEDS])
    first = next(repair_steps(examiner, lambda _: "pass"))
    assert branch_of(examiner, first.layers[0]) == "fusion"
    assert first.effect.drift == examiner.measure().effect.drift
    assert first.effect.snr_db > examiner.measure().effect.snr_db + 3


def test_time_decides_where_layers_mend_alike(graphs):
    examiner = Examiner(round_weights(*graphs, "motion"), graphs[1], [FEEDS])
    dear, *_ = (step.layers[0] for step in repair_steps(examiner, lambda _: "pass"))
    names = {layer for item in examiner.board.tensors for layer in item.layers}
    latency_ms = dict.fromkeys(names, 0.001) | {dear: 10.0}
    first = next(repair_steps(examiner, lambda _: "pass", latency_ms))
    assert dear not in first.layers
    # One of unknown time counts as the dearest.
    del latency_ms[dear]
    latency_ms[next(iter(names - {dear, *first.layers}))] = 10.0
    assert dear not in next(repair_steps(examiner, lambda _: "pass", latency_ms)).layers


def test_layers_that_nobody_asks_for_go_in_the_order_of_their_worth(graphs):
    examiner = Examiner(*graphs, [FEEDS])
    names = sorted({layer for item in examiner.board.tensors for layer in item.layers})
    free, dear = names[:3], names[3:]
    steps = list(spare_steps(examiner, dict.fromkeys(free, -0.01) | dict.fromkeys(dear, 0.01)))
    assert set(steps[0].layers) <= set(free)
    assert steps[0].harm < ALL_HARM
    assert {step.verdict for step in steps} == {None}
    sizes = [len(step.layers) for step in steps]
    assert all(before < after for before, after in itertools.pairwise(sizes))
    assert sizes[-1] == len(names) - 1, "the last stays, or it would be the float network"


def test_in_a_deep_network_only_the_first_layers_that_nobody_asks_for_are_looked_at(tmp_path):
    examiner = Examiner(*deep(tmp_path, depth=16), [{"image": inputs(4, seed=2)}])
    assert len(list(spare_steps(examiner, {}))) == 12


def test_shuffled_pairs_in_calibration_do_no_harm_but_the_gate_sees_them_in_a_probe(model, graphs, tmp_path):
    """Ranges are of single tensors: only those behind the fusion depend on which samples stand together."""
    shuffled = {"input.image": FEEDS["image"], "input.motion": np.roll(FEEDS["motion"], 1, 0)}
    np.savez(tmp_path / "shuffled.npz", **shuffled)
    straight = Examiner(*graphs, [FEEDS])
    other = Examiner(*int8(model, tmp_path / "shuffled.npz", tmp_path / "work"), [FEEDS])
    moved = {
        item.branch
        for item in straight.board.tensors
        if item.kind == "activation" and straight.board.scales[item.tensor][0] != other.board.scales[item.tensor][0]
    }
    assert moved == {"fusion"}
    assert other.measure().effect.drift == straight.measure().effect.drift

    outputs = run(graphs[1], UNSEEN)
    embeddings = {name: outputs[f"embedding.{name}"] for name in ("image", "motion")}
    exact = Probe(np.arange(400), outputs["logits"], embeddings)
    rolled = Probe(np.arange(400), outputs["logits"], {**embeddings, "motion": np.roll(embeddings["motion"], 1, 0)})
    drift = measure_drift(rolled, exact, None, Bootstrap(resamples=200))
    verdict, reasons = judge(drift, 0.0, None, LIMITS)
    assert verdict == "fail"
    assert "image-motion" in reasons[0]
