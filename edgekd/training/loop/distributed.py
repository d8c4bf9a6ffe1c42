"""Several processes train one model, each on its share of every batch; in a single process all of this does nothing.

Every process computes the loss of the whole batch from what all have given (:func:`gather`), so a Gram over the batch,
a correlation over it, a mean over its labelled samples are those of one process. Its gradient on the gathered tensors
is then whole as well, each process passes on the rows that are its own, and the gradients of the weights are summed.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from edgekd.errors import RankError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import nn

#: How long an exchange may take. A process that died is noticed at once, by its closed connection; one that hangs is
#: noticed after this time, which must outlast what rank 0 does while the others wait: the teacher's outputs, an
#: importance, a latency.
_TIMEOUT = timedelta(hours=6)


@contextmanager
def process_group(device: str = "auto") -> Iterator[None]:
    """Join the processes that torchrun started, as its environment variables say.

    Args:
        device: What they train on, as the recipe has it.

    Raises:
        RankError: They do not meet, there are fewer GPUs than processes, or one of them ends or hangs meanwhile.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    cuda = torch.cuda.is_available() and device.startswith(("auto", "cuda"))
    if cuda and torch.cuda.device_count() < here:
        raise RankError(
            f"{here} processes on a machine with {torch.cuda.device_count()} GPU: start as many as there are GPUs, or "
            "train on the CPU with device = 'cpu'"
        )
    with _rank_errors():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    try:
        yield
        barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def _rank_errors() -> Iterator[None]:
    """Raise a RankError that explains it where an exchange fails."""
    try:
        yield
    except RuntimeError as error:
        what = str(error).strip().partition("\n")[0]
        raise RankError(
            f"another process of this build ended or does not answer ({what}); see what it said, then run the same "
            "command again: it goes on after the last finished epoch"
        ) from error


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is rank 0, which writes, measures and reports."""
    return rank() == 0


def local_rank() -> int:
    """Return this process's number on its machine, which is also its GPU's."""
    return int(os.environ.get("LOCAL_RANK", rank())) if dist.is_initialized() else 0


def barrier() -> None:
    """Wait until all processes have come to this call."""
    all_reduce(torch.zeros(1))


def broadcast_object(value: Any = None) -> Any:
    """Return to every process the value that rank 0 passes; the others pass none."""
    if world_size() == 1:
        return value
    values = [value]
    with _rank_errors():
        dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
    return values[0]


def all_reduce(x: Tensor) -> Tensor:
    """Sum a tensor without a gradient over all processes, in place, and return it."""
    if world_size() > 1:
        with _rank_errors():
            dist.all_reduce(x)
    return x


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with rank 0's values, in place."""
    if world_size() > 1:
        with torch.no_grad(), _rank_errors():
            for tensor in tensors:
                values = tensor.contiguous()
                dist.broadcast(values, 0)
                tensor.copy_(values)


def sample_counts(count: int, device: torch.device) -> list[int]:
    """Return the number of samples of the batch that each process has; this process has ``count``."""
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    counts[rank()] = count
    return [int(n) for n in all_reduce(counts)]


def gather(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all processes in the order of their ranks: [B', ...] of each become [B, ...].

    The gradient is taken to be the same in all processes, as it is where all compute the same loss, and the rows of it
    that are this process's own are passed on.

    Args:
        x: Rows of this process [B', ...].
        counts: Number of rows of each process, from :func:`sample_counts`.
    """
    gathered: Tensor = _Gather.apply(x, counts)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int]) -> Tensor:
        first = sum(counts[: rank()])
        ctx.own = slice(first, first + counts[rank()])
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        with _rank_errors():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.own], None


def reduce_gradients(own: Iterable[nn.Parameter], common: Iterable[nn.Parameter]) -> None:
    """Make gradients those of the whole batch, in place and in one exchange.

    Args:
        own: Weights that saw this process's samples alone; their gradients are summed.
        common: Weights that every process applied to the gathered batch. Their gradients are whole already, and the
            mean keeps them the same to the last bit.
    """
    if world_size() == 1:
        return
    scales = [(p, 1.0) for p in own if p.requires_grad] + [(p, 1 / world_size()) for p in common if p.requires_grad]
    if not scales:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad * scale for p, scale in scales]
    # A weight that no process used has no gradient, which the optimizer does not take for a gradient of 0.
    used = torch.tensor([float(p.grad is not None) for p, _ in scales], device=gradients[0].device)
    flat = all_reduce(torch.cat([used, *(gradient.float().reshape(-1) for gradient in gradients)]))
    parts = torch.split(flat, [len(scales), *(p.numel() for p, _ in scales)])
    for (p, _), count, part in zip(scales, parts[0].tolist(), parts[1:], strict=True):
        if count:
            p.grad = part.view_as(p).to(p.dtype)
