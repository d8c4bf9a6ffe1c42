"""The device that networks are trained on."""

from __future__ import annotations

import torch

from edgekd.errors import RecipeError
from edgekd.training.loop import distributed
from edgekd.training.stage_run import resources

_ELSE = "device = 'auto' takes what there is, and 'cpu' is everywhere"


def compute_device() -> torch.device:
    """Return what the present stage computes on, as the recipe has it.

    Raises:
        RecipeError: There is no such device.
    """
    return find_device(resources().device)


def find_device(name: str) -> torch.device:
    """Return the device that a recipe names.

    Args:
        name: "auto" for CUDA where there is one, else the CPU; "cpu", "cuda", "cuda:1", or "mps". Of several processes
            each has the GPU of its own number.

    Raises:
        RecipeError: This machine has no such device.
    """
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise RecipeError(f"device = '{name}': torch finds no GPU of Apple's here; {_ELSE}")
    if kind != "cuda":
        return torch.device(kind)
    if not torch.cuda.is_available():
        raise RecipeError(f"device = '{name}': torch {torch.__version__} finds no CUDA GPU here; {_ELSE}")
    if number and distributed.world_size() > 1:
        raise RecipeError(f"device = '{name}': each of several processes has a GPU of its own; write 'cuda'")
    count, index = torch.cuda.device_count(), int(number) if number else distributed.local_rank()
    if index >= count:
        raise RecipeError(f"device = '{name}': this machine's {count} GPUs are numbered from 0 to {count - 1}")
    return torch.device("cuda", index)
