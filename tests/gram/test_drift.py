import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probes import aligned_probe, at_degrees, first, probe_of, rotate

from edgekd.gram.drift import DriftMeter, flips, measure_drift
from edgekd.gram.intervals import Bootstrap, upper_bound
from edgekd.gram.matrix import pair_cosines
from edgekd.gram.probe import Probe
from edgekd.gram.stats import debiased_cka, spearman
from edgekd.gram.streaming import UNITS, Units, hash_names


def bound_of(errors, groups, bootstrap):
    units = Units()
    units.add(hash_names(np.arange(len(errors)) if groups is None else groups), errors)
    return upper_bound(*units.totals(), bootstrap, 2.0)


def test_a_small_case_by_hand():
    reference = probe_of({"a": at_degrees(0, 0), "b": at_degrees(0, 60), "c": at_degrees(90, 0)})
    changed = probe_of({"a": at_degrees(0, 0), "b": at_degrees(60, 60), "c": at_degrees(90, 180)})
    # Cosines of a-b, a-c, b-c, sample by sample.
    before = np.array([[1, 0, 0], [0.5, 1, 0.5]])
    after = np.array([[0.5, 0, math.sqrt(0.75)], [0.5, -1, -0.5]])
    drift = measure_drift(changed, reference, None, Bootstrap())
    assert drift.mean == pytest.approx(np.abs(after - before).mean(), abs=1e-6)
    assert drift.bias == pytest.approx((after - before).mean(), abs=1e-6)
    assert drift.worst_pair == "a-c"
    assert drift.worst_pair_mean == pytest.approx(1.0, abs=1e-6)
    assert (drift.samples, drift.clusters) == (2, None)


def test_rank_correlation_by_hand():
    def cosines_of(*degrees):
        return probe_of({"a": at_degrees(*[0] * len(degrees)), "b": at_degrees(*degrees)})

    reference = cosines_of(10, 20, 30, 40)
    assert measure_drift(cosines_of(40, 50, 60, 70), reference, None, Bootstrap()).rank_correlation == pytest.approx(1)
    assert measure_drift(cosines_of(40, 30, 20, 10), reference, None, Bootstrap()).rank_correlation == pytest.approx(-1)
    # Ranks 1, 2, 4, 3: 1 - 6 * 2 / (4 * 15).
    swapped = measure_drift(cosines_of(10, 20, 40, 30), reference, None, Bootstrap())
    assert swapped.rank_correlation == pytest.approx(0.8)
    # Ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4.
    tied = measure_drift(cosines_of(10, 10, 30, 40), reference, None, Bootstrap())
    assert tied.rank_correlation == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3, 4])[0, 1])
    constant = measure_drift(cosines_of(30, 30, 30, 30), reference, None, Bootstrap())
    assert constant.rank_correlation is None


def test_the_same_gram_has_no_drift():
    probe = aligned_probe()
    drift = measure_drift(probe, probe, None, Bootstrap())
    assert (drift.mean, drift.bound, drift.bias) == (0, 0, 0)
    assert drift.rank_correlation == pytest.approx(1)
    assert drift.cka == pytest.approx(1)


def test_widths_need_not_agree_between_the_models():
    narrow = aligned_probe(width=8)
    padded = {name: np.pad(z, [(0, 0), (0, 8)]) for name, z in narrow.embeddings.items()}
    assert measure_drift(probe_of(padded), narrow, None, Bootstrap()).mean == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_above_the_mean_and_falls_with_more_samples(seed):
    errors = np.random.default_rng(seed).exponential(0.01, 4000)
    few, many = (bound_of(errors[:n], None, Bootstrap(seed=seed)) - errors[:n].mean() for n in (40, 4000))
    assert few > 4 * many > 0


def test_the_bound_holds_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = sum(
        bound_of(random.exponential(1.0, 60), None, Bootstrap(resamples=300, seed=trial)) >= 1.0 for trial in range(200)
    )
    # The percentile bootstrap is a little optimistic on skewed errors of few samples.
    assert 0.88 <= held / 200 <= 0.99


def test_a_higher_confidence_gives_a_higher_bound():
    errors = np.random.default_rng(0).exponential(0.01, 100)
    bounds = [bound_of(errors, None, Bootstrap(confidence)) for confidence in (0.6, 0.95, 0.999)]
    assert bounds == sorted(set(bounds))


