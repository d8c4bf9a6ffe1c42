"""Finding, reading and overriding recipes: from TOML files and ``--set`` to a validated :class:`Recipe`."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct

from edgekd.config.recipe import ANCHOR_EXTRA, GateConfig, LossConfig, ModelConfig, Recipe, Term
from edgekd.config.toml import MOST_NESTED, parse_toml_value, read_toml
from edgekd.config.validation import check_keys, check_values, explain
from edgekd.errors import RecipeError, nearest
from edgekd.files import JsonObject
from edgekd.plugins import anchor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Section = TypeVar("Section", LossConfig, GateConfig)

DEFAULT_FILE = "edgekd.toml"

#: Keys of the sections that train, and of the recipe itself, whose value may be a function in a user's file.
_OWN_CODE = ("optimizer", "schedule", "log")


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with edgekd, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "tasks").glob("*.toml"))}


def find_recipe(reference: str | None) -> Path:
    """Return the recipe file that ``--recipe`` names: a path, a shipped name, or ``edgekd.toml`` here.

    Raises:
        RecipeError: There is no such file or name.
    """
    if reference is None:
        path = Path(DEFAULT_FILE)
        if not path.is_file():
            raise RecipeError(
                f"no {DEFAULT_FILE} in {Path.cwd()}: name a recipe with --recipe "
                f"({', '.join(shipped_recipes())}, or a path), or start one with 'edgekd init'"
            )
        return path
    shipped = shipped_recipes()
    if reference in shipped:
        return shipped[reference]
    path = Path(reference)
    try:
        if path.is_dir():
            path = path / DEFAULT_FILE
        if path.is_file():
            return path
    except OSError as error:  # such as a name that is too long for a file
        raise RecipeError(f"{reference}: cannot be read: {error.strerror}") from error
    what = "is no file" if path.exists() else "no such recipe file"
    raise RecipeError(f"{reference}: {what}{nearest(reference, shipped)}")


def recipe_name(reference: str | None) -> str:
    """Return the name of a recipe's build: the file's name, or the folder's where the file has the usual name.

    Raises:
        RecipeError: There is no such file or name.
    """
    path = find_recipe(reference).resolve()
    return path.parent.name if path.name == DEFAULT_FILE else path.stem


def load_recipe(reference: str | Path | None = None, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        reference: A path, a shipped name, or None for ``edgekd.toml`` in the working directory.
        overrides: Overrides such as ``"distill.epochs=5"``; the value is TOML, or else taken as a string.

    Returns:
        The recipe. Relative paths in its file start from the file's folder, those in overrides from the working
        directory.

    Raises:
        RecipeError: The recipe is not valid; the error names the file, the key, and the nearest right key.
    """
    return draft_recipe(reference, overrides).recipe()


class Draft(Struct, frozen=True):
    """A recipe as it is written, with its overrides, before its defaults are filled in.

    Attributes:
        content: Tables of the recipe with absolute paths; keys that are not written are absent.
        source: Name of the recipe in errors.
        written: The tables as text with their paths as written, the same on every machine.
    """

    content: JsonObject
    source: str
    written: str

    def recipe(self, overrides: tuple[str, ...] = ()) -> Recipe:
        """Return the recipe with further overrides, as :func:`load_recipe` does."""
        return _read(deepcopy(self.content), self.source, overrides)


def draft_recipe(reference: str | Path | None = None, overrides: tuple[str, ...] = ()) -> Draft:
    """Read and override a recipe without filling in its defaults.

    Arguments and errors are those of :func:`load_recipe`.
    """
    path = find_recipe(str(reference) if reference is not None else None)
    content = read_toml(path, RecipeError)
    check_keys(content, Recipe, str(path), RecipeError)
    written = json.dumps([content, overrides], sort_keys=True, default=str)
    _anchor_paths(content, path.resolve().parent)
    for override in overrides:
        _set(content, override)
    return Draft(content, f"{path}{' and --set' if overrides else ''}", written)


def model_recipe(model: ModelConfig, overrides: tuple[str, ...] = ()) -> Recipe:
    """Return the recipe that builds a trained model, with everything else at its default.

    Args:
        model: The model; its relative paths start from the working directory.
        overrides: As for :func:`load_recipe`.

    Raises:
        RecipeError: An override is not valid.
    """
    content = {"model": msgspec.to_builtins(model)}
    _anchor_paths(content, Path.cwd())
    return _read(content, "--model", overrides)


