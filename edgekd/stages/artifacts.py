"""What the learning stages leave behind. Imports no torch, so that finished results are read without it."""

from __future__ import annotations

from dataclasses import dataclass

#: A trained model's weights, its probe of the test split, and what was pruned from it, in its stage's folder.
WEIGHTS, PROBE, REMOVED = "model.safetensors", "probe.npz", "removed.json"

#: The probe of the network just cut, before its last fine-tune.
CUT_PROBE = "cut.npz"

#: What was measured of the training inputs, for the engines' robustness.
CHANNELS = "channels.npz"

#: Samples for the stages without torch, as `input.<modality>` with `ids`, `labels` and, where there are any, `groups`.
TEST, CALIBRATION = "test.npz", "calibration.npz"


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        metric: on the test split.
        parameters: how many.
        history: one entry an epoch; empty when nothing was trained.
    """

    metric: float
    parameters: int
    history: list[dict[str, float]]


@dataclass(frozen=True)
class TaskFacts:
    """What the later stages need to know of the task.

    Attributes:
        metric: its name.
        higher_is_better: whether a larger metric is better.
        classes: names of the logits, in order.
        inputs: for each modality name, dtype, shape and preprocessing, as in a bundle's manifest.
    """

    metric: str
    higher_is_better: bool
    classes: list[str]
    inputs: list[dict[str, str | list[int | str]]]


@dataclass(frozen=True)
class Exported:
    """The file :func:`onnx_name` for each network.

    Attributes:
        parity: for each network the largest |ONNX - torch| over all outputs, as a share of the output's largest
            magnitude.
        sizes: bytes of each network's file.
        facts: of the task.
    """

    parity: dict[str, float]
    sizes: dict[str, int]
    facts: TaskFacts


def onnx_name(network: str) -> str:
    """Return the file name of a network's graph, e.g. ``student_pruned.onnx`` of the network "pruned"."""
    return "student_pruned.onnx" if network == "pruned" else f"{network}.onnx"
