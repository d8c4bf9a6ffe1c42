"""Activations of a graph: their ranges, masks among them, and outlier channels that move into the weights."""
