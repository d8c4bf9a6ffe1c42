"""A bundle's manifest, and the check that the files beside it are the ones it lists.

A manifest has one text: JSON as :func:`manifest_text` writes it, which ends with the digest of all that stands before
it. Any other text is refused, so that no bit of it can turn unnoticed. Whoever rewrites the digest too is not stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, get_origin, get_type_hints

from edgekd import __version__
from edgekd.errors import BundleError, nearest
from edgekd.files import JsonObject  # noqa: TC001 - the types of the manifest's fields are read when it is
from edgekd.runtime.manifest_checks import check_values

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

#: "deploy" has the network's answers only, "probe" the embeddings too.
Variant = Literal["deploy", "probe"]

SCHEMA_VERSION = 6
MANIFEST = "manifest.json"
REFERENCE = "reference.npz"
#: The branch of each node of the graph; bundles from before version 3 of their stage have no such file.
BRANCHES = "branches.json"
#: What an imported network does behind the engine's outputs, such as choosing among boxes; most bundles have none.
POSTPROCESS = "postprocess.onnx"
REQUIRED = ("probe.onnx", "deploy.onnx", REFERENCE, "ledger.json")
#: The last key of the text; no field of :class:`Manifest`.
_DIGEST = "digest"


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json`` but its digest; ``manifest.schema.json`` beside this file describes it."""

    schema_version: int
    edgekd: str
    target: str
    runtime: str
    options: JsonObject
    precision: str
    released: bool
    verdict: str
    reasons: list[str]
    task: JsonObject
    inputs: list[JsonObject]
    outputs: list[JsonObject]
    states: list[JsonObject]
    versions: dict[str, str]
    measurements: JsonObject
    files: dict[str, JsonObject]


#: The kind of an output that is the embedding of a modality, and no answer.
TAP = "tap"


#: The kind of an output that is the state of a sequence after a step, and is fed again at the next.
STATE = "state"


def answers_in(manifest: Manifest) -> dict[str, JsonObject]:
    """Return what the manifest says of each output but the embeddings of modalities, by name, in order."""
    return {entry["name"]: entry for entry in manifest.outputs if entry["kind"] != TAP}


def states_in(manifest: Manifest) -> dict[str, str]:
    """Return for each input that is a state the output that holds it after a step; it begins at zero."""
    return {entry["input"]: entry["output"] for entry in manifest.states}


_TYPES = {name: get_origin(hint) or hint for name, hint in get_type_hints(Manifest).items()}


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle's manifest; its other files are not read.

    Raises:
        BundleError: there is none, or it is malformed or of another schema version.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
        if not isinstance(content, dict):
            raise BundleError(f"{path}: must be a JSON object, not a {type(content).__name__}")
        _check_version(content, str(path))
        content.pop(_DIGEST, None)
        unaltered = text == manifest_text(content)
    except FileNotFoundError:
        inside = [place.parent for depth in ("*", "*/*") for place in sorted(folder.glob(f"{depth}/{MANIFEST}"))]
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise BundleError(f"{folder}: is not a bundle, it has no {MANIFEST}{hint}") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: is not valid JSON: {error}") from error
    if not unaltered:
        raise BundleError(f"{path}: was altered, it does not have its own digest; copy or build the bundle again")
    return parse_manifest(content, str(path))


def manifest_text(content: JsonObject) -> str:
    """Return the one text that a manifest of this content has, which ends with the digest of the rest.

    Args:
        content: Every field of :class:`Manifest` by its name, in any order: the order is part of the text.

    Raises:
        ValueError: JSON cannot hold a number of it, or UTF-8 a character.
    """
    digest = hashlib.sha256(_plain_text(content).encode()).hexdigest()
    return _plain_text({**content, _DIGEST: digest})


def _plain_text(content: JsonObject) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _check_version(content: JsonObject, where: str) -> None:
    version = content.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: has schema_version {version}, and edgekd {__version__} reads {SCHEMA_VERSION} only; "
            "build the bundle again with this edgekd"
        )


