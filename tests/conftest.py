import pytest
from commands import Built, build_arguments, edgekd


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """One undisturbed build. Tests copy its cache, or add to it; they never change what is there."""
    folder = tmp_path_factory.mktemp("built")
    process = edgekd(*build_arguments("out", "cache"), cwd=folder)
    assert process.returncode == 0, process.stderr
    return Built(folder / "out", folder / "cache", process)
