"""Write a graph of integer operators that is the float network but for its rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.oracles.identity import SAMPLES
from edgekd.compress.oracles.integers import first_miswritten
from edgekd.compress.quantizers.prepare import prepare, refusals
from edgekd.compress.quantizers.units import RANGED, unlike_layers
from edgekd.compress.stored_layers import OPERATORS
from edgekd.errors import ModelError
from edgekd.files import need, quiet
from edgekd.stages.artifacts import PREPARED

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.compress.activations.ranges import CalibrationSamples
    from edgekd.compress.quantizers.quantizer import Quantizer
    from edgekd.config.target import Scheme

#: Nodes that may be returned to float one by one, since the oracle finds them wrong.
_MOST = 16


def write_integers(
    quantizer: Quantizer, model: Path, samples: CalibrationSamples, scheme: Scheme, work: Path
) -> tuple[ModelProto, tuple[str, ...]]:
    """Write a float graph in integer operators, by a quantizer that writes no Q/DQ pairs.

    A node that the oracle finds wrong stays float, as does one that reads raw channels of unlike units.

    Args:
        quantizer: The quantizer.
        model: The float graph.
        samples: The samples, a few of which the result is compared with the float graph on, one at a time.
        scheme: How the target wants INT8.
        work: An existing folder for the files; the float graph that was quantized is left there too.

    Returns:
        The graph, and sentences for the user on what stays float, and why.

    Raises:
        ModelError: A library cannot take the graph, or the result is another network.
    """
    one_by_one = samples.one_by_one()
    with quiet(), refusals(model, quantizer.title, packages=quantizer.packages):
        feeds = list(one_by_one.fewer(SAMPLES))
        floats, strange = prepare(model, feeds, OPERATORS, work)
        kinds = {node.name: node.op_type for node in floats.graph.node}
        strange = {**unlike_layers(floats, list(samples.fewer(RANGED))), **strange}
        kept = {name: reason for name, reason in strange.items() if kinds[name] in OPERATORS}
        while True:
            path = quantizer.write(work / PREPARED, one_by_one, scheme, work, kept)
            graph = need("onnx", "build").load(str(path))
            wrong = first_miswritten(graph, floats, feeds)
            if wrong is None:
                break
            if wrong.node not in kinds or wrong.node in kept or len(kept) >= _MOST:
                raise ModelError(f"{model}: '{wrong.node}' cannot be quantized, nor stay float: {wrong.reason}")
            kept[wrong.node] = f"{quantizer.title} changes the network: {wrong.reason}"
    return graph, tuple(f"'{name}' ({kinds[name]}) stays float: {kept[name]}" for name in kept)
