"""Whatever an app feeds, the answer is that of the very numbers, or one line says what is wrong."""

import copy
import warnings

import numpy as np
import pytest
from engines import save_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.errors import ModelError
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.feeds import FiniteCheck
from edgekd.runtime.session import TensorSpec

LIBRARIES = ("onnxruntime", "openvino")


def one(shape, dtype="float32"):
    return FiniteCheck([TensorSpec("x", dtype, shape)])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 10_000, 10_001, 150_528])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype, size, value):
    array = np.ones((2, size), dtype)
    check = one((2, size), dtype)
    check({"x": array})
    for place in {0, size // 2, size - 1}:
        array[1, place] = value
        with pytest.raises(ModelError, match=rf"input 'x' of sample 1 is not finite: it has {value} at \[1, {place}\]"):
            check({"x": array})
        array[1, place] = 1


@pytest.mark.parametrize("size", [4, 20_000])
def test_numbers_whose_squares_overflow_are_finite(size):
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        one((1, size))({"x": np.full((1, size), 3e38, np.float32)})
        one((1, size))({"x": np.full((1, size), -3e38, np.float32)[:, ::-1]})


def test_a_type_that_is_another_object_is_the_same_type():
    dtype = np.dtype(np.float32, metadata={"from": "a sensor"})
    with pytest.raises(ModelError, match="has nan at"):
        one((1, 2))({"x": np.array([[1, np.nan]], dtype)})


def test_an_input_without_a_batch_has_no_sample():
    with pytest.raises(ModelError, match=r"input 'x' is not finite: it has nan at \[\]; feed finite"):
        one(())({"x": np.array(np.nan, np.float32)})


def test_whole_numbers_are_not_looked_at():
    FiniteCheck([TensorSpec("ids", "int64", ("batch", 2))])({"ids": np.ones((1, 2), np.int64)})


@pytest.fixture(scope="module", params=LIBRARIES)
def session(request, tmp_path_factory):
    path = save_engine(tmp_path_factory.mktemp("feeds") / "e.onnx")
    with Runtime(request.param).open(path) as opened:
        yield opened


SHAPES = {"accel": (4,), "image": (1, 2, 3)}
#: What strangers feed in an array's place.
STRANGE = (
    None,
    3,
    0.5,
    "x",
    b"x",
    [],
    [[1.0] * 4],
    {},
    object(),
    np.float32(1),
    np.array(1.0),
    np.zeros(0),
    np.ma.zeros(4),
)


@st.composite
def arrays(draw, name, rows):
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(STRANGE))
    dtype = draw(st.sampled_from(["<f4"] * 6 + [">f4", "f2", "f8", "i4", "i8", "?", "O", "U3", "c8", "M8[s]"]))
    shape = (
        draw(st.sampled_from([rows] * 6 + [0, 1, 5])),
        *SHAPES[name],
        *draw(st.sampled_from([()] * 8 + [(1,), (0,)])),
    )
    array = np.random.default_rng(rows).integers(0, 5, shape).astype(dtype)
    layout = draw(st.sampled_from(["plain", "fortran", "reversed", "strided", "broadcast", "frozen", "memmap"]))
    if layout == "fortran":
        array = np.asfortranarray(array)
    elif layout == "reversed":
        array = array[::-1]
    elif layout == "strided":
        array = np.repeat(array, 2, axis=0)[::2]
    elif layout == "broadcast":
        array = np.broadcast_to(array[:1], array.shape) if len(array) else array
    elif layout == "frozen":
        array.setflags(write=False)
    elif layout == "memmap":
        array = array.view(np.memmap) if array.dtype.kind == "f" else array
    return array


@st.composite
def feeds(draw):
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from(STRANGE))
    rows = draw(st.sampled_from([0, 1, 1, 2, 3]))
    given_ = {name: draw(arrays(name, rows)) for name in SHAPES}
    if kind == 1:
        del given_[draw(st.sampled_from(sorted(SHAPES)))]
    if kind == 2:
        given_[draw(st.sampled_from([0, None, "images", b"image", ("a",), 1.5, "\udcff"]))] = np.zeros(1)
    return given_


@settings(max_examples=300, deadline=None)
@given(given_=feeds())
def test_anything_is_answered_rightly_or_refused_in_one_line(session, given_):
    before = copy.copy(given_)
    check = FiniteCheck(session.inputs)
    try:
        check(given_)
        found = session.run(given_)["logits"]
    except ModelError as refusal:
        said = str(refusal)
    else:
        said = None
    if said is not None:
        assert "\n" not in said
        return
    plain = {name: np.array(array, "<f4", order="C") for name, array in before.items()}
    assert all(array.shape[0] == len(found) for array in plain.values())
    np.testing.assert_allclose(found, session.run(plain)["logits"], rtol=1e-6, atol=1e-6)
