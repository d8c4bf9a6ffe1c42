"""Which distillation loss to use: contestants, the plan of their trials, and what the trials say. No torch."""
