"""What is costly to make and only read by tests is made once in a run, whichever worker needs it first."""

import os
import pickle

from filelock import FileLock


def run_folder(tmp_path_factory):
    """Return the folder that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(tmp_path_factory, name, make):
    """Return what ``make(folder)`` returned to the first worker that asked for it by this name.

    Args:
        tmp_path_factory: Pytest's.
        name: Name of the shared folder.
        make: Makes it in an empty folder; what it returns must be picklable, and nobody may change either.
    """
    folder = run_folder(tmp_path_factory) / f"once-{name}"
    kept = folder.with_suffix(".pickle")
    with FileLock(folder.with_suffix(".lock")):
        if not kept.exists():
            folder.mkdir()  # after a failure it is there already, and nobody tries again
            made = make(folder)
            kept.write_bytes(pickle.dumps(made))
    return pickle.loads(kept.read_bytes())
