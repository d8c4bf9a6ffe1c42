"""Writes what the site says of code, out of that code, so that it cannot go stale; MkDocs runs it as a hook.

A page has ``<!-- generated: NAME -->`` where :data:`TABLES` ``[NAME]`` is to stand. Beside the pages the site has the
JSON schemas, and CONTRIBUTING.md and CHANGELOG.md from the top of the repository.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from mkdocs.structure.files import File, Files

import edgekd
from edgekd import errors
from edgekd.cli import main
from edgekd.config.loading import recipe_schema
from edgekd.config.target import Budgets, Calibration, Compile, Hosts, Scheme, Target, shipped_targets
from edgekd.devices.targets import load_target
from edgekd.runtime.backends.registry import BACKENDS
from edgekd.training.distillation.loss_help import full_recipe_schema, option_schemas
from edgekd.training.distillation.loss_registry import shipped_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_MARKER = re.compile(r"^<!-- generated: (\S+) -->$", re.MULTILINE)
#: What the reference says of a public name, which `edgekd` imports when it is first used.
_ENTRY = re.compile(r"^::: edgekd\.(\w+)$", re.MULTILINE)
#: Pages of the site that lie at the top of the repository.
_TOP = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
Json = dict[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the schemas, and the pages that lie at the top of the repository."""
    for name, schema in schemas().items():
        content = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        files.append(File.generated(config, f"schemas/{name}.schema.json", content=content))
    for name, source in _TOP.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs names them
    """Put each table where its marker stands, and let each public name be looked up in the module that defines it."""
    markdown = _MARKER.sub(lambda marker: TABLES[marker[1]](), markdown)
    return _ENTRY.sub(lambda entry: f"::: {edgekd._HOMES.get(entry[1], 'edgekd')}.{entry[1]}", markdown)


def schemas() -> dict[str, Json]:
    """Return the published JSON schemas by name."""
    files = {"manifest": "runtime", "report": "report", "profile": "report"}
    shipped = {
        name: json.loads((ROOT / "edgekd" / package / f"{name}.schema.json").read_text(encoding="utf-8"))
        for name, package in files.items()
    }
    return {"recipe": full_recipe_schema(), "target": msgspec.json.schema(Target), **shipped}


def recipe_tables() -> str:
    """Return a section for each table of the recipe: its keys, types, defaults and meanings."""
    definitions = full_recipe_schema()["$defs"]
    top = definitions["Recipe"]["properties"]
    below = {name: _reference(field) for name, field in top.items()}
    plain = {name: field for name, field in top.items() if not below[name]}
    parts = [_key_table(_keys(plain, (), definitions))]
    parts += [
        _sections(name, kind, top[name].get("default") or {}, definitions) for name, kind in below.items() if kind
    ]
    return "\n\n".join(parts)


def _sections(path: str, kind: str, default: Json, definitions: Json) -> str:
    """Return the heading and table of one section, and of the sections below it."""
    schema = definitions[kind]
    fields = schema["properties"]
    below = {name: _reference(field) for name, field in fields.items()}
    plain = {
        name: {**field, "default": default[name]} if name in default else field
        for name, field in fields.items()
        if not below[name]
    }
    parts = [f"## `[{path}]`", _prose(schema["description"])]
    if plain:
        parts.append(_key_table(_keys(plain, schema.get("required", ()), definitions)))
    for name, kind_below in below.items():
        if kind_below:
            parts.append(_sections(f"{path}.{name}", kind_below, default.get(name) or {}, definitions))
    return "\n\n".join(parts)


def _reference(field: Json) -> str | None:
    """Return the definition that a field is, or may be beside null; None for plain values."""
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    if len(options) == 1 and "$ref" in options[0]:
        return str(options[0]["$ref"]).rpartition("/")[2]
    return None


def _keys(fields: Json, required: Sequence[str], definitions: Json) -> Iterator[tuple[str, ...]]:
    yield "key", "takes", "default", "meaning"
    for name, field in fields.items():
        default = "*required*" if name in required else _default(field.get("default"))
        yield f"`{name}`", _kind(field, definitions), default, _prose(field.get("description", ""))


