import sys

import pytest

from edgekd.errors import TargetError
from edgekd.plugins import guarded, import_plugin


def imported(file, name="give"):
    return import_plugin(f"{file}:{name}", "plug-in", TargetError)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def give():\n    return 1\n")
    return path


def test_a_file_is_imported_once(file):
    assert imported(file) is imported(file)


def test_a_file_by_a_relative_path_is_imported_once(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert imported("mine.py") is imported("mine.py") is imported(file)


def test_a_file_that_was_edited_is_imported_again(file):
    """A stage of an edited file has another key; the result under it must not be that of the old code."""
    assert imported(file)() == 1
    file.write_text("def give():\n    return 100\n")
    assert imported(file)() == 100


def test_files_of_one_name_in_two_folders_are_two_plugins(file, tmp_path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "mine.py"
    other.write_text("def give():\n    return 2\n")
    assert [imported(path)() for path in (file, other, file)] == [1, 2, 1]


def test_a_file_that_fails_leaves_no_module(file):
    file.write_text("one = 1\n\ntwo = one / 0\n")
    with pytest.raises(TargetError, match=r"ZeroDivisionError: division by zero \(.*mine\.py:3\)$"):
        imported(file)
    assert "edgekd_plugin_mine" not in sys.modules


def test_what_a_plugin_raises_is_told_with_its_line(file):
    file.write_text("def give():\n    numbers = []\n    return numbers[3]\n")
    name = f"{file}:give"
    with pytest.raises(TargetError) as error, guarded(f"plug-in {name}", TargetError):
        imported(file)()
    assert str(error.value) == f"plug-in {name}: IndexError: list index out of range ({file}:3)"
