"""A trained model and its samples, as a user names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.gram.gate import GIVEN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.config.recipe import OutputConfig
    from edgekd.pipeline.onnx_import.answers.own_metric import OwnMetric

#: Name of the float graph that is written.
NETWORK = "float"


@dataclass(frozen=True)
class OnnxSource:
    """A trained model and its samples, as a user names them.

    Attributes:
        model: File of the float ONNX model.
        calibration: ``.npz`` of samples, as :func:`~edgekd.pipeline.onnx_import.samples.read_samples` describes it.
        test: ``.npz`` of other samples; None to keep half of ``calibration`` for the test.
        taps: For each modality the tensor that holds its embedding. Where it is empty, the tensors where the data of
            several float inputs meet; where none do, the model's outputs.
        outputs: The outputs that the engine gives, and what each is; empty for all that are float tensors.
        only: What is said of the output of a network that has one, in place of ``outputs``.
        states: For each input that is a state the output that holds it after a step; None to find them.
        fixed: Inputs that never change, and the number that each is: they are constants of the engine.
        metric: The user's own metric; None to measure the accuracy, where there are labels of classes.
        as_is: Whether the model stays in its own precision, which may be of integers.
    """

    model: Path
    calibration: Path
    test: Path | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, OutputConfig] = field(default_factory=dict)
    only: OutputConfig | None = None
    states: Mapping[str, str] | None = None
    fixed: Mapping[str, float] = field(default_factory=dict)
    metric: OwnMetric | None = None
    as_is: bool = False

    @property
    def network(self) -> str:
        """Name of the graph that is written, as the ledger's row of it is called."""
        return GIVEN if self.as_is else NETWORK
