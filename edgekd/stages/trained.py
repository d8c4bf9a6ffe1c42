"""Results of the stages that train. Importing this module imports no torch: finished results need none."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekd.gram.gate import LedgerRow  # noqa: TC001  # msgspec reads the annotations of PruneAttempt

#: The figure of an epoch that is 1 where its weights are those that were kept, and 0 in the training's other epochs.
KEPT = "kept"


def kept_epoch(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the epoch whose weights were kept: of several trainings, one after another, the last one's."""
    return next((epoch for epoch in reversed(history) if epoch.get(KEPT)), history[-1])


@dataclass(frozen=True)
class PruneCheck:
    """A pruned network was judged against the unpruned student on the validation split.

    Attributes:
        row: The row of the ledger.
        drifts: For each modality how far the Gram between samples drifted in its own embeddings.
    """

    row: LedgerRow
    drifts: dict[str, float]


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
        history: One entry for each epoch, in which "kept" is 1 where its weights are the model's; empty where nothing
            was trained.
        channels: Of a pruned network, for each branch: how many of the channels that could go are left, and how many
            there were.
        seconds: Time that a pruned network took, since it was last begun or taken up; 0 for other networks.
        attempts: The attempts at pruning, in order, the last of which it is; empty for other networks.
        epochs: Number of epochs that each fine-tune of a pruned network was to have; 0 for other networks.
        warnings: What the user was warned of, of what it learned.
        longer: Why its trainings are longer than usual, in words; "" where they are not.
    """

    metric: float
    parameters: int
    history: list[dict[str, float]]
    channels: dict[str, tuple[int, int]] = field(default_factory=dict)
    seconds: float = 0.0
    attempts: tuple[PruneAttempt, ...] = ()
    epochs: int = 0
    warnings: tuple[str, ...] = ()
    longer: str = ""
