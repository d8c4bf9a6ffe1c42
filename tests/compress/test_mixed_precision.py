import itertools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from broken import round_weights, scale_ranges
from chain import deep, inputs
from fusion import make_inputs
from int8 import int8, run

from edgekd.compress.blame import blame
from edgekd.compress.mixed_precision import ALL_HARM, repair_steps, spare_steps
from edgekd.compress.partial import Examiner
from edgekd.gram.answers import compare_answers
from edgekd.gram.blame import AddedLatency
from edgekd.gram.drift import measure_drift
from edgekd.gram.gate import GateRules, judge
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import GateLimits, Measured

FEEDS, UNSEEN = make_inputs(200), make_inputs(400, seed=1)
#: The structure counts by itself: nobody trained the network, so that its output hardly depends on what is broken.
LIMITS = GateLimits(tau_pass=0.005, tau_fail=0.01, max_flips=0.05, max_metric_drop=1, structure="strict")
RULES = GateRules("accuracy", LIMITS, Bootstrap(resamples=200), {"logits": OutputKind()})


def verdict_on(found, exact):
    """Return the gate's verdict of a network's outputs beside the float network's, and the reasons."""
    answers = compare_answers(found, exact, "logits", RULES.kinds["logits"], None, RULES.bootstrap)
    return judge(Measured({"logits": answers}, None, measure_drift(found, exact, None, RULES.bootstrap)), RULES)[:2]


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
        return Probe(np.arange(400), {"logits": outputs["logits"]}, embeddings)

    exact = probe(graphs[1])

    def gate(graph):
        return verdict_on(probe(graph), exact)[0]

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
    before = ALL_HARM
    for step in repair_steps(examiner, lambda _: "fail"):
        again = Examiner(step.graph, graphs[1], [FEEDS])
        assert again.measure().effect == step.effect
        assert not again.tensors_of(step.layers)
        assert step.harm < before
        before = step.harm


def test_it_stops_when_most_layers_are_float_and_more_gain_little(graphs):
    steps = list(repair_steps(Examiner(*graphs, [FEEDS]), lambda _: "fail"))
    sizes = [len(step.layers) for step in steps]
    harms = [ALL_HARM, *(step.harm for step in steps)]
    gains = [before - after for before, after in itertools.pairwise(harms)]
    assert 4 in sizes
    assert sizes[-1] <= 5  # of 7
    assert all(gain >= 0.05 for gain, size in zip(gains, sizes, strict=True) if size > 4)
    assert {step.verdict for step in steps} == {"fail"}
    # Layers that are float already count too.
    first = steps[0]
    more = list(repair_steps(Examiner(first.graph, graphs[1], [FEEDS]), lambda _: "fail"))
    assert 4 <= len(first.layers) + len(more[-1].layers) <= 5


def test_it_goes_on_beyond_half_of_the_layers_while_a_step_gains(tmp_path):
    qdq, floats = deep(tmp_path, depth=8)
    examiner = Examiner(round_weights(qdq, floats, "image"), floats, [{"image": inputs(16, seed=2)}])
    steps = list(repair_steps(examiner, lambda _: "fail"))
    harms = [ALL_HARM, *(step.harm for step in steps)]
    beyond = [step for step in steps if len(step.layers) > 5]  # of 8
    assert beyond
    assert all(harms[steps.index(step)] - step.harm >= 0.05 for step in beyond)
    assert len(steps[-1].layers) == 6


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


def timed(suspects, latencies):
    """Return the suspects with other latencies: of each layer the ms, and half the width of their interval."""
    by_name = {name: AddedLatency(ms, ms - half, ms + half) for name, (ms, half) in latencies.items()}
    return [replace(suspect, latency=by_name.get(suspect.name)) for suspect in suspects]


