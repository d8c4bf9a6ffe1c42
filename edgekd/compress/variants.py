"""A candidate for what ships: how it is to be written, and its two graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.compress.candidate import Candidate
from edgekd.compress.fp16 import to_half
from edgekd.compress.graph import copy, drop_embeddings, save
from edgekd.compress.precision import count_quantized
from edgekd.compress.quantizers import onnxruntime
from edgekd.stages.artifacts import DEPLOY, PROBE_GRAPH

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.config.target import Scheme


@dataclass(frozen=True)
class CandidateSpec:
    """How a candidate for what ships is to be written.

    Attributes:
        precision: What its weights and activations are, e.g. "int8".
        quantizer: Name of the quantizer, as the target has it; None where nothing is quantized.
    """

    precision: str
    quantizer: str | None

    @property
    def name(self) -> str:
        """Name of the candidate, and of its folder: "int8", "int8-nncf", "float32"."""
        if self.quantizer in (None, onnxruntime.QUANTIZER.name):
            return self.precision
        return f"{self.precision}-{self.quantizer.rpartition(':')[2]}"


def has_half(spec: CandidateSpec, scheme: Scheme) -> bool:
    """Whether a candidate computes in FP16 what is not INT8."""
    return spec.precision == "float16" or (spec.quantizer is not None and scheme.rest == "float16")


def write_variants(graph: ModelProto, spec: CandidateSpec, scheme: Scheme, folder: Path) -> Candidate:
    """Write the two variants of a candidate's graph: with its embeddings as outputs, and without.

    Args:
        graph: The float graph, or the QDQ graph before FP16, with the network's outputs and
            ``embedding.<modality>``. It is not changed.
        spec: The candidate's precision and quantizer.
        scheme: Whether what is not INT8 becomes FP16.
        folder: The candidate's folder, which is made.

    Raises:
        ModelError: The graph cannot be written in FP16.
    """
    done, total = count_quantized(graph)
    engine = to_half(graph) if has_half(spec, scheme) else copy(graph)
    engine.graph.ClearField("value_info")  # shapes of inner tensors, which every library infers itself
    folder.mkdir(exist_ok=True)
    save(engine, folder / PROBE_GRAPH)
    drop_embeddings(folder / PROBE_GRAPH, folder / DEPLOY)
    sizes = {name: (folder / name).stat().st_size for name in (PROBE_GRAPH, DEPLOY)}
    return Candidate(spec.name, spec.precision, done, total, sizes)
