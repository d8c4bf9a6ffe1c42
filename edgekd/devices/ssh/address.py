"""Addresses of boards: ``ssh://[user@]host[:port][?python=COMMAND]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from edgekd.errors import DeviceError

SCHEME = "ssh://"

# Nothing may begin with '-', which ssh would take for an option; nothing has a sign that a shell takes for more than
# text, since ssh puts user and host into the commands of its configuration (ProxyCommand, LocalCommand).
_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>\w[\w.+-]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|\w[\w.-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?/?(?:\?python=(?P<python>.+))?"
)


@dataclass(frozen=True)
class Address:
    """Where a board is.

    Attributes:
        host: A name that ssh knows, from its configuration or the network's, or an IP address.
        user: The user; None for ssh's default.
        port: The port; None for ssh's default.
        python: The interpreter there, a command of the board's shell.
    """

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"

    @property
    def name(self) -> str:
        """The name of the board: its address without the interpreter."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}{user}{host}" + (f":{self.port}" if self.port else "")


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        DeviceError: it is no address.
    """
    match = _ADDRESS.fullmatch(text)
    if not match or not 0 < int(match["port"] or 1) < 1 << 16:
        raise DeviceError(f"{text}: is no address of a board; write it as ssh://[user@]host[:port][?python=COMMAND]")
    port = int(match["port"]) if match["port"] else None
    python = unquote(match["python"] or "python3")
    if not python.isprintable():
        raise DeviceError(f"{text}: the command after ?python= is not one line of text")
    return Address(match["host"].strip("[]"), match["user"], port, python)
