import numpy as np
import pytest

from edgekd.tasks.svg_path import drawn, outline

BOX = 24


def area(path):
    return float(drawn(path, BOX, BOX, samples=8).sum())


@pytest.mark.parametrize(
    "path",
    [
        "M4 4H12V10H4Z",
        "m4 4h8v6h-8z",
        "M4,4L12,4L12,10L4,10",
        "M4 4 12 4 12 10 4 10Z",
        "m4 4 8 0 0 6-8 0z",
        "M4 4C6 4 10 4 12 4S12 9 12 10 4 10 4 10Z",
        "M4 4Q8 4 12 4T12 10L4 10Z",
        "M12 10A0 3 0 0 1 4 10V4H12",
    ],
)
def test_every_command_that_draws_a_rectangle_draws_that_one(path):
    ink = drawn(path, BOX, BOX)
    expected = np.zeros((BOX, BOX))
    expected[4:10, 4:12] = 1
    if "S12" in path or "T12" in path:  # whose last control point is mirrored: a bulge to the right
        assert (ink[4:10, 4:12] == 1).all()
    else:
        np.testing.assert_array_equal(ink, expected)


def test_arcs_are_circles_and_ellipses_whichever_way_they_turn():
    circle = np.pi * 81
    assert area("M3 12A9 9 0 1 1 21 12A9 9 0 1 1 3 12") == pytest.approx(circle, rel=0.03)
    assert area("M3 12a9 9 0 10 18 0a9 9 0 10-18 0") == pytest.approx(circle, rel=0.03)  # flags next to numbers
    assert area("M3 12A9 5 0 0 1 21 12A9 5 0 0 1 3 12") == pytest.approx(np.pi * 45, rel=0.03)
    assert area("M3 12A1 1 0 0 1 21 12A1 1 0 0 1 3 12") == pytest.approx(circle, rel=0.03)  # enlarged until it reaches


def test_a_turned_ellipse_stands_upright():
    ink = drawn("M12 3A9 4 90 0 1 12 21A9 4 90 0 1 12 3", BOX, BOX)
    assert ink[:, 12].sum() == pytest.approx(18, abs=0.6)
    assert ink[12].sum() == pytest.approx(8, abs=0.6)


def test_of_the_larger_and_the_smaller_arc_the_flags_choose():
    small, large = "M3 12A9.5 9.5 0 0 1 21 12Z", "M3 12A9.5 9.5 0 1 1 21 12Z"
    assert area(small) < area(large)
    below = drawn("M3 12A9.5 9.5 0 0 0 21 12Z", BOX, BOX)
    np.testing.assert_allclose(below[::-1], drawn(small, BOX, BOX), atol=0.26)


def test_a_curve_is_where_its_formula_says():
    (polygon,) = outline("M0 0C0 8 8 8 8 0")
    np.testing.assert_allclose(polygon[4], 4 + 6j)  # its middle


def test_a_hole_that_turns_the_other_way_is_empty_and_one_that_turns_alike_is_not():
    outer = "M4 4H20V20H4Z"
    assert area(outer + "M8 8V16H16V8Z") == 256 - 64
    assert area(outer + "M8 8H16V16H8Z") == 256


def test_what_lies_outside_the_box_is_left_out():
    assert area("M-10 -10H34V34H-10Z") == BOX * BOX


def test_a_relative_path_goes_on_where_the_closed_one_began():
    (_, second) = outline("m2 2h4v4zm10 10h1v1z")
    assert second[0] == 12 + 12j
