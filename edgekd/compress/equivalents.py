"""Float graphs that compute the same in another form, for engine libraries that refuse one form or get it wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekd.compress.equivalent_nodes import pads_apart, resize_by_matrices, scalar_conditions
from edgekd.compress.graph import copy
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from onnx import ModelProto

    from edgekd.runtime.session import Array


@dataclass(frozen=True)
class Form:
    """One way of writing a graph in another form.

    Attributes:
        name: Its name in the cache.
        note: What is different of the engine, as the end of a sentence.
        write: Returns the graph in that form, given a sample of each input [1, ...]; None where it has it already.
    """

    name: str
    note: str
    write: Callable[[ModelProto, Mapping[str, Array]], ModelProto | None]


def fix_sizes(model: ModelProto, sample: Mapping[str, Array]) -> ModelProto | None:
    """Return a graph that takes inputs of the sample's size alone, in batches as before."""
    fixed = copy(model)
    changed = False
    for value in fixed.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if value.name not in sample or len(sizes) != sample[value.name].ndim:
            continue
        for size, here in zip(sizes[1:], sample[value.name].shape[1:], strict=True):
            if not size.HasField("dim_value"):
                size.dim_value, changed = here, True
    if not changed:
        return None
    _forget_shapes(fixed)
    return fixed


def take_one(model: ModelProto, _sample: Mapping[str, Array]) -> ModelProto | None:
    """Return a graph that takes one sample at a time."""
    single = copy(model)
    sizes = [value.type.tensor_type.shape.dim for value in single.graph.input]
    batches = [size[0] for size in sizes if len(size) and not size[0].HasField("dim_value")]
    for batch in batches:
        batch.dim_value = 1
    _forget_shapes(single)
    return single if batches else None


def fold(model: ModelProto, _sample: Mapping[str, Array]) -> ModelProto | None:
    """Return a graph in which what depends on no input is computed: constants, sizes, and branches that they decide."""
    onnx, ort = need("onnx", "build"), need("onnxruntime", "build")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(_FUSIONS)
        )
        folded: ModelProto = onnx.load(str(path))
    used = {node.domain for node in folded.graph.node} | {""}
    kept = [opset for opset in folded.opset_import if opset.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    _forget_shapes(folded)
    return None if len(folded.graph.node) == len(model.graph.node) else folded


#: Optimizers of ONNX Runtime's first level that write operators which other libraries do not know, or other weights.
_FUSIONS = (
    "GeluFusionL1", "GeluFusion", "LayerNormFusionL1", "LayerNormFusion", "SimplifiedLayerNormFusion",
    "ConvAddFusion", "ConvMulFusion", "ConvBNFusion", "PadFusion", "MatmulBNFusion", "GemmActivationFusion",
    "MatMulScaleFusion", "MatMulAddFusion", "DoubleQDQPairsRemover", "NotWhereFusion", "ReluQuantFusion",
)  # fmt: skip


def _forget_shapes(model: ModelProto) -> None:
    """Remove what a graph says of the shapes of its results, in place: libraries infer them."""
    model.graph.ClearField("value_info")
    for value in model.graph.output:
        for size in value.type.tensor_type.shape.dim[1:]:
            if size.HasField("dim_param"):
                size.ClearField("value")


#: The forms, in the order of what they cost an app.
FORMS = (
    Form("fixed sizes", "it takes inputs of the samples' size alone", fix_sizes),
    Form("scalar conditions", "the conditions of its branches have no dimensions", scalar_conditions),
    Form("pads apart", "its poolings are padded before", pads_apart),
    Form("resize by matrices", "it resizes by products with matrices", resize_by_matrices),
    Form("folded", "what depends on no input was computed beforehand", fold),
    Form("one at a time", "it runs one sample at a time", take_one),
)


def in_forms(model: ModelProto, names: Collection[str], sample: Mapping[str, Array]) -> ModelProto:
    """Return a graph in the forms of some names, as far as it is not in them already."""
    for form in FORMS:
        written = form.write(model, sample) if form.name in names else None
        model = model if written is None else written
    return model
