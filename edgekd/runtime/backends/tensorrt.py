"""TensorRT 10.3 to 11, and TensorRT-RTX, which is built and refuses alike but needs no GPU to build.

Building was run with TensorRT-RTX. Building with TensorRT and running any engine are *not verified on hardware*: the
names that are used were compared with the bindings of TensorRT 10.3 and 11.4.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgekd.errors import DeviceError, TargetError
from edgekd.files import atomic_path, scratch_folder, write_text
from edgekd.runtime.backends.cuda import ABSENT, Gpu, nvidia_facts
from edgekd.runtime.backends.tensorrt_build import BuildOptions, build_plan, timing_cache_key
from edgekd.runtime.backends.tensorrt_library import TENSORRT, TITLES, library, read_engine
from edgekd.runtime.backends.tensorrt_session import TensorRTSession
from edgekd.runtime.measure.layers import from_tensorrt
from edgekd.runtime.session import BuiltEngine, engine_label

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.runtime.measure.results import LayerTime
    from edgekd.runtime.session import Feeds, Session

__all__ = ["absent", "hardware", "keep_engine", "layer_times", "library", "open_engine"]

#: Every writer of ONNX starts with the field ``ir_version``; plans start with "ftrt" or "vtrt".
_ONNX_START = b"\x08"


def absent(flavor: str = TENSORRT, **_options: object) -> str | None:
    """Return the reason why no engine can run on this machine, a lack of a working NVIDIA GPU; None where it can.

    Raises:
        MissingDependency: the library is not installed.
    """
    library(flavor)
    try:
        Gpu().close()
    except DeviceError as error:
        return str(error)
    return None


def hardware(**_options: object) -> dict[str, str]:
    """Return what besides the processor decides what an engine does here: GPU, system and power mode, or "none"."""
    return nvidia_facts()


def open_engine(
    engine: Path | bytes,
    threads: int = 1,
    name: str | None = None,
    *,
    flavor: str = TENSORRT,
    max_batch: int = 64,
    dla: bool = False,
    cache: Path | None = None,
) -> Session:
    """Open a plan, or build one from an ONNX model and open it.

    *Not verified on hardware.*

    Args:
        engine: The file, or its content.
        threads: As for the other libraries; a GPU does not divide its work among the host's threads.
        name: The engine's name in errors; by default the file's path.
        flavor: "tensorrt" or "tensorrt-rtx".
        max_batch: As in :class:`~edgekd.runtime.backends.tensorrt_build.BuildOptions`; only for an ONNX model.
        dla: Likewise.
        cache: A folder that keeps what was built, with the description of its layers and the timings of kernels, so
            that one model is built once on a machine; None builds each time.

    Raises:
        MissingDependency: the library is not installed.
        DeviceError: there is no NVIDIA GPU, or it failed.
        ModelError: the engine cannot be built or opened.
        TargetError: the options ask for what the library or this machine does not have.
        ValueError: ``threads`` or ``max_batch`` is below 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    return open_plan(engine, name, flavor, _build_options(max_batch, dla), cache)


def open_plan(
    engine: Path | bytes, name: str | None, flavor: str, options: BuildOptions, cache: Path | None
) -> TensorRTSession:
    """Open a plan, or build one from an ONNX model with these options and open it; see :func:`open_engine`."""
    trt, label, content = library(flavor), engine_label(engine, name), read_engine(engine)
    facts: dict[str, str] = {}
    if content.startswith(_ONNX_START):
        content, fallback = _plan(content, flavor, options, cache, label)
        facts = {"dla_fallback": ", ".join(fallback) or ABSENT} if options.dla else {}
    with ExitStack() as stack:
        gpu = Gpu()
        stack.callback(gpu.close)
        session = TensorRTSession(trt, gpu, content, label, TITLES[flavor], {"gpu": gpu.name, **facts})
        stack.pop_all()
        return session


