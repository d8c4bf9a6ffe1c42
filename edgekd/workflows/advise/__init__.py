"""Which distillation loss to use: the losses that are tried, the plan of their trials, and the conclusion. No torch."""
