"""The profile of a bundle as a file, ``profile.json``, for machines and for ``edgekd report``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgekd import __version__
from edgekd.files import write_text
from edgekd.report.results import PROFILE, PROFILE_VERSION
from edgekd.runtime.manifest import null_not_finite

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.measure.results import EngineProfile, Profile


def profile_json(
    manifest: Manifest, ledger: Mapping[str, Any], runtime: str, device: str, profile: Profile
) -> dict[str, Any]:
    """Return the profile of a bundle as JSON values, with what the bundle says of itself.

    Args:
        manifest: the bundle's.
        ledger: its ``ledger.json``; its last row is of what ships.
        runtime: the library that ran it, which may be another than the bundle's.
        device: what ran it.
        profile: of its one engine.
    """
    metric = manifest.task.get("metric")
    shipped = (ledger.get("rows") or [{}])[-1]
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
        "metric": {"name": metric, "value": manifest.measurements.get(str(metric))},
        "drift_bound": (shipped.get("to_reference") or {}).get("bound"),
        "size_bytes": profile.engines[0].size_bytes,
        "profile": {**asdict(profile), "engines": [_engine(engine) for engine in profile.engines]},
        "ledger": ledger,
    }
    found: dict[str, Any] = null_not_finite(content)
    return found


def _engine(engine: EngineProfile) -> dict[str, Any]:
    return {**asdict(engine), "branches_ms": engine.branches_ms}


def write_profile(content: Mapping[str, Any], folder: Path) -> None:
    """Write ``profile.json`` into ``folder``, atomically."""
    write_text(folder / PROFILE, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
