"""The space of a search: keys of a recipe, each with a range or choices. How trials are drawn is not decided here."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import msgspec

from edgekd.config.recipe import Recipe, extra_table
from edgekd.config.toml import parse_toml_value, toml_value
from edgekd.config.validation import check_keys
from edgekd.errors import RecipeError, nearest
from edgekd.training.distillation.loss_registry import check_losses, shipped_losses
from edgekd.training.loop.settings import check_training

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgekd.config.loading import Draft
    from edgekd.files import JsonObject

#: The parts of a recipe that decide a trial's student. The seed is not among them: a search over it finds luck.
VARIED = ("task.options", "teacher", "student", "distill", "prune")

#: The end of a key that stands for losses, and the end of one that stands for a factor on their shares.
_EXTRA, _FACTOR = ".loss.extra", ".loss.extra.*"

_WHERE = "[search.space]"
_LEAF = ("low", "high", "log", "step", "choices")

#: Number of random recipes of a space that are checked before the first trial.
_CHECKED = 100

Value = bool | int | float | str
Params = dict[str, Value]


@dataclass(frozen=True)
class Choices:
    """An axis with some values to choose from; a table or a list among them is written as TOML.

    Attributes:
        key: Key of the recipe.
        values: The values to choose from.
        own: The recipe's own value, where it is one of them; else None.
    """

    key: str
    values: tuple[Value, ...]
    own: Value | None = None

    def draw(self, rng: random.Random) -> Value:
        """Return one of the values."""
        return rng.choice(self.values)

    def ends(self) -> tuple[Value, ...]:
        """Return the values that must be right for all to be."""
        return self.values

    def plain(self) -> object:
        """Return the axis as a JSON value."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """An axis with all numbers between two, or all whole numbers where both are whole.

    Attributes:
        key: Key of the recipe.
        low: The smallest number.
        high: The largest number.
        log: Whether orders of magnitude are drawn evenly.
        step: Distance of neighbouring numbers, beginning at ``low``; None for all numbers.
        own: The recipe's own value, where it is one of the numbers; else None.
    """

    key: str
    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    own: Value | None = None

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, rng: random.Random) -> Value:
        """Return a number of the range."""
        if self.step is not None:
            return self.low + self.step * rng.randint(0, math.floor((self.high - self.low) / self.step + 1e-9))
        if self.whole:
            return rng.randint(int(self.low), int(self.high))
        return rng.uniform(self.low, self.high)

    def ends(self) -> tuple[Value, ...]:
        """Return the values that must be right for all to be."""
        return self.low, self.high

    def plain(self) -> object:
        """Return the axis as a JSON value."""
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}


Axis = Choices | Range


@dataclass(frozen=True)
class Space:
    """The recipes that a search may draw.

    Attributes:
        draft: The recipe that is varied.
        axes: The axes, those of losses before those of the factors on their shares.
    """

    draft: Draft
    axes: tuple[Axis, ...]

    @property
    def own(self) -> Params:
        """The recipe's own values, for the keys where they are known."""
        return {axis.key: axis.own for axis in self.axes if axis.own is not None}

    def asked(self, params: Params) -> Iterator[Axis]:
        """Yield the axes that a trial has; put the value of each into ``params`` before asking for the next.

        A trial that adds no loss has no axis for a factor on the shares of losses.
        """
        for axis in self.axes:
            if not axis.key.endswith(_FACTOR) or self._losses(axis.key, params):
                yield axis

    def settings(self, params: Mapping[str, Value]) -> tuple[str, ...]:
        """Return the settings for ``--set`` that make a trial's recipe.

        Raises:
            RecipeError: A choice names a loss that does not exist.
        """
        values: dict[str, object] = {}
        ranges = {axis.key for axis in self.axes if isinstance(axis, Range)}
        for key, drawn in params.items():
            value = _rounded(drawn) if key in ranges and isinstance(drawn, float) else drawn
            extra, factor = key.removesuffix(".*"), params.get(f"{key.removesuffix('.*')}.*")
            if extra in values:
                continue  # with its factor already
            if key.endswith((_EXTRA, _FACTOR)) and factor is not None:
                losses = self._losses(f"{extra}.*", params)
                values[extra] = {name: _scaled(term, float(factor)) for name, term in losses.items()}
            else:
                values[key] = _meant(key, value)
        return tuple(f"{key}={toml_value(value)}" for key, value in values.items())

    def recipe(self, params: Mapping[str, Value]) -> Recipe:
        """Return a trial's recipe.

        Raises:
            RecipeError: The recipe is not valid.
        """
        recipe = self.draft.recipe(self.settings(params))
        check_losses(recipe)
        check_training(recipe)
        return recipe

    def plain(self) -> JsonObject:
        """Return the space as a JSON value: each key with its axis."""
        return {axis.key: axis.plain() for axis in self.axes}

    def check(self) -> None:
        """Check the ends of every axis, and random recipes.

        Raises:
            RecipeError: One of the recipes is not valid; the message names the key and the value.
        """
        for axis in self.axes:
            for value in axis.ends():
                self._try({axis.key: value}, f"{axis.key} = {toml_value(value)}")
        rng = random.Random(0)
        for _ in range(_CHECKED):
            params: Params = {}
            for axis in self.asked(params):
                params[axis.key] = axis.draw(rng) if rng.random() < 0.5 else rng.choice(axis.ends())
            self._try(params, ", ".join(f"{key} = {toml_value(value)}" for key, value in params.items()))

    def _try(self, params: Params, told: str) -> None:
        try:
            self.recipe(params)
        except RecipeError as error:
            what = str(error).removeprefix(f"{self.draft.source} and --set: ").removeprefix(f"{self.draft.source}: ")
            raise RecipeError(f"{_WHERE} gives recipes that are not valid, with {told}: {what}") from error

    def _losses(self, key: str, params: Mapping[str, Value]) -> JsonObject:
        """Return the losses that a trial with a factor adds: those that were drawn for it, or the recipe's own."""
        extra = key.removesuffix(".*")
        losses = _meant(extra, params[extra]) if extra in params else recipe_value(self.draft, extra)
        return cast("JsonObject", losses) or {}


