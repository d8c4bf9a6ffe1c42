"""Whether ONNX Runtime's optimizers leave a graph's outputs as they are, and which of them does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from edgekd.runtime.session import Array, Feeds

#: Optimizers that change by more than the order of sums what some graph computes, the likeliest first, by the names
#: that ONNX Runtime 1.32 has for them (onnxruntime/core/optimizer/graph_transformer_utils.cc).
_SUSPECTS = (
    "WeightBiasQuantization", "QDQSelectorActionTransformer", "QDQS8ToU8Transformer", "QDQPropagationTransformer",
    "DoubleQDQPairsRemover", "QDQFinalCleanupTransformer", "ConstantFolding", "FastGeluFusion", "QuickGeluFusion",
    "BiasGeluFusion", "GeluFusionL1", "GeluFusionL2", "LayerNormFusion", "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion", "EmbedLayerNormFusion", "AttentionFusion", "BiasSoftmaxFusion", "MatMulScaleFusion",
    "MatMulNBitsFusion", "MatMulAddFusion", "NhwcTransformer", "NchwcTransformer", "Level1_RuleBasedTransformer",
    "Level2_RuleBasedTransformer",
)  # fmt: skip
#: The optimizer that makes integer kernels of Q/DQ nodes.
INTEGER_KERNELS = "QDQSelectorActionTransformer"


@dataclass(frozen=True)
class FusedDifference:
    """What ONNX Runtime's optimizers do to a graph.

    Attributes:
        error: RMS of the change of the output that changes most, as a share of that output's RMS.
        optimizer: The optimizer without which there is no change; None where no single one makes it.
    """

    error: float
    optimizer: str | None


def relative_error(found: Array, exact: Array) -> float:
    """Return the RMS of the difference as a share of the RMS of ``exact``; NaN where a value is not finite."""
    power = float(np.square(exact, dtype=np.float64).mean())
    error = float(np.square(found.astype(np.float64) - exact).mean())
    return float(np.sqrt(error / power)) if power else float(np.sqrt(error))


def output_error(found: Mapping[str, Array], exact: Mapping[str, Array]) -> float:
    """Return the largest :func:`relative_error` of any output; NaN where one is."""
    return float(np.max([relative_error(found[name], x) for name, x in exact.items()]))


def fused_difference(engine: Path, samples: Iterable[Feeds], tolerance: float) -> FusedDifference | None:
    """Compare a graph's outputs with ONNX Runtime's optimizers and without them, on this host.

    Args:
        engine: ONNX file.
        samples: A few samples, in chunks.
        tolerance: Largest relative error that counts as rounding.

    Returns:
        None where the two agree.
    """
    chunks = list(samples)
    written = _outputs(engine, chunks, None)
    error = output_error(_outputs(engine, chunks, ()), written)
    if error <= tolerance:
        return None
    guilty = (name for name in _SUSPECTS if output_error(_outputs(engine, chunks, (name,)), written) <= tolerance)
    return FusedDifference(error, next(guilty, None))


def _outputs(engine: Path, chunks: Sequence[Feeds], disabled: Sequence[str] | None) -> dict[str, Array]:
    """Return the outputs for all samples with all optimizers but those ``disabled``; None disables every one."""
    ort = need("onnxruntime", "build")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if disabled is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        str(engine), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled or ())
    )
    names = [output.name for output in session.get_outputs()]
    rows = zip(*(session.run(names, dict(feeds)) for feeds in chunks), strict=True)
    return {name: np.concatenate(parts) for name, parts in zip(names, rows, strict=True)}
