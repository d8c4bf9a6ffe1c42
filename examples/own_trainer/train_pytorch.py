"""Distil in a plain loop of PyTorch, in bfloat16 where that is asked for.

python examples/own_trainer/train_pytorch.py --epochs 10
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from digits import LOSSES, TAPS, TASK, finish, loader, trained_teacher

from edgekd.distillation import Distiller


def main(epochs: int, file: Path, *, half: bool = False) -> float:
    """Train the student, write its weights to ``file``, and return its accuracy."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = loader("train")
    distiller = Distiller(trained_teacher(epochs), TASK.student(), TAPS, LOSSES, example=next(iter(batches)))
    distiller.to(device)  # the teacher goes along
    optimizer = torch.optim.AdamW(distiller.parameters(), 2e-3)  # the student's weights, and what losses learn
    for epoch in range(epochs):
        distiller.train()  # the teacher stays in evaluation mode
        for batch in batches:
            with torch.autocast(device, torch.bfloat16) if half else nullcontext():
                loss = distiller([x.to(device) for x in batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: " + ", ".join(f"{name} {float(x):.3g}" for name, x in distiller.figures.items()))
    return finish(distiller.student, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--file", type=Path, default=Path("student.safetensors"))
    parser.add_argument("--half", action="store_true", help="compute in bfloat16 by autocast")
    options = parser.parse_args()
    main(options.epochs, options.file, half=options.half)
