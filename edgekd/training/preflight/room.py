"""How much a build will write into its cache, about: a disk that is full after a night could be known before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

#: How many times the weights of each network are written: finished, and while it trains with what the optimizer keeps
#: of each weight; of the student also pruned, fine-tuned for INT8, and as graphs of some precisions.
_TEACHER, _STUDENT = 5, 20

#: The splits whose samples are written beside the graphs, and how often.
_WRITTEN, _COPIES = ("val", "calibration", "test"), 2


def needed_bytes(teacher: nn.Module, student: nn.Module, inputs: Iterable[Tensor], counts: Mapping[str, int]) -> int:
    """Return about how many bytes a build will write into its cache.

    Args:
        teacher: The teacher.
        student: The student.
        inputs: One batch of each input.
        counts: The number of samples of each split.
    """
    sample = sum(x[0].nbytes for x in inputs)
    samples = _COPIES * sample * sum(counts[name] for name in _WRITTEN)
    return _TEACHER * _weights(teacher) + _STUDENT * _weights(student) + samples


def describe_room(needed: int, free: int, folder: str) -> Sequence[str]:
    """Return in a sentence that a folder's disk has not the room for a build; nothing where it has."""
    if needed <= free:
        return ()
    return (
        f"the build will write about {needed / 1e9:.1f} GB into {folder}, where {free / 1e9:.1f} GB are free: make "
        "room there, or choose another folder with --cache",
    )


def _weights(model: nn.Module) -> int:
    return sum(value.nbytes for value in model.state_dict().values() if hasattr(value, "nbytes"))