def _read(content: JsonObject, source: str, overrides: tuple[str, ...]) -> Recipe:
    for override in overrides:
        _set(content, override)
    for term in _terms(content):
        _collect_options(term)
    _inherit_loss(content)
    source = f"{source}{' and --set' if overrides else ''}"
    check_values(content, Recipe, source, RecipeError)
    try:
        return msgspec.convert(content, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{source}: {explain(error, Recipe)}") from error


def loss_config(table: Mapping[str, Any], source: str) -> LossConfig:
    """Return the losses that a table says, as a recipe's ``[distill.loss]`` does.

    Args:
        table: The table, in Python; paths of losses of the user's own start from the working directory.
        source: Name of the table in errors.

    Raises:
        RecipeError: It is not valid; the error names the key, and the nearest right one.
    """
    content = msgspec.to_builtins(table)
    for term in _terms({"distill": {"loss": content}}):
        _collect_options(term)
        if isinstance(loss := term.get("loss"), str):
            term["loss"] = anchor(loss, Path.cwd())
    return _section(content, LossConfig, source)


def gate_config(table: Mapping[str, Any], source: str) -> GateConfig:
    """Return the limits that a table says, as a recipe's ``[gate]`` does; arguments and errors as above."""
    return _section(dict(table), GateConfig, source)


def _section(content: JsonObject, section: type[Section], source: str) -> Section:
    check_keys(content, section, source, RecipeError)
    check_values(content, section, source, RecipeError)
    try:
        return msgspec.convert(content, section)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{source}: {explain(error, section)}") from error


def _set(content: JsonObject, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override}: write it as key=value, e.g. --set distill.epochs=5")
    *sections, last = key.strip().split(".")
    try:
        table: JsonObject = {last: parse_toml_value(text)}
    except ValueError as error:
        raise RecipeError(f"--set {key}: {error}") from None
    if len(sections) > MOST_NESTED:
        raise RecipeError(f"--set: a key has more than {MOST_NESTED} parts")
    nested = table
    for section in reversed(sections):
        nested = {section: nested}
    check_keys(nested, Recipe, f"--set {override}", RecipeError)
    _anchor_paths(nested, Path.cwd())
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise RecipeError(f"--set {override}: '{section}' is not a section")
    content[last] = table[last]


def _anchor_paths(content: JsonObject, base: Path) -> None:
    """Make the paths in a recipe's tables absolute, in place, so that they do not depend on the working directory."""
    anchored = (
        *(("task", "name"), ("teacher", "weights"), ("student", "weights"), ("quantize", "calibration")),
        *(("model", key) for key in ("path", "calibration", "test", "reference")),
    )
    for section, key in anchored:
        table = content.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(table, dict) or not isinstance(value, str):
            continue
        file, colon, name = value.partition(":")
        if section in ("teacher", "student", "model"):
            table[key] = str(base / value) if value else ""
        elif (key == "name" and colon and file.endswith(".py")) or (key == "calibration" and file.endswith(".toml")):
            table[key] = f"{base / file}{colon}{name}"
    for term in _terms(content):
        if isinstance(loss := term.get("loss"), str):
            term["loss"] = anchor(loss, base)
    model = content.get("model")
    if isinstance(model, dict) and isinstance(metric := model.get("metric"), str):
        model["metric"] = anchor(metric, base)
    quantize = content.get("quantize")
    if isinstance(quantize, dict) and isinstance(names := quantize.get("quantizers"), list):
        quantize["quantizers"] = [anchor(name, base) if isinstance(name, str) else name for name in names]
    sections = [content.get(name) for name in ("teacher", "distill", "prune")]
    sections += [content, quantize.get("qat") if isinstance(quantize, dict) else None]
    for table in sections:
        for key in _OWN_CODE:
            if isinstance(table, dict) and isinstance(function := table.get(key), str):
                table[key] = anchor(function, base)


def _terms(content: JsonObject) -> Iterator[JsonObject]:
    """Yield the tables of losses in a recipe's tables, from each section that has a ``loss.extra``."""
    sections = [content.get(name) for name in ("distill", "prune", "quantize")]
    while sections:
        section = sections.pop()
        if not isinstance(section, dict):
            continue
        loss = section.get("loss")
        extra = loss.get("extra") if isinstance(loss, dict) else None
        yield from (term for term in (extra.values() if isinstance(extra, dict) else ()) if isinstance(term, dict))
        sections += [table for name, table in section.items() if name != "loss"]


def _collect_options(term: JsonObject) -> None:
    """Move a loss's own options, which stand beside the keys that every loss has, into the term's ``options``."""
    own = [key for key in term if key not in Term.__struct_fields__]
    options = term.get("options", {})
    if own and isinstance(options, dict):
        term["options"] = {**options, **{key: term.pop(key) for key in own}}


def _inherit_loss(content: JsonObject) -> None:
    """Fill the losses of the fine-tunes from ``[distill.loss]``: they minimise the same unless they say otherwise."""
    distill, quantize = content.get("distill", {}), content.setdefault("quantize", {})
    fine_tunes = [content.setdefault("prune", {})]
    if isinstance(quantize, dict):
        fine_tunes.append(quantize.setdefault("qat", {}))
    for fine_tune in fine_tunes:
        if isinstance(distill, dict) and isinstance(fine_tune, dict):
            ours, theirs = fine_tune.get("loss", {}), distill.get("loss", {})
            if isinstance(ours, dict) and isinstance(theirs, dict):
                own = {} if theirs.get("extra") == {} else {"extra": msgspec.to_builtins(ANCHOR_EXTRA)}
                fine_tune["loss"] = {**theirs, **own, **ours}


def recipe_schema() -> JsonObject:
    """Return the JSON schema (2020-12) of a recipe, with every default and description."""
    return msgspec.json.schema(Recipe)
