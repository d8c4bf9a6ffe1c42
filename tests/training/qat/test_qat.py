import copy

import pytest
import torch
from small import TAPS, TwoTowers, loaded, reporter, split
from stopping import Stopped, StopsAfter, stop
from torch.nn.utils import parametrize

from edgekd.config.recipe import ANCHOR_EXTRA, LossConfig, QatConfig
from edgekd.config.target import Scheme
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.cache import CHECKPOINT
from edgekd.training.loop.evaluate import probe
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.qat import stage as qat
from edgekd.training.qat.fake_quant import fake_quantized
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps
from edgekd.training.task.loading import LoadedTask

PER_CHANNEL = Scheme(activations="uint8", symmetric_activations=False)
PER_TENSOR = Scheme(activations="uint8", symmetric_activations=False, per_channel=False)


def uneven(model):
    """Give every fourth hidden channel a hundred times the weights, and its reader a hundredth: in float the same."""
    with torch.no_grad():
        for encoder in model.encoders.values():
            encoder[0].weight[::4] *= 100
            encoder[0].bias[::4] *= 100
            encoder[2].weight[:, ::4] /= 100
    return model


def networks(make=TwoTowers):
    return qat.QatNetworks(build(make, 1), build(make, 0), build(make, 0))


def run(folder, nets=None, task=None, scheme=PER_CHANNEL, observer=None, seed=0, **config):
    folder.mkdir(exist_ok=True)
    settings = QatConfig(**{"epochs": 3, "batch_size": 16, **config})
    nets = nets or networks()
    return qat.run(
        task or loaded(), nets, Taps(TAPS, TAPS), scheme, settings, StageRun(seed, folder, reporter(observer))
    )


def test_what_is_kept_is_float_and_loads_into_the_same_network(tmp_path):
    task, nets = loaded(), networks()
    trained = run(tmp_path, nets, task)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT, WEIGHTS, PROBE]
    assert len(trained.history) == 3
    assert trained.parameters == sum(p.numel() for p in TwoTowers().parameters())
    model = load_weights(build(TwoTowers, 9), tmp_path / WEIGHTS)
    again, stored = probe(model, TAPS, task.splits["test"]), Probe.load(tmp_path / PROBE)
    assert stored.ids.tolist() == task.splits["test"].ids
    assert (again.answer == stored.answer).all()
    assert not torch.equal(model.head[1].weight, build(TwoTowers, 0).head[1].weight)


def test_tuning_mends_what_int8_broke(tmp_path):
    task = loaded(counts=(600, 20, 100, 100))
    reference = probe(build(TwoTowers, 0), TAPS, task.splits["test"])

    def drift(model):
        return measure_drift(probe(model, TAPS, task.splits["test"]), reference, None, Bootstrap()).mean

    def drift_in_int8(model):
        with fake_quantized(model, PER_TENSOR) as quantized:
            quantized.calibrate(lambda: probe(model, {}, task.splits["calibration"]))
            return drift(model)

    broken = uneven(build(TwoTowers, 0))
    assert drift(broken) < 1e-5
    tuned = {}
    nothing = Scheme(activations="uint8", symmetric_activations=False, operators=["Relu"])
    loss = LossConfig(ce=0, kd=1, extra=ANCHOR_EXTRA)
    for name, scheme in {"with rounding": PER_TENSOR, "without": nothing}.items():
        nets = qat.QatNetworks(build(TwoTowers, 0), build(TwoTowers, 0), copy.deepcopy(broken))
        run(tmp_path / name, nets, task, scheme, epochs=10, learning_rate=5e-3, loss=loss)
        tuned[name] = drift_in_int8(nets.tuned)
    assert tuned["with rounding"] < 0.5 * drift_in_int8(broken)
    assert tuned["with rounding"] < 0.8 * tuned["without"]


def test_the_anchor_is_the_student_and_stays_as_it_was(tmp_path):
    nets = networks()
    trained = run(tmp_path, nets, learning_rate=1e-9)
    assert trained.history[0]["loss.sample"] < 1e-3  # of rounding alone: against the teacher it is far more
    fresh = build(TwoTowers, 0)
    assert all(torch.equal(p, q) for p, q in zip(nets.student.parameters(), fresh.parameters(), strict=True))
    fresh = build(TwoTowers, 1)
    assert all(torch.equal(p, q) for p, q in zip(nets.teacher.parameters(), fresh.parameters(), strict=True))


def test_it_trains_and_validates_in_int8_and_what_is_kept_is_probed_in_float(tmp_path):
    rounded = {True: [], False: []}

    class Watches(TwoTowers):
        def forward(self, a, b):
            rounded[self.training].append(parametrize.is_parametrized(self.head[1], "weight"))
            return super().forward(a, b)

    run(tmp_path, qat.QatNetworks(build(TwoTowers, 1), build(TwoTowers, 0), build(Watches, 0)), epochs=1)
    seen_for_its_widths, calibrated_twice_and_validated, probed = [False], [True] * 3, [False]
    assert all(rounded[True])
    assert rounded[False] == [*seen_for_its_widths, *calibrated_twice_and_validated, *probed]


def test_ranges_follow_the_weights(tmp_path):
    task, nets = loaded(), networks()
    run(tmp_path, nets, task, epochs=2, learning_rate=1e-2)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)["model"]
    with fake_quantized(nets.tuned, PER_CHANNEL) as quantized:
        quantized.calibrate(lambda: probe(nets.tuned, {}, task.splits["calibration"]))
        now = nets.tuned.state_dict()
    ranges = [name for name in state if name.endswith((".low", ".high"))]
    assert len(ranges) == 2 * 6
    assert all(torch.equal(state[name], now[name]) for name in ranges)


def test_statistics_of_norms_stay_and_their_weights_learn(tmp_path):
    nets = networks(lambda: TwoTowers(norm=True))
    before = copy.deepcopy(nets.tuned.norm.state_dict())
    run(tmp_path, nets)
    after = nets.tuned.norm.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in ("running_mean", "running_var", "num_batches_tracked"))
    assert not torch.equal(before["weight"], after["weight"])


def test_a_stopped_run_goes_on_as_if_never_stopped(tmp_path):
    make = lambda: TwoTowers(dropout=0.3, norm=True)  # noqa: E731
    expected = run(tmp_path / "undisturbed", networks(make), epochs=4)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", networks(make), observer=StopsAfter(2, stop), epochs=4)
    torch.manual_seed(12345)  # whatever the new process has drawn already
    assert run(tmp_path / "stopped", networks(make), epochs=4) == expected
    stopped, undisturbed = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("stopped", "undisturbed"))
    assert stopped == undisturbed


def test_the_samples_of_the_gate_decide_nothing(tmp_path):
    task = loaded()
    other = LoadedTask(task.task, {**task.splits, "test": split("other", 30, seed=77)}, ())
    for name, given in {"one": task, "other": other}.items():
        run(tmp_path / name, task=given)
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "other" / WEIGHTS).read_bytes()
    assert (tmp_path / "one" / PROBE).read_bytes() != (tmp_path / "other" / PROBE).read_bytes()


def test_the_scheme_decides_what_is_learned(tmp_path):
    for name, scheme in {"channel": PER_CHANNEL, "tensor": PER_TENSOR}.items():
        run(tmp_path / name, scheme=scheme)
    assert (tmp_path / "channel" / WEIGHTS).read_bytes() != (tmp_path / "tensor" / WEIGHTS).read_bytes()
