"""The training loop, evaluation, weights, and training by several processes."""
