"""What an error says of a name that is not known."""

import pytest

from edgekd.errors import nearest


@pytest.mark.parametrize(
    ("known", "advice"),
    [
        (["imu", "audio"], "; did you mean 'audio'?"),
        (["imu", "depth"], "; known: depth, imu"),
        ([], "; there are none"),
    ],
)
def test_the_nearest_or_all_are_named(known, advice):
    assert nearest("audoi", known) == advice


def test_of_hundreds_some_are_named():
    advice = nearest("audio", (f"{n:03}" for n in range(600)))
    assert advice.startswith("; known: 000, 001, ")
    assert advice.endswith(", 029 and 570 more")
