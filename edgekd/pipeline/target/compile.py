"""Stage compile: build candidates' engines ahead of time on this host."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edgekd.devices.local import LocalDevice
from edgekd.errors import ModelError
from edgekd.pipeline.target.context import LAYERS, require_one
from edgekd.runtime.backends.registry import find_backend
from edgekd.stages.artifacts import DEPLOY, PROBE_GRAPH
from edgekd.stages.stage import StageSpec, library_versions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.config.target import Target
    from edgekd.files import JsonObject
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
        refused: For each candidate that the library could not build, the reason.
    """

    library: str
    layers: dict[str, int]
    sizes: dict[str, int]
    messages: dict[str, list[str]]
    refused: dict[str, str]


def _describe_compiled(compiled: Compiled) -> str:
    counts = ", ".join(f"{name} {layers} layers" for name, layers in compiled.layers.items())
    return f"{compiled.library}: {counts}"


COMPILE: StageSpec[Compiled] = StageSpec(
    "compile", 4, Compiled, (), "parse and build each candidate with TensorRT-RTX on this host", _describe_compiled
)


def compiles(target: Target) -> bool:
    """Whether engines are built ahead of time here: a mere proof is done without where the library cannot be had."""
    if target.compile is None:
        return False
    return target.compile.ship or (sys.platform, platform.machine()) == ("linux", "x86_64")


def build_ahead(target: Target, graph: Path, plan: Path) -> JsonObject:
    """Build an engine of a graph as the target's ``[compile]`` says, with a description of its layers beside it.

    Raises:
        MissingDependency: The library is not installed.
        ModelError: The library refuses the graph, or would get it wrong.
        DeviceError: The library crashed or hung.
    """
    wanted = target.compile
    assert wanted is not None  # the caller has looked
    return LocalDevice().compile(graph, plan, plan.parent / LAYERS, wanted.library, _build_options(target))


def _build_options(target: Target) -> dict[str, object]:
    wanted = target.compile
    assert wanted is not None  # the caller has looked
    # A DLA is the board's: what is proved here is the graph.
    portable = {name: value for name, value in target.options.items() if name != "dla"}
    return {**portable, "compute_capabilities": wanted.compute_capabilities}


def compile_candidates(context: Context, candidates: Sequence[PreparedCandidate], label: str) -> Done[Compiled]:
    """Parse and build each candidate of a target that :func:`compiles`.

    Args:
        context: The target.
        candidates: Candidates whose graphs are written.
        label: What tells the stage from that of other candidates; "" for the first.

    Raises:
        ModelError: The library refuses every candidate's graph.
    """
    wanted = context.target.compile
    assert wanted is not None  # the caller has looked

    def run(folder: Path, report: StageReporter) -> Compiled:
        layers: dict[str, int] = {}
        sizes: dict[str, int] = {}
        messages: dict[str, list[str]] = {}
        refused: dict[str, str] = {}
        library = ""
        for done, candidate in enumerate(candidates, 1):
            name, place = candidate.name, folder / candidate.name
            place.mkdir(exist_ok=True)
            try:
                built = [
                    build_ahead(context.target, candidate.folder / variant, (place / variant).with_suffix(".plan"))
                    for variant in (PROBE_GRAPH, DEPLOY)
                ][-1]
            except ModelError as error:
                refused[name] = context.leave_out(name, error, candidate.folder, report)
                continue
            library, layers[name], messages[name] = built["library"], built["layers"], built["messages"]
            sizes[name] = (place / DEPLOY).with_suffix(".plan").stat().st_size
            report.advance(done, len(candidates), f"{name}: {built['layers']} layers")
        if not label:
            require_one(layers, refused)
        return Compiled(library, layers, sizes, messages, refused)

    config = {
        "compile": msgspec.to_builtins(wanted),
        "options": _build_options(context.target),
        "versions": library_versions(find_backend(wanted.library).packages, "build"),
    }
    return context.stage(
        COMPILE,
        label,
        config=config,
        inputs={"candidates": {candidate.name: candidate.key for candidate in candidates}},
        run=run,
    )
