import os
import signal
from pathlib import Path

import pytest
from commands import Built, build_arguments, python
from once import once
from requirements import in_one_line

#: The files that take longest, the longest first. They begin, and what is short fills the gaps at the end.
LONGEST = (
    "config/test_targets.py",
    "workflows/advise/test_advise.py",  # beside the first, which makes the build that most others share
    "test_docs.py",
    "pipeline/test_build.py",
    "workflows/test_check.py",
    "devices/ssh/test_ssh_build.py",
    "devices/emulated/test_emulated.py",
    "cli/test_cli.py",
    "pipeline/test_multi_process.py",
    "tasks/test_av_digits.py",
    "workflows/search/test_search.py",
    "pipeline/test_kill.py",
    "training/loop/test_distributed.py",
)

# In the background of a shell a run ignores Ctrl-C, as would all that it starts; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
#: What of a user's environment would change what is printed, or where edgekd looks.
for name in (
    "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE",
    "EDGEKD_CACHE", "EDGEKD_SSH",
):  # fmt: skip
    os.environ.pop(name, None)
#: Registries of the tests' own are asked without a proxy.
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = ",".join(filter(None, ("127.0.0.1,localhost", os.environ.get(name))))


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """One undisturbed build. Tests copy its cache, or add to it; they never change what is there."""

    def make(folder):
        process = python("-m", "edgekd", *build_arguments("out", "cache"), cwd=folder)
        assert process.returncode == 0, process.stderr
        return Built(folder / "out", folder / "cache", process)

    return once(tmp_path_factory, "built", make)


def pytest_collection_modifyitems(config, items):
    """Run the longest files first; the others, and all tests of a file, keep their order."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """Say after all else what was skipped and what brings it, in one line."""
    yield
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(session.config, "workerinput"):
        # A report of a skipped test has its place and its reason; one of an expected failure has a text.
        told = [report.longrepr for report in terminal.stats.get("skipped", ())]
        line = in_one_line([one[2].removeprefix("Skipped: ") for one in told if isinstance(one, tuple)])
        if line:
            terminal.write_line(line)
