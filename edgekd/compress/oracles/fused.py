"""Whether ONNX Runtime's optimizers leave a graph's logits as they are, and which of them does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
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
        error: RMS of the change of the logits, as a share of the RMS of the logits.
        optimizer: The optimizer without which there is no change; None where no single one makes it.
    """

    error: float
    optimizer: str | None


def relative_error(found: Array, exact: Array) -> float:
    """Return the RMS of the difference as a share of the RMS of ``exact``; NaN where a value is not finite."""
    power = float(np.square(exact, dtype=np.float64).mean())
    error = float(np.square(found.astype(np.float64) - exact).mean())
    return float(np.sqrt(error / power)) if power else float(np.sqrt(error))


def fused_difference(engine: Path, samples: Iterable[Feeds], tolerance: float) -> FusedDifference | None:
    """Compare a graph's logits with ONNX Runtime's optimizers and without them, on this host.

    Args:
        engine: ONNX file with an output ``logits``.
        samples: A few samples, in chunks.
        tolerance: Largest relative error that counts as rounding.

    Returns:
        None where the two agree.
    """
    chunks = list(samples)
    written = _logits(engine, chunks, None)
    error = relative_error(_logits(engine, chunks, ()), written)
    if error <= tolerance:
        return None
    guilty = (name for name in _SUSPECTS if relative_error(_logits(engine, chunks, (name,)), written) <= tolerance)
    return FusedDifference(error, next(guilty, None))


def _logits(engine: Path, chunks: Sequence[Feeds], disabled: Sequence[str] | None) -> Array:
    """Return the logits of all samples with all optimizers but those ``disabled``; None disables every one."""
    ort = need("onnxruntime", "build")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if disabled is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        str(engine), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled or ())
    )
    return np.concatenate([session.run(["logits"], dict(feeds))[0] for feeds in chunks])
