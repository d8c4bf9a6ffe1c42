"""Results and files of the stages that train. Importing this module imports no torch: finished results need none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.gram.output_kind import OutputKind  # noqa: TC001  # msgspec reads the annotations of TaskFacts

if TYPE_CHECKING:
    from collections.abc import Iterable

#: In the folder of a stage that trains: the weights, the probe on the test split, and what was pruned.
WEIGHTS, PROBE, REMOVED = "model.safetensors", "probe.npz", "removed.json"

#: In the same folder, the probe of the network just cut, before its last fine-tune.
CUT_PROBE = "cut.npz"

#: In the folder of the stage robustness, the statistics of the training inputs, for what is measured of engines.
CHANNELS = "channels.npz"

#: Samples for the stages without torch: `input.<modality>`, `ids`, `labels` and, where there are any, `groups`. Ranges,
#: blame and the order of a repair are found on those of the calibration; what a repair ends with and which candidate
#: ships is decided on those of the validation; those of the test judge what ships, and only that. Where some
#: samples lack a modality, `present.<modality>` says which have it.
TEST, VALIDATION, CALIBRATION = "test.npz", "validation.npz", "calibration.npz"

#: In a candidate's folder, its graph with the embeddings as further outputs, to check, and without them, to deploy.
PROBE_GRAPH, DEPLOY = "probe.onnx", "deploy.onnx"

#: Beside them, for INT8, the float graph that was quantized, and the QDQ graph before anything became FP16.
PREPARED, QDQ = "prepared.onnx", "qdq.onnx"


#: Name of the student as it is exported before it is trained.
UNTRAINED = "untrained"


@dataclass(frozen=True)
class TaskFacts:
    """Facts about the task that later stages need.

    Attributes:
        metric: Name of the task metric.
        higher_is_better: Whether a larger metric is better.
        outputs: What each of the networks' outputs is, by name, in order.
        classes: For each output that tells classes or labels apart, their names in order.
        inputs: For each input its name, dtype, shape and preprocessing, as in a bundle's manifest.
        modalities: Inputs that are data, any of which may be absent: no masks, numbers of tokens, or states.
        stand_ins: For each modality the inputs that take a number while it is absent: ids and bytes, which have no
            mean, and its mask. Floats take their mean where they are not named here.
        own_same: Whether the task itself says which answers are the same.
        states: For each input that is a state the output that holds it after a step; such an output is judged only
            where it is among ``outputs``.
    """

    metric: str
    higher_is_better: bool
    outputs: dict[str, OutputKind]
    classes: dict[str, list[str]]
    inputs: list[dict[str, str | list[int | str]]]
    modalities: list[str] = field(default_factory=list)
    stand_ins: dict[str, dict[str, float]] = field(default_factory=dict)
    own_same: bool = False
    states: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """Networks that were exported to ONNX, each to the file :func:`onnx_name`.

    Attributes:
        parity: For each network the largest |ONNX - torch| over all outputs, as a share of the output's largest
            magnitude.
        sizes: Bytes of each network's file.
        facts: Facts about the task.
        refused: Why a network was not exported that the build can do without, as the rest of a sentence.
    """

    parity: dict[str, float]
    sizes: dict[str, int]
    facts: TaskFacts
    refused: dict[str, str] = field(default_factory=dict)

    def timed(self, networks: Iterable[str]) -> list[str]:
        """Return those of some networks that were exported."""
        return [name for name in networks if name in self.sizes]


def validation_probe(network: str) -> str:
    """Return the name of the file with a network's probe on the validation samples, beside its graph."""
    return f"validation.{network}.npz"


def onnx_name(network: str) -> str:
    """Return the file name of a network's graph, e.g. ``student_pruned.onnx`` of the network "pruned"."""
    return "student_pruned.onnx" if network == "pruned" else f"{network}.onnx"


def origins_name(network: str) -> str:
    """Return the name of the file that says where the nodes of a network's graph come from, and its tensors, by name.

    It lies beside the graph, and never leaves this machine: it holds :class:`NodeOrigin` as JSON, with paths.
    """
    return f"{onnx_name(network)}.origins.json"
