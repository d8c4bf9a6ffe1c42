"""Commands about devices, and about bundles on them: device, verify, profile."""

from __future__ import annotations

import json
from pathlib import Path

import click

import edgekd
from edgekd.cli.main import main
from edgekd.cli.options import Duration, runtime_option
from edgekd.errors import BundleError, DeviceError


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
    from edgekd.cli.terminal import steps
    from edgekd.devices.select import install, known_devices

    with steps(f"installing {name}") as advance:
        install(name, advance)
    lacking = next(found.missing() for found in known_devices() if found.name == name)
    if lacking:  # what edgekd does not fetch: Chromium
        raise DeviceError(f"{name}: {lacking}")
    click.echo(f"{name}: ready")


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
    from edgekd.devices.ssh.device import SshDevice
    from edgekd.report.format import size

    board = SshDevice(address)
    click.echo(f"{board.name}: {size(board.clean())} removed; nothing of edgekd is left there")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@runtime_option
@click.option("--device", metavar="DEVICE", help="Where, e.g. ssh://user@board [default: this very process].")
def verify(bundle: Path, runtime: str | None, device: str | None) -> None:
    """Check a bundle on this machine, or on a board.

    Checks the digest of every file, then runs the bundle's own reference samples through its engine and compares logits
    and Grams with those recorded. Needs no labels and no teacher.
    """
    if device is None:
        with edgekd.load(bundle, runtime=runtime, allow_rejected=True) as loaded:
            manifest, library, found = loaded.manifest, loaded.runtime, loaded.verify()
    else:
        from edgekd.workflows.bundles import verify_bundle

        manifest, library, found = verify_bundle(bundle, runtime, device)
    flips = "" if found.flips is None else f"{found.flips} flips, "
    named = library.name.removesuffix("-web")  # a browser's engine runs in ONNX Runtime here
    click.echo(
        f"{bundle}: {manifest.verdict}; {found.samples} reference samples in {named}, "
        f"{flips}Gram drift {found.gram_drift:.2g}, largest logit error {found.max_logit_error:.2g}"
    )
    if not found.ok:
        where = f"on {device}" if device else "here"
        raise BundleError(
            f"{bundle}: its engine does not do {where} what it did where it was built; rebuild it for that machine"
        )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@runtime_option
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one inference.")
@click.option("--iterations", type=click.IntRange(1), default=2000, show_default=True, help="Timed inferences.")
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
    type=click.FloatRange(0, 10_000, min_open=True),
    metavar="HZ",
    help="Also for 10 s at a sensor's rate, from a sample's arrival to its result.",
)
@click.option(
    "--sustained", "sustained_s", type=Duration(), metavar="TIME", help="Also back to back for so long, e.g. 5m."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write profile.json and raw times there; of several devices, into a folder for each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print profile.json, a line for each device.")
def profile(
    bundle: Path,
    runtime: str | None,
    threads: int,
    iterations: int,
    devices: tuple[str, ...],
    rate_hz: float | None,
    sustained_s: float | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure a bundle's engine on this machine, or on boards.

    Checks the bundle, then times single inferences of its reference samples in several fresh processes: end to end and
    computing alone, each layer, cold starts, memory, and energy where a power sensor can be read. Run it on the device
    that the bundle is for: numpy and the engine library are enough there.
    """
    from edgekd.cli.terminal import print_profile, steps
    from edgekd.config.recipe import ProfileConfig
    from edgekd.report.build.profile import profile_json, write_profile
    from edgekd.workflows.bundles import profile_bundle

    config = ProfileConfig(threads=threads, iterations=iterations, rate_hz=rate_hz, sustained_s=sustained_s or 0)
    with steps(f"profiling {bundle}", shown=not as_json) as advance:
        found = profile_bundle(bundle, runtime, config, advance, output, devices)
    for one in found:
        content = profile_json(one.manifest, one.ledger, one.runtime, one.device, one.profile)
        if one.folder:
            write_profile(content, one.folder)
        if as_json:
            click.echo(json.dumps(content))
        else:
            print_profile(one.manifest, one.profile, one.device, one.runtime)
