"""Run a candidate on the test samples, and select the reference samples with which a bundle verifies itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError
from edgekd.gram.npz import EMBEDDING_PREFIX, INPUT_PREFIX, answers_of, embeddings_of
from edgekd.gram.probe import Probe, top1
from edgekd.runtime.backends.registry import AS_WRITTEN
from edgekd.runtime.sequences import from_states, own_states, run_samples
from edgekd.runtime.session import open_arrays
from edgekd.runtime.verification import write_reference
from edgekd.stages.artifacts import DEPLOY, PROBE_GRAPH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.gram.output_kind import OutputKind
    from edgekd.pipeline.target.context import Context

    #: Outputs of a graph by name, a row for each sample.
    Outputs = Mapping[str, NDArray[np.float32]]

_REFERENCES = 16
_BATCH = 256

#: Largest |deploy - probe|, as a share of the output's largest value: the two are one network and differ by how the
#: runtime rounds where an extra output keeps it from fusing.
_DEPLOY_TOLERANCE = 0.01


def run_on_host(engine: Path, samples: Path) -> Outputs:
    """Run every sample through an ONNX file in ONNX Runtime, in this process, node by node as the file says.

    The graph may be judged here for another library, which shares none of ONNX Runtime's rewrites; one of them, e.g.,
    rounds float16 biases to INT32 at a product of float16 scales, where large ones become infinite.
    """
    with AS_WRITTEN.open(engine) as session:
        return run_samples(session, samples, _BATCH)


def probe_variants(run: Callable[[str, Path], Outputs], samples: Path, where: str) -> tuple[Probe, float]:
    """Run both variants of a candidate. Of one that carries a state, ``probe.onnx`` is given that of ``deploy.onnx``.

    Args:
        run: Function from a variant's file name and an ``.npz`` of samples to its outputs for all of them.
        samples: ``.npz`` of the samples.
        where: Name of the candidate in errors.

    Returns:
        The answers of ``deploy.onnx``, since they are what a user gets, with the embeddings of ``probe.onnx``, which
        alone gives them; and the largest |difference| between the outputs of the two.

    Raises:
        ModelError: the two variants disagree.
    """
    deploy = run(DEPLOY, samples)
    with from_states(samples, deploy) as steps:
        full = run(PROBE_GRAPH, steps)
    numbers = {name: x.astype(np.float64) for name, x in deploy.items()}  # of integers and truth values, too
    errors = {name: float(np.abs(x - full[name]).max()) for name, x in numbers.items()}
    for name, error in errors.items():
        if not error <= _DEPLOY_TOLERANCE * float(np.abs(numbers[name]).max()):
            raise ModelError(f"{where}: deploy.onnx and probe.onnx disagree by {error:.3g} in output '{name}'")
    return join_probe({**full, **deploy}, samples), max(errors.values())  # in the order of the probe's outputs


def probe_on_device(
    context: Context, engine_of: Callable[[str], Path], samples: Path, folder: Path, notify: Callable[[str], None]
) -> tuple[Probe, float]:
    """Run both variants of a candidate on the device.

    Args:
        context: The target, whose device is present.
        engine_of: Returns the file of a variant that the runtime is given.
        samples: ``.npz`` of the samples.
        folder: Folder for the outputs.
        notify: Receives notes on the progress.

    Returns:
        As :func:`probe_variants`.

    Raises:
        ModelError: The device's library refuses the graph, or the two variants disagree.
    """

    def outputs_of(variant: str, steps: Path) -> Outputs:
        outputs = folder / f"{variant}.npz"
        threads = context.recipe.profile.threads
        context.present.evaluate(engine_of(variant), context.runtime, steps, outputs, threads, notify)
        with open_arrays(outputs) as arrays:
            return {key: arrays[key] for key in arrays}

    return probe_variants(outputs_of, samples, str(folder))


def join_probe(outputs: Outputs, samples: Path) -> Probe:
    """Return the probe of a graph that gave these ``outputs``, answers and embeddings, for all ``samples``."""
    with open_arrays(samples) as arrays:
        ids = arrays["ids"]
    return Probe(ids, answers_of(outputs), embeddings_of(outputs))


def write_references(samples: Path, probe: Probe, kinds: Mapping[str, OutputKind], path: Path) -> None:
    """Write a few samples and the engine's outputs for them, each with the state that the engine had carried there.

    Where an output is of classes, these are the samples that it is surest of, from every class: others may flip by
    rounding alone on another machine. Of several such outputs the first decides.
    """
    classes = next((name for name, kind in kinds.items() if kind.name == "classes"), None)
    surest = np.arange(min(_REFERENCES, len(probe.ids))) if classes is None else _surest(probe.outputs[classes])
    with open_arrays(samples) as arrays:
        inputs = {key.removeprefix(INPUT_PREFIX): arrays[key][surest] for key in arrays if key.startswith(INPUT_PREFIX)}
    inputs |= {name: state[surest] for name, state in own_states(samples, probe.outputs).items()}
    outputs = probe.outputs | {EMBEDDING_PREFIX + name: z for name, z in probe.embeddings.items()}
    write_reference(path, probe.ids[surest], inputs, {name: x[surest] for name, x in outputs.items()})


def _surest(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    ordered = np.sort(scores, axis=1)
    by_margin = np.argsort(ordered[:, -2] - ordered[:, -1], kind="stable")
    predicted = top1(scores[by_margin])
    each = -(-_REFERENCES // len(np.unique(predicted)))
    return np.concatenate([by_margin[predicted == label][:each] for label in np.unique(predicted)])[:_REFERENCES]
