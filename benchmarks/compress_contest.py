"""One contestant on one float network: quantize in a process of its own, and measure what came out."""

from __future__ import annotations

import itertools
import multiprocessing
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from compress_cases import FOLDER, TARGET, link_learned
from compress_goals import OURS
from contestants import FLOAT, count_layers, run_peer, snr_db, writing_seconds
from contestants import PEERS as ALL_PEERS
from peers.quantize import IN_OPENVINO

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

_INT8 = ("quantize.precision=int8",)
#: edgekd as it is; told to ship INT8 even where float32 is faster; and told that less drift may cost 5 % of time: what
#: a recipe says otherwise.
EDGEKD: dict[str, tuple[str, ...]] = dict(
    zip(OURS, ((), _INT8, (*_INT8, "quantize.repair=best", "quantize.slack=0.05")), strict=True)
)
#: The peers whose result is ONNX.
PEERS = tuple(name for name, (peer, _) in ALL_PEERS.items() if peer != IN_OPENVINO)
CONTESTANTS = (FLOAT, *EDGEKD, *PEERS)

#: A classifier's logits of the test samples, and how often they are drawn anew.
_LOGITS = "logits.npy"
_RESAMPLES = 1000


def quantize_by_peer(case: Case, contestant: str, venv: Path, folder: Path) -> dict[str, Any]:
    """Let a peer quantize, in a process of its own; return what it cost, or why it failed."""
    result = folder / "quantized.onnx"
    cost = run_peer(contestant, case.network, case.samples, result, venv)
    if "failed" not in cost:
        graph = onnx.load(str(result))
        unquantize_outputs(graph, onnx.load(str(case.network)))
        save(graph, folder / PROBE_GRAPH)
        drop_embeddings(result, folder / DEPLOY)
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
    return {
        "seconds": writing_seconds(seconds),
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
    if found.classifies(found.output_names[0]):
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
    return Probe(ids, dict(deploy), embeddings)
