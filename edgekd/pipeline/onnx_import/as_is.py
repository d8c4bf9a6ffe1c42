"""A model that is built as it is: imported beside its float reference, where there is one, and kept byte for byte."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.candidate import Candidate
from edgekd.compress.graph import drop_embeddings, initializers, rename, save
from edgekd.compress.precision import count_quantized, precision_of
from edgekd.config.recipe import OutputConfig
from edgekd.errors import ModelError, nearest
from edgekd.files import need
from edgekd.gram.gate import GIVEN
from edgekd.pipeline.onnx_import.graph import Extension
from edgekd.pipeline.onnx_import.read import weight_files
from edgekd.pipeline.onnx_import.stage import AS_IS, ImportedModel, import_onnx
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.feeds import read_feeds
from edgekd.stages.artifacts import CALIBRATION, DEPLOY, PROBE_GRAPH, TEST, VALIDATION, onnx_name
from edgekd.stages.progress import Silent, StageReporter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.pipeline.onnx_import.stage import OnnxSource
    from edgekd.runtime.session import Array, Feeds, TensorSpec

#: File of the reference whose inputs are of the model's types.
_REFERENCE = "reference.onnx"


def import_as_is(
    source: OnnxSource, reference: Path | None, folder: Path, report: StageReporter, seed: int = 0
) -> ImportedModel:
    """Import a model that stays as it is, of any precision.

    Args:
        source: The model and its samples.
        reference: The float model that it is compared with; None where there is none.
        folder: Folder for the files: the graph that others are compared with, which is the reference or the model
            itself, the samples, and in the folder :data:`AS_IS` the graphs of the model.
        report: Receives progress and warnings.
        seed: Seed for splitting the samples.

    Raises:
        ModelError: The model cannot be read or run, gives two results for one sample, or does not fit its reference.
        TaskError: There is no tensor or output of a name that was given.
    """
    place = folder / AS_IS
    place.mkdir()
    source = replace(source, as_is=True, taps=source.taps or _outputs_as_taps(source))
    if reference is None:
        imported = import_onnx(source, folder, report, seed)
        shutil.copyfile(folder / onnx_name(GIVEN), place / PROBE_GRAPH)
    else:
        given = import_onnx(source, place, StageReporter(Silent(), "import"), seed)
        (place / onnx_name(GIVEN)).rename(place / PROBE_GRAPH)
        for name in (CALIBRATION, VALIDATION, TEST):
            (place / name).unlink()
        imported = _import_reference(source, reference, given, folder, report, seed)
    notes = _write_deploy(source.model, place, folder / CALIBRATION)
    for note in notes:
        report.warn(note)
    original = need("onnx", "build").load(str(source.model))
    done, total = count_quantized(original)
    sizes = {name: (place / name).stat().st_size for name in (PROBE_GRAPH, DEPLOY)}
    candidate = Candidate(AS_IS, precision_of(original), done, total, sizes)
    return replace(imported, notes=(*imported.notes, *notes), given=candidate)


def _outputs_as_taps(source: OnnxSource) -> dict[str, str]:
    """Return the model's outputs of floats as the tensors that hold its embeddings: quantizers keep their names."""
    onnx = need("onnx", "build")
    try:
        outputs = onnx.load(str(source.model), load_external_data=False).graph.output
    except (OSError, need("google.protobuf.message", "build").DecodeError):
        return {}  # what is wrong with the file is said where it is read
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    names = [value.name for value in outputs if value.type.tensor_type.elem_type in floats]
    return {name: name for name in names if not source.outputs or name in source.outputs}


def _import_reference(
    source: OnnxSource, reference: Path, given: ImportedModel, folder: Path, report: StageReporter, seed: int
) -> ImportedModel:
    """Import the float reference, on the model's samples and with the model's outputs."""
    facts = given.exported.facts
    model = need("onnx", "build").load(str(reference))
    _require_outputs(reference, source.model, model, list(facts.outputs))
    inputs = {str(spec["name"]): str(spec["dtype"]) for spec in facts.inputs}
    path = folder / _REFERENCE if _cast_inputs(model, reference, source.model, inputs) else reference
    if path != reference:
        save(model, path)
    alone = source.only if source.only is not None and len(facts.outputs) == 1 else OutputConfig()
    outputs = {name: source.outputs.get(name, alone) for name in facts.outputs}
    asked = replace(source, model=path, as_is=False, outputs=outputs, only=None)
    imported = import_onnx(asked, folder, report, seed)
    if path != reference:
        path.unlink()
    theirs = imported.exported.facts
    return replace(imported, exported=replace(imported.exported, facts=replace(theirs, inputs=facts.inputs)))


