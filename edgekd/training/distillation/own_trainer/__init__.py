"""Distillation inside a training loop of the user's own: what :mod:`edgekd.distillation` makes public."""
