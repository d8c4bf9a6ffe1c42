"""Distil with Hugging Face's Trainer.

python examples/own_trainer/train_transformers.py --epochs 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digits import LOSSES, TAPS, TASK, VIEWS, dataset, finish, trained_teacher
from torch import Tensor
from transformers import Trainer, TrainingArguments

from edgekd.distillation import Distiller, Inputs


def collate(samples: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return a batch as the Trainer likes it: a dict with labels."""
    *views, labels = (torch.stack(column) for column in zip(*samples, strict=True))
    return dict(zip(VIEWS, views, strict=True)) | {"labels": labels}


def in_order(batch: dict[str, Tensor]) -> Inputs:
    """These networks take views in order. One that takes pixel_values=... by name needs no such function."""
    return Inputs([batch[view] for view in VIEWS], batch["labels"])


def main(epochs: int, file: Path) -> float:
    """Train the student, write its weights to ``file``, and return its accuracy."""
    torch.manual_seed(0)
    train = dataset("train")
    example = collate([train[index] for index in range(4)])
    distiller = Distiller(trained_teacher(epochs), TASK.student(), TAPS, LOSSES, inputs=in_order, example=example)
    arguments = TrainingArguments(
        output_dir=str(file.parent / "trainer"),
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,  # KD at temperature 4 has a larger gradient than the cross entropy that 1.0 is meant for
        remove_unused_columns=False,  # it would remove what the Distiller's forward does not name
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        distiller,
        arguments,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=dataset("val"),
        compute_metrics=lambda given: {"accuracy": float((given.predictions.argmax(1) == given.label_ids).mean())},
    )
    trainer.train()
    return finish(distiller.student, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--file", type=Path, default=Path("student.safetensors"))
    options = parser.parse_args()
    main(options.epochs, options.file)
