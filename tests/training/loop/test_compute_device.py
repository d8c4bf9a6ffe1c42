"""Where networks are trained; what is not there is one line."""

import pytest
import torch

from edgekd.errors import RecipeError
from edgekd.training.loop.compute_device import compute_device, find_device
from edgekd.training.stage_run import Resources, computing

GPUS = torch.cuda.device_count()
ABSENT = [f"cuda:{GPUS + 7}", *([] if GPUS else ["cuda"]), *([] if torch.backends.mps.is_available() else ["mps"])]


def test_the_recipes_device_is_taken_within_its_stage_alone():
    with computing(Resources(device="cpu")):
        assert compute_device() == torch.device("cpu")
    assert compute_device().type == ("cuda" if GPUS else "cpu")


@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_is_not_there_is_refused_with_what_there_is(name):
    with pytest.raises(RecipeError, match=rf"^device = '{name}': .*(finds no|are numbered from 0)") as refused:
        find_device(name)
    assert "\n" not in str(refused.value)
