"""Targets whose engine library is known, and takes their options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edgekd.config.target import convert, find_target, read_target
from edgekd.errors import TargetError, nearest
from edgekd.plugins import is_plugin
from edgekd.runtime.backends.registry import BACKENDS

if TYPE_CHECKING:
    from edgekd.config.target import Target
    from edgekd.runtime.backends.backend import Backend, BackendOption


#: The largest number that an option of an engine library may be.
_LARGEST = 2**31 - 1


def load_target(reference: str) -> Target:
    """Read a target, and check that its engine library is known and takes its options.

    The options of a user's own library are checked when it is imported.

    Args:
        reference: A shipped name, or the path of a ``.toml``.

    Raises:
        TargetError: there is no such target, or its file is not valid.
    """
    target, path = read_target(reference), find_target(reference)
    if is_plugin(target.runtime):
        return target
    if target.runtime not in BACKENDS:
        raise TargetError(f"{path}: runtime: there is no '{target.runtime}'{nearest(target.runtime, BACKENDS)}")
    backend = BACKENDS[target.runtime]
    options = msgspec.to_builtins(convert(target.options, _options_type(backend), path, "options."))
    if problem := backend.conflict(options):
        raise TargetError(f"{path}: options.{problem}")
    return target


def _options_type(backend: Backend) -> type[msgspec.Struct]:
    """Return the table of a backend's options as a type, so that its errors are those of every other table."""
    fields = [(option.name, _value_type(option), option.default) for option in backend.options]
    return msgspec.defstruct("Options", fields, frozen=True, kw_only=True, forbid_unknown_fields=True)


def _value_type(option: BackendOption) -> type:
    kind: object = Literal[option.choices] if option.choices else type(option.default)
    return Annotated[kind, msgspec.Meta(ge=option.minimum, le=_LARGEST)] if option.minimum is not None else kind  # type: ignore[return-value]
