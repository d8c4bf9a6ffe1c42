"""TensorRT 10.3 to 11, and TensorRT-RTX, which is built and refuses alike but needs no GPU to build.

Building was run with TensorRT-RTX. Building with TensorRT and running any engine are *not verified on hardware*: the
names that are used were compared with the bindings of TensorRT 10.3 and 11.4.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import DeviceError, MissingDependency, ModelError, TargetError, nearest
from edgekd.files import atomic_path, need, write_text
from edgekd.runtime.backends.cuda import Gpu, gpu_name
from edgekd.runtime.backends.tensorrt_log import THE_GRAPH, Journal, advice, node, plain, without_collector
from edgekd.runtime.measure.layers import from_tensorrt
from edgekd.runtime.measure.machine import power_mode
from edgekd.runtime.session import Array, Built, FeedCheck, Feeds, Session, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from edgekd.runtime.measure.results import LayerTime

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"
_TITLES = {TENSORRT: "TensorRT", RTX: "TensorRT-RTX"}

#: Before, types are allowed by flags; since, the graph states them all, and the flags are gone in 11.
_STRONGLY_TYPED_SINCE = (10, 12)

#: Every writer of ONNX starts with the field ``ir_version``; plans start with "ftrt" or "vtrt".
_ONNX_START = b"\x08"
_NONE = "none"


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for.

    Attributes:
        max_batch: the most samples of one inference, where the graph leaves that open; the engine is tuned for 1.
        compute_capabilities: TensorRT-RTX only, e.g. ("SM86", "SM89"): build ahead of time for all of these GPUs; none
            is this machine's.
        dla: TensorRT on a Jetson with DLA cores: run there what can, and the rest on the GPU. Takes ``max_batch`` 1.
    """

    max_batch: int = 64
    compute_capabilities: tuple[str, ...] = ()
    dla: bool = False


@dataclass(frozen=True)
class EnginePlan:
    """A built engine.

    Attributes:
        content: the serialized engine; it fits this library's version and this kind of GPU alone.
        layers: of each layer, name, type and tensors.
        layers_from: "engine", as the library's inspector tells of the fused layers; or why they are those of the parsed
            graph, before fusion.
        dla_fallback: layers that run on the GPU although a DLA was asked for.
        messages: the library's harmless warnings, each with the node that it was about.
        library: "TensorRT" or "TensorRT-RTX".
        version: of the library.
    """

    content: bytes
    layers: tuple[dict[str, Any], ...]
    layers_from: str
    dla_fallback: tuple[str, ...]
    messages: tuple[str, ...]
    library: str
    version: str


def library(flavor: str) -> Any:
    """Import TensorRT or TensorRT-RTX.

    Args:
        flavor: "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingDependency: it is not installed.
    """
    if flavor == TENSORRT:
        try:
            return need("tensorrt", "tensorrt")
        except MissingDependency as error:
            hint = "; on a Jetson it comes with JetPack: use the system's Python, or --system-site-packages"
            raise MissingDependency(f"{error}{hint}") from error
    need("tensorrt_rtx_libs", "build")  # loads the libraries that the bindings are linked to
    return need("tensorrt_rtx_bindings", "build")


def absent(flavor: str = TENSORRT, **_: Any) -> str | None:
    """Say why no engine can run on this machine: it has no NVIDIA GPU that works; None where it can.

    Raises:
        MissingDependency: the library is not installed.
    """
    library(flavor)
    try:
        Gpu().close()
    except DeviceError as error:
        return str(error)
    return None


