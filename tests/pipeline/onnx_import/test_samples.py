from contextlib import suppress

import numpy as np
import pytest
from graphs import normal, save_samples

from edgekd.errors import ModelError
from edgekd.pipeline.onnx_import.samples import read_samples, split
from edgekd.runtime.session import TensorSpec
from edgekd.stages.labels import UNLABELLED

X = TensorSpec("x", "float32", ("n", 4))
GAIN = TensorSpec("gain", "float32", ())
STATE = TensorSpec("state", "float32", (2, "n", 3))
SPECS = (X, GAIN)
RIGHT = {"x": normal(4), "gain": normal()}


def read(tmp_path, arrays, specs=SPECS, states=()):
    return read_samples(save_samples(tmp_path / "s.npz", **arrays), specs, states)


def test_names_with_and_without_the_prefix(tmp_path):
    samples = read(tmp_path, {"input.x": RIGHT["x"], "gain": RIGHT["gain"]})
    assert list(samples.inputs) == ["x", "gain"]
    np.testing.assert_array_equal(samples.inputs["x"], RIGHT["x"])
    assert samples.ids.tolist() == [str(row) for row in range(12)]
    assert (samples.labels, samples.groups, samples.ignored) == (None, None, ())


def test_an_input_whose_own_name_begins_like_the_prefix(tmp_path):
    samples = read(tmp_path, {"input.1": RIGHT["x"]}, [TensorSpec("input.1", "float32", ("n", 4))])
    assert list(samples.inputs) == ["input.1"]


def test_extras_are_read_and_strangers_named(tmp_path):
    extras = {"ids": np.arange(12) + 100, "labels": np.arange(12) % 3, "groups": np.repeat(["a", "b"], 6)}
    samples = read(tmp_path, {**RIGHT, **extras, "more": np.zeros(3)})
    assert samples.ids[0] == "100"
    assert samples.labels.dtype == np.int64
    assert samples.groups.tolist() == extras["groups"].tolist()
    assert samples.ignored == ("more",)


def test_labels_that_all_mean_none_are_none(tmp_path):
    assert read(tmp_path, {**RIGHT, "labels": np.full(12, -100)}).labels is None


def test_an_input_called_labels_is_an_input(tmp_path):
    spec = TensorSpec("labels", "float32", ("n", 4))
    samples = read(tmp_path, {"labels": RIGHT["x"]}, [spec])
    assert samples.labels is None
    assert list(samples.inputs) == ["labels"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None, "xx": RIGHT["x"]}, r"no array for the model's input 'x', float32 \[n, 4\]; did you mean 'xx'\?"),
        ({"x": RIGHT["x"].astype(int)}, r"'x' must be float32, but its array is int64; .*\.astype\('float32'\)"),
        ({"x": RIGHT["x"].astype(float)}, "'x' must be float32, but its array is float64"),
        ({"x": normal(5)}, r"'x' is float32 \[n, 4\], so its array must be \[samples, 4\], but is \[12, 5\]"),
        ({"x": normal()}, r"must be \[samples, 4\], but is \[12\]"),
        ({"gain": np.float32(1)}, r"'gain' is float32 \[\], so its array must be \[samples\], but is \[\]"),
        ({"gain": normal(1)}, r"must be \[samples\], but is \[12, 1\]"),
        ({"x": np.where(np.arange(48).reshape(12, 4) == 21, np.nan, 1).astype("f")}, "'x' of sample 5 is not finite"),
        ({"x": RIGHT["x"][:9]}, r"same number of samples, at least two, but has \{'x': 9, 'gain': 12\}"),
        ({"x": RIGHT["x"][:1], "gain": RIGHT["gain"][:1]}, r"at least two, but has \{'x': 1, 'gain': 1\}"),
        ({"ids": np.zeros(12)}, "'ids' names some samples alike"),
        ({"labels": np.zeros(12)}, r"'labels' must be whole numbers, one a sample, .* but is float64 \[12\]"),
        ({"labels": np.zeros((12, 2), int)}, r"but is int64 \[12, 2\]"),
        ({"labels": np.int64(1)}, r"'labels' must be whole numbers, one a sample, .* but is int64 \[\]"),
        ({"groups": np.int64(1)}, r"'groups' must be numbers or texts, one a sample, but is int64 \[\]"),
        ({"ids": np.zeros(12, "i4,f4")}, r"'ids' must be numbers or texts, one a sample, but is \["),
        ({"ids": np.zeros((12, 2))}, r"'ids' must be numbers or texts, one a sample, but is float64 \[12, 2\]"),
    ],
    ids=["missing", "integers", "double", "size", "rank", "scalar", "rank-of-scalar", "nan", "rows", "few", "ids",
         "float-labels", "label-rows", "one-label", "one-group", "ids-of-parts", "ids-of-rows"],
)  # fmt: skip
def test_what_does_not_fit_is_said(tmp_path, change, message):
    arrays = {key: array for key, array in {**RIGHT, **change}.items() if array is not None}
    with pytest.raises(ModelError, match=message):
        read(tmp_path, arrays)


