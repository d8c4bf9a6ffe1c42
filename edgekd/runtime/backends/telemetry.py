"""Imports of Intel's libraries that report nothing to their maker."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Make OpenVINO and NNCF, where this is their first import, believe that they run in CI.

    Left to itself, the mere import of either reports to its maker, unless the user opted out in a file in the home
    folder. Only these variables, which they read at import, prevent that from the outside. A library that was imported
    before goes on as it was.
    """
    before = {name: os.environ.get(name) for name in ("CI", "NNCF_CI")}
    os.environ.update(dict.fromkeys(before, "true"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
