"""What the second half starts from: a network that was trained here, or one that a user brought as ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from edgekd.config.target import Scheme
    from edgekd.gram.probe import Probe
    from edgekd.runtime.corruption import Robustness
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.stage import Done


@dataclass(frozen=True)
class QatStudent:
    """A network that was fine-tuned for INT8, in float.

    Attributes:
        exported: its export.
        probe: what it said of the test samples.
        history: of the fine-tune, one entry an epoch.
    """

    exported: Done[Exported]
    probe: Path
    history: list[dict[str, float]]


class Origin(Protocol):
    """A float network, its samples, and what is known of the networks that it came from."""

    @property
    def exported(self) -> Done[Exported]:
        """The float graph and the samples, in a folder."""

    @property
    def name(self) -> str:
        """What a bundle calls the task."""

    @property
    def network(self) -> str:
        """Name of the graph that is to ship, e.g. "pruned".

        :func:`~edgekd.stages.artifacts.onnx_name` gives its file.
        """

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the float graphs that the engine is compared with; the last is the ledger's reference."""

    def probes(self) -> Mapping[str, Probe]:
        """Return what the networks before the float graph said of the test samples, in the ledger's order."""

    def metric(self, logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
        """Return the task's metric of logits [N, C] and labels [N]."""

    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Return for each network that was trained here one entry an epoch."""

    @property
    def robustness(self) -> Done[Robustness] | None:
        """What losing or spoiling a modality costs the networks trained here; None where it is not to be measured."""

    def fine_tune_for_int8(self, scheme: Scheme) -> QatStudent | None:
        """Fine-tune the network with fake quantization and export it; None where it cannot be trained here."""
