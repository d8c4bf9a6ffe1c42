"""Build engines with TensorRT or TensorRT-RTX, and explain why a graph cannot be built."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.errors import DeviceError, ModelError, TargetError, nearest
from edgekd.files import atomic_path
from edgekd.runtime.backends.cuda import ABSENT, nvidia_facts
from edgekd.runtime.backends.tensorrt_library import (
    RTX,
    TITLES,
    deserialize,
    library,
    library_version,
    make,
    read_engine,
)
from edgekd.runtime.backends.tensorrt_log import THE_GRAPH, Journal, advice, node, plain, without_collector
from edgekd.runtime.session import engine_label

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from tensorrt import ComputeCapability, ILayer, IOptimizationProfile

    from edgekd.files import JsonObject

#: Before, types are allowed by flags; since, the graph states them all, and the flags are gone in 11.
_STRONGLY_TYPED_SINCE = (10, 12)


@dataclass(frozen=True)
class BuildOptions:
    """The machines and batches that an engine is built for.

    Attributes:
        max_batch: The most samples of one inference, where the graph leaves that open; the engine is tuned for 1.
        compute_capabilities: The GPUs, e.g. ("SM86", "SM89"), for all of which TensorRT-RTX builds ahead of time; empty
            for this machine's GPU.
        dla: Whether TensorRT runs on a Jetson's DLA cores what they can run, and the rest on the GPU; ``max_batch``
            must then be 1.
    """

    max_batch: int = 64
    compute_capabilities: tuple[str, ...] = ()
    dla: bool = False


@dataclass(frozen=True)
class EnginePlan:
    """A built engine.

    Attributes:
        content: The serialized engine; it fits this library's version and this kind of GPU alone.
        layers: The name, type and tensors of each layer.
        layers_from: "engine" where the library's inspector described the fused layers; otherwise the reason why they
            are those of the parsed graph, before fusion.
        dla_fallback: The layers that run on the GPU although a DLA was asked for.
        messages: The library's harmless warnings, each with the node that it was about.
        library: "TensorRT" or "TensorRT-RTX".
        version: The library's version.
    """

    content: bytes
    layers: tuple[JsonObject, ...]
    layers_from: str
    dla_fallback: tuple[str, ...]
    messages: tuple[str, ...]
    library: str
    version: str


@without_collector()
def build_plan(
    model: Path | bytes,
    flavor: str,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    name: str | None = None,
) -> EnginePlan:
    """Build an engine from a float or QDQ graph, in the types that the graph states.

    Args:
        model: The ONNX file, or its content.
        flavor: "tensorrt" or "tensorrt-rtx".
        options: The machines and batches that it is built for.
        timing_cache: The folder of caches that make a later build of a similar graph quicker; TensorRT-RTX has none.
        name: The model's name in errors; by default the file's path.

    Raises:
        MissingDependency: the library is not installed.
        ModelError: the library refuses the graph, or would compute something else than it says.
        TargetError: the options ask for what the library or this machine does not have.
        DeviceError: the library needs a GPU for this, and finds none.
        ValueError: ``max_batch`` is below 1.
    """
    if options.max_batch < 1:
        raise ValueError(f"max_batch must be 1 or more, not {options.max_batch}")
    steps = PlanBuilder(library(flavor), flavor, engine_label(model, name))
    steps.parse(read_engine(model))
    steps.configure(options)
    profile = steps.profile(options.max_batch)
    fallback = steps.use_dla(options) if options.dla else ()
    cache = None if timing_cache is None or flavor == RTX else timing_cache / f"{timing_cache_key(steps.trt)}.cache"
    content = steps.serialize(profile, cache)
    layers, layers_from = steps.describe(content)
    messages, version = steps.journal.warnings(), steps.trt.__version__
    return EnginePlan(content, layers, layers_from, fallback, messages, TITLES[flavor], version)


class PlanBuilder:
    """One build, step by step; it keeps a reference to every object of the library that a later step needs."""

    @without_collector()
    def __init__(self, trt: ModuleType, flavor: str, name: str) -> None:
        self.trt = trt
        self.journal = Journal(trt)
        self._title = f"{TITLES[flavor]} {trt.__version__}"
        self._flavor = flavor
        self._name = name
        self._builder = make(trt.Builder, self.journal, self._title)
        self._strong = flavor == RTX or library_version(trt) >= _STRONGLY_TYPED_SINCE
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed if self._strong else 0)
        self._config = self._builder.create_builder_config()
        self._parser = trt.OnnxParser(self._network, self.journal.logger)

    @without_collector()
    def parse(self, content: bytes) -> None:
        """Read the graph.

        Raises:
            ModelError: the parser refuses or misreads it.
        """
        parsed = self._parser.parse(content)
        self.journal.at = THE_GRAPH
        if not parsed:
            raise self._refusal()
        self._refuse_wrong("misreads")
        if self._network.num_outputs == 0:
            raise self._error("finds no graph in it: export it again")

    def configure(self, options: BuildOptions) -> None:
        """Set what the engine is built for.

        Raises:
            TargetError: the options ask for what the library does not have.
        """
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

    def _capability(self, wanted: str) -> ComputeCapability:
        known = self.trt.ComputeCapability.__members__
        if wanted not in known or wanted == "NONE":
            names = [name for name in known if name.startswith("SM")]
            raise TargetError(f"{self._title} builds for no compute capability '{wanted}'{nearest(wanted, names)}")
        return known[wanted]

    def _allow_types(self) -> None:
        """Allow TensorRT before 10.12 the types that the graph uses, and keep float32 arithmetic in float32.

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

    def profile(self, max_batch: int) -> IOptimizationProfile | None:
        """Return the profile of the batches that the engine must take, or None where the graph fixes the batch."""
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
    def serialize(self, profile: IOptimizationProfile | None, cache: Path | None) -> bytes:
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

    def describe(self, content: bytes) -> tuple[tuple[JsonObject, ...], str]:
        """Return the engine's layers and where they are known from; see :class:`EnginePlan`."""
        try:
            runtime = make(self.trt.Runtime, self.journal, self._title)
            engine = deserialize(runtime, content, self.journal, self._name, self._title)
        except (DeviceError, ModelError) as error:
            return tuple(self._parsed()), f"graph: {error}"
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        layers = json.loads(text)["Layers"]
        return tuple(layer if isinstance(layer, dict) else {"Name": layer} for layer in layers), "engine"

    def _parsed(self) -> Iterator[JsonObject]:
        """Yield the layers of the parsed graph in the inspector's terms; a constant is none in an engine."""
        for layer in self._layers():
            if layer.type != self.trt.LayerType.CONSTANT:
                tensors = [layer.get_output(index) for index in range(layer.num_outputs)]
                outputs = [
                    {"Name": tensor.name, "Dimensions": list(tensor.shape), "Datatype": tensor.dtype.name}
                    for tensor in tensors
                ]
                yield {"Name": layer.name, "LayerType": layer.type.name, "Outputs": outputs}

    def _layers(self) -> Iterator[ILayer]:
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


def timing_cache_key(trt: ModuleType) -> str:
    """Name what timings are valid for: library version, GPU, system and power mode; "none" for what is not there."""
    facts = (f"trt-{trt.__version__}", *nvidia_facts().values())
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", fact).strip("-") or ABSENT for fact in facts)
