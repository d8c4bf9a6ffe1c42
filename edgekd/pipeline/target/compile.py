"""Stage compile: build candidates' engines ahead of time on this host."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edgekd.devices.local import LocalDevice
from edgekd.pipeline.target.context import LAYERS
from edgekd.runtime.backends.registry import find_backend
from edgekd.stages.artifacts import DEPLOY, PROBE_GRAPH
from edgekd.stages.stage import StageSpec, library_versions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.config.target import Target
    from edgekd.pipeline.target.context import Context, PreparedCandidate
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done


@dataclass(frozen=True)
class Compiled:
    """Engines that were built ahead of time; they and their layers lie in folders of the candidates' names.

    Attributes:
        library: Name and version of the library that built them.
        layers: For each candidate the number of layers of ``deploy``.
        sizes: For each candidate the bytes of ``deploy.plan``.
        messages: For each candidate what the library warned of.
    """

    library: str
    layers: dict[str, int]
    sizes: dict[str, int]
    messages: dict[str, list[str]]


def _describe_compiled(compiled: Compiled) -> str:
    counts = ", ".join(f"{name} {layers} layers" for name, layers in compiled.layers.items())
    return f"{compiled.library}: {counts}"


COMPILE: StageSpec[Compiled] = StageSpec(
    "compile", 3, Compiled, (), "parse and build each candidate with TensorRT-RTX on this host", _describe_compiled
)


def compiles(target: Target) -> bool:
    """Whether engines are built ahead of time here: a mere proof is done without where the library cannot be had."""
    if target.compile is None:
        return False
    return target.compile.ship or (sys.platform, platform.machine()) == ("linux", "x86_64")


def compile_candidates(context: Context, candidates: Sequence[PreparedCandidate], label: str) -> Done[Compiled]:
    """Parse and build each candidate of a target that :func:`compiles`.

    Args:
        context: The target.
        candidates: Candidates whose graphs are written.
        label: What tells the stage from that of other candidates; "" for the first.

    Raises:
        ModelError: The library refuses a candidate's graph.
    """
    wanted = context.target.compile
    assert wanted is not None  # the caller has looked
    # A DLA is the board's: what is proved here is the graph.
    portable = {name: value for name, value in context.target.options.items() if name != "dla"}
    options = {**portable, "compute_capabilities": wanted.compute_capabilities}

    def run(folder: Path, report: StageReporter) -> Compiled:
        layers, sizes, messages, library = {}, {}, {}, ""
        jobs = [(candidate, variant) for candidate in candidates for variant in (PROBE_GRAPH, DEPLOY)]
        for done, (candidate, variant) in enumerate(jobs, 1):
            name, place = candidate.name, folder / candidate.name
            place.mkdir(exist_ok=True)
            plan = (place / variant).with_suffix(".plan")
            built = LocalDevice().compile(candidate.folder / variant, plan, place / LAYERS, wanted.library, options)
            library, layers[name], messages[name] = built["library"], built["layers"], built["messages"]
            sizes[name] = plan.stat().st_size
            report.advance(done, len(jobs), f"{name}: {built['layers']} layers")
        return Compiled(library, layers, sizes, messages)

    config = {
        "compile": msgspec.to_builtins(wanted),
        "options": options,
        "versions": library_versions(find_backend(wanted.library).packages, "build"),
    }
    return context.stage(
        COMPILE,
        label,
        config=config,
        inputs={"candidates": {candidate.name: candidate.key for candidate in candidates}},
        run=run,
    )
