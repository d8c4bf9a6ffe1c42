"""The losses that are compared with plain KD, and how each is written in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgekd.config.recipe import ANCHOR_EXTRA, DEFAULT_EXTRA, LossConfig, Term, extra_table
from edgekd.config.toml import toml_value
from edgekd.gram.matrix import pair_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.config.recipe import Recipe

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

#: The names of losses in the order of what they promise; other temperatures come at the rank that follows.
_PROMISING = ("default", "intra", "labels only", "joint", "fd", "sample", "cross")
_KD_RANK = 2.5


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


def own_variant(variants: Sequence[LossVariant], recipe_loss: LossConfig) -> LossVariant:
    """Return the variant that the recipe has already; plain KD where none is the same."""
    return next((v for v in variants if _settings(v.loss) == _settings(recipe_loss)), variants[0])


def by_promise(variants: Sequence[LossVariant], recipe_loss: LossConfig) -> tuple[LossVariant, ...]:
    """Return the variants in the order in which they are tried, so that a short budget leaves out the last.

    Plain KD comes first, then what the recipe has, then what helped most over all tasks of the benchmark
    (docs/explanation/distill.md); of those that helped on none, the costlier ones last.
    """
    base, *others = variants
    own = own_variant(variants, recipe_loss).name
    ranks = {**{name: rank for rank, name in enumerate(_PROMISING)}, own: -1.0}
    names = {variant.name: variant.name.removesuffix(" centred") for variant in others}
    return (base, *sorted(others, key=lambda v: ranks.get(v.name, ranks.get(names[v.name], _KD_RANK))))


def with_loss(recipe: Recipe, loss: LossConfig) -> Recipe:
    """Return the recipe with another loss of its distillation.

    The losses of its fine-tunes follow, as they do in a recipe that states what differs from ``[distill.loss]`` alone.
    """
    old, qat = recipe.distill.loss, recipe.quantize.qat
    return replace(
        recipe,
        distill=replace(recipe.distill, loss=loss),
        prune=replace(recipe.prune, loss=_follow(recipe.prune.loss, old, loss)),
        quantize=replace(recipe.quantize, qat=replace(qat, loss=_follow(qat.loss, old, loss))),
    )


def _follow(fine_tune: LossConfig, old: LossConfig, new: LossConfig) -> LossConfig:
    """Return a fine-tune's loss after that of the distillation became another: what was the same remains the same."""
    same = [key for key in ("ce", "kd", "temperature") if getattr(fine_tune, key) == getattr(old, key)]
    extra = fine_tune.extra
    if extra == _anchor_extra(old):
        extra = _anchor_extra(new)
    return replace(fine_tune, **{key: getattr(new, key) for key in same}, extra=extra)


def _anchor_extra(loss: LossConfig) -> dict[str, float | Term]:
    return ANCHOR_EXTRA if loss.extra else {}


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
