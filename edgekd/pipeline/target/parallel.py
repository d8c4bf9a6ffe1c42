"""Many targets: what runs on this host has it alone, and boards work side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.devices.parallel import run_parallel
from edgekd.devices.ssh.device import SshDevice
from edgekd.pipeline.target.quantize import write
from edgekd.pipeline.target.run import ship

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.pipeline.target.context import Context
    from edgekd.pipeline.target.run import Shipped


def ship_all(contexts: Mapping[str, Context]) -> dict[str, Shipped]:
    """Run or read every stage of some targets, and return what came out in their order.

    Raises:
        EdgekdError: a target failed; where a board did, the others are finished first.
    """
    boards: dict[SshDevice, list[str]] = {}
    shipped = {}
    for name, context in contexts.items():
        if isinstance(context.device, SshDevice):
            boards.setdefault(context.device, []).append(name)
        else:
            shipped[name] = ship(context)
    for names in boards.values():
        for name in names:
            write(contexts[name])  # computes on this host, where each is to have all cores

    def ship_on(names: list[str]) -> dict[str, Shipped]:
        return {name: ship(contexts[name]) for name in names}

    def stop() -> None:
        for board in boards:
            board.stop()

    jobs = {", ".join(names): lambda names=names: ship_on(names) for names in boards.values()}
    for done in run_parallel(jobs, stop).values():
        shipped |= done
    return {name: shipped[name] for name in contexts}
