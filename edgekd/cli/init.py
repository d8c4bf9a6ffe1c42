"""Starting a project: write a recipe and a task that run as they stand, for the user to change."""

from __future__ import annotations

from pathlib import Path

from edgekd.errors import RecipeError, nearest
from edgekd.files import write_text

_FOLDER = Path(__file__).parent / "template"

#: For each template what it starts with. Its files are NAME.toml and NAME.py.txt, which is no module of edgekd.
TEMPLATES = {
    "classes": "one class of each sample, from two views of handwritten digits",
    "image-text": "pictures and words: a class of both, and each found by the other",
    "multilabel": "several labels of each sample, from a picture and words",
    "regression": "numbers in their own units, from several sensors' series",
    "dense": "a class of each pixel, from an image close by and one of its surroundings",
    "detection": "boxes in an image: an output, a loss, a metric and a comparison of the task's own",
}


def init(folder: Path, template: str = "classes") -> list[Path]:
    """Write ``edgekd.toml`` and ``task.py`` into a folder, which is created if it is missing: both files, or neither.

    Args:
        folder: The folder.
        template: A key of ``TEMPLATES``.

    Returns:
        The files that were written.

    Raises:
        RecipeError: There is no such template, one of the files exists already, or the folder cannot be written.
    """
    if template not in TEMPLATES:
        raise RecipeError(f"no template '{template}'{nearest(template, TEMPLATES)}")
    sources = {"edgekd.toml": f"{template}.toml", "task.py": f"{template}.py.txt"}
    for name in sources:
        if (folder / name).exists():
            raise RecipeError(f"{folder / name}: exists already; move it away, or name another folder")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            write_text(folder / name, (_FOLDER / source).read_text(encoding="utf-8"))
            written.append(folder / name)
    except OSError as error:
        for path in written:
            path.unlink()
        raise RecipeError(f"{folder}: cannot be written: {error.strerror or error}; name another folder") from error
    return written
