"""Several boards at once, each in a thread of its own, which only waits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from edgekd.devices.refusals import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

R = TypeVar("R")


def run_parallel(jobs: Mapping[str, Callable[[], R]], stop: Callable[[], None]) -> dict[str, R]:
    """Run jobs side by side, and return their results by name.

    A job that fails does not stop the others.

    Args:
        jobs: The jobs by their names in errors.
        stop: Makes all of them end soon; called when this is interrupted.

    Raises:
        EdgekdError: some failed: the one error, or one of the first's class that names each.
    """
    if not jobs:
        return {}
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = {name: pool.submit(job) for name, job in jobs.items()}
        try:
            wait(running.values())
        except BaseException:
            stop()
            raise
    failed = {name: error for name, future in running.items() if (error := future.exception())}
    if failed:
        raise joined(failed)
    return {name: future.result() for name, future in running.items()}
