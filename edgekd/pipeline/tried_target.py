"""What comes of trying a target with untrained networks, apart from the trial itself, which needs all of its stages."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.stages.stage import StageSpec


@dataclass(frozen=True)
class TriedTarget:
    """A target that can be built.

    Attributes:
        tried: The candidates that its library and device took.
        refused: For each that they did not the reason.
    """

    tried: tuple[str, ...]
    refused: dict[str, str]


PREFLIGHT_TARGET: StageSpec[TriedTarget] = StageSpec(
    "preflight_target",
    4,
    TriedTarget,
    ("onnx", "onnxruntime"),
    "quantize, build, run, judge and bundle the untrained student for the target",
    lambda found: f"{', '.join(found.tried)} can be built",
)