def _require_outputs(reference: Path, path: Path, model: ModelProto, outputs: list[str]) -> None:
    names = [value.name for value in model.graph.output]
    for name in outputs:
        if name not in names:
            raise ModelError(
                f"{reference}: has no output '{name}', which {path} has{nearest(name, names)}; the two are compared "
                "output by output, by their names"
            )


def _cast_inputs(model: ModelProto, reference: Path, path: Path, wanted: Mapping[str, str]) -> bool:
    """Let a reference take the types of floats that the model takes, in place; return whether that changed it.

    Raises:
        ModelError: The two have other inputs.
    """
    helper = need("onnx", "build").helper
    stored = initializers(model.graph)
    inputs = {value.name: value for value in model.graph.input if value.name not in stored}
    if set(inputs) != set(wanted):
        raise ModelError(f"{reference}: has the inputs {', '.join(inputs)}, and {path} {', '.join(wanted)}")
    extension, changed = Extension(model), False
    for name, value in inputs.items():
        kind = value.type.tensor_type
        ours, theirs = np.dtype(wanted[name]), helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if ours == theirs:
            continue
        if ours.kind != "f" or theirs.kind != "f":
            raise ModelError(f"{reference}: input '{name}' is {theirs}, and {ours} in {path}: samples cannot be both")
        inner = extension.unique(f"{name}_cast")
        rename(model.graph, name, inner)
        extension.node("Cast", [name], inner, first=True, to=kind.elem_type)
        kind.elem_type, changed = helper.np_dtype_to_tensor_dtype(ours), True
    return changed


def _write_deploy(path: Path, place: Path, samples: Path) -> list[str]:
    """Write what ships: the user's file itself where it takes and gives what edgekd's graph does.

    Args:
        path: The user's file.
        place: Folder of the graphs.
        samples: ``.npz`` of samples.

    Returns:
        A sentence for the user where the file had to be written anew.

    Raises:
        ModelError: The model gives two results for one sample.
    """
    deploy = place / DEPLOY
    drop_embeddings(place / PROBE_GRAPH, deploy)
    with open_engine(deploy, fused=False) as session:
        feeds = {name: x[:1] for name, x in read_feeds(samples, session.inputs).items()}
        first, again = session.run(feeds), session.run(feeds)
        ours = session.inputs, first
    for name, x in first.items():
        if not np.array_equal(x, again[name], equal_nan=x.dtype.kind == "f"):
            raise ModelError(f"{path}: gives another output '{name}' each time for the same sample")
    reason = "it keeps its weights in files of their own" if weight_files(path) else _unlike(path, feeds, *ours)
    if reason:
        return [f"{DEPLOY} is {path.name} written anew, and not the very file: {reason}"]
    shutil.copyfile(path, deploy)
    return []


def _unlike(path: Path, feeds: Feeds, inputs: Sequence[TensorSpec], outputs: Mapping[str, Array]) -> str:
    """Explain why a user's file cannot take the place of the graph that edgekd wrote of it; "" where it can."""
    with open_engine(path, fused=False) as session:
        theirs, ours = _fixed(session.inputs), _fixed(inputs)
        for spec in inputs:
            if theirs.get(spec.name) != ours[spec.name]:
                stated = next((str(other) for other in session.inputs if other.name == spec.name), "not there")
                return f"its input '{spec.name}' is {stated}, and {spec} in a bundle, whose batch is first"
        try:
            found = session.run(feeds)
        except ModelError as error:
            return str(error).removeprefix(f"{path}: ")
    if set(found) != set(outputs):
        return f"the engine gives {', '.join(outputs)} alone"
    same = all(x.shape == outputs[name].shape and x.dtype == outputs[name].dtype for name, x in found.items())
    return "" if same else "a bundle's outputs have a row for each sample"


def _fixed(inputs: Sequence[TensorSpec]) -> dict[str, tuple[str, list[int | None]]]:
    """Return the type and the sizes of each input, None for one that is free."""
    shapes = {spec.name: [size if isinstance(size, int) else None for size in spec.shape] for spec in inputs}
    return {spec.name: (spec.dtype, shapes[spec.name]) for spec in inputs}
