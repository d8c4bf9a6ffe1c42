"""A task's data out of folders: one for each modality, in it one for each class, in it one file for each sample."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from edgekd.errors import DataError
from edgekd.tasks.data.division import Division, divide
from edgekd.tasks.data.files import FileReader, read_files, reader_of
from edgekd.tasks.data.task_data import Samples, Targets, TaskData, divided

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


#: What is done with a sample that has no file of some modality.
Unpaired: TypeAlias = Literal["refuse", "missing"]

#: For each sample, called "class/stem", its file.
_Files: TypeAlias = dict[str, Path]


def from_folder(
    folders: Mapping[str, str | Path | FileReader],
    *,
    group: str = "",
    division: Division | None = None,
    unpaired: Unpaired = "refuse",
) -> TaskData:
    """Read classes of files, and pair those of several modalities that have one name.

    A modality's folder has one folder for each class, with one file for each sample: ``images/cat/017.png``. In another
    modality's folder the same sample has the same name, whatever its suffix: ``sounds/cat/017.wav``.

    Args:
        folders: For each modality its folder, or how its files are read: :class:`edgekd.Images`,
            :class:`edgekd.Sounds` or :class:`edgekd.Arrays` of it.
        group: Regular expression that finds a sample's group at the start of its file's name, e.g. ``"s[0-9]+"`` for
            the subject of ``s07-take2.wav``. Samples of a group are put into one split. "" where samples are
            independent.
        division: What share each split gets, and the seed.
        unpaired: What becomes of a sample that has no file of some modality: "refuse", or "missing", by which the
            sample lacks that modality.

    Raises:
        DataError: A folder, a class or a file is not as it must be; files are unpaired; a class has too few samples.
    """
    if not folders:
        raise DataError("from_folder: no folder is named; give a dict with one for each modality")
    readers, found = {}, {}
    for name, folder in folders.items():
        root = Path(folder if isinstance(folder, str | Path) else folder.source)
        found[name] = _files(root)
        readers[name] = (
            reader_of(str(root), next(iter(found[name].values()))) if isinstance(folder, str | Path) else folder
        )
    samples = _paired(found, unpaired)
    classes = sorted({sample.split("/")[0] for sample in samples})
    groups = [_group(group, sample) for sample in samples] if group else None
    modalities, inputs, present = [], {}, {}
    for name, files in found.items():
        there = np.array([sample in files for sample in samples])
        values = _in_place(read_files(readers[name], [files[sample] for sample in samples if sample in files]), there)
        modalities.append(readers[name].modality(name, values))
        inputs[name] = values
        if not there.all():
            present[name] = there
    labels = [sample.split("/")[0] for sample in samples]
    targets = Targets("classes", np.array([classes.index(label) for label in labels]), tuple(classes))
    what = ", ".join(reader.source for reader in readers.values())
    parts = divide(what, division or Division(), labels, groups)
    read = [files[sample] for files in found.values() for sample in sorted(files)]
    return divided(Samples(samples, modalities, inputs, present, groups, targets), parts, read)


def _files(root: Path) -> _Files:
    """Return the files of a modality by their samples."""
    if not root.is_dir():
        raise DataError(f"{root}: is no folder")
    files: _Files = {}
    for folder in _visible(root):
        if not folder.is_dir():
            raise DataError(f"{folder}: is in no class's folder; lay it in one, as {root.name}/CLASS/{folder.name}")
        for file in _visible(folder):
            sample = f"{folder.name}/{file.stem}"
            if file.is_dir():
                raise DataError(f"{file}: is a folder, and a class's folder {folder} may only have files")
            if sample in files:
                raise DataError(f"{file}: has the same name as {files[sample].name}, by which both are one sample")
            files[sample] = file
    if not files:
        raise DataError(f"{root}: has no files; there must be one folder for each class, with one file for each sample")
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _paired(found: Mapping[str, _Files], unpaired: Unpaired) -> list[str]:
    """Return the samples, in the order of their names."""
    samples = sorted(set().union(*found.values()))
    for name, files in found.items():
        lacking = [sample for sample in samples if sample not in files]
        if lacking and unpaired == "refuse":
            shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
            raise DataError(
                f"{len(lacking)} of {len(samples)} samples have no file of modality '{name}': {shown}; files of one "
                'sample have one name in each folder. Where they are rightly missing, say unpaired="missing"'
            )
    return samples


def _group(pattern: str, sample: str) -> str:
    stem = sample.split("/", 1)[1]
    match = re.match(pattern, stem)
    if match is None:
        raise DataError(f"the sample '{sample}': its name does not begin as the group's expression says: {pattern}")
    return match.group(1) if match.groups() else match.group(0)


def _in_place(values: NDArray[np.generic], there: NDArray[np.bool_]) -> NDArray[np.generic]:
    """Return values of all samples, zeros for those that have none."""
    whole = np.zeros((len(there), *values.shape[1:]), values.dtype)
    whole[there] = values
    return whole
