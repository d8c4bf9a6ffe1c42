"""Distil with PyTorch Lightning; in several processes, too: --devices 2.

python examples/own_trainer/train_lightning.py --epochs 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytorch_lightning as lightning
import torch
from digits import LOSSES, TAPS, TASK, finish, loader, trained_teacher
from torch import Tensor, nn

from edgekd.distillation import Distiller


class Distillation(lightning.LightningModule):
    """A LightningModule around a Distiller. It holds the teacher in the Distiller alone, which keeps it frozen."""

    def __init__(self, teacher: nn.Module, example: object) -> None:
        super().__init__()
        self.distiller = Distiller(teacher, TASK.student(), TAPS, LOSSES, example=example)

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.distiller(batch).loss
        self.log_dict(self.distiller.figures)
        return loss

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        """Log the loss and the accuracy on the validation split."""
        output = self.distiller(batch)
        right = (output["logits"].argmax(1) == batch[-1]).float().mean()
        self.log_dict({"val_loss": output.loss, "val_accuracy": right}, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer of the student's weights, and of what losses learn."""
        return torch.optim.AdamW(self.parameters(), 2e-3)


def main(epochs: int, file: Path, devices: int = 1) -> float:
    """Train the student, write its weights to ``file``, and return its accuracy."""
    lightning.seed_everything(0)
    batches = loader("train")
    module = Distillation(trained_teacher(epochs), next(iter(batches)))
    trainer = lightning.Trainer(
        max_epochs=epochs, devices=devices, enable_progress_bar=False, enable_checkpointing=False, logger=False
    )
    trainer.fit(module, batches, loader("val"))
    return finish(module.distiller.student, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--file", type=Path, default=Path("student.safetensors"))
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    main(options.epochs, options.file, options.devices)