@without_collector()
def build(
    model: Path | bytes,
    flavor: str,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    name: str | None = None,
) -> EnginePlan:
    """Build an engine from a float or QDQ graph, in the types that the graph states.

    Args:
        model: the ONNX file, or its content.
        flavor: "tensorrt" or "tensorrt-rtx".
        options: what for.
        timing_cache: folder of caches that make a later build of a like graph quicker; TensorRT-RTX has none.
        name: what errors call the model; by default the file's path.

    Raises:
        MissingDependency: the library is not installed.
        ModelError: the library refuses the graph, or would compute something else than it says.
        TargetError: the options ask for what the library or this machine does not have.
        DeviceError: the library needs a GPU for this, and finds none.
        ValueError: ``max_batch`` is below 1.
    """
    if options.max_batch < 1:
        raise ValueError(f"max_batch must be 1 or more, not {options.max_batch}")
    steps = _EngineBuilder(library(flavor), flavor, _label(model, name))
    steps.parse(_content(model))
    steps.configure(options)
    profile = steps.profile(options.max_batch)
    fallback = steps.use_dla(options) if options.dla else ()
    cache = None if timing_cache is None or flavor == RTX else timing_cache / f"{timing_cache_key(steps.trt)}.cache"
    content = steps.serialize(profile, cache)
    layers, layers_from = steps.describe(content)
    messages, version = steps.journal.warnings(), steps.trt.__version__
    return EnginePlan(content, layers, layers_from, fallback, messages, _TITLES[flavor], version)


