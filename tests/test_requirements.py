"""What is skipped is told, by one table."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, environment
from requirements import ALL, NPM, Requirement, in_one_line, programs

TESTS = Path(__file__).parent


def test_no_test_is_skipped_but_by_the_table():
    for path in TESTS.rglob("*.py"):
        if path.name not in ("requirements.py", Path(__file__).name):
            found = re.findall(r"pytest\.skip|mark\.skip|importorskip|unittest\.skip", path.read_text(encoding="utf-8"))
            assert not found, f"{path}: {found[0]}: take a mark from tests/requirements.py"


def test_the_files_that_begin_are_there(pytestconfig):
    plugins = pytestconfig.pluginmanager.get_plugins()
    (longest,) = (plugin.LONGEST for plugin in plugins if hasattr(plugin, "LONGEST"))
    assert [name for name in longest if not (TESTS / name).is_file()] == []


def test_every_kind_has_one_remedy():
    assert len({one.kind for one in ALL}) == len({(one.kind, one.remedy) for one in ALL})


def test_what_is_here_skips_nothing():
    assert programs(sys.executable)() is None
    python = Requirement("pythons", programs(sys.executable), "install Python")
    assert python.mark.args == (False,)
    python.demand()


def test_what_is_absent_is_named_with_what_brings_it():
    absent = Requirement("ships", programs("no-such-ship", "nor-this"), "buy one")
    assert absent.mark.args == (True,)
    assert absent.mark.kwargs == {"reason": "ships: there is no no-such-ship, no nor-this; buy one"}
    with pytest.raises(pytest.skip.Exception, match="there is no no-such-ship, no nor-this; buy one"):
        absent.demand()


def test_a_program_that_only_administrators_have_in_their_path_is_found(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert programs("chroot")() is None  # of coreutils, in /usr/sbin


def test_nothing_is_said_where_nothing_was_skipped():
    assert in_one_line([]) is None


SUITE = """
import pytest
from dataclasses import replace
from requirements import NPM, SSH

npm = replace(NPM, find=lambda: "there is no npm")
ssh = replace(SSH, find=lambda: "there is no sshd")


@npm.mark
@pytest.mark.parametrize("number", range(5))
def test_npm(number):
    pass


@pytest.fixture
def board():
    ssh.demand()


def test_board(board):
    pass


@pytest.mark.xfail
def test_wrong():
    assert False


def test_right():
    pass
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_says_at_its_end_in_one_line_what_was_skipped(tmp_path, workers):
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(SUITE)
    options = ["-p", "no:cacheprovider", "-n", workers, "--rootdir", str(tmp_path), "-c", str(ROOT / "pyproject.toml")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path, env=environment(PYTHONPATH=f"{TESTS}:{ROOT}"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert run.stdout.splitlines()[-1] == (
        "2 kinds of tests were skipped: boards over SSH (apt-get install openssh-server openssh-client), "
        f"{NPM.kind} (apt-get install npm)"
    )
