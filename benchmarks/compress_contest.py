"""One contestant on one float network: quantize in a process of its own, and measure what came out."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from venv import create as create_venv

import numpy as np
import onnx
from compress_cases import FOLDER, TARGET, link_learned
from compress_goals import FLOAT, OURS
from peers.quantize import SETTINGS

import edgekd
from edgekd.cli.terminal import choose_observer
from edgekd.compress.graph import drop_embeddings, save, unquantize_outputs
from edgekd.errors import ModelError
from edgekd.files import sha256_file
from edgekd.gram.drift import flips, measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.gram.probe import Probe
from edgekd.pipeline.build import build
from edgekd.pipeline.paths import BuildPaths
from edgekd.pipeline.publish import BUNDLE, REJECTED
from edgekd.pipeline.target.outputs import run_on_host
from edgekd.runtime.measure.machine import peak_rss_bytes
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import DEPLOY, PROBE_GRAPH

if TYPE_CHECKING:
    from compress_cases import Case

    from edgekd.config.recipe import Recipe
    from edgekd.gram.probe import Floats

_INT8 = ("quantize.precision=int8",)
#: edgekd as it is; told to ship INT8 even where float32 is faster; and told that less drift may cost 5 % of time: what
#: a recipe says otherwise.
EDGEKD: dict[str, tuple[str, ...]] = dict(
    zip(OURS, ((), _INT8, (*_INT8, "quantize.repair=best", "quantize.slack=0.05")), strict=True)
)
PEERS = {f"{peer}, {setting}": (peer, setting) for peer, settings in SETTINGS.items() for setting in settings}
CONTESTANTS = (FLOAT, *EDGEKD, *PEERS)

#: Those that install nothing beside a build's own packages run in this Python, the others in a venv of their own.
_OWN_VENV = ("Olive", "ModelOpt")
_PEERS = ("olive-ai==0.13.0", "requests", "nvidia-modelopt[onnx]==0.47.0", "torch==2.13.0")
#: ModelOpt asks for the build for GPUs too, whose files overwrite this one's.
_RUNTIME, _UNWANTED = "onnxruntime==1.32.0", "onnxruntime-gpu"

#: A classifier's logits of the test samples, and how often they are drawn anew.
_LOGITS = "logits.npy"
_RESAMPLES = 1000

#: Stages of a build that come after the graphs are written.
_AFTERWARDS = ("compile", "evaluate", "check", "profile", "robustness", "robustness_shipped", "bundle", "verify")


def peers_python(folder: Path) -> Path:
    """Return the interpreter of the venv with the heavy peers, 2.4 GB; it is made where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        create_venv(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *_PEERS], check=True)
        subprocess.run([*pip, "uninstall", "--yes", _UNWANTED, "onnxruntime"], check=True)
        subprocess.run([*pip, "install", "--no-deps", _RUNTIME], check=True)
    return python


def quantize_by_peer(case: Case, contestant: str, venv: Path, folder: Path) -> dict[str, Any]:
    """Let a peer quantize, in a process of its own; return what it cost, or why it failed."""
    peer, setting = PEERS[contestant]
    python = peers_python(venv) if peer in _OWN_VENV else Path(sys.executable)
    result = folder / "quantized.onnx"
    script = Path(__file__).parent / "peers" / "quantize.py"
    files = [path.absolute() for path in (case.network, case.samples, result)]
    environment = {**os.environ, "PYTHONPATH": str(Path(edgekd.__file__).parent.parent)}
    command = [python.absolute(), script, peer, setting, *files]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode != 0:
        said = ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"]
        return {"failed": said[-1]}
    graph = onnx.load(str(result))
    unquantize_outputs(graph)
    save(graph, folder / PROBE_GRAPH)
    drop_embeddings(result, folder / DEPLOY)
    cost: dict[str, Any] = json.loads(result.with_suffix(".json").read_text(encoding="utf-8"))
    return cost