class _EngineBuilder:
    """One build, step by step; everything of the library that a later step needs stays referenced here."""

    @without_collector()
    def __init__(self, trt: Any, flavor: str, name: str) -> None:
        self.trt = trt
        self.journal = Journal(trt)
        self._title = f"{_TITLES[flavor]} {trt.__version__}"
        self._flavor = flavor
        self._name = name
        self._builder = _make(trt.Builder, self.journal, self._title)
        self._strong = flavor == RTX or _version(trt) >= _STRONGLY_TYPED_SINCE
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed if self._strong else 0)
        self._config = self._builder.create_builder_config()
        self._parser = trt.OnnxParser(self._network, self.journal.logger)

    @without_collector()
    def parse(self, content: bytes) -> None:
        parsed = self._parser.parse(content)
        self.journal.at = THE_GRAPH
        if not parsed:
            raise self._refusal()
        self._refuse_wrong("misreads")
        if self._network.num_outputs == 0:
            raise self._error("finds no graph in it: export it again")

    def configure(self, options: BuildOptions) -> None:
        self._config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED
        if self._flavor == RTX:
            wanted = [self._capability(name) for name in options.compute_capabilities or ("CURRENT",)]
            self._config.num_compute_capabilities = len(wanted)
            for index, capability in enumerate(wanted):
                self._config.set_compute_capability(capability, index)
        elif options.compute_capabilities:
            raise TargetError("compute_capabilities are for TensorRT-RTX; TensorRT builds for the GPU that it runs on")
        if not self._strong:
            self._allow_types()

    def _capability(self, wanted: str) -> Any:
        known = self.trt.ComputeCapability.__members__
        if wanted not in known or wanted == "NONE":
            names = [name for name in known if name.startswith("SM")]
            raise TargetError(f"{self._title} builds for no compute capability '{wanted}'{nearest(wanted, names)}")
        return known[wanted]

    def _allow_types(self) -> None:
        """Let TensorRT before 10.12 use the types that the graph uses, and hold float32 arithmetic to float32.

        Left to itself it may compute float32 nodes in FP16 once that is allowed, raw inputs among them.
        """
        trt, config = self.trt, self._config
        types = {layer.get_output_type(index) for layer in self._layers() for index in range(layer.num_outputs)}
        if trt.int8 in types:
            config.set_flag(trt.BuilderFlag.INT8)
        if trt.float16 not in types:
            return
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        kinds = trt.LayerType
        typed = (kinds.CONSTANT, kinds.CAST, kinds.QUANTIZE, kinds.DEQUANTIZE)
        for layer in self._layers():
            if layer.type not in typed and layer.get_output_type(0) == trt.float32:
                layer.precision = trt.float32
                layer.set_output_type(0, trt.float32)

    def profile(self, max_batch: int) -> Any:
        """Return which batches the engine must take, or None where the graph fixes that."""
        profile = self._builder.create_optimization_profile()
        dynamic = False
        for tensor in (self._network.get_input(index) for index in range(self._network.num_inputs)):
            shape = tuple(tensor.shape)
            if -1 in shape[1:]:
                axis = shape.index(-1, 1)
                raise ModelError(
                    f"{self._name}: dimension {axis} of input '{tensor.name}' is dynamic; only the first, the batch, "
                    "may be: export the model with fixed sizes"
                )
            if shape[:1] == (-1,):
                dynamic = True
                profile.set_shape(tensor.name, (1, *shape[1:]), (1, *shape[1:]), (max_batch, *shape[1:]))
        return profile if dynamic else None

    def use_dla(self, options: BuildOptions) -> tuple[str, ...]:
        """Prefer the first DLA core, and return the layers that it cannot run."""
        if self._builder.num_DLA_cores == 0:
            raise TargetError(f"{self._title} finds no DLA on this machine: set dla = false in the target")
        if options.max_batch != 1:
            raise TargetError(f"a DLA runs one fixed batch: set max_batch = 1, not {options.max_batch}")
        self._config.default_device_type = self.trt.DeviceType.DLA
        self._config.DLA_core = 0
        self._config.set_flag(self.trt.BuilderFlag.GPU_FALLBACK)
        return tuple(layer.name for layer in self._layers() if not self._config.can_run_on_DLA(layer))

    @without_collector()
    def serialize(self, profile: Any, cache: Path | None) -> bytes:
        """Build the engine, with the timing cache of this machine in the given file."""
        if profile is not None:
            self._config.add_optimization_profile(profile)
        if cache:
            stored = cache.read_bytes() if cache.is_file() else b""
            timings = self._config.create_timing_cache(stored) or self._config.create_timing_cache(b"")
            self._config.set_timing_cache(timings, ignore_mismatch=False)
        content = self._builder.build_serialized_network(self._network, self._config)
        if content is None:
            if self.journal.lacks_gpu():
                raise DeviceError(f"{self._title} needs a working NVIDIA GPU for this: {self.journal.reason()}")
            reason = self.journal.reason()
            raise self._error(f"cannot build it: {reason}{advice(reason)}")
        self._refuse_wrong("miscomputes")
        if cache:
            with atomic_path(cache) as temporary:
                temporary.write_bytes(bytes(self._config.get_timing_cache().serialize()))
        return bytes(content)

    def describe(self, content: bytes) -> tuple[tuple[dict[str, Any], ...], str]:
        """Return the engine's layers and where they are known from."""
        try:
            runtime = _make(self.trt.Runtime, self.journal, self._title)
            engine = _deserialize(runtime, content, self.journal, self._name, self._title)
        except (DeviceError, ModelError) as error:
            return tuple(self._parsed()), f"graph: {error}"
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        layers = json.loads(text)["Layers"]
        return tuple(layer if isinstance(layer, dict) else {"Name": layer} for layer in layers), "engine"

    def _parsed(self) -> Iterator[dict[str, Any]]:
        """Yield the layers of the parsed graph in the inspector's terms; a constant is none in an engine."""
        for layer in self._layers():
            if layer.type != self.trt.LayerType.CONSTANT:
                tensors = [layer.get_output(index) for index in range(layer.num_outputs)]
                outputs = [
                    {"Name": tensor.name, "Dimensions": list(tensor.shape), "Datatype": tensor.dtype.name}
                    for tensor in tensors
                ]
                yield {"Name": layer.name, "LayerType": layer.type.name, "Outputs": outputs}

    def _layers(self) -> Iterator[Any]:
        return (self._network.get_layer(index) for index in range(self._network.num_layers))

    def _refusal(self) -> ModelError:
        """Return the parser's first error: those after it follow from it."""
        if self._parser.num_errors == 0:
            return self._error(f"cannot read it: {self.journal.reason()}")
        error = self._parser.get_error(0)
        operator, text, code = error.node_operator(), error.desc(), error.code().name
        what_to_do = advice(f"{operator} {code} {text}")
        # The code, since some texts are no more than the assertion that failed.
        return self._error(f"refuses {node(error.node_name(), operator)}: {plain(text)} ({code}){what_to_do}")

    def _refuse_wrong(self, what: str) -> None:
        wrong = self.journal.wrong()
        if wrong:
            at, warning, what_to_do = wrong
            raise self._error(f"{what} {at}: {warning}; {what_to_do}")

    def _error(self, text: str) -> ModelError:
        return ModelError(f"{self._name}: {self._title} {text}")


