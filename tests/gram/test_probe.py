import subprocess
import sys

import numpy as np
import pytest
from probes import aligned_probe, probe_of

from edgekd.gram.drift import flips, measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe, side_by_side

EMBEDDINGS = {"a": np.ones((4, 2)), "b": np.ones((4, 2))}


def test_a_probe_comes_back_from_disk_as_it_was(tmp_path):
    probe = aligned_probe(samples=5)
    probe.save(tmp_path / "probe.npz")
    loaded = Probe.load(tmp_path / "probe.npz")
    assert (len(loaded), loaded.modalities, loaded.comparable, loaded.shapes) == (5, ["a", "b"], True, probe.shapes)
    np.testing.assert_array_equal(loaded.ids, probe.ids)
    np.testing.assert_array_equal(loaded.answer, probe.answer)
    for name, z in probe.embeddings.items():
        np.testing.assert_array_equal(loaded.embeddings[name], z)


def test_a_loaded_probe_can_be_saved_over_itself(tmp_path):
    path = tmp_path / "probe.npz"
    aligned_probe(samples=5).save(path)
    Probe.load(path).save(path)
    np.testing.assert_array_equal(Probe.load(path).answer, aligned_probe(samples=5).answer)


def test_figures_of_loaded_probes_are_those_of_the_probes(tmp_path):
    probes = aligned_probe(seed=0), aligned_probe(seed=1)
    for index, probe in enumerate(probes):
        probe.save(tmp_path / f"{index}.npz")
    loaded = [Probe.load(tmp_path / f"{index}.npz") for index in range(2)]
    assert measure_drift(*loaded, None, Bootstrap()) == measure_drift(*probes, None, Bootstrap())
    assert flips(*loaded) == flips(*probes)


def test_a_probe_that_holds_a_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "probe.npz", ids=np.array([object()]), logits=np.ones((1, 2)))
    with pytest.raises(ValueError, match="allow_pickle"):
        Probe.load(tmp_path / "probe.npz")


def test_comparing_two_saved_probes_holds_a_chunk(tmp_path):
    """60 MB of each; a process that compares them grows by less than both take, though CKA alone takes 40 MB."""
    z = np.random.default_rng(0).normal(size=(60_000, 128)).astype(np.float32)
    probe = probe_of({"a": z, "b": z[::-1]}, np.zeros((60_000, 2)), np.arange(60_000))
    probe.save(tmp_path / "probe.npz")
    program = """
import sys
from pathlib import Path
from edgekd.gram.drift import flips, measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.runtime.measure.machine import peak_rss_bytes
before = peak_rss_bytes()
probes = [Probe.load(Path(sys.argv[1])) for _ in range(2)]
assert measure_drift(*probes, None, Bootstrap(resamples=10)).mean == flips(*probes) == 0
print(peak_rss_bytes() - before)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "probe.npz")]
    grown_bytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown_bytes < 80e6


@pytest.mark.parametrize("samples", [1, 700, 5000])
def test_two_probes_come_side_by_side_in_chunks_of_bounded_size(samples):
    z = np.arange(samples * 600, dtype=np.float32).reshape(samples, 600)
    probe, reference = (probe_of({"a": z}, ids=np.arange(samples), logits=np.zeros((samples, 2))) for _ in range(2))
    pairs = list(side_by_side(probe, reference, ["embedding.a"]))
    assert len(pairs) == -(-samples * 600 // 2**19)
    for side in range(2):
        np.testing.assert_array_equal(np.concatenate([pair[side]["embedding.a"] for pair in pairs]), z)
        np.testing.assert_array_equal(np.concatenate([pair[side]["ids"] for pair in pairs]), np.arange(samples))


def test_probes_without_samples_are_refused():
    empty = probe_of({"a": np.zeros((0, 3))})
    with pytest.raises(ValueError, match="no samples"):
        flips(empty, empty)


def test_flips_are_the_share_of_changed_classes():
    before = probe_of(EMBEDDINGS, [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    after = probe_of(EMBEDDINGS, [[2, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 5]])
    assert flips(after, before) == 0.25


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 3, 7)], ids=["one column", "a value", "a map"])
def test_logits_of_no_classifier_have_no_classes_to_flip(shape):
    probe = probe_of(EMBEDDINGS, np.ones(shape))
    assert not probe.classifies("logits")
    assert flips(probe, probe) is None
