"""Distillation losses: each is a plain function of teacher and student, from its paper, and an object in ``LOSSES``.

Every module in this folder is read, and must be importable without torch.
"""