@without_collector()
def _make(kind: Any, journal: Journal, title: str) -> Any:
    """Make a builder or runtime, which TensorRT, unlike TensorRT-RTX, can make only where there is a GPU."""
    try:
        return kind(journal.logger)
    except TypeError as error:  # "factory function returned nullptr"
        raise DeviceError(f"{title} finds no NVIDIA GPU that it can use: {journal.reason()}") from error


@without_collector()
def _deserialize(runtime: Any, content: bytes, journal: Journal, name: str, title: str) -> Any:
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        if journal.lacks_gpu():
            raise DeviceError(f"{title} needs a working NVIDIA GPU to open an engine: {journal.reason()}")
        raise ModelError(f"{name}: {title} cannot open it: {journal.reason()}; build it on this machine")
    return engine


def hardware(**_: Any) -> dict[str, str]:
    """Return what besides the processor decides what an engine does here: GPU, system and power mode, or "none"."""
    release = _first_line(Path("/etc/nv_tegra_release")) or _first_line(Path("/proc/driver/nvidia/version"))
    return {"gpu": gpu_name() or _NONE, "system": release or _NONE, "power_mode": power_mode() or _NONE}


def timing_cache_key(trt: Any) -> str:
    """Name what timings are valid for: library version, GPU, system and power mode; "none" for what is not there."""
    facts = (f"trt-{trt.__version__}", *hardware().values())
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", fact).strip("-") or _NONE for fact in facts)


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""


def _version(trt: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in trt.__version__.split(".")[:2])


