"""Stage verify: let the device check the finished bundle, and keep what its engine library builds there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgekd.devices.base import Verifier
from edgekd.errors import BundleError
from edgekd.files import write_text
from edgekd.pipeline.publish import ENGINES
from edgekd.pipeline.target.context import BUNDLED
from edgekd.runtime.bundle import engine_file
from edgekd.runtime.manifest import read_manifest
from edgekd.stages.stage import StageSpec

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
        samples: Number of reference samples that were run.
        flips: Number of samples whose top-1 class differs; None where the engine names no classes.
        gram_drift: Mean absolute difference of the cosines between modalities.
        max_logit_error: Largest absolute difference of a logit.
        kept: Names of the files that the library built there.
    """

    samples: int
    flips: int | None
    gram_drift: float
    max_logit_error: float
    kept: tuple[str, ...]

    def __str__(self) -> str:
        """Describe the result in words."""
        flips = "" if self.flips is None else f"{self.flips} flips, "
        kept = f"; built there: {', '.join(self.kept)}" if self.kept else ""
        return f"{self.samples} reference samples, {flips}Gram drift {self.gram_drift:.2g}{kept}"


VERIFY: StageSpec[Verified] = StageSpec("verify", 3, Verified, (), "let the device check the finished bundle")


def verify(context: Context, bundled: Done[Bundled]) -> Done[Verified] | None:
    """Let the device check the bundle; None where it cannot, as a browser or no device at all.

    Raises:
        BundleError: The bundle gives other results there than when it was made.
    """
    device, runtime, threads = context.device, context.runtime, context.recipe.profile.threads
    if not isinstance(device, Verifier):
        return None

    def run(folder: Path, report: StageReporter) -> Verified:
        place = bundled.folder / BUNDLED
        outcome = device.verify(place, runtime, threads, lambda note: report.advance(0, 2, note))
        if not outcome.ok:
            raise BundleError(
                f"{device.name}: the bundle does not do there what it did when it was made: {outcome.flips} flips, "
                f"Gram drift {outcome.gram_drift:.2g}, largest logit error {outcome.max_logit_error:.2g} "
                f"({outcome.output_error:.1%} of their RMS); was it "
                "altered, or the board's engine library changed meanwhile? Run the same command again"
            )
        report.advance(1, 2, f"{outcome.samples} samples")
        kept = folder / ENGINES
        kept.mkdir()
        engine = place / engine_file(read_manifest(place), "deploy", runtime)
        built = device.build(engine, runtime, kept, threads, lambda note: report.advance(1, 2, note))
        if built:
            _describe(context, device, built, kept)
        return Verified(
            outcome.samples, outcome.flips, outcome.gram_drift, outcome.max_logit_error, built.files if built else ()
        )

    config = {**context.device_identity(), "threads": threads}
    return context.stage(VERIFY, config=config, inputs={"bundle": bundled.key}, run=run)


def _describe(context: Context, device: Verifier, built: BuiltEngine, folder: Path) -> None:
    """Write beside the engines what they fit, no other machine or version of the library, and how they are opened."""
    reason = "not measured: it was built before, and how long that took was not kept"
    described = {
        **asdict(built),
        "build_s": built.build_s if built.build_s is not None else reason,
        "device": device.name,
        "machine": device.describe(context.runtime),
    }
    write_text(folder / _DESCRIPTION, json.dumps(described, indent=1) + "\n")
