"""Targets and calibrations: facts about devices and about how to calibrate, kept as TOML data.

A target is a kind of device. Its scheme says how INT8 must be written into ONNX so that the target's runtime computes
it right and fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from edgekd.errors import TargetError, nearest
from edgekd.files import data_dir, read_toml
from edgekd.recipe import check_keys, check_values, explain

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What ONNX Runtime's quantizer can make INT8.
Operator = Literal[
    "Add", "ArgMax", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "CumSum",
    "EmbedLayerNormalization", "Flatten", "Gather", "GatherElements", "Gemm", "GlobalAveragePool",
    "InstanceNormalization", "LayerNormalization", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "TopK", "Transpose", "Unsqueeze", "Where",
]  # fmt: skip

#: Weight-bearing operators and what stands between them. Element-wise arithmetic on raw inputs stays float: one scale
#: for channels of different units would destroy them.
DEFAULT_OPERATORS: tuple[Operator, ...] = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Concat", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip


class Scheme(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a target wants INT8 written into ONNX."""

    activations: Annotated[Literal["uint8", "int8"], Meta(description="Type of quantized activations.")]
    symmetric_activations: Annotated[bool, Meta(description="Zero point 0 (TensorRT), or free (ONNX Runtime).")]
    per_channel: Annotated[bool, Meta(description="One weight scale for each output channel.")] = True
    reduce_range: Annotated[
        bool, Meta(description="7-bit weights: x86 with AVX2 but no VNNI saturates 16-bit sums otherwise.")
    ] = True
    bias: Annotated[Literal["int32", "float"], Meta(description="Type of biases.")] = "int32"
    operators: Annotated[
        list[Operator], Meta(min_length=1, description="ONNX operators that compute in INT8; all others stay float.")
    ] = msgspec.field(default_factory=lambda: list(DEFAULT_OPERATORS))


class Budgets(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits that an engine should keep on this target; None where there is none."""

    latency_ms: Annotated[float, Meta(gt=0, description="p50 at batch 1.")] | None = None
    size_mb: Annotated[float, Meta(gt=0, description="Engine file, 10^6 bytes.")] | None = None
    memory_mb: Annotated[float, Meta(gt=0, description="Peak resident memory, 10^6 bytes.")] | None = None


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
    runtime: Annotated[Literal["onnxruntime"], Meta(description="The engine library.")]
    scheme: Scheme
    opset: Annotated[int, Meta(ge=18, le=23, description="ONNX opset of the exported graph.")] = 20
    budgets: Budgets = Budgets()
    notes: Annotated[list[str], Meta(description="Facts behind the choices, each with its source.")] = []


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How activation ranges are found."""

    description: str
    method: Annotated[Literal["minmax", "percentile", "entropy"], Meta(description="ONNX Runtime's calibrator.")]
    samples: Annotated[int, Meta(ge=1, description="Samples of the calibration split; fewer when it has fewer.")] = 512
    chunk: Annotated[int, Meta(ge=1, description="Samples held in memory at a time.")] = 64
    seed: Annotated[int, Meta(ge=0, description="Chooses the samples.")] = 0


def shipped_targets() -> dict[str, Path]:
    """Return the target files that come with edgekd, by name."""
    return {path.stem: path for path in sorted(data_dir("targets").glob("*.toml"))}


def find_target(reference: str) -> Path:
    """Return a target's file: of a shipped name, or the path of a ``.toml``.

    Raises:
        TargetError: there is no such target.
    """
    return _find(reference, shipped_targets(), "target")


def load_targets(references: Iterable[str]) -> list[Target]:
    """Read several targets, each once. Their names must differ: each names a folder of the output.

    Raises:
        TargetError: as :func:`load_target`, or two of them have one name.
    """
    targets = [load_target(reference) for reference in dict.fromkeys(references)]
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise TargetError(f"two targets are called '{name}'; give one another name in its file")
    return targets


def load_target(reference: str) -> Target:
    """Read a target: a shipped name, or the path of a ``.toml``.

    Raises:
        TargetError: there is no such target, or its file is not valid.
    """
    path = find_target(reference)
    content = {"name": path.stem, **read_toml(path, TargetError)}
    return _convert(content, Target, path)


def load_calibration(reference: str) -> Calibration:
    """Read a calibration: a shipped name, or the path of a ``.toml``.

    Raises:
        TargetError: there is no such calibration, or its file is not valid.
    """
    shipped = {path.stem: path for path in sorted(data_dir("calibration").glob("*.toml"))}
    path = _find(reference, shipped, "calibration")
    return _convert(read_toml(path, TargetError), Calibration, path)


def _find(reference: str, shipped: dict[str, Path], kind: str) -> Path:
    if reference.endswith(".toml"):
        path = Path(reference)
        if not path.is_file():
            raise TargetError(f"{path}: no such {kind} file")
        return path
    if reference not in shipped:
        raise TargetError(f"no {kind} '{reference}'{nearest(reference, shipped)} (a file's path must end in .toml)")
    return shipped[reference]


_S = TypeVar("_S", bound=Struct)


def _convert(content: dict[str, Any], struct: type[_S], path: Path) -> _S:
    check_keys(content, struct, str(path), TargetError)
    check_values(content, str(path), TargetError)
    try:
        return msgspec.convert(content, struct)
    except msgspec.ValidationError as error:
        raise TargetError(f"{path}: {explain(error, struct)}") from error
