"""Find losses by the names in recipes, and check the recipes' keys about them. Imports no torch.

edgekd's own losses are those in the tuples ``LOSSES`` of the modules in :mod:`edgekd.training.distillation.losses`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekd.config.recipe import Term
from edgekd.config.validation import explain
from edgekd.config.values import find_problem
from edgekd.errors import RecipeError, nearest
from edgekd.plugins import is_plugin
from edgekd.stages.user_code import source_digests
from edgekd.training.distillation import losses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.config.recipe import LossConfig, Recipe
    from edgekd.training.distillation.loss import Loss, LossOptions


@cache
def shipped_losses() -> Mapping[str, Loss]:
    """Return edgekd's losses by name.

    Raises:
        ValueError: Two have the same name.
    """
    known: dict[str, Loss] = {}
    for module in pkgutil.iter_modules(losses.__path__, f"{losses.__name__}."):
        for loss in import_module(module.name).LOSSES:
            if loss.name in known:
                raise ValueError(f"{module.name}: there are two losses named '{loss.name}'")
            known[loss.name] = loss
    return known


def find_shipped_loss(name: str) -> Loss:
    """Return one of edgekd's losses.

    Raises:
        RecipeError: There is none of that name.
    """
    known = shipped_losses()
    if name not in known:
        raise RecipeError(
            f"there is no loss '{name}'{nearest(name, known)} One of your own is written 'path/to/file.py:name'."
        )
    return known[name]


def loss_sections(recipe: Recipe) -> dict[str, LossConfig]:
    """Return the losses of each training that a recipe may need, by its section."""
    sections = {} if recipe.student.weights else {"distill": recipe.distill.loss}
    if recipe.prune.active:
        sections["prune"] = recipe.prune.loss
    if recipe.quantize.repair != "off":
        sections["quantize.qat"] = recipe.quantize.qat.loss
    return sections


def own_loss_sources(config: LossConfig) -> dict[str, dict[str, dict[str, str]]]:
    """Return what a training depends on beside its config: the digests of the files of the user's own losses.

    The table is empty where there are none. With a loss's file goes every Python file below its folder, which it may
    import.

    Raises:
        RecipeError: A file or module is not there.
    """
    homes = {term.loss.rpartition(":")[0] for term in config.terms.values() if term.loss and is_plugin(term.loss)}
    return {"own_losses": {home: source_digests(_home_file(home)) for home in sorted(homes)}} if homes else {}


def _home_file(home: str) -> Path:
    """Return the file of a user's losses, which is named by its path or as a module."""
    if home.endswith(".py"):
        if not Path(home).is_file():
            raise RecipeError(f"{home}: no such file, in which the recipe has a loss")
        return Path(home).resolve()
    try:
        spec = find_spec(home)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise RecipeError(f"{home}: no such module, in which the recipe has a loss; one in a file is 'file.py:name'")
    return Path(spec.origin)


def check_losses(recipe: Recipe) -> None:
    """Check the losses of a recipe; of the user's own only that there is such a file, since no code of theirs is run.

    Raises:
        RecipeError: A loss is not known, or does not take a key; the message names it.
    """
    sections = {"distill": recipe.distill.loss, "prune": recipe.prune.loss, "quantize.qat": recipe.quantize.qat.loss}
    for section, config in sections.items():
        for name, value in config.extra.items():
            term = value if isinstance(value, Term) else Term()
            try:
                _check_named(term.loss or name, term)
            except RecipeError as error:
                raise RecipeError(f"[{section}.loss] extra.{name}: {error}") from error
    _check_cached_maps(recipe)


def _check_cached_maps(recipe: Recipe) -> None:
    for name, term in recipe.distill.loss.terms.items():
        loss = shipped_losses().get(term.loss or name)
        if recipe.distill.cache_teacher and loss is not None and loss.kind == "maps":
            raise RecipeError(
                f"[distill] cache_teacher keeps no feature maps, which 'extra.{name}' ({loss.name}) reads: leave one "
                "of the two out"
            )


def _check_named(loss: str, term: Term) -> None:
    if not is_plugin(loss):
        check_term(find_shipped_loss(loss), term)
    else:
        _home_file(loss.rpartition(":")[0])


def check_term(loss: Loss, term: Term) -> LossOptions:
    """Return the options that a recipe gives a loss, defaults filled in.

    Raises:
        RecipeError: The loss does not have an option, a value is not valid, or a key that every loss has does not suit
            it.
    """
    if term.pairs and not loss.between:
        raise RecipeError(f"'pairs' is no option of the loss '{loss.name}', which does not compare modalities")
    if loss.kind == "logits" and (term.modalities or term.student or term.teacher):
        raise RecipeError(f"the loss '{loss.name}' is of the logits; modalities and taps say nothing to it")
    if loss.kind == "maps" and not (term.student and term.teacher):
        raise RecipeError(
            f"'{loss.name}' is of feature maps [B, C, ...]: name their modules in both of its tables student and "
            "teacher"
        )
    if loss.projection is not None and term.student.keys() != term.teacher.keys():
        raise RecipeError("its tables student and teacher must name the same modalities")
    return _options(loss, term.options)


def _options(loss: Loss, given: Mapping[str, Any]) -> LossOptions:
    known = loss.options.__struct_fields__
    for option in given:
        if option not in known:
            keys = (*known, *(key for key in Term.__struct_fields__ if key != "options"))
            raise RecipeError(f"'{option}' is no option of the loss '{loss.name}'{nearest(option, keys)}")
    if problem := find_problem(given, msgspec.inspect.type_info(loss.options), ""):
        raise RecipeError(problem)
    try:
        return msgspec.convert(given, loss.options)
    except msgspec.ValidationError as error:
        raise RecipeError(explain(error, loss.options)) from error
