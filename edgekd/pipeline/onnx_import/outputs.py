"""Outputs of an imported model: what it answers, under its own names, and the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.compress.graph import drop_unread
from edgekd.errors import ModelError, TaskError, nearest
from edgekd.files import need
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.pipeline.onnx_import.graph import CONTROL_FLOW, Extension
from edgekd.pipeline.onnx_import.inputs import fix_batch, takes_batches
from edgekd.pipeline.onnx_import.observe import observe, observing, rows_are_independent
from edgekd.pipeline.onnx_import.taps import TensorTap, channels_first, meeting_taps, pool

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from onnx import ModelProto, ValueInfoProto

    from edgekd.pipeline.onnx_import.samples import NpzSamples
    from edgekd.runtime.session import Array, Session


_FLOATS = ("FLOAT", "DOUBLE", "FLOAT16")
_INTEGERS = ("INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "BOOL")

#: Names that arrays of samples and probes have.
_TAKEN = ("ids", "labels", "groups")


@dataclass(frozen=True)
class Outputs:
    """Tensors that become outputs of the written graph.

    Attributes:
        answers: The user's outputs that the written graph keeps, in order.
        taps: For each modality the tensor that holds its embedding.
        example: All these tensors for the first sample alone.
    """

    answers: tuple[str, ...]
    taps: Mapping[str, str]
    example: Mapping[str, Array]


def choose_outputs(
    model: ModelProto,
    taps: Mapping[str, str],
    named: Sequence[str],
    samples: NpzSamples,
    data: Sequence[str],
    notes: list[str],
) -> Outputs:
    """Choose outputs and taps; where batches give wrong results, fix the model to one sample at a time, in place.

    Args:
        model: A model whose inputs have a batch dimension.
        taps: For each modality the tensor that the user named; may be empty.
        named: Outputs that the user named; none for all that are float tensors.
        samples: Samples to run the model with.
        data: Inputs that are modalities, in case the taps have to be found.
        notes: Sentences for the user on what was chosen are added here.

    Raises:
        ModelError: No output is a float tensor, or the model cannot be run.
        TaskError: There is no such output, or none of numbers, or a tap is not a float tensor.
    """
    floats, numbers = (_outputs_of(model, types) for types in (_FLOATS, (*_FLOATS, *_INTEGERS)))
    for name in named:
        if name not in numbers:
            raise TaskError(f"the model has no output of numbers '{name}'{nearest(name, numbers)}")
    answers = tuple(named) or tuple(floats)
    if not answers:
        raise ModelError(
            "no output of the model is a float tensor, so there is nothing to compare; export its scores, or name the "
            "outputs of integers that matter: --output NAME=custom"
        )
    for name in answers:
        if name.startswith(EMBEDDING_PREFIX) or name in _TAKEN:
            raise TaskError(f"the model's output '{name}' has a name that edgekd has a use for; export it with another")
    chosen = dict(taps)
    if not taps:
        chosen, how = _find_taps(model, floats or answers, samples, data)
        notes.append(how)
    left = [value.name for value in model.graph.output if value.name not in (*answers, *taps.values())]
    if left:
        notes.append(f"of the model's outputs the engine gives {', '.join(answers)}: without {', '.join(left)}")
    tensors = dict.fromkeys([*answers, *chosen.values()])
    with observing(model, tensors) as session:
        example = session.run(samples.row(0))
        for name, tensor in chosen.items():
            kind = example[tensor].dtype
            if kind.kind != "f":
                raise TaskError(f"tap {name}: tensor '{tensor}' is {kind}; an embedding is a float tensor")
        reason = _one_at_a_time(model, session, samples) if takes_batches(model) else None
    if reason:
        fix_batch(model)
        notes.append(f"{reason}: the engine runs one sample at a time")
    return Outputs(answers, chosen, example)


def _one_at_a_time(model: ModelProto, session: Session, samples: NpzSamples) -> str | None:
    """Explain why the model takes no batches; None where it does."""
    control = sorted({node.op_type for node in model.graph.node if node.op_type in CONTROL_FLOW})
    if control:  # two samples may well agree where others do not
        return f"the model has control flow ({', '.join(control)}), which decides for a whole batch at once"
    if not rows_are_independent(session, samples):
        return "two samples in one batch give another result than one after the other"
    return None


def _outputs_of(model: ModelProto, types: Collection[str]) -> list[str]:
    """Return the names of the outputs that are tensors of some types of ONNX."""
    known = need("onnx", "build").TensorProto
    codes = [getattr(known, name) for name in types]
    return [value.name for value in model.graph.output if value.type.tensor_type.elem_type in codes]


def _find_taps(
    model: ModelProto, outputs: Sequence[str], samples: NpzSamples, data: Sequence[str]
) -> tuple[dict[str, str], str]:
    """Return for each modality its tensor, and how they were found, in words."""
    met = meeting_taps(model.graph, data)
    if met and all(x.dtype.kind == "f" for x in observe(model, set(met.values()), samples.first(1)).values()):
        return met, f"taps where the inputs' data first meet: {_list(met)}"
    return dict(zip(outputs, outputs, strict=True)), (
        f"taps are the outputs, {', '.join(outputs)}: there are no two float inputs whose data meet behind layers with "
        "weights; --tap NAME=TENSOR names others"
    )


def _list(taps: Mapping[str, str]) -> str:
    return ", ".join(f"{name} at '{tensor}'" for name, tensor in taps.items())


def write_outputs(model: ModelProto, outputs: Outputs, samples: NpzSamples) -> dict[str, TensorTap]:
    """Make answers and embeddings the only outputs of a model, in place; return where the embeddings are read."""
    graph = model.graph
    stated = {
        value.name: [size.dim_value or None for size in value.type.tensor_type.shape.dim] for value in graph.output
    }
    by_channel = {tensor: channels_first(graph, tensor) for tensor in outputs.taps.values()}
    extension = Extension(model)
    targets = {name: EMBEDDING_PREFIX + name for name in outputs.taps}
    for name in targets.values():
        extension.vacate(name)
    for name in outputs.answers:
        _keep_answer(extension, name, outputs.example)
    pooling = {}
    for name, tapped in outputs.taps.items():
        tensor, shape = _as_rows(extension, tapped, outputs.example)
        pooling[name] = pool(extension, tensor, shape, by_channel[tapped], targets[name])
    arrays = observe(model, [*outputs.answers, *targets.values()], samples.first(1))
    graph.ClearField("output")
    graph.output.extend(_output(model, name, value, stated.get(name, [])) for name, value in arrays.items())
    drop_unread(graph)
    graph.ClearField("value_info")
    return {
        name: TensorTap(tensor, pooling[name], arrays[targets[name]].shape[1]) for name, tensor in outputs.taps.items()
    }


def _keep_answer(extension: Extension, name: str, example: Mapping[str, Array]) -> None:
    """Let an output have a row for each sample, and in it more than a single number, under its own name."""
    shape = example[name].shape
    if shape[:1] == (1,) and len(shape) > 1 and extension.keep(name):
        return
    extension.vacate(name)
    tensor, shape = _as_rows(extension, name, example)
    if len(shape) == 1:
        extension.unsqueeze(tensor, 1, name)
    else:
        extension.call(tensor, name)


def _as_rows(extension: Extension, tensor: str, example: Mapping[str, Array]) -> tuple[str, tuple[int, ...]]:
    """Return a tensor whose first dimension is the batch, and its shape for one sample."""
    name, shape = extension.named(tensor), example[tensor].shape
    if shape[:1] == (1,):
        return name, shape
    rows = extension.unique(f"{name}_rows")
    extension.unsqueeze(name, 0, rows)
    return rows, (1, *shape)


def _output(model: ModelProto, name: str, array: Array, stated: Sequence[int | None]) -> ValueInfoProto:
    """Describe an output by its array for one sample; sizes that may depend on the inputs' are left free."""
    helper = need("onnx", "build").helper
    sizes: Sequence[int | None] = array.shape[1:]
    free = any(not size.dim_value for value in model.graph.input for size in value.type.tensor_type.shape.dim[1:])
    if free and array.ndim > 2:
        sizes = stated[1:] if len(stated) == array.ndim else [None] * (array.ndim - 1)
    batch = "batch" if takes_batches(model) else 1
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    value: ValueInfoProto = helper.make_tensor_value_info(name, dtype, [batch, *sizes])
    return value
