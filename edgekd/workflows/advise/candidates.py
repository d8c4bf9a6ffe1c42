"""The losses that are compared with plain KD, and how each is written in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgekd.config.recipe import DEFAULT_EXTRA, LossConfig, Term, extra_table
from edgekd.config.toml import toml_value
from edgekd.gram.matrix import pair_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The temperatures at which KD is tried. The best one depends on the teacher, and a bad one flatters every other loss.
TEMPERATURES = (4.0, 8.0)

#: The losses that are added to KD, each alone. `intra` is centred, which was a little better wherever it was measured.
_ADDED: dict[str, Term] = {
    "sample": Term(),
    "intra": Term(options={"centered": True}),
    "cross": Term(),
    "joint": Term(),
    "fd": Term(),
}


@dataclass(frozen=True)
class LossVariant:
    """A loss that is tried.

    Attributes:
        name: Name of the variant in tables.
        loss: The loss as a recipe has it.
    """

    name: str
    loss: LossConfig


@dataclass(frozen=True)
class LossFamily:
    """A loss, and the same loss without each of its parts.

    Attributes:
        what: Kind of the parts: "pair" or "modality".
        whole: The loss with all its parts.
        without: For each part the loss without that part.
    """

    what: str
    whole: LossVariant
    without: dict[str, LossVariant]


def loss_variants(recipe_loss: LossConfig) -> tuple[LossVariant, ...]:
    """Return the losses to try; the first is plain KD, which all others are compared with.

    The weights of CE and KD and the temperature are the recipe's. A loss that the recipe adds keeps its share and its
    options.
    """
    plain = replace(recipe_loss, extra={})
    if not plain.kd:
        plain = LossConfig(temperature=recipe_loss.temperature, extra={})
    variants = [
        LossVariant(_kd_name(plain.temperature), plain),
        LossVariant("labels only", LossConfig(ce=1.0, kd=0.0, temperature=plain.temperature, extra={})),
    ]
    variants += [
        LossVariant(_kd_name(t), replace(plain, temperature=t)) for t in TEMPERATURES if t != plain.temperature
    ]
    for loss, term in _ADDED.items():
        own = _own(recipe_loss, loss) or term
        name = f"{loss} centred" if own.options.get("centered") else loss
        variants.append(LossVariant(name, replace(plain, extra={loss: _short(own)})))
    for name, extra in (("default", DEFAULT_EXTRA), ("recipe's own", recipe_loss.extra)):
        candidate = replace(plain, extra=dict(extra))
        if all(_settings(candidate) != _settings(other.loss) for other in variants):
            variants.append(LossVariant(name, candidate))
    return tuple(variants)


def _kd_name(temperature: float) -> str:
    return f"KD T={temperature:g}"


def _settings(loss: LossConfig) -> tuple[float, float, float, Mapping[str, Term]]:
    """Return the settings that a loss amounts to, however it is written."""
    return loss.ce, loss.kd, loss.temperature, loss.terms


def _own(recipe_loss: LossConfig, loss: str) -> Term | None:
    """Return the recipe's term of a loss that it adds under the loss's own name, or None."""
    term = recipe_loss.terms.get(loss)
    if term is None or term.loss != loss:
        return None
    given = recipe_loss.extra[loss]
    return given if isinstance(given, Term) else replace(_ADDED[loss], share=given)


def _short(term: Term) -> float | Term:
    """Return a term as a recipe may write it: as its share alone where all else is the default."""
    return term.share if term == Term(share=term.share) else term


def loss_families(variants: Sequence[LossVariant], modalities: Sequence[str]) -> tuple[LossFamily, ...]:
    """Return the losses whose parts are switched off in turn: those between modalities, and `intra`.

    With two modalities there is one pair, and `joint` without it is `intra` of plain cosines.

    Args:
        variants: The variants, as :func:`loss_variants` returned them.
        modalities: Names of the task's modalities, in order.
    """
    by_loss = {next(iter(v.loss.extra)): v for v in reversed(variants) if len(v.loss.extra) == 1}
    scopes = ("joint",) if len(modalities) == 2 else ("joint", "cross")
    between = [_without_pairs(by_loss[scope], scope, modalities) for scope in scopes]
    return (*between, _without_modalities(by_loss["intra"], modalities))


def _without_pairs(whole: LossVariant, scope: str, modalities: Sequence[str]) -> LossFamily:
    term = whole.loss.terms[scope]
    pairs = term.pairs or pair_names(list(term.modalities or modalities))
    if len(pairs) == 1:
        terms: dict[str, tuple[str, Term]] = {pairs[0]: ("intra", replace(term, loss=None, pairs=[]))}
    else:
        terms = {pair: (scope, replace(term, pairs=[other for other in pairs if other != pair])) for pair in pairs}
    return LossFamily("pair", whole, _variants(whole, terms))


def _without_modalities(whole: LossVariant, modalities: Sequence[str]) -> LossFamily:
    term = whole.loss.terms["intra"]
    names = term.modalities or list(modalities)
    terms = {name: ("intra", replace(term, modalities=[other for other in names if other != name])) for name in names}
    return LossFamily("modality", whole, _variants(whole, terms if len(names) > 1 else {}))


def _variants(whole: LossVariant, terms: Mapping[str, tuple[str, Term]]) -> dict[str, LossVariant]:
    return {
        part: LossVariant(f"{whole.name} without {part}", replace(whole.loss, extra={name: term}))
        for part, (name, term) in terms.items()
    }


def recipe_lines(loss: LossConfig, recipe_loss: LossConfig) -> tuple[str, ...]:
    """Return the lines of TOML that make a recipe's loss this one."""
    changed = [key for key in ("ce", "kd", "temperature") if getattr(loss, key) != getattr(recipe_loss, key)]
    extra = _without_none(extra_table(loss.extra))
    settings = [f"{key} = {toml_value(getattr(loss, key))}" for key in changed]
    return ("[distill.loss]", *settings, f"extra = {toml_value(extra)}")


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