def _default(value: Any) -> str:
    """Return a default as TOML has it; an empty one is left out."""
    if value is None or value in ("", {}, []):
        return "–"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    match value:
        case dict():
            return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


#: What JSON's types are called here.
_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}


def _kind(field: Json, definitions: Json) -> str:
    """Say in words what a field takes."""
    if "anyOf" in field:
        kinds = [_kind(option, definitions) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return ", ".join(f"`{_toml(value)}`" for value in field["enum"])
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"a table: {', '.join(f'`{key}`' for key in definitions[name]['properties'])}"
    if field.get("type") == "array":
        return f"a list of: {_kind(field.get('items', {}), definitions)}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"a table of: {_kind(values, definitions)}" if values else "a table"
    return _WORDS.get(field.get("type", ""), "anything") + _range(field)


def _range(field: Json) -> str:
    """Say what range a number must be in."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]:,}" for key, sign in signs.items() if key in field]
    return f" {', '.join(limits)}" if limits else ""


def tap_table() -> str:
    """Return the keys of a tap."""
    definitions = full_recipe_schema()["$defs"]
    return _key_table(_keys(definitions["Tap"]["properties"], ("module",), definitions))


def loss_list() -> str:
    """Return the losses that come with edgekd: name, what is aligned, what the function is called with, options."""
    rows = [("loss", "what is aligned", "kind", "options")]
    for loss in shipped_losses().values():
        options = [*option_schemas(loss), *(["pairs"] if loss.between else [])]
        rows.append((f"`{loss.name}`", _prose(loss.summary), loss.kind, ", ".join(f"`{name}`" for name in options)))
    return _table(iter(rows))


def loss_options() -> str:
    """Return the options of losses, each with the losses that have it."""
    owners: dict[tuple[str, str], list[str]] = {}
    for loss in shipped_losses().values():
        for name, field in option_schemas(loss).items():
            owners.setdefault((name, json.dumps(field)), []).append(f"`{loss.name}`")
    rows = [("option", "of", "takes", "default", "meaning")]
    for (name, text), losses in owners.items():
        field = json.loads(text)
        default = _default(field.get("default"))
        rows.append((f"`{name}`", ", ".join(losses), _kind(field, {}), default, _prose(field["description"])))
    return _table(iter(rows))


def loss_table() -> str:
    """Return the keys that every loss has in a recipe."""
    definitions = recipe_schema()["$defs"]
    return _key_table(_keys(definitions["Term"]["properties"], (), definitions))


def target_list() -> str:
    """Return the shipped targets: name, engine library, precisions, description."""
    rows = [("target", "engine library", "precisions", "")]
    for name in shipped_targets():
        target = load_target(name)
        precisions = ", ".join(target.precisions)
        rows.append((f"[`{name}`](#{name})", target.runtime, precisions, _prose(target.description)))
    return _table(iter(rows))


def target_sections() -> str:
    """Return each shipped target's facts and the file itself."""
    parts = []
    for name in shipped_targets():
        target = load_target(name)
        text = (ROOT / "targets" / f"{name}.toml").read_text(encoding="utf-8")
        notes = "\n".join(f"- {_prose(note)}" for note in target.notes)
        body = re.sub(r"(?ms)^notes = \[.*?^\]\n", "", text).strip()
        parts.append(f"### {name}\n\n{_prose(target.description)}.\n\n{notes}\n\n```toml\n{body}\n```")
    return "\n\n".join(parts)


def target_keys() -> str:
    """Return a section for each table of a target."""
    definitions = msgspec.json.schema(Target)["$defs"]
    fields = definitions["Target"]["properties"]
    below = {name: _reference(field) for name, field in fields.items()}
    plain = {name: field for name, field in fields.items() if not below[name]}
    required = [name for name in definitions["Target"]["required"] if name != "name"]
    parts = [_key_table(_keys(_with_defaults(Target, plain), required, definitions))]
    kinds = {kind.__name__: kind for kind in (Scheme, Hosts, Compile, Budgets)}
    for name, kind in below.items():
        if kind:
            schema = definitions[kind]
            keys = _key_table(
                _keys(_with_defaults(kinds[kind], schema["properties"]), schema.get("required", ()), definitions)
            )
            parts += [f"### `[{name}]`", _prose(schema["description"]), keys]
    return "\n\n".join(parts)


def _with_defaults(kind: type[msgspec.Struct], fields: Json) -> Json:
    """Return a struct's fields with the defaults that its schema leaves out, since a function makes them."""
    made = {
        field.name: field.default_factory()
        for field in msgspec.structs.fields(kind)
        if field.default_factory is not msgspec.NODEFAULT
    }
    return {name: {**field, "default": made[name]} if name in made else field for name, field in fields.items()}


def calibration_keys() -> str:
    """Return the keys of a calibration file."""
    definitions = msgspec.json.schema(Calibration)["$defs"]
    kind = definitions["Calibration"]
    return _key_table(_keys(kind["properties"], kind["required"], definitions))


def backend_list() -> str:
    """Return the engine libraries that edgekd knows, with what a target may tell them."""
    rows = [("engine library", "option", "takes", "default", "meaning")]
    for name, backend in BACKENDS.items():
        if not backend.options:
            rows.append((f"`{name}`", "–", "", "", ""))
        for option in backend.options:
            words = ", ".join(f"`{_toml(word)}`" for word in option.choices)
            kind = words or _WORDS[{bool: "boolean", int: "integer", str: "string"}[type(option.default)]]
            rows.append((f"`{name}`", f"`{option.name}`", kind, _default(option.default), _prose(option.description)))
    return _table(iter(rows))


def commands() -> str:
    """Return a section for each command, as ``--help`` has it."""
    return "\n\n".join(_command(name, command) for name, command in _walk("edgekd", main))


def _walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if name != "edgekd":
        yield name, command
    if isinstance(command, click.Group):
        for below in command.list_commands(click.Context(command)):
            yield from _walk(f"{name} {below}", command.commands[below])


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    rows = [("option", "")]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and "--help" not in parameter.opts:
            rows.append((f"<code>{record[0].replace('|', '&#124;')}</code>", _prose(record[1])))
    parts = [f"## {name}", f"```text\n{usage}\n```", _prose(command.help or "")]
    if len(rows) > 1:
        parts.append(_key_table(iter(rows)))
    return "\n\n".join(parts)


def exit_codes() -> str:
    """Return every exit code with the error that has it."""
    known: dict[int, list[type[errors.EdgekdError]]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.EdgekdError) and kind is not errors.EdgekdError:
            known.setdefault(kind.exit_code, []).append(kind)
    rows = [("code", "error", "meaning"), ("0", "–", "Done."), ("2", "–", "The command line is wrong.")]
    for code, kinds in sorted(known.items()):
        names = ", ".join(f"`{kind.__name__}`" for kind in kinds)
        rows.append((str(code), names, " ".join(_prose(kind.__doc__ or "") for kind in kinds)))
    rows.append(("129, 130, 143", "–", "SIGHUP, Ctrl-C, SIGTERM. The same command goes on from there."))
    rows.append(("141", "–", "Nobody reads the output any more."))
    return _table(iter(rows))


def decisions() -> str:
    """Return the records of decisions by number, each with its title."""
    rows = [("number", "decision")]
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        number, _, title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(": ")
        rows.append((f"[{number}]({path.name})", title))
    return _table(iter(rows))


def schema_tables(name: str, described: str = "") -> str:
    """Return the fields of a published schema: of the whole, and a section for each record that it has.

    Records that the schema ``described`` has too are left to it.
    """
    schema = schemas()[name]
    elsewhere = schemas()[described]["$defs"] if described else {}
    definitions = schema.get("$defs", {})
    parts = [_key_table(_fields(schema, definitions))]
    for title, kind in definitions.items():
        if kind.get("properties") and title not in elsewhere:
            fields = _key_table(_fields(kind, definitions))
            parts.append(f"### {title}\n\n{_prose(kind.get('description', ''))}\n\n{fields}")
    return "\n\n".join(parts)


def _fields(schema: Json, definitions: Json) -> Iterator[tuple[str, ...]]:
    yield "field", "type", "meaning"
    yield from _fields_below(schema, definitions, "")


def _fields_below(schema: Json, definitions: Json, path: str) -> Iterator[tuple[str, ...]]:
    """Yield each field by its dotted path, and what is in objects and lists that are no records of their own."""
    for name, field in schema.get("properties", {}).items():
        at = f"{path}.{name}".lstrip(".")
        described = _definition(field, definitions) if "$ref" in field else {}
        meaning = field.get("description") or described.get("description", "")
        yield f"`{at}`", _json_type(field, definitions), _prose(meaning)
        yield from _fields_below(field, definitions, at)
        for key, label in (("items", f"{at}[]"), ("additionalProperties", f"{at}.*")):
            if isinstance(field.get(key), dict):
                yield from _fields_below(field[key], definitions, label)


def _definition(field: Json, definitions: Json) -> Json:
    found: Json = definitions[field["$ref"].rpartition("/")[2]]
    return found


def _json_type(field: Json, definitions: Json) -> str:
    """Say what JSON a field holds; a record links to its section."""
    if "$ref" in field:
        name, kind = field["$ref"].rpartition("/")[2], _definition(field, definitions)
        return f"[{name}](#{name.lower()})" if kind.get("properties") else _json_type(kind, definitions)
    if "anyOf" in field:
        words = (_json_type(option, definitions) for option in field["anyOf"])
        return " or ".join(dict.fromkeys(word for words_of_one in words for word in words_of_one.split(" or ")))
    if "const" in field or "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field.get("enum", [field.get("const")]))
    kinds = field.get("type", "anything")
    return " or ".join(_json_word(kind, field, definitions) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _json_word(kind: str, field: Json, definitions: Json) -> str:
    inner = {"array": ("list", field.get("items")), "object": ("table", field.get("additionalProperties"))}
    word, values = inner.get(kind, (kind, None))
    if not isinstance(values, dict) or values.get("properties") or not values:
        return word
    return f"{word} of {_json_type(values, definitions)}"


def _prose(text: str) -> str:
    """Return a docstring's or schema's text for Markdown: paragraphs joined, and no sign taken for HTML."""
    text = re.sub(r"``([^`]*)``", r"`\1`", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    text = "`".join(part if odd % 2 else part.replace("<", "&lt;") for odd, part in enumerate(text.split("`")))
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _key_table(rows: Iterator[tuple[str, ...]]) -> str:
    """Return a table whose rows a narrow screen shows one below another; stylesheets/extra.css does it."""
    return f'<div class="keys" markdown>\n\n{_table(rows)}\n\n</div>'


def _table(rows: Iterator[tuple[str, ...]]) -> str:
    """Return rows as a Markdown table; the first is the head."""
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    head = lines[0].count(" | ") + 1
    return "\n".join([lines[0], "|" + "---|" * head, *lines[1:]])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n\n", " ").replace("\n", " ") or " "


TABLES: dict[str, Callable[[], str]] = {
    "recipe": recipe_tables,
    "taps": tap_table,
    "losses": loss_list,
    "loss-options": loss_options,
    "loss-keys": loss_table,
    "targets": target_list,
    "target-files": target_sections,
    "target-keys": target_keys,
    "calibration-keys": calibration_keys,
    "backends": backend_list,
    "commands": commands,
    "exit-codes": exit_codes,
    "decisions": decisions,
    "report": lambda: schema_tables("report"),
    "profile": lambda: schema_tables("profile", described="report"),
    "manifest": lambda: schema_tables("manifest"),
}
