"""Models whose modalities have no inner product: drift is within each modality."""

import math

import numpy as np
import pytest
from probes import aligned_probe, at_degrees, probe_of, rotate, with_embeddings

from edgekd.gram.drift import measure_drift, pair_drifts
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.gram.streaming import hash_names


def one_modality(samples=200, width=8, seed=0):
    return probe_of({"a": np.random.default_rng(seed).normal(size=(samples, width))}, np.zeros((samples, 2)))


def moved(probe, noise, seed=1):
    random = np.random.default_rng(seed)
    return with_embeddings(probe, **{k: z + noise * random.normal(size=z.shape) for k, z in probe.embeddings.items()})


def test_one_modality_by_hand():
    reference, changed = probe_of({"a": at_degrees(0, 90, 180)}), probe_of({"a": at_degrees(0, 60, 180)})
    drift = measure_drift(changed, reference, None, Bootstrap())
    # Three samples are three anchors: cosines 0-1, 0-2 and 1-2 were 0, -1, 0 and are 1/2, -1, -1/2.
    by_sample = [(0.5 + 0) / 2, (0.5 + 0.5) / 2, (0 + 0.5) / 2]
    assert drift.mean == pytest.approx(np.mean(by_sample))
    assert drift.bias == pytest.approx(0, abs=1e-7)
    assert (drift.worst_pair, drift.worst_pair_mean) == ("a", drift.mean)
    assert (drift.scope, drift.samples) == ("intra", 3)
    # Of 1/2, -1, -1/2 against 0, -1, 0; that each pair counts twice changes nothing.
    assert drift.rank_correlation == pytest.approx(np.corrcoef([3, 1, 2], [2.5, 1, 2.5])[0, 1])


def test_modalities_of_unequal_widths():
    reference = probe_of({"a": at_degrees(0, 90), "b": [[0, 0, 1], [0, 1, 0]]})
    changed = probe_of({"a": at_degrees(0, 60), "b": [[0, 0, 1], [0, 0, 1]]})
    drift = measure_drift(changed, reference, None, Bootstrap())
    assert drift.mean == pytest.approx((0.5 + 1) / 2)
    assert (drift.worst_pair, drift.worst_pair_mean) == ("b", pytest.approx(1))
    assert drift.bias == pytest.approx((0.5 + 1) / 2)
    assert drift.scope == "intra"


def test_between_modalities_where_both_models_can():
    wide, narrow = aligned_probe(width=16), aligned_probe(width=8)
    unequal = with_embeddings(wide, b=wide.embeddings["b"][:, :5])
    assert measure_drift(wide, narrow, None, Bootstrap()).scope == "sample"
    assert measure_drift(wide, unequal, None, Bootstrap()).scope == "intra"
    assert measure_drift(unequal, wide, None, Bootstrap()).scope == "intra"


def test_the_same_gram_has_no_drift():
    drift = measure_drift(one_modality(), one_modality(), None, Bootstrap())
    assert (drift.mean, drift.bound, drift.bias) == (0, 0, 0)
    assert drift.rank_correlation == pytest.approx(1)
    assert drift.cka == pytest.approx(1)


def test_a_rotation_and_a_length_are_no_drift():
    reference = one_modality()
    drift = measure_drift(
        with_embeddings(reference, a=3 * rotate(reference, "a").embeddings["a"]), reference, None, Bootstrap()
    )
    assert drift.mean < 1e-6
    assert drift.cka == pytest.approx(1, abs=1e-5)


def test_shuffled_samples_are_a_large_drift():
    reference = one_modality()
    shuffled = with_embeddings(reference, a=reference.embeddings["a"][::-1])
    drift = measure_drift(shuffled, reference, None, Bootstrap())
    assert drift.mean > 0.3
    assert abs(drift.rank_correlation) < 0.1
    assert abs(drift.cka) < 0.1


def test_every_sample_is_compared_with_the_same_64():
    reference = one_modality(300)
    changed = moved(reference, 0.3)
    anchors = np.argsort(hash_names(reference.ids))[:64]
    unit = [p.embeddings["a"] / np.linalg.norm(p.embeddings["a"], axis=1, keepdims=True) for p in (changed, reference)]
    difference = np.abs(unit[0] @ unit[0][anchors].T - unit[1] @ unit[1][anchors].T)
    other = np.arange(300)[:, None] != anchors
    by_sample = (difference * other).sum(1) / other.sum(1)
    assert set(other.sum(1)) == {63, 64}
    assert measure_drift(changed, reference, None, Bootstrap()).mean == pytest.approx(by_sample.mean(), rel=1e-5)


def test_cka_is_of_all_modalities_side_by_side():
    reference = aligned_probe(width=16)
    reference = with_embeddings(reference, b=reference.embeddings["b"][:, :5])
    drift = measure_drift(rotate(reference, "b"), reference, None, Bootstrap())
    assert drift.cka == pytest.approx(1, abs=1e-5)


def test_groups_are_drawn_as_a_whole():
    reference = one_modality()
    noise = np.repeat([0.01, 0.02, 0.03, 0.4], 50)[:, None]
    changed = moved(reference, noise)
    groups = np.repeat(["anna", "ben", "cleo", "dan"], 50)
    independent, clustered = (measure_drift(changed, reference, g, Bootstrap()) for g in (None, groups))
    assert clustered.mean == independent.mean
    assert clustered.bound - clustered.mean > 4 * (independent.bound - independent.mean)
    assert (independent.clusters, clustered.clusters) == (None, 4)


def test_one_sample_alone_bounds_nothing():
    drift = measure_drift(one_modality(1), one_modality(1), None, Bootstrap())
    assert math.isnan(drift.mean)
    assert (drift.bound, drift.rank_correlation, drift.cka) == (2.0, None, None)


def test_a_probe_without_embeddings_is_refused():
    bare = Probe(np.arange(3), {"logits": np.ones((3, 2))}, {})
    with pytest.raises(ValueError, match="needs embeddings"):
        measure_drift(bare, bare, None, Bootstrap())


def test_a_probability_about_the_floor_of_noise_is_the_same_above_and_below_it():
    """A wake word that is not there: one engine gives 9e-7, another 1.1e-6, and the structure is what it was."""
    reference = np.full((64, 1), 0.95e-6, np.float32)
    reference[0] = 0.5e-2
    other = reference + np.where(np.arange(64) % 2, 1e-7, -1e-7).astype(np.float32)[:, None]
    sides = (probe_of({"y": z}, np.zeros((64, 2))) for z in (other, reference))
    drift = measure_drift(*sides, None, Bootstrap())
    assert drift.mean == 0
    assert pair_drifts({"y": other}, {"y": reference})["y"].max() == 0


def test_a_probability_that_is_there_no_more_is_a_drift():
    reference = np.full((64, 1), 0.1, np.float32)
    other = reference * np.where(np.arange(64) % 2, 1, 0).astype(np.float32)[:, None]
    sides = (probe_of({"y": z}, np.zeros((64, 2))) for z in (other, reference))
    assert measure_drift(*sides, None, Bootstrap()).mean > 0.5
