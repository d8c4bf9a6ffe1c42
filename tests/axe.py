"""axe-core, which finds what of a page some cannot read; ``python tests/axe.py`` fetches it into the user's cache."""

import hashlib
import tempfile
from pathlib import Path

from edgekd.devices.npm import pack, unpack
from edgekd.errors import DataError
from edgekd.files import atomic_path, user_cache

PACKAGE, VERSION = "axe-core", "4.14.1"
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
_MEMBER = "package/axe.min.js"
MISSING = f"{PACKAGE} {VERSION} is not installed: python tests/axe.py"


def script():
    """Return where it is, once it is fetched."""
    return user_cache(DataError, PACKAGE) / PACKAGE / VERSION / "axe.min.js"


def install():
    """Fetch it with npm, unless it is there."""
    if not script().is_file():
        with tempfile.TemporaryDirectory() as folder:
            content = unpack(pack(f"{PACKAGE}@{VERSION}", Path(folder), DataError, "then again"), [_MEMBER])[_MEMBER]
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise SystemExit(f"{PACKAGE} {VERSION}: its {_MEMBER} is not the one that was pinned")
        with atomic_path(script()) as temporary:
            temporary.write_bytes(content)
    print(script())


if __name__ == "__main__":
    install()
