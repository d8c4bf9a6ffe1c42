"""Stage verify: the finished bundle on its device, and what the engine library makes of it there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgekd.devices.base import Verifier
from edgekd.errors import BundleError
from edgekd.files import write_text
from edgekd.pipeline.publish import ENGINES
from edgekd.pipeline.target.package import BUNDLED
from edgekd.runtime.bundle import engine_file
from edgekd.runtime.manifest import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.pipeline.target.context import Context
    from edgekd.pipeline.target.package import Bundled
    from edgekd.runtime.session import BuiltEngine
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done

_DESCRIPTION = "engines.json"


@dataclass(frozen=True)
class Verified:
    """A bundle does on its device what it did where it was built; what was built there lies in the stage's folder.

    Attributes:
        samples: reference samples that were run.
        flips: how many samples' top-1 class differs; None where the engine names no classes.
        gram_drift: mean absolute difference of the cosines between modalities.
        max_logit_error: largest absolute difference of a logit.
        kept: names of the files that the library built there.
    """

    samples: int
    flips: int | None
    gram_drift: float
    max_logit_error: float
    kept: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in words."""
        flips = "" if self.flips is None else f"{self.flips} flips, "
        kept = f"; built there: {', '.join(self.kept)}" if self.kept else ""
        return f"{self.samples} reference samples, {flips}Gram drift {self.gram_drift:.2g}{kept}"


def verify(context: Context, bundled: Done[Bundled]) -> Done[Verified] | None:
    """Let the device check the bundle; None where it cannot, as a browser or no device at all.

    Raises:
        BundleError: what comes out there is not what came out when the bundle was made.
    """
    device, runtime, threads = context.device, context.runtime, context.recipe.profile.threads
    if not isinstance(device, Verifier):
        return None

    def run(folder: Path, report: StageReporter) -> Verified:
        place = bundled.folder / BUNDLED
        found = device.verify(place, runtime, threads, lambda note: report.advance(0, 2, note))
        if not found.ok:
            raise BundleError(
                f"{device.name}: the bundle does not do there what it did when it was made: {found.flips} flips, Gram "
                f"drift {found.gram_drift:.2g}, largest logit error {found.max_logit_error:.2g}; was it altered, or "
                "the board's engine library changed meanwhile? Run the same command again"
            )
        report.advance(1, 2, f"{found.samples} samples")
        kept = folder / ENGINES
        kept.mkdir()
        engine = place / engine_file(read_manifest(place), "deploy", runtime)
        built = device.build(engine, runtime, kept, threads, lambda note: report.advance(1, 2, note))
        if built:
            _describe(context, device, built, kept)
        return Verified(
            found.samples, found.flips, found.gram_drift, found.max_logit_error, built.files if built else ()
        )

    depends = {**context.where(), "bundle": bundled.key, "threads": threads}
    return context.stage("verify", "", depends, Verified, run, str)


def _describe(context: Context, device: Verifier, built: BuiltEngine, folder: Path) -> None:
    """Say beside the engines what they fit: no other machine and no other version of the library."""
    reason = "not measured: it was built before, and how long that took was not kept"
    described = {
        **asdict(built),
        "build_s": built.build_s if built.build_s is not None else reason,
        "device": device.name,
        "machine": device.describe(context.runtime),
    }
    write_text(folder / _DESCRIPTION, json.dumps(described, indent=1) + "\n")
