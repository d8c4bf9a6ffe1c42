"""Plain arguments of the public functions: a recipe, targets and folders, as a user writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgekd.config.loading import load_recipe, recipe_name
from edgekd.config.recipe import Recipe
from edgekd.config.target import Target, check_distinct
from edgekd.devices.targets import load_target
from edgekd.errors import RecipeError
from edgekd.pipeline.paths import BuildPaths

if TYPE_CHECKING:
    from collections.abc import Sequence


#: A shipped recipe's name, a file, or a loaded recipe; None for ``edgekd.toml`` in the working directory.
RecipeArgument: TypeAlias = "str | Path | Recipe | None"
#: One target or several, each a shipped name, a ``.toml`` file, or a loaded target.
TargetsArgument: TypeAlias = "str | Path | Target | Sequence[str | Path | Target]"
PathArgument: TypeAlias = "str | Path"

#: The folder of finished stages where none is given.
DEFAULT_CACHE = ".edgekd"


def resolve_recipe(recipe: RecipeArgument, overrides: Sequence[str] = ()) -> tuple[Recipe, str]:
    """Return the recipe and the name that reports call it by.

    Args:
        recipe: The recipe. A loaded one is named after its task or its model.
        overrides: ``"distill.epochs=5"`` each; none with a loaded recipe.

    Raises:
        RecipeError: The recipe cannot be read, or a loaded recipe came with overrides.
    """
    if not isinstance(recipe, Recipe):
        reference = _reference(recipe)
        return load_recipe(reference, tuple(overrides)), recipe_name(reference)
    if overrides:
        raise RecipeError("overrides are for a recipe's file or name; give them to load_recipe for a loaded recipe")
    return recipe, name_recipe(recipe)


def name_recipe(recipe: Recipe) -> str:
    """Return the name of a loaded recipe: that of its model's file, or of its task."""
    if recipe.model is not None:
        return Path(recipe.model.path).stem
    assert recipe.task is not None  # a recipe has one of the two
    return recipe.task.name.rpartition(":")[2]


def _reference(recipe: str | Path | None) -> str | None:
    return None if recipe is None else str(recipe)


def resolve_targets(targets: TargetsArgument) -> list[Target]:
    """Return the targets, each once.

    Raises:
        TargetError: One of them cannot be read, or two have one name.
    """
    given = [targets] if isinstance(targets, str | Path | Target) else targets
    loaded: dict[str | int, Target] = {}
    for index, target in enumerate(given):
        if isinstance(target, Target):
            loaded[index] = target
        elif str(target) not in loaded:
            loaded[str(target)] = load_target(str(target))
    check_distinct(loaded.values())
    return list(loaded.values())


def resolve_output(output: PathArgument | None, recipe: RecipeArgument) -> Path:
    """Return the folder of results: ``build/`` and the recipe's name where none is given.

    Raises:
        RecipeError: There is no such recipe.
    """
    if output is not None:
        return Path(output)
    return Path("build") / (name_recipe(recipe) if isinstance(recipe, Recipe) else recipe_name(_reference(recipe)))


def resolve_paths(output: PathArgument | None, cache: PathArgument, name: str) -> BuildPaths:
    """Return the folders of a build; its output is ``build/NAME`` where none is given."""
    return BuildPaths(Path(output) if output is not None else Path("build") / name, Path(cache))