def parse_manifest(content: JsonObject, where: str) -> Manifest:
    """Check a manifest's content.

    Args:
        content: The JSON object, without the digest.
        where: The file's name in errors.

    Raises:
        BundleError: a key is missing, unknown or of the wrong type, or two of them contradict each other.
    """
    _check_version(content, where)
    for name, kind in _TYPES.items():
        if name not in content:
            raise BundleError(f"{where}: has no '{name}'; the manifest is incomplete")
        if type(content[name]) is not kind:
            raise BundleError(f"{where}: '{name}' must be a {kind.__name__}, not a {type(content[name]).__name__}")
    for name in content:
        if name not in _TYPES:
            raise BundleError(f"{where}: has an unknown key '{name}'{nearest(name, _TYPES)}")
    check_values(content, where)
    manifest = Manifest(**content)
    if manifest.verdict != "undecided" and manifest.released != (manifest.verdict in ("pass", "warn")):
        raise BundleError(f"{where}: 'released' is {manifest.released} although the verdict is '{manifest.verdict}'")
    for name in manifest.files:
        if name == MANIFEST:
            raise BundleError(f"{where}: lists itself, and cannot hold its own digest")
        if not _is_inside(name):
            raise BundleError(f"{where}: lists '{name}', which leaves the bundle's folder")
    check_required(manifest.files, where)
    return manifest


def map_leaves(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """Return a JSON value with every leaf replaced by ``change(dotted path, leaf)``."""
    if isinstance(value, dict):
        return {str(key): map_leaves(item, change, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_leaves(item, change, f"{path}.{index}".lstrip(".")) for index, item in enumerate(value)]
    return change(path, value)


def null_not_finite(value: Any) -> Any:
    """Return a JSON value with null for each number that JSON cannot hold."""
    return map_leaves(value, lambda _, leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf)


def _is_inside(name: str) -> bool:
    """Return whether ``name`` is a relative path in its plainest form, on POSIX and on Windows."""
    path = PurePosixPath(name)
    return str(path) == name and ".." not in path.parts and not path.is_absolute() and not set(name) & set("\\:\0")


def check_required(files: Collection[str], where: str) -> None:
    """Raise BundleError unless every file of :data:`REQUIRED` is among ``files``."""
    for name in REQUIRED:
        if name not in files:
            raise BundleError(f"{where}: has no '{name}', which every bundle has")


def check_listing(folder: Path, manifest: Manifest, found: Mapping[str, Path]) -> None:
    """Raise BundleError unless the files found in the folder are those that the manifest lists, and itself."""
    for name in manifest.files:
        if name not in found:
            raise BundleError(f"{folder / name}: is missing; copy the bundle again, whole")
    for name in found:
        if name not in manifest.files and name != MANIFEST:
            raise BundleError(f"{folder / name}: is not in the manifest; a bundle holds nothing else, remove it")


def plain_files(folder: Path) -> dict[str, Path]:
    """Return every file below ``folder`` by its relative path; a link, which may lead outside, is refused."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(
                f"{path}: is a link or no plain file, and may lead outside; a bundle holds plain files only"
            )
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path
    return files


def read_file(folder: Path, manifest: Manifest, name: str) -> bytes:
    """Return a file's content, having checked that very content against the manifest."""
    path, expected = folder / name, manifest.files[name]
    try:
        # The size first: a file that is far too long is not read at all.
        content = path.read_bytes() if path.stat().st_size == expected["bytes"] else b""
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) != expected["bytes"] or hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise BundleError(f"{path}: is not the file that the manifest describes; copy or build the bundle again")
    return content


def read_branches(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Return for nodes of the bundle's graph the modality from whose input alone each is computed, or "fusion".

    Returns:
        Nothing for a bundle without them, which an earlier edgekd wrote.

    Raises:
        BundleError: the file is not the manifest's, or not such a table.
    """
    if BRANCHES not in manifest.files:
        return {}
    where = folder / BRANCHES
    try:
        branches = json.loads(read_file(folder, manifest, BRANCHES))
    except ValueError as error:
        raise BundleError(f"{where}: is not valid JSON: {error}") from error
    if not isinstance(branches, dict) or not all(isinstance(branch, str) for branch in branches.values()):
        raise BundleError(f"{where}: must be a table of nodes' names and their branches; build the bundle again")
    return branches