def test_time_decides_where_layers_mend_alike(graphs):
    examiner = Examiner(round_weights(*graphs, "motion"), graphs[1], [FEEDS])
    suspects = blame(examiner).suspects
    dear, *_ = (step.layers[0] for step in repair_steps(examiner, lambda _: "pass"))
    names = {layer for item in examiner.board.tensors for layer in item.layers}
    latencies = dict.fromkeys(names, (0.001, 0.0001)) | {dear: (10.0, 0.1)}
    first = next(repair_steps(examiner, lambda _: "pass", timed(suspects, latencies)))
    assert dear not in first.layers
    # One of unknown time counts as the dearest.
    del latencies[dear]
    latencies[next(iter(names - {dear, *first.layers}))] = (10.0, 0.1)
    assert dear not in next(repair_steps(examiner, lambda _: "pass", timed(suspects, latencies))).layers


def test_noise_of_the_timing_decides_no_order(graphs):
    examiner = Examiner(round_weights(*graphs, "motion"), graphs[1], [FEEDS])
    suspects = blame(examiner).suspects
    names = sorted({layer for item in examiner.board.tensors for layer in item.layers})
    random = np.random.default_rng(0)
    expected = [step.layers for step in repair_steps(examiner, lambda _: "fail", suspects)]
    for _ in range(4):
        noise = {name: (float(random.normal(0, 0.01)), 0.05) for name in names}
        steps = repair_steps(examiner, lambda _: "fail", timed(suspects, noise))
        assert [step.layers for step in steps] == expected


def test_a_layer_that_gains_next_to_nothing_does_not_go_first_because_it_is_free(graphs):
    examiner = Examiner(round_weights(*graphs, "motion"), graphs[1], [FEEDS])
    suspects = blame(examiner).suspects
    first = next(repair_steps(examiner, lambda _: "pass"))
    idle = [s.name for s in suspects if s.scope == "layer" and 0 < s.relief.value < 0.05]
    assert idle
    latencies = {s.name: (0.02, 0.001) for s in suspects} | dict.fromkeys(idle, (-0.001, 0.01))
    assert next(repair_steps(examiner, lambda _: "pass", timed(suspects, latencies))).name == first.name


def test_blame_spares_the_first_step_measuring_every_layer(graphs):
    class Counting(Examiner):
        measured = 0

        def measure(self, off=()):
            self.measured += 1
            return super().measure(off)

    broken = round_weights(*graphs, "motion")
    suspects = blame(Examiner(broken, graphs[1], [FEEDS])).suspects
    measured = {}
    for name, known in (("with", suspects), ("without", ())):
        examiner = Counting(broken, graphs[1], [FEEDS])
        step = next(repair_steps(examiner, lambda _: "pass", known))
        measured[name] = (step.layers, examiner.measured)
    assert measured["with"][0] == measured["without"][0]
    assert measured["with"][1] <= 4 < measured["without"][1]


def test_layers_that_nobody_asks_for_go_in_the_order_of_their_worth(graphs):
    examiner = Examiner(*graphs, [FEEDS])
    suspects = blame(examiner).suspects
    names = {layer for item in examiner.board.tensors for layer in item.layers}
    best = next(spare_steps(examiner, suspects))
    dear = timed(suspects, dict.fromkeys(names, (0.01, 0.001)) | dict.fromkeys(best.layers, (1.0, 0.001)))
    steps = list(spare_steps(examiner, dear))
    assert not set(steps[0].layers) & set(best.layers)
    assert steps[0].harm < ALL_HARM
    assert {step.verdict for step in steps} == {None}
    sizes = [len(step.layers) for step in steps]
    assert all(before < after for before, after in itertools.pairwise(sizes))
    assert sizes[-1] == len(names) - 1, "the last stays, or it would be the float network"


def test_in_a_deep_network_only_the_first_layers_that_nobody_asks_for_are_looked_at(tmp_path):
    examiner = Examiner(*deep(tmp_path, depth=16), [{"image": inputs(4, seed=2)}])
    assert len(list(spare_steps(examiner))) == 12


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
    exact = Probe(np.arange(400), {"logits": outputs["logits"]}, embeddings)
    rolled = Probe(
        np.arange(400), {"logits": outputs["logits"]}, {**embeddings, "motion": np.roll(embeddings["motion"], 1, 0)}
    )
    verdict, reasons = verdict_on(rolled, exact)
    assert verdict == "fail"
    assert "image-motion" in reasons[0]
