"""Two processes, each with half of a batch, do what one does with all of it."""

import pytest
import ranked
import torch

from edgekd.config.recipe import LossConfig
from edgekd.errors import RankError
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.cache import CHECKPOINT
from edgekd.training.loop import distributed
from edgekd.training.loop.weights import load_weights
from edgekd.training.loop.weights_file import read_checkpoint


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    ranked.gradients(folder)
    return ranked.kept(folder, 1)[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return the folder of what two processes did, one job after another; their start takes most of the time."""
    folder = tmp_path_factory.mktemp("pair")
    assert ranked.together(folder, "gradients", "distills", "fits", "disturbed") == [(0, ""), (0, "")]
    return folder


@pytest.fixture(scope="module", params=["gradients", "distills"])
def both(request, pair):
    """Return what both processes found in edgekd's own loop, and with a Distiller in PyTorch's own wrapper."""
    return ranked.kept(pair / request.param)


@pytest.mark.parametrize("batch", ["64 0", "63 0", "21 3"], ids=["even", "uneven", "lacking"])
@pytest.mark.parametrize("name", ranked.LOSSES)
def test_loss_and_gradients_are_those_of_the_whole_batch(alone, both, name, batch):
    loss, figures, gradients = alone[f"{name} {batch}"]
    for rank in both:
        their_loss, their_figures, their_gradients = rank[f"{name} {batch}"]
        assert their_loss == pytest.approx(loss, rel=1e-7)
        assert their_figures == pytest.approx(figures, rel=1e-5)
        for ours, theirs in zip(gradients, their_gradients, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=5e-6, atol=5e-6)
    assert all(torch.equal(a, b) for a, b in zip(*(rank[f"{name} {batch}"][2] for rank in both), strict=True))


def test_in_evaluation_a_distiller_has_the_loss_of_its_own_samples(pair):
    (first, count), (second, other) = (rank["alone"] for rank in ranked.kept(pair / "distills"))
    assert (count, other) == (11, 10)
    assert first != second


def test_every_loss_is_among_them():
    terms = [term for extra in ranked.LOSSES.values() for term in LossConfig(extra=extra).terms.values()]
    assert {term.loss for term in terms} == {
        "sample", "intra", "cross", "joint", "dkd", "dist", "fd", "fitnet", "ickd", "sp", "rkd", "pkt", "affinity",
    }  # fmt: skip


def test_a_whole_training_gives_the_weights_of_one_process(pair, tmp_path):
    one, two = tmp_path, pair / "fits"
    ranked.fits(one)
    (history,), (theirs, _) = ranked.kept(one, 1), ranked.kept(two)
    assert [list(epoch) for epoch in theirs] == [list(epoch) for epoch in history]
    for ours, other in zip(history, theirs, strict=True):
        assert other == pytest.approx(ours, rel=1e-3)
    for stage in ("teacher", "student"):
        assert sorted(path.name for path in (two / stage).iterdir()) == [CHECKPOINT, WEIGHTS, PROBE]
        width = {"hidden": 16}
        networks = [load_weights(ranked.TwoTowers(**width), folder / stage / WEIGHTS) for folder in (one, two)]
        for ours, other in zip(*(network.state_dict().values() for network in networks), strict=True):
            torch.testing.assert_close(other, ours, rtol=1e-3, atol=1e-4)


def test_one_that_is_killed_ends_the_other_and_the_same_command_goes_on(pair, tmp_path):
    (leader, message), (killed, _) = ranked.together(tmp_path, "dies")
    assert (leader, killed) == (RankError.exit_code, -9)
    assert message.startswith("another process of this build ended or does not answer (")
    assert "run the same command again: it goes on after the last finished epoch" in message
    assert len(read_checkpoint(tmp_path / "dies" / CHECKPOINT, torch.device("cpu"))["history"]) == 2
    (tmp_path / "dies").rename(tmp_path / "disturbed")
    assert ranked.together(tmp_path, "disturbed") == [(0, ""), (0, "")]
    (state, steps), (other, unheard) = ranked.kept(tmp_path / "disturbed")
    assert [step[0] for step in steps] == [3, 4, 4]
    assert steps[-1][2].startswith("ended, since no epoch of the last 3 was better")
    assert unheard == []
    undisturbed = ranked.kept(pair / "disturbed")[0][0]
    for key, value in undisturbed.items():
        assert torch.equal(state[key], value)
        assert torch.equal(other[key], value)


def test_a_batch_too_small_for_all_is_refused(tmp_path):
    for code, message in ranked.together(tmp_path, "too_small"):
        assert code == 3
        assert "batches of 3 samples leave fewer than two to a share (accumulate = 1, processes = 2)" in message


def test_a_stage_runs_in_all_or_in_none_and_one_record_counts(tmp_path):
    ended = ranked.together(tmp_path, "stages")
    (ran, metrics, times), (follower_ran, follower_metrics, unheard) = ranked.kept(tmp_path / "stages")
    assert ran == follower_ran
    assert len(ran) == 1
    assert metrics == follower_metrics == [0.5, 0.5]
    assert (times, unheard) == (1, 0)
    assert ended[1][0] == 4
    assert "stage 'teacher': this process has another recipe, other code or other data than rank 0" in ended[1][1]
    assert ended[0][0] in (4, RankError.exit_code)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(RankError, match="2 processes on a machine with 1 GPU: start as many as there are GPUs"),
        distributed.process_group(),
    ):
        pass


def test_one_process_is_its_own_whole():
    assert (distributed.world_size(), distributed.rank(), distributed.is_main(), distributed.local_rank()) == (
        1,
        0,
        True,
        0,
    )
    assert distributed.broadcast_object("x") == "x"
    distributed.barrier()
