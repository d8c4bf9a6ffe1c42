"""One contestant on one published network: quantize in a process of its own, and measure what came out."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contestants import FLOAT, PEERS, count_layers, run_peer, writing_seconds
from peers.quantize import IN_OPENVINO
from real_engines import open_bundle, open_file, open_openvino, run_all
from real_texts import character_error_rate
from watching import watch

import edgekd
from edgekd.files import sha256_file
from edgekd.gram.output_kind import MAX_DIVERGENCE
from edgekd.runtime.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from real_engines import Engine
    from real_networks import Brought

    Array = np.ndarray[Any, Any]

TARGET = "cpu"
#: edgekd as it is, at its quickest, and told to ship INT8 even where float32 is faster: what is added to the command.
EDGEKD: dict[str, tuple[str, ...]] = {
    "edgekd": (),
    "edgekd, quick": ("--effort", "quick"),
    "edgekd, INT8": ("--set", "quantize.precision=int8"),
}
CONTESTANTS = (FLOAT, *EDGEKD, *PEERS)
#: The exit code of a build whose result the gate rejected.
_REJECTED = 20


def place_of(brought: Brought, contestant: str) -> Path:
    """Return the folder of what a contestant wrote."""
    return brought.folder / re.sub(r"\W+", "-", contestant).lower()


def opener_of(brought: Brought, contestant: str) -> Callable[[], Engine]:
    """Return what opens a contestant's network in the engine that it is for."""
    place = place_of(brought, contestant)
    if contestant == FLOAT:
        return partial(open_file, brought.model)
    if contestant in EDGEKD:
        return partial(open_bundle, place / "bundle")
    if PEERS[contestant][0] == IN_OPENVINO:
        return partial(open_openvino, place / "quantized.xml", brought.test)
    return partial(open_file, place / "quantized.onnx")


def contest(brought: Brought, contestant: str, venv: Path, timeout_s: float) -> dict[str, Any]:
    """Let one contestant quantize a network afresh, and measure what came out; or say why nothing did."""
    folder = place_of(brought, contestant)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if contestant == FLOAT:
        cost: dict[str, Any] = {}
    elif contestant in EDGEKD:
        cost = _build(brought, EDGEKD[contestant], folder, timeout_s)
    else:
        suffix = ".xml" if PEERS[contestant][0] == IN_OPENVINO else ".onnx"
        result = folder / f"quantized{suffix}"
        cost = run_peer(contestant, brought.model, brought.calibration, result, venv, timeout_s)
    if "failed" in cost:
        return cost
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own:
        measured = own.submit(measure, brought, contestant)
        error = measured.exception()  # of the library that is to run it
        return {**cost, **(measured.result() if error is None else {"failed": f"{type(error).__name__}: {error}"})}


def _build(brought: Brought, told: tuple[str, ...], folder: Path, timeout_s: float) -> dict[str, Any]:
    """Build as a user does who knows what the outputs are, and keep the bundle."""
    output = folder / "output"
    files = ("--model", brought.model, "--calibration", brought.calibration, "--test", brought.test)
    kinds = [part for name, kind in brought.network.outputs.items() for part in ("--output", f"{name}={kind}")]
    places = ("--target", TARGET, "--output", output, "--cache", folder / "cache")
    command = [sys.executable, "-m", "edgekd", "build", "--quiet", *files, *kinds, *places, *told]
    environment = {**os.environ, "PYTHONPATH": str(Path(edgekd.__file__).parent.parent)}
    ended = watch(command, environment, timeout_s, success=(0, _REJECTED))
    if ended.failed:
        return {"failed": ended.failed, **ended.cost}
    shutil.rmtree(folder / "cache")
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    target = report["targets"][0]
    shutil.move(output / target["bundle"] if target["bundle"] else output / TARGET / "rejected", folder / "bundle")
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    return {
        "seconds": writing_seconds(stages),
        "stage_seconds": stages,
        "released": report["released"],
        "verdict": report["verdict"],
        "choice": target["choice"],
        "reasons": read_manifest(folder / "bundle").reasons,
        "candidates": [
            {key: candidate[key] for key in ("name", "precision", "verdict")} for candidate in target["candidates"]
        ],
        "versions": report["versions"],
        **ended.cost,
    }


def measure(brought: Brought, contestant: str) -> dict[str, Any]:
    """Compare a contestant's network with the float one on the test samples, each in the engine that it is for."""
    kinds = brought.network.outputs
    outputs = run_all(opener_of(brought, contestant), brought.test, kinds)
    reference = brought.folder / "reference.npz"
    if contestant == FLOAT:
        np.savez(reference, **outputs)
    with np.load(reference, allow_pickle=False) as arrays:
        expected = {name: arrays[name] for name in kinds}
    judged = edgekd.judge(outputs, expected, kind=kinds)
    answers = {
        name: {
            "kind": found.kind,
            "divergence": asdict(found.divergence),
            "changed": None if found.changed is None else asdict(found.changed),
            "relative_error": asdict(found.error),
        }
        for name, found in judged.answers.items()
    }
    return {
        **_engine_facts(brought, contestant),
        "answers": answers,
        "divergence_limits": max(
            found.divergence.mean / MAX_DIVERGENCE[found.kind] for found in judged.answers.values()
        ),
        "metrics": _metrics(brought, outputs),
    }


def _metrics(brought: Brought, outputs: dict[str, Array]) -> dict[str, float]:
    """Return what the outputs are worth where it is known what they should be: of the first output of that kind."""
    first = {kind: outputs[name] for name, kind in reversed(brought.network.outputs.items())}
    found = {}
    if (labels := brought.labels()) is not None:
        found["accuracy"] = float((first["classes"].argmax(1) == labels).mean())
    if (texts := brought.texts()) is not None:
        found["character_error_rate"] = character_error_rate(brought.model, first["sequence-classes"], texts)
    return found


def _engine_facts(brought: Brought, contestant: str) -> dict[str, Any]:
    place = place_of(brought, contestant)
    precision = {}
    if contestant == FLOAT:
        files = [brought.model]
    elif contestant in EDGEKD:
        manifest = read_manifest(place / "bundle")
        files, precision = [place / "bundle" / "deploy.onnx"], {"precision": manifest.precision}
    else:
        files = sorted(file for file in place.glob("quantized*") if file.suffix in (".onnx", ".xml", ".bin"))
    quantized, layers = count_layers(files[0]) if files[0].suffix == ".onnx" else (None, None)
    return {
        **precision,
        "quantized_layers": quantized,
        "layers": layers,
        "size_bytes": sum(file.stat().st_size for file in files),
        "engine_sha256": [sha256_file(file) for file in files],
    }
