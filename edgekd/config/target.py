"""Targets and calibrations: facts about kinds of devices and settings of INT8, kept as TOML data.

A target is a kind of device. Its scheme says how INT8 must be written into ONNX so that the target's runtime computes
it right and fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from edgekd.config.toml import read_toml
from edgekd.config.validation import check_keys, check_values, explain
from edgekd.errors import TargetError, nearest
from edgekd.files import data_dir
from edgekd.plugins import anchor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekd.files import JsonObject

#: Operators that ONNX Runtime's quantizer can make INT8.
Operator = Literal[
    "Add", "ArgMax", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "CumSum",
    "EmbedLayerNormalization", "Flatten", "Gather", "GatherElements", "Gemm", "GlobalAveragePool",
    "InstanceNormalization", "LayerNormalization", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "TopK", "Transpose", "Unsqueeze", "Where",
]  # fmt: skip

#: Operators with weights and those that stand between them. Element-wise arithmetic on raw inputs stays float: one
#: scale for channels of different units would destroy them.
DEFAULT_OPERATORS: tuple[Operator, ...] = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Concat", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip


Arch = Literal["x86_64", "aarch64", "arm64", "AMD64"]
Precision = Literal["int8", "float16", "float32"]
#: GPUs that TensorRT-RTX builds INT8 for.
Capability = Literal["SM80", "SM86", "SM89", "SM120", "SM121"]


class Scheme(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a target wants INT8 written into ONNX."""

    activations: Annotated[Literal["uint8", "int8"], Meta(description="Type of quantized activations.")]
    symmetric_activations: Annotated[
        bool, Meta(description="Whether the zero point is 0 (TensorRT) or free (ONNX Runtime).")
    ]
    per_channel: Annotated[bool, Meta(description="One weight scale for each output channel.")] = True
    reduce_range: Annotated[
        bool, Meta(description="7-bit weights: x86 with AVX2 but no VNNI saturates 16-bit sums otherwise.")
    ] = True
    bias: Annotated[Literal["int32", "float"], Meta(description="Type of biases.")] = "int32"
    rest: Annotated[
        Literal["float32", "float16"],
        Meta(description="Type of what is not INT8; inputs, outputs and arithmetic on raw inputs stay float32."),
    ] = "float32"
    operators: Annotated[
        list[Operator], Meta(min_length=1, description="ONNX operators that compute in INT8; all others stay float.")
    ] = msgspec.field(default_factory=lambda: list(DEFAULT_OPERATORS))


