"""States of recurrent networks: which input takes at the next step what an output gave at this one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError, TaskError, nearest
from edgekd.files import need
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.sequences import run_feeds, sequences_of, states_before

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto, ValueInfoProto

    from edgekd.pipeline.onnx_import.samples import NpzSamples
    from edgekd.runtime.session import Array

#: Words of names by which an input says that it is the state of before, and an output that it is that of after.
_BEFORE = frozenset({"in", "input", "inputs", "prev", "previous", "past", "old", "init", "initial", "last"})
_AFTER = frozenset({"out", "output", "outputs", "next", "new", "present", "n", "updated", "final", "cur", "current"})

#: Words of names of states: images that come out as large as they went in are none.
_STATES = frozenset(
    {"state", "states", "h", "c", "hidden", "cell", "cache", "caches", "cached", "past", "present", "mem", "memory",
     "memories", "buffer", "buffers", "buf", "rnn", "gru", "lstm", "kv", "history", "carry", "recurrent"}
)  # fmt: skip

#: How names are written in which other words stand for one of these.
_SPELLINGS = (
    (re.compile(r"(past|present)_key_values?"), r"\1"),
    (re.compile(r"^([hc])n$"), r"\1_n"),
    (re.compile(r"^([hc])_?0$"), r"\1"),
)

#: How a user says otherwise.
SAY = "--state IN=OUT, or states in [model], says which output is which input's state, and --state none that none is"


def find_states(model: ModelProto, asked: Mapping[str, str] | None) -> dict[str, str]:
    """Return for each input that is a state the output that holds it after a step.

    Args:
        model: The model.
        asked: The pairs that the user names, which may be none; None to find them by type, sizes and names. Only a pair
            in which neither fits another is found.

    Raises:
        TaskError: There is no input or output of a name that the user gave.
        ModelError: A pair that the user named differs in type or sizes, or nothing is left to feed or to judge.
    """
    inputs, outputs = ({value.name: value for value in values} for values in (model.graph.input, model.graph.output))
    if asked is None:
        pairs = _matching(inputs, outputs)
        return pairs if _leaves_some(pairs, inputs, outputs) else {}
    for name, output in asked.items():
        for what, wanted, known in (("input", name, inputs), ("output", output, outputs)):
            if wanted not in known:
                raise TaskError(f"state {name}={output}: the model has no {what} '{wanted}'{nearest(wanted, known)}")
        if not _alike(inputs[name], outputs[output]):
            raise ModelError(
                f"state {name}={output}: input '{name}' is {_described(inputs[name])}, and output '{output}' is "
                f"{_described(outputs[output])}: what is carried has one type and one size"
            )
    twice = [output for output in asked.values() if list(asked.values()).count(output) > 1]
    if twice:
        raise ModelError(f"state: output '{twice[0]}' is named as the state of several inputs, and is that of one")
    if len(asked) == len(inputs):
        raise ModelError(f"state: every input is named as a state, so nothing is fed at a step; {SAY}")
    if asked and len(asked) == len(outputs):
        raise ModelError(f"state: every output is named as a state, so there is no answer to judge; {SAY}")
    return dict(asked)


def _leaves_some(pairs: Mapping[str, str], inputs: Collection[str], outputs: Collection[str]) -> bool:
    return len(pairs) < len(inputs) and len(pairs) < len(outputs)


def _matching(inputs: Mapping[str, ValueInfoProto], outputs: Mapping[str, ValueInfoProto]) -> dict[str, str]:
    fits = {
        name: [output for output, after in outputs.items() if _alike(value, after) and _named_alike(name, output)]
        for name, value in inputs.items()
    }
    claimed = [output for found in fits.values() for output in found]
    return {name: found[0] for name, found in fits.items() if len(found) == 1 and claimed.count(found[0]) == 1}


def _alike(before: ValueInfoProto, after: ValueInfoProto) -> bool:
    """Whether two tensors may be of one type and size, as far as the model states them."""
    one, other = before.type.tensor_type, after.type.tensor_type
    if one.elem_type != other.elem_type or not one.elem_type:
        return False
    if not other.HasField("shape"):
        return True
    sizes = [[size.dim_value for size in tensor.shape.dim] for tensor in (one, other)]
    return len(sizes[0]) == len(sizes[1]) and all(
        size == same or size <= 0 or same <= 0 for size, same in zip(*sizes, strict=True)
    )


def _described(value: ValueInfoProto) -> str:
    helper, tensor = need("onnx", "build").helper, value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return "no tensor"
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not tensor.HasField("shape"):
        return f"{dtype} of any shape"
    return f"{dtype} [{', '.join(str(size.dim_value) if size.dim_value > 0 else '?' for size in tensor.shape.dim)}]"


def _named_alike(name: str, output: str) -> bool:
    """Whether names say that an output is the state that an input was: ``h`` and ``hn``, ``past.0.key`` and so on."""
    before, after = _words(name), _words(output)
    said = not _STATES.isdisjoint(before) and not _STATES.isdisjoint(after)
    return said and [w for w in before if w not in _BEFORE] == [w for w in after if w not in _AFTER]


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    text = re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")
    for spelling, plain in _SPELLINGS:
        text = spelling.sub(plain, text)
    return re.findall(r"[a-z]+|[0-9]+", text)


def keep_constant(
    pairs: Mapping[str, str], samples: NpzSamples, example: Mapping[str, Array], asked: bool, notes: list[str]
) -> dict[str, str]:
    """Return the pairs whose state is after a step as large as before.

    Args:
        pairs: For each input that is a state the output that holds it after a step.
        samples: The samples.
        example: What the outputs are for the first sample.
        asked: Whether the user named the pairs.
        notes: Sentences for the user on pairs that are none are added here.

    Raises:
        ModelError: A state that the user named, or that no sample gives, changes its size.
    """
    kept = {}
    for name, output in pairs.items():
        before, after = samples.inputs[name].shape[1:], example[output].shape
        if example[output].size == samples.inputs[name][0].size:
            kept[name] = output
            continue
        said = f"input '{name}', {list(before)} a sample, is {list(after)} after a step, in output '{output}'"
        if asked or name in samples.carried:
            raise ModelError(
                f"{said}: a state that changes its size cannot be carried by one engine; export the model with a state "
                "of fixed size, or give what it holds before each sample, and say --state none"
            )
        notes.append(f"{said}: it is no state that an engine can carry, and is an input like any other")
    return kept


def fix_sizes(model: ModelProto, states: Collection[str], samples: NpzSamples) -> None:
    """State the sizes of inputs that are states, all but that of the batch, in place."""
    for value in model.graph.input:
        if value.name in states:
            sizes = value.type.tensor_type.shape.dim
            for dimension, size in zip(sizes[1:], samples.inputs[value.name].shape[1:], strict=True):
                dimension.dim_value = size


def carry(network: Path, samples: NpzSamples) -> NpzSamples:
    """Return samples in which each state that no file gave is what the float network carries from step to step."""
    if not samples.carried:
        return samples
    sequences = sequences_of(samples.carried, samples.groups, len(samples.ids))
    with open_engine(network, fused=False) as session:
        outputs = run_feeds(session, samples.inputs, sequences, 1)
    for name, output in samples.carried.items():
        if not np.isfinite(outputs[output]).all():
            row = int(np.flatnonzero(~np.isfinite(outputs[output].reshape(len(samples.ids), -1)).all(1))[0])
            raise ModelError(f"the state '{name}' is not finite after sample {samples.ids[row]}, in the float model")
    return replace(samples, inputs={**samples.inputs, **states_before(sequences, samples.inputs, outputs)})


def describe_states(pairs: Mapping[str, str], samples: Sequence[NpzSamples]) -> list[str]:
    """Return sentences for the user on the states and where they come from."""
    if not pairs:
        return []
    said = ", ".join(f"'{name}' takes at the next step what '{output}' gave" for name, output in pairs.items())
    notes = [f"states: {said}; {SAY}"]
    carried = [name for name in pairs if any(name in part.carried for part in samples)]
    given = [name for name in pairs if name not in carried]
    if carried:
        counts = [len(np.unique(part.groups)) for part in samples if part.groups is not None]
        notes.append(
            f"{', '.join(carried)} is zero before the first sample of a group and carried from then on, in "
            f"{sum(counts)} sequences: each network carries its own, and is judged by its answers over whole sequences"
        )
    if given:
        notes.append(
            f"{', '.join(given)} is what the samples give: each step is judged by itself, and how errors add up over a "
            "sequence is not measured; leave it out of the file to have it carried"
        )
    return notes
