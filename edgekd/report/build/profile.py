"""The profile of a bundle as a file, ``profile.json``, for machines and for ``edgekd report``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import msgspec

from edgekd import __version__
from edgekd.files import write_text
from edgekd.gram.gate import Ledger
from edgekd.report.build.row import EngineIdentity, profile_row
from edgekd.report.escape import json_text
from edgekd.report.ledger_json import ledger_with_nan
from edgekd.report.results import PROFILE, PROFILE_VERSION
from edgekd.runtime.manifest import null_not_finite

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.gram.verdict import Verdict
    from edgekd.report.row import EngineRow
    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.measure.results import EngineProfile, Profile


def profile_json(
    manifest: Manifest, ledger: Mapping[str, object], runtime: str, device: str, profile: Profile
) -> JsonObject:
    """Return the profile of a bundle as JSON values, of the form of :class:`~edgekd.report.schema.ProfileFile`.

    Args:
        manifest: The bundle's manifest.
        ledger: Its ``ledger.json``; the last row is of what ships.
        runtime: The library that ran it, which may be another than the bundle's.
        device: The machine that ran it.
        profile: What was measured of its one engine.
    """
    metric = str(manifest.task.get("metric"))
    verdict = cast("Verdict", manifest.verdict)
    identity = EngineIdentity(
        target=manifest.target,
        device=device,
        runtime=runtime,
        precision=manifest.precision,
        verdict=verdict,
        released=manifest.released,
        reasons=tuple(manifest.reasons),
        warnings=(),
    )
    row = _row(identity, profile.engines[0], ledger)
    content = {
        "schema_version": PROFILE_VERSION,
        "edgekd": __version__,
        "task": manifest.task.get("name"),
        "target": manifest.target,
        "device": device,
        "runtime": runtime,
        "precision": manifest.precision,
        "verdict": manifest.verdict,
        "reasons": manifest.reasons,
        "metric": {"name": manifest.task.get("metric"), "value": manifest.measurements.get(metric)},
        "drift_bound": row.gram.bound if row else None,
        "size_bytes": profile.engines[0].size_bytes,
        "profile": {**msgspec.to_builtins(profile), "engines": [_engine(engine) for engine in profile.engines]},
        "ledger": ledger,
        "row": msgspec.to_builtins(row),
    }
    plain: JsonObject = null_not_finite(content)
    return plain


def _row(identity: EngineIdentity, engine: EngineProfile, ledger: Mapping[str, object]) -> EngineRow | None:
    """Return the row; None where the bundle is of an edgekd whose ledgers are of another form."""
    try:
        known = msgspec.convert(ledger_with_nan(ledger), Ledger)
    except msgspec.ValidationError:
        return None
    if not known.rows:
        return None
    return profile_row(replace(identity, reasons=known.reasons, warnings=known.warnings), engine, known)


def _engine(engine: EngineProfile) -> JsonObject:
    return {**msgspec.to_builtins(engine), "branches_ms": engine.branches_ms}


def write_profile(content: Mapping[str, object], folder: Path) -> None:
    """Write ``profile.json`` into ``folder``, atomically."""
    write_text(folder / PROFILE, json_text(content, indent=1) + "\n")
