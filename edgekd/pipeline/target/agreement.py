"""Whether what runs a candidate's graph computes what the graph says: the device, and ONNX Runtime's optimizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.oracles.fused import INTEGER_KERNELS, fused_difference, output_error
from edgekd.compress.quantizers.prepare import open_samples
from edgekd.config.target import load_calibration
from edgekd.gram.answers import changed_answers
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import DEPLOY

if TYPE_CHECKING:
    from edgekd.compress.oracles.fused import FusedDifference
    from edgekd.pipeline.target.context import Context, PreparedCandidate

#: Calibration samples that show what optimizers do.
_SAMPLES = 32
#: Relative error of outputs that rounding makes in any graph; in INT8 it is as large as that of INT8 itself.
_ROUNDING = 0.01


def find_disagreement(context: Context, candidate: PreparedCandidate, device: Probe | None) -> str | None:
    """Return a sentence for the user where an engine of a candidate computes something else than its graph says.

    What the graph says is what ONNX Runtime computes without optimizers on this host.

    Args:
        context: The target.
        candidate: The candidate.
        device: What the device gave for the validation samples; None without one. Where ONNX Runtime is the target's
            library, it is then compared with itself on calibration samples: its optimizers are the same everywhere.
    """
    written = Probe.load(candidate.steps[-1].probe)
    exact = context.origin.probes("validation")[context.origin.baselines[-1]]
    tolerance = max(_ROUNDING, output_error(written.outputs, exact.outputs))
    error = output_error(device.outputs, written.outputs) if device else 0.0
    if device and error <= tolerance:
        return None
    fused = _compare_fused(context, candidate, tolerance)
    if device is None:
        return None if fused is None else f"{_explain(context, fused)}{_REMEDY}"
    shares = [
        changed.mean()
        for name, kind in context.rules.kinds.items()
        if (changed := changed_answers(device.outputs[name], written.outputs[name], kind)) is not None
    ]
    share = f", {max(shares):.1%} of the answers change" if shares else ""
    reason = f": {_explain(context, fused)}{_REMEDY}" if fused else ""
    said = f"{context.public_runtime} computes other outputs than the graph says"
    return f"{said} (by {error:.0%} of their RMS{share}){reason}"


_REMEDY = "; fused = false in the target's [options] runs the graph as it is written, only slower"


def _compare_fused(context: Context, candidate: PreparedCandidate, tolerance: float) -> FusedDifference | None:
    if not context.on_onnxruntime or not context.target.options.get("fused", True):
        return None
    engine = candidate.folder / DEPLOY
    samples = open_samples(engine, context.calibration, load_calibration(context.recipe.quantize.ranges_and_rounding))
    return fused_difference(engine, samples.fewer(_SAMPLES), tolerance)


def _explain(context: Context, fused: FusedDifference) -> str:
    culprit = f"its optimizer {fused.optimizer}" if fused.optimizer else "its optimizers together"
    said = f"in ONNX Runtime {culprit} changes the outputs by {fused.error:.0%} of their RMS"
    if fused.optimizer == INTEGER_KERNELS and not context.target.scheme.reduce_range:
        return f"{said} (x86 with AVX2 and no VNNI saturates with 8-bit weights, which reduce_range = true avoids)"
    return said