class Budgets(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits that an engine should keep on this target; None is no limit."""

    latency_ms: Annotated[float, Meta(gt=0, le=1_000_000_000, description="p50 at batch 1.")] | None = None
    size_mb: Annotated[float, Meta(gt=0, le=1_000_000_000, description="Engine file, 10^6 bytes.")] | None = None
    memory_mb: (
        Annotated[float, Meta(gt=0, le=1_000_000_000, description="Peak resident memory, 10^6 bytes.")] | None
    ) = None


class Hosts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Machines that are of this kind, so that an engine for them can run and be timed on this host."""

    arch: Annotated[
        list[Arch], Meta(min_length=1, description="Processor architectures, as 'uname -m' prints them.")
    ] = msgspec.field(default_factory=lambda: list(get_args(Arch)))
    model: Annotated[
        str, Meta(description="Text that the name of the board or the processor must contain; '' for any.")
    ] = ""


class Compile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Build engines ahead of time on the workstation: what NVIDIA's parser would refuse is refused there."""

    library: Annotated[
        Literal["tensorrt-rtx"], Meta(description="TensorRT-RTX builds without a GPU, from the code that boards run.")
    ]
    compute_capabilities: Annotated[
        list[Capability],
        Meta(
            min_length=1,
            description="Compute capabilities of the GPUs that one engine is to run on, e.g. ['SM86', 'SM89'].",
        ),
    ]
    ship: Annotated[
        bool, Meta(description="Put the built engines into the bundle. If false they are a proof alone.")
    ] = False


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of device."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            description="Names a folder of the output: letters, digits, '.', '_' and '-'. By default the file's name.",
        ),
    ]
    description: str
    runtime: Annotated[
        str,
        Meta(
            description="The engine library: one of edgekd's, or your own, 'path/to/file.py:name' or "
            "'package.module:name', which opens engines."
        ),
    ]
    options: Annotated[dict[str, Any], Meta(description="Options with which the runtime opens an engine.")] = {}
    precisions: Annotated[
        list[Precision],
        Meta(min_length=1, description="Precisions of engines; the first is preferred where none is clearly faster."),
    ] = msgspec.field(default_factory=lambda: ["int8", "float32"])
    quantizers: Annotated[
        list[str],
        Meta(
            min_length=1,
            description="Quantizers that write INT8, the most promising first: 'qdq' is edgekd on ONNX Runtime, 'nncf' "
            "OpenVINO's NNCF; 'dynamic' rounds activations in the range that each inference has, and 'weights8' and "
            "'weights4' store matrices in blocks of few bits, both for ONNX Runtime where a graph's products with "
            "matrices can gain by it; or your own, 'path/to/file.py:name' or 'package.module:name'.",
        ),
    ] = msgspec.field(default_factory=lambda: ["qdq"])
    scheme: Scheme
    opset: Annotated[int, Meta(ge=18, le=23, description="ONNX opset of the exported graph.")] = 20
    round_to: Annotated[
        int, Meta(ge=1, le=1024, description="Pruned widths are multiples of this, as the target's kernels prefer.")
    ] = 8
    hosts: Hosts = Hosts()
    compile: Compile | None = None
    power_rails: Annotated[
        list[str], Meta(description="Names of the power sensors that add up to the module's draw.")
    ] = []
    budgets: Budgets = Budgets()
    notes: Annotated[list[str], Meta(description="Facts behind the choices, each with its source.")] = []

    def __post_init__(self) -> None:
        for name, values in (("precisions", self.precisions), ("quantizers", self.quantizers)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each may be named once only")


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How activation ranges are found, and how weights are rounded."""

    description: str
    ranges: Annotated[
        Literal["minmax", "percentile", "entropy", "mse", "gram"],
        Meta(
            description="How ranges are found: 'minmax', 'percentile' and 'entropy' are ONNX Runtime's; 'mse' has the "
            "least squared rounding error; 'gram' shrinks the extremes where that keeps Gram and logits better."
        ),
    ]
    rounding: Annotated[
        Literal["nearest", "reconstruct"],
        Meta(
            description="How weights get their INT8 levels: each the nearest, or together so that each layer's output "
            "is kept on the calibration samples, its bias taking up the mean error."
        ),
    ] = "nearest"
    samples: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000_000,
            description="Number of samples of the calibration split; all of them where it has fewer.",
        ),
    ] = 512
    chunk: Annotated[int, Meta(ge=1, le=1_000_000, description="Samples held in memory at a time.")] = 64
    seed: Annotated[int, Meta(ge=0, lt=2**31, description="Seed for choosing the samples.")] = 0


def shipped_targets() -> dict[str, Path]:
    """Return the target files that come with edgekd, by name."""
    return {path.stem: path for path in sorted(data_dir("targets").glob("*.toml"))}


def find_target(reference: str) -> Path:
    """Return the file of a target: of a shipped name, or the path of a ``.toml``.

    Raises:
        TargetError: There is no such target.
    """
    return _find(reference, shipped_targets(), "target")


def check_distinct(targets: Iterable[Target]) -> None:
    """Raise TargetError where two targets have one name: each names a folder of the output."""
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise TargetError(f"two targets are called '{name}'; give one another name in its file")


def read_target(reference: str) -> Target:
    """Read a target by a shipped name, or by the path of a ``.toml``.

    Its engine library and the options for that are checked by :func:`edgekd.devices.targets.load_target`, which knows
    the libraries.

    Raises:
        TargetError: There is no such target, or its file is not valid.
    """
    path = find_target(reference)
    content = {"name": path.stem, **read_toml(path, TargetError)}
    target = convert(content, Target, path)
    return msgspec.structs.replace(
        target,
        runtime=anchor(target.runtime, path.parent),
        quantizers=[anchor(name, path.parent) for name in target.quantizers],
    )


def load_calibration(reference: str) -> Calibration:
    """Read a calibration by a shipped name, or by the path of a ``.toml``.

    Raises:
        TargetError: There is no such calibration, or its file is not valid.
    """
    shipped = {path.stem: path for path in sorted(data_dir("calibration").glob("*.toml"))}
    path = _find(reference, shipped, "calibration")
    return convert(read_toml(path, TargetError), Calibration, path)


def _find(reference: str, shipped: dict[str, Path], kind: str) -> Path:
    if reference.endswith(".toml"):
        path = Path(reference)
        try:
            if path.is_file():
                return path
        except OSError as error:  # such as a name that is too long for a file
            raise TargetError(f"{path}: cannot be read: {error.strerror}") from error
        raise TargetError(f"{path}: {'is no file' if path.exists() else f'no such {kind} file'}")
    if reference not in shipped:
        raise TargetError(f"no {kind} '{reference}'{nearest(reference, shipped)} (a file's path must end in .toml)")
    return shipped[reference]


_S = TypeVar("_S", bound=Struct)


def convert(content: JsonObject, struct: type[_S], path: Path, at: str = "") -> _S:
    """Return a table of a file as a struct.

    Args:
        content: The table.
        struct: The struct.
        path: The file, for errors.
        at: The table's place in the file, e.g. "options."; "" for the top level.

    Raises:
        TargetError: a key is unknown, or a value is of a wrong type or out of range.
    """
    check_keys(content, struct, str(path), TargetError, at)
    check_values(content, struct, str(path), TargetError, at.rstrip("."))
    try:
        return msgspec.convert(content, struct)
    except msgspec.ValidationError as error:
        raise TargetError(f"{path}: {at}{explain(error, struct)}") from error
