"""What every benchmark shares: its result is JSON with versions, machine and raw figures, beside the script."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import edgekd
from edgekd.files import write_text
from edgekd.runtime.measure import machine_facts
from edgekd.stages import library_versions

RESULTS = Path(__file__).parent / "results"


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["digits", "gestures"], help="shipped tasks")
    return parser


def write_result(script: str, result: dict[str, Any]) -> None:
    """Write ``results/<script>.json`` with what it was measured on."""
    versions = library_versions(["torch", "torch-pruning", "onnx", "onnxruntime", "numpy"], "build")
    content = {"versions": {"edgekd": edgekd.__version__, **versions}, "machine": machine_facts(), **result}
    path = RESULTS / f"{Path(script).stem}.json"
    write_text(path, json.dumps(content, indent=1) + "\n")
    print(f"wrote {path}")
