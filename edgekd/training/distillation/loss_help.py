"""The recipe's schema and the help about losses, both derived from the losses' own objects. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgekd.config.loading import recipe_schema
from edgekd.training.distillation.loss_registry import shipped_losses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edgekd.files import JsonObject
    from edgekd.training.distillation.loss import Loss


def full_recipe_schema() -> JsonObject:
    """Return the JSON schema (2020-12) of a recipe, with edgekd's losses and their options."""
    schema = recipe_schema()
    term = schema["$defs"]["Term"]
    known = shipped_losses().values()
    summaries = "; ".join(f"'{loss.name}': {loss.summary}" for loss in known)
    term["properties"]["loss"]["description"] += f" Those of edgekd are {summaries}."
    by_option: dict[str, dict[str, JsonObject]] = {}
    for loss in known:
        for option, described in option_schemas(loss).items():
            by_option.setdefault(option, {})[loss.name] = described
    term["properties"] |= {option: _merged(by_loss) for option, by_loss in by_option.items()}
    term["additionalProperties"] = True  # options of the user's own losses
    return schema


def option_schemas(loss: Loss) -> dict[str, JsonObject]:
    """Return the JSON schema of each of a loss's options, with its default and description."""
    schema = msgspec.json.schema(loss.options)
    properties: dict[str, JsonObject] = schema["$defs"][loss.options.__name__]["properties"]
    return properties


def _merged(by_loss: Mapping[str, JsonObject]) -> JsonObject:
    """Return one schema of an option that several losses have, which says whose it is."""
    kinds: list[tuple[JsonObject, list[str]]] = []
    for name, schema in by_loss.items():
        same = [names for other, names in kinds if other == schema]
        if same:
            same[0].append(f"'{name}'")
        else:
            kinds.append((schema, [f"'{name}'"]))
    labelled = [
        {**schema, "description": f"Of {', '.join(names)}: {schema.get('description', '')}".rstrip()}
        for schema, names in kinds
    ]
    return labelled[0] if len(labelled) == 1 else {"anyOf": labelled}


def describe_losses(known: Iterable[Loss]) -> Iterator[str]:
    """Return lines of help about losses: one for each loss, and one for each of its options."""
    for loss in known:
        yield f"{loss.name}: {loss.summary or 'no summary'} (kind: {loss.kind})"
        for option, schema in option_schemas(loss).items():
            default = "" if schema.get("default") is None else f" [default: {schema['default']}]"
            yield f"    {option}: {schema.get('description', 'no description')}{default}"
