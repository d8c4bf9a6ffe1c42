"""The folders of a build."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import OutputError
from edgekd.files import make_folder, scratch_root
from edgekd.pipeline.output import refuse_foreign

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class BuildPaths:
    """Where a build reads and writes.

    Attributes:
        output: Folder of the report, with one folder for each target.
        cache: Folder of the finished stages.
    """

    output: Path
    cache: Path

    def try_out(self, places: Sequence[str]) -> None:
        """Do what :meth:`check` does, and leave no folder behind.

        Args:
            places: As for :meth:`check`.

        Raises:
            OutputError: As for :meth:`check`.
        """
        output = self.output.absolute()
        made = [folder for folder in (output, *output.parents) if not folder.exists()]
        try:
            self.check(places)
        finally:
            for folder in made:
                with suppress(OSError):  # whoever puts something there meanwhile keeps it
                    folder.rmdir()

    def check(self, places: Sequence[str]) -> None:
        """Make the output's folder, and refuse before any work what could only be refused after it.

        Args:
            places: What will be written into the output; see :mod:`edgekd.pipeline.output`.

        Raises:
            OutputError: The folder cannot be written, edgekd did not write what lies in one of these places, or the
                cache does.
            ScratchError: There is no folder for temporary files.
        """
        make_folder(self.output, OutputError, "--output")
        scratch_root()
        refuse_foreign(self.output, places)
        cache = Path(os.path.realpath(self.cache))  # Path.resolve raises where links go in a ring
        for place in places:
            if cache.is_relative_to(os.path.realpath(self.output / place)):
                raise OutputError(f"{self.cache}: the cache lies in {self.output / place}, which is replaced; move one")
