"""Distillation losses, each a plain function of what teacher and student gave, from its paper."""
