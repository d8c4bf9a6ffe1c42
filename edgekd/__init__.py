"""edgekd: distil a multi-modal teacher, prove that its Gram structure survives, ship a verified engine.

Nothing heavy is imported until it is used: importing this package loads neither torch nor an engine library.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# ONNX Runtime reports each model that it opens to its maker, unless told not to before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["build", "load", "load_recipe", "load_target"]

_HOMES = {
    "build": "edgekd.pipeline.build",
    "load": "edgekd.runtime.bundle",
    "load_recipe": "edgekd.config.loading",
    "load_target": "edgekd.devices.targets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekd' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
