"""Several jobs at once: all end, and what failed is said."""

import threading

import pytest

from edgekd.devices.parallel import run_parallel
from edgekd.errors import DeviceError, MissingDependency


def fail(error):
    raise error


def test_jobs_run_at_the_same_time():
    both = threading.Barrier(2)
    assert run_parallel({"a": lambda: both.wait(60) >= 0, "b": lambda: both.wait(60) >= 0}, lambda: None) == {
        "a": True,
        "b": True,
    }


def test_no_job_is_no_trouble():
    assert run_parallel({}, lambda: None) == {}


def test_one_error_is_raised_as_it_is_when_the_others_are_done():
    done = []
    with pytest.raises(DeviceError, match=r"^a is gone$"):
        run_parallel({"a": lambda: fail(DeviceError("a is gone")), "b": lambda: done.append("b")}, lambda: None)
    assert done == ["b"]


def test_several_errors_are_one_that_names_each():
    jobs = {"a": lambda: fail(MissingDependency("no numpy")), "b": lambda: fail(DeviceError("b is gone"))}
    with pytest.raises(MissingDependency, match=r"^2 failed: a: no numpy; b is gone$"):
        run_parallel(jobs, lambda: None)


def test_a_defect_is_no_users_error():
    with pytest.raises(ZeroDivisionError):
        run_parallel({"a": lambda: fail(DeviceError("gone")), "b": lambda: 1 // 0}, lambda: None)
