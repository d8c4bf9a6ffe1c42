"""A trained model and its samples: as a user names them, and as they are imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.compress.variants import Candidate  # noqa: TC001  # the type of a stage's result is looked up when it is read back
from edgekd.gram.gate import GIVEN
from edgekd.pipeline.onnx_import.taps import TensorTap  # noqa: TC001  # likewise
from edgekd.stages.artifacts import Exported  # noqa: TC001  # likewise

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.config.recipe import OutputConfig
    from edgekd.pipeline.onnx_import.answers.own_metric import OwnMetric

#: Name of the float graph that is written.
NETWORK = "float"

#: Name of the candidate that a model which is built as it is becomes, and of the folder of its graphs.
AS_IS = "as-is"


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


@dataclass(frozen=True)
class ImportedModel:
    """An imported model: ``float.onnx`` with its own outputs and the embeddings, its samples, and its probes of them.

    Attributes:
        exported: The export, as of a network that was trained here; ``parity`` is against the user's own file.
        modalities: For each modality where its embedding is read.
        notes: Sentences for the user on how model and samples were read.
        reasons: Why each output is taken for its kind, as a phrase.
        given: The candidate that a model which stays as it is is; None for a model that is quantized here.
        deploy_logit_error: Largest |difference| of an output between the two variants of that candidate.
    """

    exported: Exported
    modalities: dict[str, TensorTap]
    notes: tuple[str, ...]
    reasons: dict[str, str]
    given: Candidate | None = None
    deploy_logit_error: float = 0.0