def quantize_by_edgekd(name: str, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Build for this processor and keep what ships, or would if the gate let it; return what it cost.

    Called in a process of its own, which nothing but the build has been in.
    """
    with TemporaryDirectory(dir=FOLDER) as scratch:
        places = BuildPaths(Path(scratch) / "output", link_learned(Path(scratch) / "cache"))
        with choose_observer(json=False, quiet=True, verbose=False, terminal=False) as observer:
            target = edgekd.load_target(TARGET)
            report = build(recipe, [target], places, name=name, observer=observer)
        result = report.targets[0]
        for file in (PROBE_GRAPH, DEPLOY):
            shutil.copyfile(places.output / TARGET / (BUNDLE if result.bundle else REJECTED) / file, folder / file)
    seconds = {stage.name: stage.seconds for stage in report.stages if not stage.cached}
    writing = (spent for stage, spent in seconds.items() if stage.split()[0] not in _AFTERWARDS)
    return {
        "seconds": sum(writing),
        "stage_seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "ships": result.chosen,
        "choice": result.choice,
        "verdict": result.verdict,
        "reasons": list(result.reasons),
        "versions": {"edgekd": edgekd.__version__, **report.versions},
    }


def contest(case: Case, contestant: str, venv: Path) -> dict[str, Any]:
    """Let one contestant quantize a network afresh, and measure what came out."""
    folder = place_of(case, contestant)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if contestant == FLOAT:
        shutil.copyfile(case.network, folder / PROBE_GRAPH)
        drop_embeddings(case.network, folder / DEPLOY)
        cost: dict[str, Any] = {}
    elif contestant in EDGEKD:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own:
            cost = own.submit(quantize_by_edgekd, case.name, case.recipe(EDGEKD[contestant]), folder).result()
    else:
        cost = quantize_by_peer(case, contestant, venv, folder)
    if "failed" in cost:
        return cost
    try:
        return {**cost, **measure(case, folder)}
    except ModelError as error:
        return {**cost, "failed": str(error)}


def place_of(case: Case, contestant: str) -> Path:
    """Return the folder of a contestant's graphs."""
    return case.folder / re.sub(r"\W+", "-", contestant).lower()


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Compare a contestant's network with the float one on the test samples."""
    reference, found = probe(case, place_of(case, FLOAT)), probe(case, folder)
    with open_arrays(case.context.test) as arrays:
        labels, groups = arrays.get("labels"), arrays.get("groups")
    if found.classifies:
        np.save(folder / _LOGITS, found.answer)
    drift = measure_drift(found, reference, groups, Bootstrap())
    quantized, layers = count_layers(folder / PROBE_GRAPH)
    return {
        "quantized_layers": quantized,
        "layers": layers,
        "drift": drift.mean,
        "drift_bound": drift.bound,
        "drift_scope": drift.scope,
        "flips": flips(found, reference),
        "metric": None if labels is None else case.context.origin.metric(found.answer, labels),
        "logits_snr_db": snr_db(found.answer, reference.answer),
        "deploy_sha256": sha256_file(folder / DEPLOY),
        "size_bytes": (folder / DEPLOY).stat().st_size,
    }


def snr_db(found: Floats, expected: Floats) -> float | None:
    """Return the ratio of signal to error in dB; None where there is no error."""
    signal, error = (float((x.astype(np.float64) ** 2).sum()) for x in (expected, found - expected))
    return 10 * math.log10(signal / error) if error else None


def gains(case: Case) -> dict[str, dict[str, dict[str, float]]]:
    """Return how much better the metric of edgekd is than each peer's, with the 95 % interval.

    The interval is a percentile bootstrap over samples, or over groups where there are any; both are drawn together.
    """
    facts = case.context.exported.result.facts
    with open_arrays(case.context.test) as arrays:
        labels, groups = arrays.get("labels"), arrays.get("groups")
    if labels is None:
        return {}
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    members = [np.flatnonzero(units == unit) for unit in range(units.max() + 1)]
    random = np.random.default_rng(0)
    draws = [random.integers(0, len(members), len(members)) for _ in range(_RESAMPLES)]
    rows = [np.arange(len(labels)), *(np.concatenate([members[unit] for unit in draw]) for draw in draws)]
    values = {}
    for name in (*EDGEKD, *PEERS):
        if (path := place_of(case, name) / _LOGITS).exists():
            logits = np.load(path)
            values[name] = np.array([case.context.origin.metric(logits[chosen], labels[chosen]) for chosen in rows])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for ours, peer in itertools.product(EDGEKD, PEERS):
        if ours in values and peer in values:
            gain = (values[ours] - values[peer]) * (1 if facts.higher_is_better else -1)
            low, high = np.quantile(gain[1:], (0.025, 0.975))
            found.setdefault(ours, {})[peer] = {"value": float(gain[0]), "low": float(low), "high": float(high)}
    return found


def probe(case: Case, folder: Path) -> Probe:
    """Return what a contestant's network says of the test samples: as it is used, and its embeddings."""
    deploy, full = (run_on_host(folder / file, case.context.test) for file in (DEPLOY, PROBE_GRAPH))
    with open_arrays(case.context.test) as arrays:
        ids = arrays["ids"]
    embeddings = {
        name.removeprefix(EMBEDDING_PREFIX): z for name, z in full.items() if name.startswith(EMBEDDING_PREFIX)
    }
    return Probe(ids, {"logits": deploy["logits"]}, embeddings)


def count_layers(path: Path) -> tuple[int, int]:
    """Return how many layers with weights compute in INT8, and how many there are."""
    graph = onnx.load(str(path)).graph
    producer = {name: node for node in graph.node for name in node.output}
    constant = {tensor.name for tensor in graph.initializer}
    quantized = []
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        name = node.input[1]
        while name in producer and producer[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
            name = producer[name].input[0]
        if name in constant:  # else it is the product of two activations
            quantized.append(name != node.input[1])
    return sum(quantized), len(quantized)
