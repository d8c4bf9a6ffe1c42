"""What a candidate's engines say of the test samples, and the few samples with which a bundle verifies itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.compress.quantize import DEPLOY, ENGINE
from edgekd.errors import ModelError
from edgekd.gram.npz import EMBEDDING_PREFIX, INPUT_PREFIX, embeddings_of
from edgekd.gram.probe import Probe
from edgekd.runtime.backends.registry import ORT
from edgekd.runtime.session import open_arrays, read_feeds, run_rows
from edgekd.runtime.verification import write_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Outputs = Mapping[str, np.ndarray[Any, Any]]

_REFERENCES = 16
_BATCH = 256

#: Largest |deploy - engine| logit, as a share of the largest logit: the two are one network and differ by how the
#: runtime rounds where an extra output keeps it from fusing.
_DEPLOY_TOLERANCE = 0.01


def run_on_host(engine: Path, samples: Path) -> Outputs:
    """Run every sample through an ONNX file in ONNX Runtime, in this process."""
    with ORT.open(engine) as session:
        return run_rows(session, read_feeds(samples, session.inputs), _BATCH)


def probe_variants(run: Callable[[str], Outputs], samples: Path, where: str) -> tuple[Probe, float]:
    """Run both variants of a candidate.

    Args:
        run: from a variant's file name to its outputs for all samples.
        samples: ``.npz`` of the samples.
        where: what an error calls the candidate.

    Returns:
        The logits of ``deploy.onnx``, since they are what a user gets, with the embeddings of ``engine.onnx``, which
        alone gives them; and the largest |difference| between the logits of the two.

    Raises:
        ModelError: the two variants disagree.
    """
    engine, deploy = run(ENGINE), run(DEPLOY)["logits"]
    error = float(np.abs(deploy - engine["logits"]).max())
    if not error <= _DEPLOY_TOLERANCE * float(np.abs(deploy).max()):
        raise ModelError(f"{where}: deploy.onnx and engine.onnx disagree by {error:.3g} in a logit")
    return join_probe({**engine, "logits": deploy}, samples), error


def join_probe(outputs: Outputs, samples: Path) -> Probe:
    """Return the probe of a graph that gave these ``outputs``, logits and embeddings, for all ``samples``."""
    with open_arrays(samples) as arrays:
        ids = arrays["ids"]
    return Probe(ids, outputs["logits"], embeddings_of(outputs))


def write_references(samples: Path, found: Probe, path: Path) -> None:
    """Write a few samples, and what the engine made of them.

    Of a classifier those that it is surest of, from every class: others may flip by rounding alone elsewhere.
    """
    surest = np.arange(min(_REFERENCES, len(found.ids))) if found.predictions is None else _surest(found)
    with open_arrays(samples) as arrays:
        inputs = {key.removeprefix(INPUT_PREFIX): arrays[key][surest] for key in arrays if key.startswith(INPUT_PREFIX)}
    outputs = {EMBEDDING_PREFIX + name: z[surest] for name, z in found.embeddings.items()}
    write_reference(path, found.ids[surest], inputs, {"logits": found.logits[surest], **outputs})


def _surest(found: Probe) -> np.ndarray[Any, Any]:
    ordered = np.sort(found.logits, axis=1)
    by_margin = np.argsort(ordered[:, -2] - ordered[:, -1], kind="stable")
    predicted = found.logits[by_margin].argmax(1)
    each = -(-_REFERENCES // len(np.unique(predicted)))
    return np.concatenate([by_margin[predicted == label][:each] for label in np.unique(predicted)])[:_REFERENCES]
