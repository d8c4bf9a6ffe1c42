"""Pruning in rounds, and going on after a kill."""

import json

import pytest
import torch
from pruned import Wide, pruning, widths
from small import TAPS, Remembers, loaded, reporter

from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import CUT_PROBE, PROBE, REMOVED, WEIGHTS
from edgekd.stages.cache import ROUNDS
from edgekd.training.loop.evaluate import probe
from edgekd.training.loop.weights import build
from edgekd.training.pruning import stage as prune
from edgekd.training.pruning.stage import PruningNetworks, rebuild
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps

EPOCHS = 2


class KilledAt(Remembers):
    """Stops at an event, as a kill would."""

    def __init__(self, moment):
        super().__init__()
        self.moment = moment

    def advance(self, stage, done, total, note):
        super().advance(stage, done, total, note)
        if len(self.steps) == self.moment:
            raise KeyboardInterrupt


def run_stage(folder, observer=None, **config):
    task = loaded(network=Wide)
    networks = PruningNetworks(build(Wide, 1), build(Wide, 0), build(Wide, 0))
    settings = pruning(**{"epochs": EPOCHS, "batch_size": 16, "steps": 2, "ratio": 0.5, **config})
    return (
        task,
        networks,
        prune.run(task, networks, Taps(TAPS, TAPS), settings, StageRun(0, folder, reporter(observer))),
    )


def files(folder):
    return {name: (folder / name).read_bytes() for name in (WEIGHTS, PROBE, CUT_PROBE, REMOVED)}


def test_every_round_removes_the_same_share_and_is_tuned(tmp_path):
    observer = Remembers()
    _, networks, trained = run_stage(tmp_path, observer)
    assert widths(networks.pruned) == {
        "encoders.a.0": 16, "encoders.a.2": 16, "encoders.b.0": 32, "encoders.b.2": 16, "head.1": 8, "head.3": 3
    }  # fmt: skip
    after = [{name: len(channels) for name, _, channels in cut} for cut in cuts(tmp_path)]
    # A quarter of 24 leaves 18, and 8 divides 16.
    assert after == [{"encoders.a.0": 8, "encoders.b.0": 16, "head.1": 8}] * 2
    assert len(trained.history) == 2 * EPOCHS
    assert [(done, total) for done, total, _ in observer.steps] == [(0, 4), (1, 4), (2, 4), (2, 4), (3, 4), (4, 4)]
    assert "a 24 of 32, b 48 of 64, fusion 16 of 24" in observer.steps[0][2]
    assert "a 16 of 32, b 32 of 64, fusion 8 of 24" in observer.steps[3][2]
    assert not (tmp_path / ROUNDS).exists()


def cuts(folder):
    """Return what was removed, by round: each names a layer once."""
    removed = json.loads((folder / REMOVED).read_text())
    return removed[: len(removed) // 2], removed[len(removed) // 2 :]


def test_a_network_cut_in_rounds_is_rebuilt_to_the_bit(tmp_path):
    task, networks, _ = run_stage(tmp_path)
    model = rebuild(build(Wide, 77), task, tmp_path).eval()
    inputs = list(task.splits["test"].inputs.values())
    with torch.no_grad():
        assert torch.equal(model(*inputs), networks.pruned.eval()(*inputs))


@pytest.mark.parametrize("importance", ["gram", "magnitude"])
@pytest.mark.parametrize("moment", range(1, 7))
def test_a_killed_run_comes_to_the_same_bits(tmp_path, moment, importance):
    run_stage(tmp_path / "whole", importance=importance)
    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "killed", KilledAt(moment), importance=importance)
    again = Remembers()
    run_stage(tmp_path / "killed", again, importance=importance)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert len(again.steps) == 6 - moment, "what was done is not done again"


@pytest.mark.parametrize("name", [REMOVED, WEIGHTS])
def test_a_round_whose_cut_was_damaged_starts_over(tmp_path, name):
    run_stage(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "killed", KilledAt(5))  # after the first epoch of the second round
    file = tmp_path / "killed" / ROUNDS / "1" / name
    content = file.read_bytes()
    file.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    again = Remembers()
    run_stage(tmp_path / "killed", again)
    assert again.warnings == [f"{file.parent}: the cut that a killed run left is damaged, so this round starts over"]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert len(again.steps) == 3, "the first round is not done again, the second is"


def test_the_network_just_cut_is_probed_before_its_last_tune(tmp_path):
    task, _, _ = run_stage(tmp_path, learning_rate=1e-9)
    cut, tuned = Probe.load(tmp_path / CUT_PROBE), Probe.load(tmp_path / PROBE)
    assert cut.ids.tolist() == tuned.ids.tolist() == task.splits["test"].ids
    assert abs(cut.answer - tuned.answer).max() < 1e-4
    run_stage(tmp_path / "tuned")
    cut, tuned = Probe.load(tmp_path / "tuned" / CUT_PROBE), Probe.load(tmp_path / "tuned" / PROBE)
    assert abs(cut.answer - tuned.answer).max() > 1e-2


def test_where_nothing_is_pruned_the_probe_is_the_students(tmp_path):
    task, networks, _ = run_stage(tmp_path, ratio=0.0)
    student = probe(networks.student, TAPS, task.splits["test"])
    for name in (CUT_PROBE, PROBE):
        assert (Probe.load(tmp_path / name).answer == student.answer).all()
