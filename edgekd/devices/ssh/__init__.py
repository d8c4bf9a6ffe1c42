"""A board over the system's OpenSSH: its own torch-free agent there, in one folder, over one connection."""

from edgekd.devices.ssh.address import SCHEME, Address, parse_address
from edgekd.devices.ssh.device import SshDevice

__all__ = ["SCHEME", "Address", "SshDevice", "parse_address"]