def make_space(draft: Draft, width: int | None) -> Space:
    """Return what a recipe's ``[search.space]`` names, or else the default, checked.

    Args:
        draft: The recipe.
        width: Width of the student's embeddings where the task takes ``options.student.width``; None for another task.

    Raises:
        RecipeError: A key or a value is wrong, or a recipe that may be drawn is not valid.
    """
    entries = dict(_entries(draft.content.get("search", {}).get("space", {})))
    if not entries:
        entries = _default(draft.recipe(), width)
    axes = [_axis(draft, key, entry, width) for key, entry in entries.items()]
    space = Space(draft, tuple(sorted(axes, key=lambda axis: axis.key.endswith(_FACTOR))))
    space.check()
    return space


def _entries(table: Mapping[str, object], at: str = "") -> Iterator[tuple[str, object]]:
    """Yield each key, whether dotted, quoted or a table of its own, with its range or choices."""
    for key, entry in table.items():
        if isinstance(entry, dict) and not set(entry) & set(_LEAF):
            yield from _entries(entry, f"{at}{key}.")
        else:
            yield f"{at}{key}", entry


def _default(recipe: Recipe, width: int | None) -> JsonObject:
    losses: list[object] = ["kd", "intra", "sample", "joint", "fd", "sp", "rkd"]
    own = extra_table(recipe.distill.loss.extra)
    plain = all(isinstance(share, float | int) for share in own.values())
    if plain and own not in [_meant("distill.loss.extra", word) for word in losses]:
        losses.insert(0, own)
    space: JsonObject = {
        "distill.loss.extra": losses,
        "distill.loss.extra.*": {"low": 0.3, "high": 10.0, "log": True},
        "distill.loss.temperature": {"low": 2.0, "high": 10.0, "log": True},
    }
    if width is not None:
        step = max(1, width // 4)
        space["task.options.student.width"] = {"low": width - 3 * step, "high": width + 4 * step, "step": step}
    budget = recipe.prune.budget
    if budget is None:
        space["prune.ratio"] = [0.0, 0.6]
    else:
        (kept,) = (name for name in ("parameters", "macs", "latency") if getattr(budget, name) is not None)
        space[f"prune.budget.{kept}"] = [0.2, 0.9]
    return space


def _axis(draft: Draft, key: str, entry: object, width: int | None) -> Axis:
    _check_key(key)
    match entry:
        case [int() | float() as low, int() | float() as high] if not isinstance(low, bool | str):
            axis: Axis = _range(key, {"low": low, "high": high})
        case list():
            axis = _choices(key, entry)
        case {"choices": list() as values, **rest} if not rest:
            axis = _choices(key, values)
        case dict() if "choices" not in entry:
            axis = _range(key, entry)
        case _:
            raise RecipeError(
                f'{_WHERE} {key}: give a range, {{ low = 2.0, high = 8.0 }}, or choices, ["a", "b"], '
                f"not {toml_value(entry)}"
            )
    own = 1.0 if key.endswith(_FACTOR) else recipe_value(draft, key)
    if own is None and key == "task.options.student.width":
        own = width
    return _with_own(axis, own)


def _check_key(key: str) -> None:
    """Raise RecipeError for a key that no recipe has, or that decides nothing in a trial."""
    parts = key.removesuffix(".*").split(".")
    nested: JsonObject = {parts[-1]: {}} if key.endswith((_EXTRA, _FACTOR)) else {parts[-1]: 0}
    for part in reversed(parts[:-1]):
        nested = {part: nested}
    check_keys(nested, Recipe, _WHERE, RecipeError)
    if not any(key.startswith(f"{part}.") for part in VARIED):
        raise RecipeError(
            f"{_WHERE} {key}: decides nothing that a search measures; it varies keys below {', '.join(VARIED)}"
        )
    if key.endswith("*") and not key.endswith(_FACTOR):
        raise RecipeError(f"{_WHERE} {key}: a * stands for the shares of all losses, as in distill.loss.extra.*")


def _choices(key: str, values: Sequence[Value | list[object] | JsonObject]) -> Choices:
    if key.endswith(_FACTOR):
        raise RecipeError(f"{_WHERE} {key}: is a factor; give it a range, {{ low = 0.3, high = 10.0, log = true }}")
    for value in values:
        _meant(key, value)
    written = tuple(dict.fromkeys(toml_value(value) if isinstance(value, dict | list) else value for value in values))
    if len(written) < 2:
        raise RecipeError(f"{_WHERE} {key}: gives nothing to choose from; it needs two different choices or more")
    return Choices(key, written)


def _range(key: str, entry: JsonObject) -> Range:
    where = f"{_WHERE} {key}"
    for name, value in entry.items():
        if name not in _LEAF[:4]:
            raise RecipeError(f"{where}: a range has no '{name}'{nearest(name, _LEAF[:4])}")
        if name != "log" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RecipeError(f"{where}: {name} must be a number, not {toml_value(value)}")
    log, step = entry.get("log", False), entry.get("step")
    if "low" not in entry or "high" not in entry or not entry["low"] < entry["high"]:
        raise RecipeError(f"{where}: a range needs low and high, low below high, not {toml_value(dict(entry))}")
    if not isinstance(log, bool):
        raise RecipeError(f"{where}: log must be true or false, not {toml_value(log)}")
    if log and (step is not None or entry["low"] <= 0):
        raise RecipeError(f"{where}: with log = true low must be above 0, and there is no step")
    if step is not None and not 0 < step <= entry["high"] - entry["low"]:
        raise RecipeError(f"{where}: step must be above 0 and lead from low to high")
    low, high = entry["low"], entry["high"]
    if step is not None:
        high = low + step * math.floor((high - low) / step + 1e-9)
    if not all(isinstance(number, int) for number in (low, high, step or 1)):
        low, high, step = float(low), float(high), None if step is None else float(step)
    return Range(key, low, high, log, step)


def _with_own(axis: Axis, own: object) -> Axis:
    if isinstance(axis, Choices):
        same = [value for value in axis.values if own is not None and _meant(axis.key, value) == own]
        return Choices(axis.key, axis.values, same[0] if same else None)
    if isinstance(own, bool) or not isinstance(own, int | float) or not axis.low <= own <= axis.high:
        return axis
    steps = (own - axis.low) / axis.step if axis.step is not None else 0.0
    if not math.isclose(steps, round(steps)) or (axis.whole and own != int(own)):
        return axis
    return Range(axis.key, axis.low, axis.high, axis.log, axis.step, int(own) if axis.whole else float(own))


def recipe_value(draft: Draft, key: str) -> object:
    """Return the value of a recipe at a key, as written or else by default; None where there is none."""
    found: object = draft.content
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if found is None:
        found = _written(msgspec.to_builtins(draft.recipe()))
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    return found


def _written(value: object) -> object:
    """Return tables without values that are None, which TOML does not have."""
    return (
        {key: _written(item) for key, item in value.items() if item is not None} if isinstance(value, dict) else value
    )


def _meant(key: str, value: object) -> object:
    """Return the value that a choice stands for: for losses a word names those to add; tables and lists are TOML."""
    if not isinstance(value, str):
        return value
    if value.startswith(("{", "[")):
        return parse_toml_value(value)
    if not key.endswith(_EXTRA):
        return value
    names = [] if value == "kd" else value.split("+")
    for name in names:
        if name not in shipped_losses():
            raise RecipeError(f"{_WHERE} {key}: there is no loss '{name}'{nearest(name, (*shipped_losses(), 'kd'))}")
    return dict.fromkeys(names, 1.0)


def _scaled(term: float | JsonObject, factor: float) -> float | JsonObject:
    """Return a loss with its share, or its fixed weight, multiplied."""
    if not isinstance(term, dict):
        return _rounded(term * factor)
    name = "weight" if isinstance(term.get("weight"), int | float) else "share"
    return {**term, name: _rounded(term.get(name, 1.0) * factor)}


def _rounded(value: float) -> float:
    """Return a number with four digits: more than any of this needs, and short on a command line."""
    return float(f"{value:.4g}")
