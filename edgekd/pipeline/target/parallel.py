"""Many targets: what runs on this host has it alone, and boards work side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.devices.parallel import run_parallel
from edgekd.devices.ssh.device import SshDevice
from edgekd.pipeline.target.quantize import write_candidates
from edgekd.pipeline.target.run import build_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.pipeline.target.context import Context
    from edgekd.pipeline.target.run import FinishedTarget


def build_targets(contexts: Mapping[str, Context]) -> dict[str, FinishedTarget]:
    """Run or read every stage of some targets, and return what came out in their order.

    Raises:
        EdgekdError: a target failed; where a board did, the others are finished first.
    """
    boards: dict[SshDevice, list[str]] = {}
    finished = {}
    for name, context in contexts.items():
        if isinstance(context.device, SshDevice):
            boards.setdefault(context.device, []).append(name)
        else:
            finished[name] = build_target(context)
    for names in boards.values():
        for name in names:
            write_candidates(contexts[name])  # computes on this host, where each is to have all cores

    def build_on(names: list[str]) -> dict[str, FinishedTarget]:
        return {name: build_target(contexts[name]) for name in names}

    def stop() -> None:
        for board in boards:
            board.stop()

    jobs = {", ".join(names): lambda names=names: build_on(names) for names in boards.values()}
    for done in run_parallel(jobs, stop).values():
        finished |= done
    return {name: finished[name] for name in contexts}
