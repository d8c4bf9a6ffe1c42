"""A target or a device that refuses ends alone: what becomes of it, while the others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from edgekd.errors import BundleError, DeviceError, EdgekdError, MissingDependency, ModelError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

R = TypeVar("R")

#: What one target, its engine library or its device may refuse. All others concern every target: the recipe, the task,
#: the disk.
_REFUSALS = (ModelError, DeviceError, BundleError, TargetError, MissingDependency)


class Refusals:
    """The targets, or devices, of a command that refused.

    Args:
        count: Number of all targets. Where there is but one, its refusal is the command's own error.
        notify: Called with the name and the reason of each that refuses.

    Attributes:
        errors: For each that refused its error, by name.
    """

    def __init__(self, count: int, notify: Callable[[str, str], None]) -> None:
        self._count, self._notify = count, notify
        self.errors: dict[str, EdgekdError] = {}

    def attempt(self, name: str, job: Callable[[], R]) -> R | None:
        """Do something for one target; return None where it refuses, and remember why.

        Args:
            name: The target's name.
            job: What is to be done.

        Raises:
            EdgekdError: The error is not the target's alone, or all have refused.
        """
        try:
            return job()
        except _REFUSALS as error:
            if self._count == 1:
                raise
            self.errors[name] = error
            self._notify(name, str(error))
            if len(self.errors) == self._count:
                raise joined(self.errors) from error
            return None

    def __str__(self) -> str:
        """Return who refused and why, in one line."""
        return "; ".join(f"{name} refused: {reason}" for name, reason in self.reasons.items())

    @property
    def reasons(self) -> dict[str, str]:
        """For each that refused the reason, by name."""
        return {name: str(error) for name, error in self.errors.items()}


def joined(failed: Mapping[str, BaseException]) -> BaseException:
    """Return one error for several jobs: the only one, a defect, or one of the first's class that names each.

    Args:
        failed: The errors, one or more, by the names of their jobs.
    """
    first = next(iter(failed.values()))
    defects = [error for error in failed.values() if not isinstance(error, EdgekdError)]
    if defects or len(failed) == 1:
        return defects[0] if defects else first
    messages = (str(error) if name in str(error) else f"{name}: {error}" for name, error in failed.items())
    return type(first)(f"{len(failed)} failed: " + "; ".join(messages))
