import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.errors import OutputError
from edgekd.pipeline.output import writing
from edgekd.pipeline.publish import files_below, publish, target_places


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
    with writing(output, target_places("cpu")):
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


@pytest.mark.parametrize(
    ("there", "names"),
    [
        (_link, "cpu/bundle, cpu/rejected"),
        (_broken_link, "cpu/bundle, cpu/rejected"),
        (_file, "cpu/bundle, cpu/rejected"),
        (_linked_file, "cpu/bundle/engine.onnx, cpu/bundle/sub/file, cpu/rejected/engine.onnx and 1 more"),
        (_old, "cpu/bundle/old, cpu/rejected/old"),
    ],
)
def test_what_a_user_put_in_the_place_of_a_folder_is_named_and_stays(built, output, tmp_path, there, names):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "engine.onnx").write_text("engine")
    (output / "cpu").mkdir()
    for name in ("bundle", "rejected"):
        there(output / "cpu" / name, outside)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=f"edgekd did not write {names}, and would replace it; .*--output"):
        show(built, output)
    assert tree(tmp_path) == before


def tree(folder):
    """Return all that is below a folder, but for locks: files with their content, links with their targets."""
    return {
        path.relative_to(folder): path.readlink() if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def test_a_link_under_a_name_of_edgekds_is_replaced_and_its_target_stays(built, output, tmp_path):
    show(built, output)
    engine = output / "cpu" / "bundle" / "engine.onnx"
    engine.rename(tmp_path / "engine.onnx")
    engine.symlink_to(tmp_path / "engine.onnx")
    show(built, output)  # its name is edgekd's: the link is replaced, not what it points to
    assert not engine.is_symlink()
    assert (tmp_path / "engine.onnx").read_text() == "engine"


def test_what_is_damaged_or_gone_is_written_again(built, output):
    show(built, output)
    (output / "cpu" / "bundle" / "engine.onnx").write_text("damaged")
    (output / "cpu" / "bundle" / "sub" / "file").unlink()
    show(built, output)
    assert shown(output) == FILES


def test_what_is_beside_the_places_stays(built, output):
    show(built, output)
    for path in ("notes.txt", "cpu/notes.txt", "cpu/mine/bundle/notes.txt", "cpu/.edgekd-publish-mine/notes.txt"):
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_text("mine")
    (built / "engine.onnx").write_text("other")
    show(built, output)
    assert shown(output) == {**FILES, "engine.onnx": "other"}
    assert sum(path.name == "notes.txt" for path in output.rglob("*")) == 4


def test_an_output_that_is_a_link_to_a_folder_is_that_folder(built, output, tmp_path):
    (tmp_path / "link").symlink_to(output, target_is_directory=True)
    show(built, tmp_path / "link")
    show(built, output)
    assert shown(output) == FILES


def test_a_hard_link_of_a_user_keeps_its_content(built, output, tmp_path):
    show(built, output)
    (tmp_path / "mine").hardlink_to(output / "cpu" / "bundle" / "engine.onnx")
    (built / "engine.onnx").write_text("other")
    show(built, output)
    assert (tmp_path / "mine").read_text() == "engine"


def test_what_is_right_already_stays_untouched(built, output):
    show(built, output)
    before = (output / "cpu" / "bundle").stat()
    show(built, output)
    assert (output / "cpu" / "bundle").stat() == before


def test_a_rejected_build_leaves_the_bundle_of_the_last_good_one(built, output):
    show(built, output)
    before = (output / "cpu" / "bundle").stat()
    (built / "engine.onnx").write_text("worse")
    show(built, output, "rejected")
    assert shown(output) == FILES
    assert (output / "cpu" / "bundle").stat() == before
    assert shown(output, "rejected") == {**FILES, "engine.onnx": "worse"}
    (built / "engine.onnx").write_text("better")
    show(built, output)  # its files are still edgekd's, to be replaced by the next that is released
    assert shown(output) == {**FILES, "engine.onnx": "better"}
    assert [path.name for path in (output / "cpu").iterdir()] == ["bundle"]


def test_a_failure_leaves_the_old_folder(built, output, monkeypatch):
    show(built, output)
    (built / "engine.onnx").write_text("other")

    def fail(path, target):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(OutputError, match=r"cpu: No space left on device .*0\.0 MB wanted.*--output"):
        show(built, output)
    assert shown(output) == FILES
    assert [path.name for path in (output / "cpu").iterdir()] == ["bundle"]


def test_a_file_in_the_place_of_a_target(built, output):
    (output / "cpu").write_text("a file")
    with pytest.raises(OutputError, match=r"edgekd did not write cpu, .*--output"):
        show(built, output)


KILLED = """
import os, pathlib, sys
from edgekd.pipeline.output import writing
from edgekd.pipeline.publish import files_below, publish, target_places
built, output = map(pathlib.Path, sys.argv[1:])
renames = []
def rename(path, target):
    renames.append(path)
    if len(renames) == 2:
        os.kill(os.getpid(), 9)
    os.rename(path, target)
pathlib.Path.rename = rename
with writing(output, target_places("cpu")):
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
from edgekd.pipeline.output import writing
print("ready", flush=True)
with writing(pathlib.Path(sys.argv[1]), []):
    print("writes", flush=True)
"""


def test_one_writer_at_a_time(output):
    command = [sys.executable, "-c", WAITS, output]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as other:
        with writing(output, []):
            assert other.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(timeout=0.5)
        assert other.stdout.readline() == "writes\n"
