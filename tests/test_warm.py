"""A command that is forked is what a command that is started is."""

import os
import subprocess
from pathlib import Path

import pytest
from commands import edgekd, environment, python
from warm import Forks


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["build", "--recipe", "digit"], ["build", "--nonsense"], ["targets", "show", "cpu"]],
    ids=lambda value: value[-1],
)
def test_it_says_the_same_and_ends_the_same(tmp_path, arguments):
    forked, started = edgekd(*arguments, cwd=tmp_path), python("-m", "edgekd", *arguments, cwd=tmp_path)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_it_runs_in_its_folder_and_its_environment(tmp_path):
    made = edgekd("init", "mine", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert (tmp_path / "mine" / "edgekd.toml").is_file()
    wide, narrow = (edgekd("targets", cwd=tmp_path, COLUMNS=columns).stdout for columns in ("200", "80"))
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines()))


def test_it_is_no_child_of_the_tests(tmp_path):
    before = children()
    edgekd("--version", cwd=tmp_path)
    assert children() == before


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_one_that_hangs_is_ended_and_the_next_is_run(tmp_path):
    forks = Forks()
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run(["recipe", "schema"], tmp_path, environment(), 0.001)
    assert forks.run(["--version"], tmp_path, environment(), 600).returncode == 0
