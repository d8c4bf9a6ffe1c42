"""Results and files of the stages that train. Importing this module imports no torch: finished results need none."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekd.gram.answers import OutputKind
from edgekd.gram.gate import LedgerRow  # noqa: TC001  # msgspec reads the annotations of PruneAttempt

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
class NodeOrigin:
    """Where a node of an exported graph comes from.

    Attributes:
        module: Path of the module in the network; "" for the network itself.
        line: Line of the user's code, "file:number"; "" where it is not known.
    """

    module: str
    line: str

    def __str__(self) -> str:
        """Return the origin in words, e.g. ``"module 'image.gru', task.py:49"``."""
        return ", ".join(filter(None, (f"module '{self.module}'" if self.module else "", self.line)))


@dataclass(frozen=True)
class PruneAttempt:
    """One attempt at pruning, judged against the unpruned student on the validation split.

    Attributes:
        ratio: Share that went of all channels that could; 0 for the unpruned student itself.
        ratios: The same of each branch: of the encoder of each modality, and of "fusion", what comes after them.
        epochs: Number of epochs of each fine-tune; 0 where nothing was pruned.
        parameters: Number of parameters that are left.
        seconds: Time that it took.
        row: The row of the ledger, on the validation split.
        reason: What was changed after the attempt before, and why; "" for the first, which is as the recipe has it.
        drifts: For each modality how far the Gram between samples drifted in its own embeddings.
    """

    ratio: float
    ratios: dict[str, float]
    epochs: int
    parameters: int
    seconds: float
    row: LedgerRow
    reason: str = ""
    drifts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        metric: Task metric on the test split.
        parameters: Number of parameters.
        history: One entry for each epoch; empty where nothing was trained.
        attempts: The attempts at pruning, in order, the last of which it is; empty for other networks.
    """

    metric: float
    parameters: int
    history: list[dict[str, float]]
    attempts: tuple[PruneAttempt, ...] = ()


@dataclass(frozen=True)
class TaskFacts:
    """Facts about the task that later stages need.

    Attributes:
        metric: Name of the task metric.
        higher_is_better: Whether a larger metric is better.
        classes: Names of the logits, in order.
        inputs: For each modality its name, dtype, shape and preprocessing, as in a bundle's manifest.
        kind: What the network's output is.
        modalities: Inputs that are data, any of which may be absent: no masks, numbers of tokens, or states.
    """

    metric: str
    higher_is_better: bool
    classes: list[str]
    inputs: list[dict[str, str | list[int | str]]]
    kind: OutputKind = field(default_factory=OutputKind)
    modalities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Exported:
    """Networks that were exported to ONNX, each to the file :func:`onnx_name`.

    Attributes:
        parity: For each network the largest |ONNX - torch| over all outputs, as a share of the output's largest
            magnitude.
        sizes: Bytes of each network's file.
        facts: Facts about the task.
    """

    parity: dict[str, float]
    sizes: dict[str, int]
    facts: TaskFacts


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
