"""What one model says of the probe's samples: the material of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Probe:
    """Logits and embeddings of the same samples, after one stage.

    Attributes:
        ids: the samples' names [N].
        logits: [N, C].
        embeddings: for each modality [N, D].
    """

    ids: np.ndarray[Any, Any]
    logits: Floats
    embeddings: Mapping[str, Floats]

    @property
    def predictions(self) -> np.ndarray[Any, Any]:
        """Top-1 classes [N]."""
        classes: np.ndarray[Any, Any] = self.logits.argmax(-1)
        return classes

    def check_same_samples(self, other: Probe) -> None:
        """Raise ValueError unless both probes are of the same samples, in the same order, with the same modalities."""
        if not np.array_equal(self.ids, other.ids):
            raise ValueError("the two probes are not of the same samples in the same order")
        if list(self.embeddings) != list(other.embeddings):
            raise ValueError(f"the two probes have modalities {list(self.embeddings)} and {list(other.embeddings)}")

    def save(self, path: Path) -> None:
        """Write an ``.npz`` atomically."""
        arrays = {f"embedding.{name}": z for name, z in self.embeddings.items()}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            # numpy's stub takes every keyword for allow_pickle
            np.savez(stream, ids=self.ids, logits=self.logits, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Read what :meth:`save` wrote; pickled arrays are refused."""
        with np.load(path, allow_pickle=False) as arrays:
            embeddings = {
                key.removeprefix("embedding."): arrays[key] for key in arrays.files if key.startswith("embedding.")
            }
            return cls(arrays["ids"], arrays["logits"], embeddings)
