"""Probes to compare: given by hand, or of modalities that see the same thing."""

import math

import numpy as np

from edgekd.gram.probe import Probe


def probe_of(embeddings, logits=None, ids=None):
    count = len(next(iter(embeddings.values())))
    return Probe(
        np.array([f"s{i}" for i in range(count)]) if ids is None else np.array(ids),
        {"logits": np.eye(count, 3, dtype=np.float32) if logits is None else np.array(logits, dtype=np.float32)},
        {name: np.asarray(z, dtype=np.float32) for name, z in embeddings.items()},
    )


def at_degrees(*degrees):
    return [[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]


def random_rotation(width, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def aligned_probe(samples=200, width=16, noise=0.4, seed=0):
    """Two modalities that see the same thing, each with noise of its own."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=(samples, width))
    return probe_of({name: shared + noise * random.normal(size=shared.shape) for name in "ab"})


def with_embeddings(probe, **embeddings):
    return Probe(probe.ids, probe.outputs, {**probe.embeddings, **embeddings})


def with_logits(probe, logits):
    return Probe(probe.ids, {"logits": logits}, probe.embeddings)


def first(probe, count):
    return Probe(
        probe.ids[:count], {"logits": probe.answer[:count]}, {name: z[:count] for name, z in probe.embeddings.items()}
    )


def rotate(probe, modality, seed=0):
    z = probe.embeddings[modality]
    rotated = (z @ random_rotation(z.shape[1], seed)).astype(np.float32)
    return with_embeddings(probe, **{modality: rotated})
