"""Distillation in a training loop of your own: PyTorch, Lightning, Hugging Face's Trainer, accelerate.

The names below are public. They load torch, so ``import edgekd`` imports this module only when it is used.
"""

from __future__ import annotations

from edgekd.training.distillation.own_trainer.distiller import Distiller, DistillerOutput
from edgekd.training.distillation.own_trainer.inputs import Inputs

__all__ = ["Distiller", "DistillerOutput", "Inputs"]
