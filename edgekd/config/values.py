"""Whether the values of a TOML table are what their keys take, said in the words of the one who wrote them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import inspect

from edgekd.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

#: How much of a text an error quotes.
_QUOTED = 60

_ANY = inspect.AnyType()
_WITH_PARTS = (inspect.StructType, inspect.DictType, inspect.ListType, inspect.LiteralType)


def find_problem(value: object, kind: inspect.Type, at: str) -> str | None:
    """Return what is wrong with the first value that is not what its key takes; None where all are right.

    Keys that are missing or unknown are not looked at.

    Args:
        value: A value as TOML has it.
        kind: What it is to become.
        at: The key of the value, e.g. "distill.epochs".
    """
    if (problem := _unusable(value)) is not None:
        return f"{at}: {problem}"
    return _check(kind, value, at)


def _unusable(value: object) -> str | None:
    """Return why no key takes a value, whatever it is to become."""
    if isinstance(value, float) and not math.isfinite(value):  # no limit holds against it
        return f"expected a finite number, got {value}"
    if isinstance(value, str | int | float | dict | list) or value is None:
        return None
    return f"expected text or a number, got the {type(value).__name__} {value}"


def _check(kind: inspect.Type, value: object, at: str) -> str | None:
    problem = None
    match kind:
        case inspect.Metadata():
            problem = _check(kind.type, value, at)
        case inspect.AnyType():
            problem = _first((f"{at}{place}", item, kind) for place, item in _parts(value))
        case inspect.StructType() if isinstance(value, dict):
            types = {field.name: field.type for field in kind.fields}
            items = ((f"{at}.{key}".lstrip("."), item, types.get(key, _ANY)) for key, item in value.items())
            problem = _first(items)
        case inspect.DictType() if isinstance(value, dict):
            problem = _first((f"{at}.{key}", item, kind.value_type) for key, item in value.items())
        case inspect.ListType() if isinstance(value, list) and len(value) >= (kind.min_length or 0):
            problem = _first((f"{at}[{index}]", item, kind.item_type) for index, item in enumerate(value))
        case inspect.UnionType():
            problem = _check_union(kind, value, at)
        case inspect.LiteralType() if isinstance(value, str):
            words = [str(word) for word in kind.values]
            problem = None if value in words else f"{at}: there is no {_shown(value)}{nearest(value, words)}"
        case _ if not _fits(value, kind):
            problem = _unexpected(kind, value, at)
    return problem


def _check_union(kind: inspect.UnionType, value: object, at: str) -> str | None:
    """Return what is wrong where no option takes a value: with what is in it, where one takes a table or a list."""
    problems = [_check(option, value, at) for option in kind.types if not isinstance(option, inspect.NoneType)]
    if value is None or None in problems:
        return None
    below = [problem for problem in problems if problem and not problem.startswith(f"{at}: ")]
    return (below or problems)[0] if below or len(problems) == 1 else _unexpected(kind, value, at)


def _unexpected(kind: inspect.Type, value: object, at: str) -> str:
    return f"{at}: expected {_words(kind)}, got {_shown(value)}"


def _first(items: Iterable[tuple[str, object, inspect.Type]]) -> str | None:
    return next((problem for at, value, kind in items if (problem := find_problem(value, kind, at)) is not None), None)


def _parts(value: object) -> Iterable[tuple[str, object]]:
    """Return the items of a table or list, each with how its key or index is written."""
    if isinstance(value, dict):
        return ((f".{key}", item) for key, item in value.items())
    return ((f"[{index}]", item) for index, item in enumerate(value if isinstance(value, list) else ()))


def _fits(value: object, kind: inspect.Type) -> bool:
    """Whether a value is what a type of no parts takes; of other types msgspec says it."""
    match kind:
        case inspect.BoolType():
            fits = isinstance(value, bool)
        case inspect.StrType():
            fits = isinstance(value, str) and len(value) >= (kind.min_length or 0)
        case inspect.IntType():
            fits = isinstance(value, int) and not isinstance(value, bool) and _in_range(value, kind)
        case inspect.FloatType():
            fits = isinstance(value, int | float) and not isinstance(value, bool) and _in_range(value, kind)
        case _:
            fits = not isinstance(kind, _WITH_PARTS)
    return fits


def _in_range(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )


def _words(kind: inspect.Type) -> str:
    """Say what a type takes."""
    match kind:
        case inspect.Metadata():
            words = _words(kind.type)
        case inspect.UnionType():
            words = " or ".join(_words(option) for option in kind.types if not isinstance(option, inspect.NoneType))
        case inspect.IntType() | inspect.FloatType():
            name = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            words = " ".join([name, *_limits(kind)])
        case inspect.LiteralType():
            words = " or ".join(f"'{value}'" for value in kind.values)
        case inspect.ListType():
            words = "a list"
        case inspect.BoolType():
            words = "true or false"
        case _:
            words = "a table" if isinstance(kind, _WITH_PARTS) else "text"
    if isinstance(kind, inspect.StrType | inspect.ListType) and kind.min_length:
        words += " that is not empty"
    return words


def _limits(kind: inspect.IntType | inspect.FloatType) -> list[str]:
    """Say the range of a number, e.g. ["from 1", "to 100,000"] or ["above 0", "and below 1"]."""
    low = [f"{word} {_number(limit)}" for word, limit in (("from", kind.ge), ("above", kind.gt)) if limit is not None]
    inner = "to" if kind.ge is not None else "and up to" if low else "up to"
    outer = "and below" if low else "below"
    high = [f"{word} {_number(limit)}" for word, limit in ((inner, kind.le), (outer, kind.lt)) if limit is not None]
    return [*low, *high]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value[:_QUOTED]}{'…' if len(value) > _QUOTED else ''}'"
    if isinstance(value, dict | list):
        kind = "table" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    return str(value)
