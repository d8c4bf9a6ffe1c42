"""What can be known before anything is trained: the samples, both untrained networks, and every step on them."""
