from pathlib import Path

import pytest
from commands import Built, build_arguments, edgekd
from once import once
from requirements import in_one_line

#: The files that take longest, the longest first. They begin, and what is short fills the gaps at the end.
LONGEST = ()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """One undisturbed build. Tests copy its cache, or add to it; they never change what is there."""

    def make(folder):
        process = edgekd(*build_arguments("out", "cache"), cwd=folder)
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
