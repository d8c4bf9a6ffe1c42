"""Nests of arrays: rows of them, their names in a file, and what cannot be one."""

import numpy as np
import pytest

from edgekd.gram.nest import count_rows, flatten, map_nest, take_rows, unflatten
from edgekd.gram.npz import stream_rows

X, Y = np.arange(6).reshape(3, 2), np.array([1.5, np.nan, 2])
NESTS = {
    "an array": X,
    "a dict": {"boxes": X, "scores": Y},
    "a tuple": (X, Y),
    "nested tuples": ((X, (Y,)), X),
    "a dict of tuples": {"boxes": (X, Y), "class": {"a": Y, "b b": X}},
    "an empty dict": {"boxes": X, "extra": {}},
    "an empty tuple": (X, (), {"more": ()}),
    "eleven places": tuple(X + i for i in range(11)),
}


def same(ours, theirs):
    if isinstance(ours, np.ndarray):
        return isinstance(theirs, np.ndarray) and ours.dtype == theirs.dtype and np.array_equal(ours, theirs, True)
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and list(ours) == list(theirs) and all(same(ours[k], theirs[k]) for k in ours)
    return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))


@pytest.mark.parametrize("name", NESTS)
def test_a_nest_comes_back_from_a_file(name, tmp_path):
    nest = NESTS[name]
    np.savez(tmp_path / "x.npz", ids=np.arange(3), **flatten(nest, "target"))
    with np.load(tmp_path / "x.npz") as arrays:
        found = unflatten(dict(arrays), "target")
    assert same(found, nest)
    assert count_rows(found) == 3


def test_a_file_names_the_leaves_and_their_rows_stream(tmp_path):
    nest = NESTS["a dict of tuples"]
    names = flatten(nest, "target")
    assert list(names) == ["target.boxes.0", "target.boxes.1", "target.class.a", "target.class.b b"]
    np.savez(tmp_path / "x.npz", **names)
    chunks = [unflatten(chunk, "target") for chunk in stream_rows(tmp_path / "x.npz", list(names), 2)]
    assert [count_rows(chunk) for chunk in chunks] == [2, 1]
    np.testing.assert_array_equal(chunks[1]["boxes"][0], X[2:])


def test_a_list_comes_back_as_a_tuple():
    assert same(unflatten(flatten([X, [Y]], "target"), "target"), (X, (Y,)))


def test_arrays_of_other_names_are_no_nest():
    assert unflatten({"targets": X, "labels": Y}, "target") is None


@pytest.mark.parametrize("rows", [np.array([True, False, True]), np.array([2, 0]), slice(1, 3)])
def test_rows_of_every_array_are_taken(rows):
    found = take_rows({"a": [X], "b": (Y,), "c": {}}, rows)
    assert same(found, {"a": [X[rows]], "b": (Y[rows],), "c": {}})


def test_a_function_is_given_every_array():
    assert same(map_nest([X, {"a": Y}], lambda array: array * 2), [X * 2, {"a": Y * 2}])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.b", r"the name 'a\.b' in 'target\.inner' has '\.' in it"),
        ("a/b", "has '/' in it"),
        ("0", "is a number: use a list"),
        ("", "is no name: give text"),
        ("{}", "is no name"),
        (3, "the name 3 in 'target.inner' is no name"),
    ],
)
def test_names_that_a_file_cannot_tell_apart_are_refused(name, expected):
    with pytest.raises(ValueError, match=expected):
        flatten({"inner": {name: X}}, "target")


@pytest.mark.parametrize(
    ("nest", "expected"),
    [
        ({"a": X, "b": (Y[:2],)}, r"the arrays differ in rows: \{'a': 3, 'b\.0': 2\}"),
        ({"a": {}}, "needs an array with a row for each sample"),
        ((X, np.array(3)), "needs an array with a row for each sample"),
    ],
)
def test_arrays_that_are_no_rows_of_samples_are_refused(nest, expected):
    with pytest.raises(ValueError, match=expected):
        count_rows(nest)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["target", "target.a"], r"'target' is an array, so there cannot be 'target\.a'"),
        (["target.0", "target.2"], r"there is no 'target\.1' beside"),
    ],
)
def test_names_that_are_no_nests_are_refused(names, expected):
    with pytest.raises(ValueError, match=expected):
        unflatten(dict.fromkeys(names, X), "target")
