"""Distil with accelerate, which also starts it in several processes: accelerate launch --num_processes 2 ...

python examples/own_trainer/train_accelerate.py --epochs 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from digits import LOSSES, TAPS, TASK, finish, loader, trained_teacher

from edgekd.distillation import Distiller


def main(epochs: int, file: Path, accumulate: int = 2) -> float:
    """Train the student, write its weights to ``file``, and return its accuracy."""
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=accumulate)
    batches = loader("train", 64 // accumulate)
    distiller = Distiller(trained_teacher(epochs), TASK.student(), TAPS, LOSSES, example=next(iter(batches)))
    optimizer = torch.optim.AdamW(distiller.parameters(), 2e-3)
    distiller, optimizer, batches = accelerator.prepare(distiller, optimizer, batches)
    for _ in range(epochs):
        distiller.train()
        for batch in batches:
            with accelerator.accumulate(distiller):
                accelerator.backward(distiller(batch).loss)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.wait_for_everyone()
    return finish(accelerator.unwrap_model(distiller).student, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--file", type=Path, default=Path("student.safetensors"))
    options = parser.parse_args()
    main(options.epochs, options.file)