def _content(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise ModelError(f"{source}: cannot be read: {error.strerror}") from error


def _label(source: Path | bytes, name: str | None) -> str:
    return name or (str(source) if isinstance(source, Path) else "the given bytes")


def open_engine(
    engine: Path | bytes,
    threads: int = 1,
    name: str | None = None,
    *,
    flavor: str = TENSORRT,
    max_batch: int = 64,
    compute_capabilities: Sequence[str] = (),
    dla: bool = False,
    cache: Path | None = None,
) -> Session:
    """Open a plan, or build one from an ONNX model and open it.

    *Not verified on hardware.*

    Args:
        engine: the file, or its content.
        threads: as for the other runtimes; a GPU does not divide its work among the host's threads.
        name: what errors call it; by default the file's path.
        flavor: "tensorrt" or "tensorrt-rtx".
        max_batch: of :class:`BuildOptions`, where ``engine`` is an ONNX model, as are the following two.
        compute_capabilities: the same.
        dla: the same.
        cache: a folder that keeps what was built, with the description of its layers and the timings of kernels, so
            that one model is built once on a machine; None builds each time.

    Raises:
        MissingDependency: the library is not installed.
        DeviceError: there is no NVIDIA GPU, or it failed.
        ModelError: the engine cannot be built or opened.
        TargetError: as of :func:`build`.
        ValueError: ``threads`` or ``max_batch`` is below 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    if not isinstance(max_batch, int) or max_batch < 1 or not isinstance(dla, bool):
        raise TargetError(f"max_batch must be a number from 1 and dla true or false, not {max_batch!r} and {dla!r}")
    trt, label, content = library(flavor), _label(engine, name), _content(engine)
    facts: dict[str, str] = {}
    if content.startswith(_ONNX_START):
        options = BuildOptions(max_batch, tuple(compute_capabilities), dla)
        content, fallback = _plan(content, flavor, options, cache, label)
        facts = {"dla_fallback": ", ".join(fallback) or _NONE} if dla else {}
    with ExitStack() as stack:
        gpu = Gpu()
        stack.callback(gpu.close)
        session = _TensorRTSession(trt, gpu, content, label, _TITLES[flavor], {"gpu": gpu.name, **facts})
        stack.pop_all()
        return session


def layer_times(
    engine: Path, threads: int, rows: Sequence[Feeds], *, flavor: str = TENSORRT, **options: Any
) -> tuple[LayerTime, ...]:
    """Run an engine once for each of ``rows`` under TensorRT's profiler; return the time of each layer.

    *Not verified on hardware.*

    Args:
        engine: a plan, or an ONNX model, which is built.
        threads: as of :func:`open_engine`.
        rows: one row each.
        flavor: as of :func:`open_engine`.
        options: the same.

    Raises:
        MissingDependency, DeviceError, ModelError, TargetError: as of :func:`open_engine`.
    """
    times: dict[str, list[float]] = {}
    with open_engine(engine, threads, flavor=flavor, **options) as session:
        assert isinstance(session, _TensorRTSession)  # what open_engine returns
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
    compute_capabilities: Sequence[str] = (),
    dla: bool = False,
    cache: Path | None = None,
) -> Built | None:
    """Write the plan that is built of an ONNX model, and the description of its layers; None for what is a plan.

    *Not verified on hardware.*

    Args:
        engine: as for :func:`open_engine`, as are the others.
        folder: where to.
        threads: not used.
        flavor: "tensorrt" or "tensorrt-rtx".
        max_batch: of :class:`BuildOptions`.
        compute_capabilities: the same.
        dla: the same.
        cache: where the plan lies already if the model was opened before.

    Raises:
        MissingDependency, DeviceError, ModelError, TargetError: as :func:`open_engine`.
    """
    del threads
    content = _content(engine)
    if not content.startswith(_ONNX_START):
        return None
    options = BuildOptions(max_batch, tuple(compute_capabilities), dla)
    files = (f"{engine.stem}.plan", f"{engine.stem}.json")
    with tempfile.TemporaryDirectory() as scratch:
        kept, described = _built(content, flavor, options, cache or Path(scratch), str(engine))
        for path, name in zip((kept, described), files, strict=True):
            shutil.copyfile(path, folder / name)
        build_s = json.loads(described.read_text(encoding="utf-8")).get("build_s")
    return Built(files, f"{_TITLES[flavor]} {library(flavor).__version__}", {}, build_s)  # a plan says all itself


def _plan(
    content: bytes, flavor: str, options: BuildOptions, cache: Path | None, name: str
) -> tuple[bytes, tuple[str, ...]]:
    """Return the plan of an ONNX model, and the layers that a DLA left to the GPU; each model is built once a cache."""
    if cache is None:
        plan = build(content, flavor, options, name=name)
        return plan.content, plan.dla_fallback
    kept, described = _built(content, flavor, options, cache, name)
    return kept.read_bytes(), tuple(json.loads(described.read_text(encoding="utf-8"))["dla_fallback"])


def _built(content: bytes, flavor: str, options: BuildOptions, cache: Path, name: str) -> tuple[Path, Path]:
    """Return the files of plan and layers of an ONNX model in a cache, having built them where they are not there."""
    told = json.dumps([flavor, asdict(options), timing_cache_key(library(flavor))])
    stem = cache / hashlib.sha256(told.encode() + content).hexdigest()[:16]
    kept, described = stem.with_suffix(".plan"), stem.with_suffix(".json")
    if not kept.is_file():
        start = time.perf_counter()
        plan = build(content, flavor, options, timing_cache=cache, name=name)
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


class _TensorRTSession:
    """A :class:`Session` of TensorRT: one engine, one context, one stream, and memory for its largest batch."""

    @without_collector()
    def __init__(self, trt: Any, gpu: Gpu, content: bytes, name: str, title: str, facts: dict[str, str]) -> None:
        self._trt = trt
        self._profiler: Any = None
        self._sources: dict[str, Array] = {}
        self._gpu: Gpu | None = gpu
        self._name = name
        self._title = title
        self._journal = Journal(trt)
        self._runtime = _make(trt.Runtime, self._journal, title)
        self._engine = _deserialize(self._runtime, content, self._journal, name, title)
        # What its activations take of the GPU's memory, which a process's resident memory says nothing of.
        self.facts = {**facts, "device_memory": f"{self._engine.device_memory_size_v2 / 1e6:.2f} MB"}
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._error(f"cannot start it: {self._journal.reason()}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        specs = {tensor: _spec(trt, self._engine, tensor, name) for tensor in names}
        inputs = [t for t in names if self._engine.get_tensor_mode(t) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(specs[tensor] for tensor in inputs)
        self.outputs = tuple(specs[tensor] for tensor in names if tensor not in inputs)
        self._check = FeedCheck(self.inputs)
        self._largest = {tensor: self._largest_shape(tensor) for tensor in inputs}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._set_shapes(self._largest)
        self._addresses = {spec.name: self._allocate(gpu, spec) for spec in (*self.inputs, *self.outputs)}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self._check(feeds)
        gpu = self._gpu
        if gpu is None:
            raise ModelError(f"{self._name}: the engine is closed")
        for name, largest in self._largest.items():
            if feeds[name].shape > largest:  # all but the first dimension are equal
                raise ModelError(f"{self._name}: input '{name}' has {len(feeds[name])} samples, the engine takes "
                                 f"{largest[0]} at a time: build it with a larger max_batch")  # fmt: skip
        gpu.activate()
        self._upload(gpu, feeds)
        self._execute(gpu)
        results = {spec.name: np.empty(self._shape(spec.name), spec.dtype) for spec in self.outputs}
        for name, array in results.items():
            gpu.download(array, self._addresses[name])
        gpu.synchronize()
        return results

    def place(self, feeds: Feeds) -> Callable[[], int]:
        """Time the engine between two CUDA events; see :class:`~edgekd.runtime.session.TimesComputing`."""
        self._check(feeds)
        gpu = self._gpu
        if gpu is None:
            raise ModelError(f"{self._name}: the engine is closed")
        gpu.activate()
        self._upload(gpu, feeds)

        def compute() -> int:
            gpu.mark(0)
            self._execute(gpu)
            gpu.mark(1)
            gpu.synchronize()
            return gpu.between_ns()

        return compute

    def profile_layers(self, report: Callable[[str, float], None]) -> None:
        """Let ``report(name, ms)`` be told of each layer in each run from here on."""
        profiler = self._trt.IProfiler

        class Profiler(profiler):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                profiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                report(layer_name, ms)

        self._context.profiler = self._profiler = Profiler()  # TensorRT keeps no reference of its own

    def _upload(self, gpu: Gpu, feeds: Feeds) -> None:
        self._set_shapes({name: array.shape for name, array in feeds.items()})
        self._sources = {name: np.ascontiguousarray(array) for name, array in feeds.items()}  # until they are copied
        for name, array in self._sources.items():
            gpu.upload(self._addresses[name], array)

    def _execute(self, gpu: Gpu) -> None:
        with without_collector():
            started = self._context.execute_async_v3(gpu.stream)
        if not started:
            raise self._error(f"failed to run it: {self._journal.reason()}")

    def close(self) -> None:
        if self._gpu is not None:
            self._context = self._engine = self._runtime = None  # each before what it was made from
            self._profiler = None
            self._gpu.close()
            self._gpu = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _largest_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._engine.get_tensor_shape(name))
        if -1 not in shape:
            return shape
        _, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return tuple(largest)

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape and not self._context.set_input_shape(name, shape):
                raise self._error(f"refuses input '{name}' of shape {list(shape)}: {self._journal.reason()}")
            self._shapes[name] = shape

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        if -1 in shape:
            raise self._error(f"cannot tell the shape of '{name}' before it runs: write the network without that")
        return shape

    def _allocate(self, gpu: Gpu, spec: TensorSpec) -> int:
        address = gpu.allocate(prod(self._shape(spec.name)) * np.dtype(spec.dtype).itemsize)
        if not self._context.set_tensor_address(spec.name, address):
            raise self._error(f"refuses memory for '{spec.name}': {self._journal.reason()}")
        return address

    def _error(self, text: str) -> ModelError:
        return ModelError(f"{self._name}: {self._title} {text}")


def _spec(trt: Any, engine: Any, tensor: str, model: str) -> TensorSpec:
    kind = engine.get_tensor_dtype(tensor)
    try:
        dtype = np.dtype(trt.nptype(kind)).name
    except TypeError as error:
        raise ModelError(f"{model}: '{tensor}' is a {kind.name}, which numpy has no type for") from error
    # edgekd leaves only the batch open, which is the same for all tensors.
    sizes = enumerate(engine.get_tensor_shape(tensor))
    shape = tuple(size if size >= 0 else f"{tensor}.{axis}" if axis else "batch" for axis, size in sizes)
    return TensorSpec(tensor, dtype, shape)