def test_groups_that_differ_raise_the_bound():
    groups = np.repeat(["anna", "ben", "cleo", "dan"], 50)
    errors = np.repeat([0.01, 0.02, 0.03, 0.08], 50) + np.random.default_rng(0).normal(0, 1e-3, 200)
    independent, clustered = bound_of(errors, None, Bootstrap()), bound_of(errors, groups, Bootstrap())
    assert clustered - errors.mean() > 4 * (independent - errors.mean())


def test_groups_of_unequal_size_keep_the_mean_of_samples():
    errors, groups = np.array([0.0] * 99 + [1.0]), np.array(["large"] * 99 + ["small"])
    # Drawing two groups of two: the small one twice (a quarter of the time) means that every sample is wrong.
    assert bound_of(errors, groups, Bootstrap()) == 1.0


@pytest.mark.parametrize("groups", [None, np.array(["anna"])], ids=["one sample", "one group"])
def test_one_sample_or_group_bounds_nothing(groups):
    errors = np.array([0.001]) if groups is None else np.full(500, 0.001)
    assert bound_of(errors, groups if groups is None else np.repeat(groups, 500), Bootstrap()) == 2.0


def test_the_seed_decides():
    changed, reference = aligned_probe(seed=1), aligned_probe(seed=0)
    first, again, other = (measure_drift(changed, reference, None, Bootstrap(seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first.bound != other.bound
    assert first.mean == other.mean


def test_one_modality_rotating_is_seen_by_the_joint_cka_and_by_drift_alone():
    reference = aligned_probe()
    rotated = rotate(reference, "b")
    for modality in "ab":
        ours, theirs = (p.embeddings[modality].astype(np.float64) for p in (rotated, reference))
        assert debiased_cka(ours, theirs) == pytest.approx(1.0, abs=5e-4)
    drift = measure_drift(rotated, reference, None, Bootstrap())
    assert drift.cka < 0.8
    assert drift.mean > 0.5
    assert drift.bias < -0.5


def test_both_modalities_rotating_together_is_no_drift():
    reference = aligned_probe()
    rotated = rotate(rotate(reference, "a"), "b")
    drift = measure_drift(rotated, reference, None, Bootstrap())
    assert drift.mean < 1e-6
    assert drift.cka == pytest.approx(1, abs=1e-5)


def test_the_lengths_of_embeddings_are_no_drift():
    reference = aligned_probe()
    lengths = np.random.default_rng(0).uniform(0.1, 10, (200, 1)).astype(np.float32)
    scaled = Probe(reference.ids, reference.outputs, {name: lengths * z for name, z in reference.embeddings.items()})
    drift = measure_drift(scaled, reference, None, Bootstrap())
    assert drift.mean < 1e-6
    assert drift.cka == pytest.approx(1, abs=1e-5)


def test_too_few_rows_have_no_cka():
    assert measure_drift(aligned_probe(samples=1), aligned_probe(samples=1), None, Bootstrap()).cka is None


def test_other_samples_are_refused():
    probe = aligned_probe()
    shuffled = Probe(probe.ids[::-1], probe.outputs, probe.embeddings)
    with pytest.raises(ValueError, match="not of the same samples in the same order"):
        measure_drift(shuffled, probe, None, Bootstrap())
    with pytest.raises(ValueError, match="not of the same samples"):
        flips(shuffled, probe)


def test_other_modalities_are_refused():
    probe = aligned_probe()
    renamed = Probe(probe.ids, probe.outputs, {"a": probe.embeddings["a"], "z": probe.embeddings["b"]})
    with pytest.raises(ValueError, match=r"modalities \['a', 'z'\] and \['a', 'b'\]"):
        measure_drift(renamed, probe, None, Bootstrap())


@pytest.mark.parametrize("groups", [3, 5, 10])
def test_the_bound_of_a_few_groups_holds_about_as_often_as_it_says(groups):
    # The percentile bootstrap alone would hold in 76 %, 90 % and 94 % of the trials.
    random, member = np.random.default_rng(groups), np.repeat(np.arange(groups), 20)
    held = 0
    for trial in range(300):
        means = 1 + 0.2 * random.normal(size=groups)
        errors = means[member] + 0.05 * random.normal(size=len(member))
        held += bound_of(errors, member, Bootstrap(resamples=200, seed=trial)) >= 1
    assert held / 300 > 0.92


def many(samples, seed=0):
    """Two modalities of a model and of one that strays from it, some samples more than others."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(2, samples, 4))
    strays = z + random.exponential(0.05, (samples, 1)) * random.normal(size=z.shape)
    return [probe_of(dict(zip("ab", both, strict=True)), np.zeros((samples, 2))) for both in (strays, z)]


MANY = many(10_000)


def metered(probes, sizes, groups=None):
    """Measure chunk by chunk; the last chunk has what is left."""
    meter = DriftMeter(["a", "b"], Bootstrap(resamples=20))
    start = 0
    for size in [*sizes, len(probes[0])]:
        part = slice(start, start + size)
        both = ({name: z[part] for name, z in probe.embeddings.items()} for probe in probes)
        meter.add(probes[0].ids[part], *both, None if groups is None else groups[part])
        start += size
    return meter.result()


@pytest.mark.parametrize("groups", [None, np.arange(10_000) // 2, np.arange(10_000) % 7], ids=["none", "many", "few"])
@given(st.lists(st.integers(1, 4000), max_size=5))
@settings(max_examples=8, deadline=None)
def test_chunks_do_not_matter(groups, sizes):
    whole, parts = (asdict(metered(MANY, chunks, groups)) for chunks in ([], sizes))
    figures = ("mean", "bound", "worst_pair_mean", "bias", "rank_correlation", "cka")
    for name in figures:
        assert parts.pop(name) == pytest.approx(whole.pop(name), rel=1e-10)
    assert parts == whole


def test_the_bound_over_blocks_is_that_over_samples():
    changed, reference = many(20_000)
    drift = measure_drift(changed, reference, None, Bootstrap())
    cosines = [pair_cosines(probe.embeddings)[:, 0].astype(float) for probe in (changed, reference)]
    errors = np.abs(cosines[0] - cosines[1])
    assert len(errors) > 2 * UNITS
    exact = upper_bound(errors, np.ones(len(errors)), Bootstrap())
    assert drift.mean == pytest.approx(errors.mean(), rel=1e-5)
    assert drift.bound - drift.mean == pytest.approx(exact - errors.mean(), rel=0.05)


def test_the_bound_over_blocks_of_groups_is_that_over_groups():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(20_000), 3)
    errors = np.repeat(random.exponential(0.01, 20_000), 3) + random.exponential(0.001, 60_000)
    exact = upper_bound(errors.reshape(-1, 3).sum(1), np.full(20_000, 3.0), Bootstrap())
    assert bound_of(errors, groups, Bootstrap()) - errors.mean() == pytest.approx(exact - errors.mean(), rel=0.05)
    assert bound_of(errors, None, Bootstrap()) - errors.mean() < 0.7 * (exact - errors.mean())


def test_a_subsample_ranks_and_aligns_as_all_samples_do():
    changed, reference = many(100_000)
    drift = measure_drift(changed, reference, None, Bootstrap(resamples=10))
    cosines = [pair_cosines(probe.embeddings)[:, 0] for probe in (changed, reference)]
    assert drift.rank_correlation == pytest.approx(spearman(*cosines), abs=1e-3)
    fewer = measure_drift(*(first(probe, 500) for probe in (changed, reference)), None, Bootstrap())
    assert drift.cka == pytest.approx(fewer.cka, abs=0.02)


def test_a_meter_of_no_samples_has_no_drift():
    with pytest.raises(ValueError, match="needs samples"):
        DriftMeter(["a", "b"], Bootstrap()).result()


def test_embeddings_of_almost_nothing_have_no_direction():
    """One engine gives exactly 0 where another gives 1e-9: a cosine with that would be 1 in one and 0 in the other."""
    a = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    kept = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    for side, other in ((a, a + 1e-9), (a + 1e-9, a)):
        drift = measure_drift(probe_of({"a": side, "b": kept}), probe_of({"a": other, "b": kept}), None, Bootstrap())
        assert drift.mean == 0
    partly = kept * [[1.0], [1e-9], [1.0]]
    drift = measure_drift(
        probe_of({"a": partly, "b": kept}), probe_of({"a": partly * [[1], [0], [1]], "b": kept}), None, Bootstrap()
    )
    assert drift.mean == 0
