"""A teacher in half precision, which takes nearly half the memory, and less time where the hardware supports it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.errors import ModelError
from edgekd.training.loop.autograd_layers import WEIGHTED
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.config.recipe import Precision, Tap
    from edgekd.training.taps.taps import Arguments

_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def tapped_teacher(teacher: nn.Module, taps: Mapping[str, Tap], precision: Precision) -> TappedModel:
    """Return the teacher, read at its taps, in the precision that the recipe gives it.

    Args:
        teacher: The teacher, on its device. It is never trained again: in half precision its weights are changed in
            place.
        taps: The taps at which it is read.
        precision: The precision that it computes in.

    Raises:
        TaskError: A tap names no module.
    """
    if precision == "float32":
        return TappedModel(teacher, taps)
    return _Halved(teacher, taps, _HALVES[precision])


class _Halved(TappedModel):
    """A model whose layers with weights compute in half precision, and whose outputs are read as float32.

    Only those layers have half-precision weights. Everything between them stays float32 or follows its input, as
    autocast decides. Above all the standardisation of raw inputs stays float32: half precision would lose their small
    differences, and float16 all values above 65504. Outputs are float32 before they are pooled.
    """

    def __init__(self, model: nn.Module, taps: Mapping[str, Tap], dtype: torch.dtype) -> None:
        super().__init__(model, taps)
        self._dtype = dtype
        for layer in model.modules():
            if isinstance(layer, WEIGHTED):
                layer.to(dtype)

    def _run(self, inputs: Arguments) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run the model.

        Raises:
            ModelError: It cannot compute in this precision, or gives NaN or infinite values in it.
        """
        kind = str(self._dtype).removeprefix("torch.")
        name, advice = f"the teacher, {type(self.model).__name__},", "; set teacher.precision = 'float32'"
        device = next(self.model.parameters()).device.type
        try:
            with torch.autocast(device, self._dtype):
                answers, outputs = super()._run(inputs)
        except RuntimeError as error:
            raise ModelError(f"{name} cannot run in {kind}: {error}{advice}") from error
        for what, x in {**answers, **outputs}.items():
            if not torch.isfinite(x).all():
                raise ModelError(f"{name} gives NaN or infinite values in {kind} ({what}){advice}")
        return {name: x.float() for name, x in answers.items()}, {name: x.float() for name, x in outputs.items()}
