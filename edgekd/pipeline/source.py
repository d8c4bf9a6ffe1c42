"""What the stages of a target start from: a network that was trained here, or one that was imported from ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.compress.candidate import Candidate
    from edgekd.config.target import Scheme
    from edgekd.gram.metric import Metric
    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Answer, Probe
    from edgekd.runtime.corruption import Robustness
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.stage import Done
    from edgekd.stages.trained import PruneAttempt


#: The samples on which networks are judged.
JudgingSplit = Literal["validation", "test"]


@dataclass(frozen=True)
class QatStudent:
    """A network that was fine-tuned for INT8, still in float.

    Attributes:
        exported: Its export to ONNX.
        probes: Files of its probes, by split.
        history: One entry for each epoch of the fine-tune.
    """

    exported: Done[Exported]
    probes: Mapping[str, Path]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class GivenCandidate:
    """A model that is built as it is: the only candidate.

    Attributes:
        candidate: What it is.
        folder: Folder of its graphs, with its outputs for the validation samples.
        key: Key of the stage that wrote them.
        row: Name of its row of the ledger.
        deploy_logit_error: Largest |difference| of an output between its two variants, on this host.
    """

    candidate: Candidate
    folder: Path
    key: str
    row: str
    deploy_logit_error: float


class Origin(Protocol):
    """A float network, its samples, and what is known of the networks that it comes from."""

    @property
    def exported(self) -> Done[Exported]:
        """The float graph and the samples, in a folder."""

    @property
    def name(self) -> str:
        """Name of the task in a bundle."""

    @property
    def network(self) -> str:
        """Name of the network that is to ship, e.g. "pruned".

        :func:`~edgekd.stages.artifacts.onnx_name` gives the file of its graph.
        """

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the float networks that the engine is compared with; the last is the ledger's reference.

        All but the last may lack a graph.
        """

    def probes(self, split: JudgingSplit) -> Mapping[str, Probe]:
        """Return the probes of the networks before the float graph, by row of the ledger, in its order.

        Args:
            split: The samples: those of the validation, on which what ships is chosen, or of the test, which judge it.
        """

    @property
    def metric(self) -> Metric:
        """The task's metric, a function of what a network answered for N samples, and what they are labelled with."""

    def same(self, outputs: Answer, reference: Answer) -> Array:
        """Return the task's own word on which share of each sample's answer changed [N]."""

    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Return for each network that was trained here one entry for each epoch."""

    @property
    def pruning(self) -> tuple[PruneAttempt, ...]:
        """The attempts at pruning the network, the last of which it is; empty where nothing was pruned here."""

    @property
    def given(self) -> GivenCandidate | None:
        """The model itself, where it is built as it is; None where candidates are made of the float network."""

    @property
    def robustness(self) -> Done[Robustness] | None:
        """What losing or spoiling a modality costs the trained networks; None where it is not to be measured."""

    def fine_tune_for_int8(self, scheme: Scheme) -> QatStudent | None:
        """Fine-tune the network with fake quantization and export it; None where it cannot be trained here."""