def layer_times(
    engine: Path,
    threads: int,
    rows: Sequence[Feeds],
    *,
    flavor: str = TENSORRT,
    max_batch: int = 64,
    dla: bool = False,
    cache: Path | None = None,
) -> tuple[LayerTime, ...]:
    """Run an engine once for each of ``rows`` under TensorRT's profiler; return the time of each layer.

    *Not verified on hardware.*

    Args:
        engine: A plan, or an ONNX model, from which one is built.
        threads: Not used: see :func:`open_engine`, as for the options.
        rows: Feeds of one row each.
        flavor: "tensorrt" or "tensorrt-rtx".
        max_batch: The most samples of one inference.
        dla: Whether a Jetson's DLA core runs what it can.
        cache: The folder of built plans.

    Raises:
        MissingDependency, DeviceError, ModelError, TargetError: as of :func:`open_engine`.
    """
    del threads
    times: dict[str, list[float]] = {}
    with open_plan(engine, None, flavor, _build_options(max_batch, dla), cache) as session:
        session.run(rows[0])  # unprofiled: the first run loads kernels
        session.profile_layers(lambda name, ms: times.setdefault(name, []).append(ms))
        for row in rows:
            session.run(row)
    return from_tensorrt(times)


def keep_engine(
    engine: Path,
    folder: Path,
    threads: int = 1,
    *,
    flavor: str = TENSORRT,
    max_batch: int = 64,
    dla: bool = False,
    cache: Path | None = None,
) -> BuiltEngine | None:
    """Write the plan that is built of an ONNX model, and the description of its layers; None for what is a plan.

    *Not verified on hardware.*

    Args:
        engine: As for :func:`open_engine`, as are the options.
        folder: The folder to write into.
        threads: Not used.
        flavor: "tensorrt" or "tensorrt-rtx".
        max_batch: The most samples of one inference.
        dla: Whether a Jetson's DLA core runs what it can.
        cache: The folder of built plans, where this one lies already if the model was opened before.

    Raises:
        MissingDependency, DeviceError, ModelError, TargetError: as :func:`open_engine`.
    """
    del threads
    return keep_plan(engine, folder, flavor, _build_options(max_batch, dla), cache)


def keep_plan(engine: Path, folder: Path, flavor: str, options: BuildOptions, cache: Path | None) -> BuiltEngine | None:
    """Write the plan that is built of an ONNX model with these options into a folder; see :func:`keep_engine`."""
    content = read_engine(engine)
    if not content.startswith(_ONNX_START):
        return None
    files = (f"{engine.stem}.plan", f"{engine.stem}.json")
    with scratch_folder() as scratch:
        built = _build_once(content, flavor, options, cache or scratch, str(engine))
        for path, name in zip(built, files, strict=True):
            shutil.copyfile(path, folder / name)
        build_s = json.loads(built[1].read_text(encoding="utf-8")).get("build_s")
    return BuiltEngine(files, f"{TITLES[flavor]} {library(flavor).__version__}", {}, build_s)  # a plan states it all


def _build_options(max_batch: int, dla: bool) -> BuildOptions:
    if not isinstance(max_batch, int) or max_batch < 1 or not isinstance(dla, bool):
        raise TargetError(f"max_batch must be a number from 1 and dla true or false, not {max_batch!r} and {dla!r}")
    return BuildOptions(max_batch, dla=dla)


def _plan(
    content: bytes, flavor: str, options: BuildOptions, cache: Path | None, name: str
) -> tuple[bytes, tuple[str, ...]]:
    """Return the plan of an ONNX model, and the layers that a DLA left to the GPU; each model is built once a cache."""
    if cache is None:
        plan = build_plan(content, flavor, options, name=name)
        return plan.content, plan.dla_fallback
    kept, described = _build_once(content, flavor, options, cache, name)
    return kept.read_bytes(), tuple(json.loads(described.read_text(encoding="utf-8"))["dla_fallback"])


def _build_once(content: bytes, flavor: str, options: BuildOptions, cache: Path, name: str) -> tuple[Path, Path]:
    """Return the files of plan and layers of an ONNX model in a cache, having built them where they are not there."""
    key = json.dumps([flavor, asdict(options), timing_cache_key(library(flavor))])
    stem = cache / hashlib.sha256(key.encode() + content).hexdigest()[:16]
    kept, described = stem.with_suffix(".plan"), stem.with_suffix(".json")
    if not kept.is_file():
        start = time.perf_counter()
        plan = build_plan(content, flavor, options, timing_cache=cache, name=name)
        layers = {
            "from": plan.layers_from,
            "dla_fallback": plan.dla_fallback,
            "build_s": time.perf_counter() - start,
            "layers": plan.layers,
        }
        write_text(described, json.dumps(layers, indent=1) + "\n")
        with atomic_path(kept) as temporary:  # last: where it is, its description is
            temporary.write_bytes(plan.content)
    return kept, described
