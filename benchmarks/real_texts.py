"""Texts and files that lie on every machine that has Python: what a sentence encoder and a file typer are given."""

from __future__ import annotations

import inspect
import pydoc
import re
import sysconfig
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray[Any, Any]

#: Modules whose documentation is read aloud or encoded, by part of the samples.
_MODULES = {
    "calibration": ("argparse", "collections", "csv", "decimal", "functools", "logging", "statistics", "tarfile"),
    "test": ("configparser", "datetime", "email", "fractions", "json", "random", "subprocess", "zipfile"),
}
#: A sentence: words and commas up to a full stop.
_WORDS = re.compile(r"[A-Za-z][A-Za-z ,'-]{25,240}[.?!]")


@cache
def sentences(part: str) -> tuple[str, ...]:
    """Return English sentences of the standard library's documentation; no module and no sentence is in both parts."""
    found: dict[str, None] = {}
    for name in _MODULES[part]:
        module = pydoc.locate(name)
        texts = [inspect.getdoc(module) or ""]
        for _, member in sorted(inspect.getmembers(module), key=lambda pair: pair[0]):
            if inspect.isclass(member) or inspect.isroutine(member):
                texts.append(inspect.getdoc(member) or "")
                texts += [inspect.getdoc(inner) or "" for _, inner in inspect.getmembers(member, inspect.isroutine)]
        for text in texts:
            found |= dict.fromkeys(_WORDS.findall(re.sub(r"\s+", " ", text)))
    others = set() if part == "calibration" else set(sentences("calibration"))  # of what both inherit
    chosen = [sentence for sentence in found if sentence not in others]
    np.random.default_rng(0).shuffle(chosen)
    return tuple(chosen)


#: What a suffix is called among magika's types. Suffixes whose content may be anything are not among them.
SUFFIX_TYPES = {
    ".bz2": "bzip", ".c": "c", ".cmake": "cmake", ".cpp": "cpp", ".css": "css", ".csv": "csv", ".exe": "pebin",
    ".f90": "fortran", ".gz": "gzip", ".h": "c", ".hpp": "cpp", ".html": "html", ".js": "javascript", ".json": "json",
    ".md": "markdown", ".npy": "npy", ".npz": "npz", ".onnx": "onnx", ".pdf": "pdf", ".png": "png", ".py": "python",
    ".pyc": "pythonbytecode", ".rst": "rst", ".so": "elf", ".svg": "svg", ".toml": "toml", ".ttf": "ttf",
    ".wav": "wav", ".woff2": "woff2", ".yaml": "yaml", ".zip": "zip",
}  # fmt: skip
#: At most so many files of one type, since most of what lies there is Python; and bytes below which nothing is said.
_OF_ONE_TYPE, _LEAST_BYTES = 24, 64


def files_by_type() -> list[tuple[Path, str]]:
    """Return files of this Python's standard library and packages with their types, shuffled."""
    roots = dict.fromkeys(Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib"))
    found: dict[str, dict[Path, None]] = {}
    for root in roots:
        for file in root.rglob("*"):
            if (kind := SUFFIX_TYPES.get(file.suffix)) and file.is_file() and file.stat().st_size >= _LEAST_BYTES:
                found.setdefault(kind, {})[file] = None
    random = np.random.default_rng(0)
    chosen = []
    for kind, files in sorted(found.items()):
        few = sorted(files)
        random.shuffle(few)
        chosen += [(file, kind) for file in few[:_OF_ONE_TYPE]]
    random.shuffle(chosen)
    return chosen


def character_error_rate(model: Path, scores: Array, texts: Sequence[str]) -> float:
    """Return the edits that turn what a text recogniser read into what is written, over the characters of that.

    Args:
        model: Its ONNX, which names the characters of its classes in its metadata; class 0 is CTC's blank.
        scores: Scores of classes at every step [N, steps, classes].
        texts: What is written in each sample.
    """
    import onnx

    properties = {item.key: item.value for item in onnx.load(str(model)).metadata_props}
    characters = ["", *properties["character"].splitlines(), " "]
    edits = 0
    for row, text in zip(scores.argmax(-1), texts, strict=True):
        kept = row[np.flatnonzero(np.diff(row, prepend=-1))]
        edits += edit_distance("".join(characters[index] for index in kept), text)
    return edits / sum(map(len, texts))


def edit_distance(one: str, other: str) -> int:
    """Return the fewest characters to insert, delete or replace that make one text of another (Levenshtein)."""
    costs = list(range(len(other) + 1))
    for row, mine in enumerate(one, 1):
        before, costs[0] = costs[0], row
        for column, theirs in enumerate(other, 1):
            here = min(costs[column] + 1, costs[column - 1] + 1, before + (mine != theirs))
            before, costs[column] = costs[column], here
    return costs[-1]
