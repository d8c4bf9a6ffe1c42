"""Commands about devices, and about bundles on them: device, verify, profile."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

import edgekd
from edgekd.cli.main import main
from edgekd.cli.options import as_one_argument, runtime_option
from edgekd.cli.refused import require_all
from edgekd.cli.values import ITERATIONS, THREADS, Duration, Finite
from edgekd.errors import BundleError, DeviceError

if TYPE_CHECKING:
    from edgekd.config.recipe import ProfileConfig


@main.group(invoke_without_command=True)
@click.pass_context
def device(context: click.Context) -> None:
    """List the devices that engines can run on here.

    `device install NAME` fetches what an emulated processor or the browser needs.
    """
    if context.invoked_subcommand is None:
        from edgekd.cli.terminal import print_devices
        from edgekd.devices.select import known_devices

        rows = [
            (found.name, "accuracy alone" if found.no_latency else "accuracy, latency", found.missing() or "ready")
            for found in known_devices()
        ]
        print_devices([*rows, ("ssh://USER@HOST", "accuracy, latency", "any board: edgekd device probe ssh://...")])


@device.command("install")
@click.argument("name")
def install_device(name: str) -> None:
    """Fetch what a device needs, once, into the user's cache: `emulated:cortex-a76`, `browser`."""
    from edgekd.cli.terminal import say, steps
    from edgekd.devices.select import install, known_devices

    with steps(f"installing {name}") as advance:
        install(name, advance)
    lacking = next(found.missing() for found in known_devices() if found.name == name)
    if lacking:  # what edgekd does not fetch: Chromium
        raise DeviceError(f"{name}: {lacking}")
    say(f"{name}: ready")


@device.command("probe")
@click.argument("address")
def probe_device(address: str) -> None:
    """Show what a board is: `ssh://[user@]host[:port]`.

    Connects, unpacks edgekd's agent in ~/.cache/edgekd/board there, and asks: processor, system, power mode, clocks,
    Python, engine libraries, free disk.
    """
    from contextlib import closing

    from edgekd.cli.terminal import print_probe
    from edgekd.devices.ssh.device import SshDevice

    with closing(SshDevice(address)) as board:
        print_probe(board.name, board.probe())


@device.command("clean")
@click.argument("address")
def clean_device(address: str) -> None:
    """Remove all that edgekd keeps on a board: `ssh://[user@]host[:port]`."""
    from edgekd.cli.terminal import say
    from edgekd.devices.ssh.device import SshDevice
    from edgekd.report.format import size

    board = SshDevice(address)
    say(f"{board.name}: {size(board.clean())} removed; nothing of edgekd is left there")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@runtime_option
@click.option("--device", metavar="DEVICE", help="Where, e.g. ssh://user@board [default: this very process].")
def verify(bundle: Path, runtime: str | None, device: str | None) -> None:
    """Check a bundle on this machine, or on a board.

    Checks the digest of every file, then runs the bundle's own reference samples through its engine and compares logits
    and Grams with those recorded. Needs no labels and no teacher.
    """
    from edgekd.cli.terminal import say

    verified = edgekd.verify(bundle, device=device, runtime=runtime)
    result = verified.result
    flips = "" if result.flips is None else f"{result.flips} flips, "
    library = verified.runtime.removesuffix("-web")  # a browser's engine runs in ONNX Runtime here
    say(
        f"{bundle}: {verified.manifest.verdict}; {result.samples} reference samples in {library}, "
        f"{flips}Gram drift {result.gram_drift:.2g}, largest logit error {result.max_logit_error:.2g}"
    )
    if not result.ok:
        where = f"on {device}" if device else "here"
        raise BundleError(
            f"{bundle}: its engine does not do {where} what it did where it was built; rebuild it for that machine"
        )


@dataclass(frozen=True)
class Measurement:
    """The options of what ``edgekd profile`` measures, as click passes them."""

    threads: int
    iterations: int | None
    rate_hz: float | None
    sustained_s: float | None

    def settings(self) -> ProfileConfig:
        """Return the same as a recipe's section ``[profile]``; inferences that are asked for have no limit."""
        usual = edgekd.ProfileConfig()
        return edgekd.ProfileConfig(
            threads=self.threads,
            iterations=self.iterations or usual.iterations,
            limit_s=0 if self.iterations else usual.limit_s,
            rate_hz=self.rate_hz,
            sustained_s=self.sustained_s or 0,
        )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@runtime_option
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Threads of one inference.")
@click.option("--iterations", type=ITERATIONS, help="Timed inferences [default: 2000, fewer beyond 2 min].")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    help="Where, e.g. ssh://user@board [default: this machine]. Repeatable: boards measure at the same time.",
)
@click.option(
    "--rate",
    "rate_hz",
    type=Finite(0.1, 10_000),
    metavar="HZ",
    help="Also for 10 s at a sensor's rate, from a sample's arrival to its result.",
)
@click.option(
    "--sustained", "sustained_s", type=Duration(days=1), metavar="TIME", help="Also back to back for so long, e.g. 5m."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write profile.json and raw times there; of several devices, into a folder for each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print profile.json, a line for each device.")
@as_one_argument("measurement", Measurement)
def profile(
    bundle: Path,
    runtime: str | None,
    devices: tuple[str, ...],
    measurement: Measurement,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure a bundle's engine on this machine, or on boards.

    Checks the bundle, then times single inferences of its reference samples in several fresh processes: end to end and
    computing alone, each layer, cold starts, memory, and energy where a power sensor can be read. Run it on the device
    that the bundle is for: numpy and the engine library are enough there. Of several devices one that refuses ends
    alone, and the exit code is 22.
    """
    from edgekd.cli.terminal import print_profile, steps

    refused: dict[str, str] = {}
    with steps(f"profiling {bundle}", shown=not as_json) as advance:
        profiles = edgekd.profile(
            bundle,
            devices=devices,
            runtime=runtime,
            settings=measurement.settings(),
            output=output,
            advance=advance,
            refuse=refused.__setitem__,
        )
    for profiled in profiles:
        if as_json:
            click.echo(json.dumps(profiled.json()))
        else:
            print_profile(profiled.manifest, profiled.profile, profiled.device, profiled.runtime)
    for name, reason in refused.items():
        click.echo(f"refused: {name}: {reason}", err=True)
    require_all(refused, f"measured: {', '.join(profiled.device for profiled in profiles)}")
