"""A batch taken in parts: what does not relate samples is as of the whole, what does sees the parts alone."""

import pytest
import torch
from small import TAPS, TwoTowers, loaded, reporter

from edgekd.config.recipe import DistillConfig, LossConfig, Term
from edgekd.errors import RecipeError
from edgekd.stages.artifacts import WEIGHTS
from edgekd.training.distillation import distill
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps


def distilled(folder, extra, **keys):
    folder.mkdir()
    config = DistillConfig(**{"epochs": 2, "batch_size": 34, "loss": LossConfig(extra=extra), **keys})
    teacher = build(lambda: TwoTowers(width=12), 3)
    distill.run(loaded(), teacher, Taps(TAPS, TAPS), config, StageRun(0, folder, reporter()))
    return torch.cat([p.detach().flatten() for p in load_weights(TwoTowers(), folder / WEIGHTS).parameters()])


def test_losses_of_single_samples_do_not_care_for_the_parts(tmp_path):
    extra = {"sample": Term(weight=3.0), "fd": Term(weight=3.0)}
    whole = distilled(tmp_path / "whole", extra)
    parts = distilled(tmp_path / "parts", extra, accumulate=4)  # of 30 samples, of 8 and 7 each
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


def test_losses_over_the_batch_do(tmp_path):
    extra = {"intra": Term(weight=30.0)}
    whole = distilled(tmp_path / "whole", extra)
    parts = distilled(tmp_path / "parts", extra, accumulate=4)
    assert (parts - whole).abs().max() > 1e-3


def test_parts_of_a_single_sample_are_refused(tmp_path):
    match = (
        r"batches of 30 samples leave fewer than two to a share \(accumulate = 16, processes = 1\): raise batch_size"
    )
    with pytest.raises(RecipeError, match=match):
        distilled(tmp_path / "parts", {}, accumulate=16)
