"""Validation of TOML tables against the structs that they become, with errors that name the key and the nearest one."""

from __future__ import annotations

import re
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, inspect

from edgekd.config.values import find_problem
from edgekd.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Keys that had another name in an earlier edgekd, by the section's class and the old key.
_RENAMED = MappingProxyType({("QuantizeConfig", "tune"): "qat", ("Calibration", "method"): "ranges"})

#: Sections that take keys beside their own: a loss's options, which are known only where the losses are.
_OPEN = frozenset({"Term"})


def explain(error: msgspec.ValidationError, struct: type[Struct]) -> str:
    """Turn msgspec's ``"Expected `int`, got `str` - at `$.a.b`"`` into ``"a.b: expected 'int', got 'str'"``.

    Where one of a few words was expected, the nearest one is named, which msgspec does not do.
    """
    what, _, where = str(error).replace("`", "'").partition(" - at ")
    where = where.replace("'", "").replace("$.", "").replace("$", "")
    if what.startswith("Invalid enum value"):
        wrong = what.removeprefix("Invalid enum value ").strip("'")
        path = re.sub(r"\[[^]]*\]", ".*", where.rpartition(" ")[2]).split(".")
        return f"{where}: there is no '{wrong}'{nearest(wrong, _choices(inspect.type_info(struct), path))}"
    if what.startswith(lacking := "Object missing required field "):
        return f"{where} lacks the key {what.removeprefix(lacking)}".lstrip()
    return f"{where}: {what[0].lower()}{what[1:]}" if where else what


def _choices(info: inspect.Type, path: list[str]) -> set[str]:
    """Return the words that a type allows at ``path``; for a table of free keys, the keys."""
    words: set[str] = set()
    match info:
        case inspect.Metadata():
            words = _choices(info.type, path)
        case inspect.UnionType():
            words = {word for kind in info.types for word in _choices(kind, path)}
        case inspect.StructType() if path:
            words = {word for f in info.fields if f.name == path[0] for word in _choices(f.type, path[1:])}
        case inspect.DictType():
            words = _choices(info.value_type, path[1:]) if path else _choices(info.key_type, path)
        case inspect.ListType():
            words = _choices(info.item_type, path[1:])
        case inspect.LiteralType():
            words = {str(value) for value in info.values}
    return words


def check_keys(
    content: Mapping[str, object], struct: type[Struct], source: str, error: type[Exception], at: str = ""
) -> None:
    """Raise ``error`` for the first key that ``struct`` does not have, and name the nearest one that it has.

    Args:
        content: Table that is to become a ``struct``.
        struct: Type that it is to become.
        source: File or option that the table is from.
        error: Type of the error to raise.
        at: Path of the table in the file, e.g. "options."; "" for the top level.
    """
    _check_keys(content, _type_info(struct), error, source, at)


#: Reading the annotations of a recipe takes longer than checking one, and a search checks hundreds.
_type_info = cache(inspect.type_info)


def _check_keys(value: object, info: inspect.Type, error: type[Exception], source: str, at: str) -> None:
    if not isinstance(value, dict):
        return
    match info:
        case inspect.Metadata():
            _check_keys(value, info.type, error, source, at)
        case inspect.UnionType():
            for kind in info.types:
                _check_keys(value, kind, error, source, at)
        case inspect.DictType():
            for key, item in value.items():
                _check_keys(item, info.value_type, error, source, f"{at}{key}.")
        case inspect.StructType():
            fields = {field.name: field.type for field in info.fields}
            for key, item in value.items():
                if (new := _RENAMED.get((info.cls.__name__, key))) is not None:
                    raise error(f"{source}: {at}{key} is now {at}{new}")
                if key not in fields and info.cls.__name__ in _OPEN:
                    continue
                if key not in fields:
                    section = f"[{at.rstrip('.')}]" if at else "the top level"
                    raise error(f"{source}: {section} has no key '{key}'{nearest(key, fields)}")
                _check_keys(item, fields[key], error, source, f"{at}{key}.")


def check_values(
    content: Mapping[str, object], struct: type[Struct], source: str, error: type[Exception], at: str = ""
) -> None:
    """Raise ``error`` for the first value that is not what its key takes, in the words of the one who wrote it.

    Arguments are those of :func:`check_keys`, but ``at`` has no dot at its end.
    """
    if problem := find_problem(content, _type_info(struct), at):
        raise error(f"{source}: {problem}")
