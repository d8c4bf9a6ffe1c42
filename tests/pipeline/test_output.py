"""What a user has in the output folder: named before any work where it would be replaced, and never touched."""

import json
import shutil

import pytest
from commands import build_arguments, copy_cache, edgekd, started

from edgekd.errors import OutputError

RECIPE = ("--recipe", "digits")


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("build", "cpu/bundle/notes.txt"),
        ("build", "cpu/engines/deep/notes.txt"),
        ("build", "report.html"),
        ("build", "training/mine.svg"),
        ("build", "cpu"),
        ("blame", "cpu/blame.svg"),
        ("search", "search.json"),
        ("advise", "advice.md"),
    ],
)
def test_a_users_file_is_named_before_any_work_and_stays(command, place, tmp_path):
    (tmp_path / "out" / place).parent.mkdir(parents=True)
    (tmp_path / "out" / place).write_text("mine")
    refused = edgekd(command, *RECIPE, "--output", "out", cwd=tmp_path)
    assert refused.returncode == OutputError.exit_code
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: out: edgekd did not write {place}, and would replace it; move it away, or ")
    assert "started" not in refused.stdout
    assert (tmp_path / "out" / place).read_text() == "mine"
    assert not (tmp_path / ".edgekd").exists()


def test_a_cache_that_lies_where_a_build_writes_is_refused(tmp_path):
    refused = edgekd("build", *RECIPE, "--output", "out", "--cache", "out/cpu/bundle/cache", cwd=tmp_path)
    assert refused.returncode == OutputError.exit_code
    assert "the cache lies in out/cpu/bundle, which is replaced" in refused.stderr


def test_a_build_replaces_its_own_and_leaves_what_is_beside_it(built, tmp_path):
    cache = copy_cache(built.cache, tmp_path / "cache")
    mine = [tmp_path / name for name in ("notes.txt", "cpu/notes.txt", "cache/notes.txt")]
    (tmp_path / "cpu").mkdir()
    for path in mine:
        path.write_text("mine")
    arguments = [*build_arguments(tmp_path, cache), "--json"]  # the output is the working directory
    assert edgekd(*arguments, cwd=tmp_path).returncode == 0
    (tmp_path / "cpu" / "bundle" / "deploy.onnx").write_text("damaged")
    (tmp_path / "training" / "teacher.svg").unlink()
    again = edgekd(*arguments, cwd=tmp_path)
    assert (again.returncode, started(again.stdout)) == (0, [])
    assert edgekd("verify", "cpu/bundle", cwd=tmp_path).returncode == 0
    assert (tmp_path / "training" / "teacher.svg").exists()
    assert [path.read_text() for path in mine] == ["mine"] * 3
    written = json.loads((tmp_path / ".edgekd.json").read_text())
    assert {"report.json", "cpu/bundle/manifest.json", "training/teacher.svg"} <= set(written)
    assert not [name for name in written if "notes" in name]


def test_what_lies_in_a_cached_stage_does_not_reach_the_bundle(built, tmp_path):
    cache = copy_cache(built.cache, tmp_path / "cache", without=["verify"])
    (bundled,) = cache.glob("bundle-*/bundle")
    (bundled / "notes.txt").write_text("mine")
    ended = edgekd(*build_arguments("out", cache), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "warning: bundle cpu: edgekd did not write notes.txt into its cache; it is now " in ended.stdout
    assert not (tmp_path / "out" / "cpu" / "bundle" / "notes.txt").exists()
    assert [path.read_text() for path in cache.glob("aside/**/notes.txt")] == ["mine"]
    assert edgekd("verify", "out/cpu/bundle", cwd=tmp_path).returncode == 0


def test_an_output_that_was_copied_is_built_into_again(built, tmp_path):
    cache = copy_cache(built.cache, tmp_path / "cache")
    shutil.copytree(built.output, tmp_path / "out")
    assert edgekd(*build_arguments("out", cache), cwd=tmp_path).returncode == 0
