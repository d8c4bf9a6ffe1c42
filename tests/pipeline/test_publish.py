import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.errors import OutputError
from edgekd.pipeline.publish import files_below, publish, writing


@pytest.fixture
def built(tmp_path):
    """A bundle's files, as the cache has them."""
    folder = tmp_path / "built"
    (folder / "sub").mkdir(parents=True)
    (folder / "engine.onnx").write_text("engine")
    (folder / "sub" / "file").write_text("deep")
    return folder


@pytest.fixture
def output(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def show(built, output, name="bundle"):
    with writing(output):
        publish({name: files_below(built)}, output / "cpu")


def shown(output, name="bundle"):
    return {path: file.read_text() for path, file in files_below(output / "cpu" / name).items()}


FILES = {"engine.onnx": "engine", "sub/file": "deep"}


def _link(folder, outside):
    folder.symlink_to(outside)


def _broken_link(folder, outside):
    folder.symlink_to(outside / "nowhere")


def _file(folder, outside):
    folder.write_text("not a folder")


def _linked_file(folder, outside):
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_text("deep")
    (folder / "engine.onnx").symlink_to(outside / "engine.onnx")


def _old(folder, outside):
    folder.mkdir()
    (folder / "old").write_text("old")


@pytest.mark.parametrize("there", [_link, _broken_link, _file, _linked_file, _old])
def test_whatever_is_in_the_place_of_a_folder_is_replaced(built, output, tmp_path, there):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "engine.onnx").write_text("engine")
    (output / "cpu").mkdir()
    for name in ("bundle", "rejected"):
        there(output / "cpu" / name, outside)
    show(built, output)
    assert shown(output) == FILES
    assert not any(path.is_symlink() for path in output.rglob("*"))
    assert [path.name for path in (output / "cpu").iterdir()] == ["bundle"]
    assert {path: file.read_text() for path, file in files_below(outside).items()} == {"engine.onnx": "engine"}


def test_what_is_right_already_stays_untouched(built, output):
    show(built, output)
    before = (output / "cpu" / "bundle").stat()
    show(built, output)
    assert (output / "cpu" / "bundle").stat() == before


def test_a_failure_leaves_the_old_folder(built, output, monkeypatch):
    show(built, output)
    (built / "engine.onnx").write_text("other")

    def fail(path, target):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(OutputError, match=r"engine\.onnx: cannot be written: No space left on device; .*--output"):
        show(built, output)
    assert shown(output) == FILES
    assert [path.name for path in (output / "cpu").iterdir()] == ["bundle"]


def test_a_file_in_the_place_of_a_target(built, output):
    (output / "cpu").write_text("a file")
    with pytest.raises(OutputError, match=r"cpu: cannot be written: .*--output"):
        show(built, output)


KILLED = """
import os, pathlib, sys
from edgekd.pipeline.publish import files_below, publish, writing
built, output = map(pathlib.Path, sys.argv[1:])
renames = []
def rename(path, target):
    renames.append(path)
    if len(renames) == 2:
        os.kill(os.getpid(), 9)
    os.rename(path, target)
pathlib.Path.rename = rename
with writing(output):
    publish({"bundle": files_below(built)}, output / "cpu")
"""


def test_a_killed_publish_is_finished_by_the_next(built, output):
    show(built, output)
    (built / "engine.onnx").write_text("other")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, built, output], cwd=Path(__file__).parents[2], check=False, timeout=60
    )
    assert killed.returncode == -9
    assert [path.name for path in (output / "cpu").iterdir()] != ["bundle"]
    show(built, output)
    assert shown(output) == {**FILES, "engine.onnx": "other"}
    assert [path.name for path in (output / "cpu").iterdir()] == ["bundle"]


WAITS = """
import pathlib, sys
from edgekd.pipeline.publish import writing
print("ready", flush=True)
with writing(pathlib.Path(sys.argv[1])):
    print("writes", flush=True)
"""


def test_one_writer_at_a_time(output):
    command = [sys.executable, "-c", WAITS, output]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as other:
        with writing(output):
            assert other.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(timeout=0.5)
        assert other.stdout.readline() == "writes\n"
