"""Docstrings name objects in Sphinx's way, as in :func:`~edgekd.load`; the site shows the name alone, as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|mod|meth|data|attr|exc):`(~?)([^`]+)`")


def plain(text: str) -> str:
    """Return a docstring with the target of each role as code: the last part alone where the role begins with ``~``."""
    return _ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", text)


class Roles(griffe.Extension):
    """Rewrites the roles of every docstring that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_others: Any) -> None:
        """Receive an object that griffe has just read."""
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
