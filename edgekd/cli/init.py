"""Starting a project: write a recipe and a task that run as they stand, for the user to change."""

from __future__ import annotations

from pathlib import Path

from edgekd.errors import RecipeError
from edgekd.files import write_text

_TEMPLATE = Path(__file__).parent / "template"

#: For each file that is written the file of the template that it is copied from. The task of the template ends in .txt,
#: so that it is no module of edgekd.
_FILES = {"edgekd.toml": "edgekd.toml", "task.py": "task.py.txt"}


def init(folder: Path) -> list[Path]:
    """Write ``edgekd.toml`` and ``task.py`` into a folder, which is created if it is missing: both files, or neither.

    Returns:
        The files that were written.

    Raises:
        RecipeError: One of the files exists already, or the folder cannot be written.
    """
    for name in _FILES:
        if (folder / name).exists():
            raise RecipeError(f"{folder / name}: exists already; move it away, or name another folder")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in _FILES.items():
            write_text(folder / name, (_TEMPLATE / source).read_text(encoding="utf-8"))
            written.append(folder / name)
    except OSError as error:
        for path in written:
            path.unlink()
        raise RecipeError(f"{folder}: cannot be written: {error.strerror or error}; name another folder") from error
    return written
