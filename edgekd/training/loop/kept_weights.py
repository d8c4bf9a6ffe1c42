"""Which weights of a training are kept: those of its best or last epoch, or a running average of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekd.stages.trained import KEPT
from edgekd.training.loop import distributed
from edgekd.training.loop.autograd_layers import NORMS
from edgekd.training.loop.epochs import best_epoch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgekd.config.recipe import Training

    Epoch = dict[str, float]


class RunningAverage:
    """The exponential running average of a network's trained parameters and of its norms' statistics.

    After step t the decay is ``min(decay, (1 + t) / (10 + t))``, so that the untrained weights are soon forgotten.
    Other buffers are as the network has them.

    Args:
        model: The network.
        decay: The decay; 0 for no average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._live = _averaged(model) if decay else []
        self._averages = [tensor.detach().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, live in zip(self._averages, self._live, strict=True):
            average.lerp_(live, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network the average within the context."""
        trained = [tensor.detach().clone() for tensor in self._live]
        self.apply()
        try:
            yield
        finally:
            _copy(trained, self._live)

    def apply(self) -> None:
        """Give the network the average for good."""
        _copy(self._averages, self._live)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"steps": self.steps, "averages": self._averages}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a run that ended.

        Raises:
            ValueError: It is of another network.
        """
        self.steps = state["steps"]
        for ours, theirs in zip(self._averages, state["averages"], strict=True):
            if ours.shape != theirs.shape:
                raise ValueError("the averages are of another network")
            ours.copy_(theirs)


class KeptWeights:
    """The weights that a training is to end with.

    Args:
        model: The network that is trained.
        config: Its settings: ``keep`` and ``ema``.
        higher_is_better: Whether a larger metric is better.
    """

    def __init__(self, model: nn.Module, config: Training, *, higher_is_better: bool) -> None:
        self.average = RunningAverage(model, config.ema)
        self._model, self._keeps_best, self._higher = model, config.keep == "best", higher_is_better
        self._best: dict[str, Tensor] | None = None

    def consider(self, history: list[Epoch]) -> None:
        """Keep the network's present weights where the last epoch is the best one so far."""
        if self._keeps_best and best_epoch(history, higher_is_better=self._higher) == len(history) - 1:
            self._best = {
                key: value.detach().clone()
                for key, value in self._model.state_dict().items()
                if isinstance(value, Tensor)
            }

    def finish(self, history: list[Epoch]) -> None:
        """Give the network, in every process, the weights that are kept, and mark their epoch in the history."""
        kept = best_epoch(history, higher_is_better=self._higher) if self._keeps_best else None
        if kept is None:
            kept = len(history) - 1
        for index, epoch in enumerate(history):
            epoch[KEPT] = float(index == kept)
        if distributed.is_main():
            if self._best is not None:
                self._model.load_state_dict(self._best, strict=False)  # what is no tensor was not kept
            else:
                self.average.apply()
        distributed.broadcast([*self._model.parameters(), *self._model.buffers()])

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"average": self.average.state(), "best": self._best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a run that ended."""
        self.average.restore(state["average"])
        self._best = state["best"]


def _averaged(model: nn.Module) -> list[Tensor]:
    """Return the tensors of a network that are averaged, each once."""
    statistics = [
        tensor
        for norm in model.modules()
        if isinstance(norm, NORMS)
        for tensor in (norm.running_mean, norm.running_var)
        if tensor is not None
    ]
    return [*(parameter for parameter in model.parameters() if parameter.requires_grad), *statistics]


@torch.no_grad()
def _copy(values: list[Tensor], into: list[Tensor]) -> None:
    for value, tensor in zip(values, into, strict=True):
        tensor.copy_(value)
