"""Raw samples of two modalities, with channels of very different scale."""

import numpy as np

MODALITIES = {"image": (2, 8, 8), "motion": (3, 32)}

#: Units of the motion's channels: one scale for all three would leave nothing of the last.
UNITS = np.array([1e4, 1.0, 1e-2], np.float32).reshape(1, 3, 1)


def make_inputs(count, seed=0):
    """Return raw inputs with some structure: each sample has a strength and a pattern of its own."""
    random = np.random.default_rng(seed)
    strength = random.uniform(0.2, 2, count).astype(np.float32)
    inputs = {}
    for name, shape in MODALITIES.items():
        pattern = random.normal(size=(5, *shape)).astype(np.float32)[random.integers(0, 5, count)]
        noise = random.normal(size=(count, *shape)).astype(np.float32)
        inputs[name] = strength.reshape(-1, *[1] * len(shape)) * (pattern + 0.5 * noise)
    inputs["motion"] = inputs["motion"] * UNITS
    return inputs


def save_samples(path, count, seed=0):
    np.savez(path, **{f"input.{name}": x for name, x in make_inputs(count, seed).items()})
    return path


def split_samples(path, count, others):
    """Save samples to calibrate with, and return others of the same patterns."""
    inputs = make_inputs(count + others, seed=3)
    np.savez(path, **{f"input.{name}": x[:count] for name, x in inputs.items()})
    return {name: x[count:] for name, x in inputs.items()}


def snr_db(exact, found):
    """Return the signal-to-noise ratio over all elements."""
    return 10 * np.log10(np.sum(exact**2) / np.sum((found - exact) ** 2))
