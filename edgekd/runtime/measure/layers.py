"""Times of layers, from the engine libraries' profilers, and the modality's branch that each layer belongs to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.blame import FUSION
from edgekd.runtime.measure.results import LayerTime

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from openvino import Model, ProfilingInfo

    from edgekd.runtime.measure.results import Profile

#: The suffix of a node's name in ONNX Runtime's trace, and the prefix of a node that others were fused into.
_KERNEL, _FUSED = "_kernel_time", "fused "
#: Kinds that OpenVINO wrongly counts among the layers, and the step of its counters.
_NO_LAYERS, _STEP_MS = ("Parameter", "Result", "Constant"), 1e-3


def from_ort_trace(path: Path, runs: int, skipped: int) -> tuple[LayerTime, ...]:
    """Read the trace of ONNX Runtime's profiler: times of nodes, in the order in which they ran.

    Args:
        path: The trace: JSON, a list of events, whose ``dur`` are us.
        runs: The number of times that the graph ran; nodes inside of a loop ran more often.
        skipped: The number of first runs that are left out, fewer than ``runs``.
    """
    durations: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            key = (event["name"].removesuffix(_KERNEL), event["args"]["op_name"])
            durations.setdefault(key, []).append(event["dur"])
    return tuple(
        LayerTime(name, kind, None, _middle_mean(us, runs, skipped) / 1e3, (name.removeprefix(_FUSED),))
        for (name, kind), us in durations.items()
    )


def from_openvino(counters: Iterable[ProfilingInfo], runtime_model: Model) -> tuple[LayerTime, ...]:
    """Read OpenVINO's counters of a request: mean times of the layers, in its order.

    Their step is 1 us, and a layer that takes less on average is reported as one that did not run.

    Args:
        counters: The ``profiling_info`` of the request.
        runtime_model: The runtime model of the compiled model, which knows what each layer was made of.

    Returns:
        The layers whose time is known; none where the others may have taken more time than these.
    """
    made_of = {}
    for layer in runtime_model.get_ordered_ops():
        info = layer.get_rt_info()
        if "originalLayersNames" in info:
            made_of[layer.get_friendly_name()] = tuple(info["originalLayersNames"].value.split(","))
    counted = [counter for counter in counters if counter.node_type not in _NO_LAYERS]
    layers = tuple(
        LayerTime(
            counter.node_name,
            counter.node_type,
            None,
            counter.real_time.total_seconds() * 1e3,
            made_of.get(counter.node_name, (counter.node_name,)),
        )
        for counter in counted
        if counter.real_time
    )
    unknown_ms = (len(counted) - len(layers)) * _STEP_MS
    return layers if sum(layer.mean_ms for layer in layers) > unknown_ms else ()


def from_tensorrt(times_ms: Mapping[str, list[float]]) -> tuple[LayerTime, ...]:
    """Return the layers of TensorRT's profiler, whose names join those of the nodes with " + ".

    *Not verified on hardware.*

    Args:
        times_ms: The time of each run by the layer's name, in the order in which the layers ran.
    """
    return tuple(
        LayerTime(name, "", None, _middle_mean(ms, len(ms)), tuple(name.split(" + "))) for name, ms in times_ms.items()
    )


def assign_branches(profile: Profile, branches: Mapping[str, Mapping[str, str]]) -> Profile:
    """Return a profile whose layers have their branches.

    Args:
        profile: The profile as it was measured.
        branches: By engine and node of its graph, the modality from whose input alone the node is computed, or
            "fusion".
    """
    engines = (
        replace(engine, layers=tuple(replace(x, branch=_branch(x.nodes, branches[engine.name])) for x in engine.layers))
        for engine in profile.engines
    )
    return replace(profile, engines=tuple(engines))


def _branch(nodes: tuple[str, ...], branches: Mapping[str, str]) -> str | None:
    """Return the branch of a layer: that of its first known node, unless two modalities meet in it.

    Nodes that follow a branch's last layer, such as the quantizing of fusion's inputs, are often fused into that layer.
    """
    known = [branch for branch in (_known(node, branches) for node in nodes) if branch]
    modalities = {branch for branch in known if branch != FUSION}
    return FUSION if len(modalities) > 1 else next(iter(known), None)


def _known(node: str, branches: Mapping[str, str]) -> str | None:
    """Return a node's branch; libraries append ``/...`` to the names of its parts, and ``_1`` to those of copies."""
    while node not in branches:
        head, cut, _ = node.rpartition("/")
        if not cut:
            head, cut, number = node.rpartition("_")
            if not cut or not number.isdigit():
                return None
        node = head
    return branches[node]


def _middle_mean(times: list[float], runs: int, skipped: int = 0) -> float:
    """Return the mean over the middle half of the runs, the first ones left out.

    A profiler's clock may have steps of 1 us, which a median would keep, and one hiccup of the machine takes longer
    than a hundred runs of a small layer, which a mean of all would keep.
    """
    sums = np.sort([part.sum() for part in np.array_split(np.asarray(times), runs)][skipped:])
    quarter = len(sums) // 4
    return float(sums[quarter : len(sums) - quarter].mean())
