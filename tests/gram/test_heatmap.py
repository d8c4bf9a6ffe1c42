import numpy as np
import pytest

from edgekd.gram.heatmap import FewGrams, choose_samples, few_grams
from edgekd.gram.matrix import joint_gram, stack
from edgekd.gram.probe import Probe

COUNT = 90
IDS = np.array([f"s{index:03d}" for index in range(COUNT)])


def probe(seed, widths=(8, 8, 8)):
    random = np.random.default_rng(seed)
    embeddings = {f"m{i}": random.normal(size=(COUNT, width)).astype(np.float32) for i, width in enumerate(widths)}
    return Probe(IDS, {"logits": random.normal(size=(COUNT, 4)).astype(np.float32)}, embeddings)


def test_the_cosines_are_the_joint_gram_of_the_chosen_samples():
    teacher, engine = probe(0), probe(1)
    found = few_grams({"teacher": teacher, "shipped": engine}, np.arange(COUNT) % 4, list("abcd"))
    rows = [list(IDS).index(name) for name in found.ids]
    z = stack({name: x[rows].astype(np.float64) for name, x in engine.embeddings.items()})
    by_modality = joint_gram(z.swapaxes(0, 1))
    np.testing.assert_allclose(found.cosines["shipped"], by_modality, atol=1e-6)
    assert not np.allclose(found.cosines["teacher"], found.cosines["shipped"])
    assert found.classes == tuple("abcd"[row % 4] for row in rows)


def test_samples_come_from_every_class_and_do_not_depend_on_their_order():
    classes = np.where(np.arange(COUNT) < 85, 0, 1)  # the rare class has five
    rows = choose_samples(IDS, classes)
    assert [int((classes[rows] == kind).sum()) for kind in (0, 1)] == [11, 5]
    assert (np.diff(classes[rows]) >= 0).all()
    shuffled = np.random.default_rng(0).permutation(COUNT)
    again = choose_samples(IDS[shuffled], classes[shuffled])
    assert set(IDS[shuffled][again]) == set(IDS[rows])


def test_fewer_samples_than_wanted_and_no_classes():
    assert sorted(choose_samples(IDS[:5], None)) == [0, 1, 2, 3, 4]
    assert set(few_grams({"float": probe(0)}, None, ["a"]).classes) == {""}
    assert set(few_grams({"float": probe(0)}, np.full(COUNT, -1), ["a"]).classes) == {""}


def test_modalities_of_unequal_widths_have_no_cosines_between_them():
    found = few_grams({"float": probe(0, (8, 12))}, None, [])
    count = len(found.ids)
    values = found.cosines["float"]
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-6)
    assert np.isnan(values[:count, count:]).all()
    assert np.isfinite(values[:count, :count]).all()
    assert np.isfinite(values[count:, count:]).all()


def test_rows_of_a_probe_in_a_file_are_found_in_any_chunk(tmp_path, monkeypatch):
    before = few_grams({"shipped": probe(3)}, None, [])
    monkeypatch.setattr("edgekd.gram.heatmap._CHUNK", 7)
    probe(3).save(tmp_path / "probe.npz")
    after = few_grams({"shipped": Probe.load(tmp_path / "probe.npz")}, None, [])
    assert after.ids == before.ids
    np.testing.assert_array_equal(after.cosines["shipped"], before.cosines["shipped"])


def test_what_was_saved_comes_back(tmp_path):
    found = few_grams({"teacher": probe(0), "shipped": probe(1)}, np.arange(COUNT) % 2, ["ja", "nö"])
    found.save(tmp_path / "few" / "samples.npz")
    again = FewGrams.load(tmp_path / "few" / "samples.npz")
    assert (again.ids, again.classes, again.modalities) == (found.ids, found.classes, found.modalities)
    assert list(again.cosines) == ["teacher", "shipped"]
    np.testing.assert_allclose(again.cosines["shipped"], found.cosines["shipped"], atol=1e-6)


@pytest.mark.parametrize(
    "arrays",
    [
        {"ids": ["a"]},
        {"ids": ["a"], "classes": [""], "modalities": ["m"], "cosines.x": np.ones((2, 2))},
        {"ids": [], "classes": [], "modalities": [], "cosines.x": np.ones((0, 0))},
        {"ids": np.array([object()]), "classes": [""], "modalities": ["m"]},
    ],
    ids=["no modalities", "wrong size", "empty", "pickled"],
)
def test_what_is_no_such_file_says_so(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=r"x\.npz: "):
        FewGrams.load(tmp_path / "x.npz")


def test_a_broken_file_says_so(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"x\.npz: holds no Grams"):
        FewGrams.load(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", ids=["a"])
    content = bytearray((tmp_path / "y.npz").read_bytes())
    (tmp_path / "y.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"y\.npz: holds no Grams"):
        FewGrams.load(tmp_path / "y.npz")