def test_a_missing_state_is_asked_for_as_such(tmp_path):
    message = (
        r"input 'state', float32 \[2, n, 3\]; it looks like a state: --state state=OUTPUT says which output holds it "
        r"after a step, to have it carried; or give what it holds before each sample$"
    )
    with pytest.raises(ModelError, match=message):
        read(tmp_path, RIGHT, (*SPECS, STATE), ["state"])


def test_an_archive_of_nothing_has_no_input(tmp_path):
    with pytest.raises(ModelError, match=r"no array for the model's input 'x', float32 \[n, 4\]; there are none$"):
        read(tmp_path, {})


def test_a_damaged_archive_is_read_or_refused(tmp_path):
    path = tmp_path / "s.npz"
    np.savez_compressed(path, **RIGHT)
    content = path.read_bytes()
    for at in range(0, len(content), 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :])
        with suppress(ModelError):
            read_samples(path, SPECS, ())


def test_a_text_file_is_no_archive(tmp_path):
    (tmp_path / "s.npz").write_text("x,y")
    with pytest.raises(ModelError, match=r"cannot be read as an \.npz"):
        read_samples(tmp_path / "s.npz", SPECS, ())


def test_the_halves_are_disjoint_and_whole_and_follow_the_seed(tmp_path):
    samples = read(tmp_path, {**RIGHT, "labels": np.arange(12)})
    first, second = split(samples, 0)
    assert set(first.ids).isdisjoint(second.ids)
    assert sorted([*first.ids, *second.ids], key=int) == samples.ids.tolist()
    for half in (first, second):
        np.testing.assert_array_equal(half.inputs["x"], RIGHT["x"][half.ids.astype(int)])
        np.testing.assert_array_equal(half.labels, half.ids.astype(int))
    assert split(samples, 0)[0].ids.tolist() == first.ids.tolist()
    assert split(samples, 1)[0].ids.tolist() != first.ids.tolist()


def test_groups_are_not_divided(tmp_path):
    groups = np.array(list("abcabcabcddd"))
    first, second = split(read(tmp_path, {**RIGHT, "groups": groups}), 0)
    assert set(first.groups).isdisjoint(second.groups)
    assert len(first.groups) + len(second.groups) == 12


def test_a_half_without_a_label_is_unlabelled(tmp_path):
    labels = np.full(12, UNLABELLED)
    labels[0] = 1
    halves = split(read(tmp_path, {**RIGHT, "labels": labels}), 0)
    assert {half.labels is None for half in halves} == {"0" not in half.ids for half in halves} == {True, False}


def test_one_group_alone_cannot_be_split(tmp_path):
    with pytest.raises(ModelError, match=r"all samples are of one group.*--test"):
        split(read(tmp_path, {**RIGHT, "groups": np.zeros(12)}), 0)
