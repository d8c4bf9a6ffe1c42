"""Write a QDQ graph that is the float network but for its rounding: what a quantizer gets wrong stays float."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekd.compress.graph import save, sort_nodes, unquantize_outputs
from edgekd.compress.oracles.identity import SAMPLES, Difference
from edgekd.compress.oracles.rounding_aside import first_misquantized
from edgekd.compress.quantizers.idle import drop_idle
from edgekd.compress.quantizers.kept import read_float, with_limits
from edgekd.compress.quantizers.masked import leave_float, survey
from edgekd.compress.quantizers.prepare import QuantizerRefusal, prepare, refusals
from edgekd.compress.quantizers.quantizer import QuantizedGraph
from edgekd.compress.quantizers.raw import raw_nodes
from edgekd.compress.quantizers.stored import quantize_stored
from edgekd.compress.quantizers.units import RANGED, unlike_layers
from edgekd.errors import ModelError
from edgekd.files import need, quiet
from edgekd.stages.artifacts import PREPARED, QDQ

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.compress.activations.ranges import CalibrationSamples
    from edgekd.compress.quantizers.quantizer import Quantizer
    from edgekd.config.target import Scheme
    from edgekd.runtime.session import Feeds

#: Nodes that may be returned to float one by one, since the quantizer refuses them or gets them wrong.
_MOST = 16


def write_quantized(
    quantizer: Quantizer, model: Path, samples: CalibrationSamples, scheme: Scheme, work: Path
) -> QuantizedGraph:
    """Write the QDQ graph of a float graph, its weights rounded to the nearest level.

    With its Q/DQ pairs taken away the graph computes what the float graph does, on a few of the samples. A node at
    which it does not, or that the quantizer cannot take, stays float; and so do masks and everything that computes on
    raw inputs. Graph outputs are not rounded.

    Args:
        quantizer: The library that writes it.
        model: The float graph.
        samples: The samples that ranges are found on, and how.
        scheme: How the target wants INT8.
        work: An existing folder for the files; the float graph that was quantized is left there too.

    Raises:
        ModelError: The quantizer cannot take the graph, or NaN or an overflow reaches an output of it.
    """
    with quiet(), refusals(model, quantizer.title, quantizer.error_modules(), quantizer.packages):
        feeds = list(samples.fewer(SAMPLES))
        floats, strange = prepare(model, feeds, scheme.operators, work)
        strange = {**unlike_layers(floats, list(samples.fewer(RANGED))), **strange}
        masked = survey(work / PREPARED, samples)
        graph, notes = _Attempts(quantizer, model, floats, feeds, samples, scheme, work, masked).search(strange)
        graph, of_masks = leave_float(graph, floats, masked)
        save(graph, work / QDQ)
    return QuantizedGraph(work / QDQ, (*notes, *of_masks))


@dataclass(frozen=True)
class _Attempts:
    """Attempts to quantize one graph, each with other nodes left float."""

    quantizer: Quantizer
    model: Path
    floats: ModelProto
    feeds: Sequence[Feeds]
    samples: CalibrationSamples
    scheme: Scheme
    work: Path
    masked: Collection[str]

    def search(self, strange: Mapping[str, str]) -> tuple[ModelProto, tuple[str, ...]]:
        """Return the QDQ graph, and a note on each node that stays float, found wrong one after the other.

        Args:
            strange: Nodes that are known to be wrong, with the reasons.
        """
        kinds = {node.name: node.op_type for node in self.floats.graph.node}
        kept = {name: reason for name, reason in strange.items() if kinds[name] in self.scheme.operators}
        graph, problem = self._attempt(kept)
        while problem and problem.node in kinds and problem.node not in kept and len(kept) < _MOST:
            kept[problem.node] = problem.reason
            graph, problem = self._attempt(kept)
        if problem:
            raise ModelError(f"{self.model}: '{problem.node}' cannot be quantized, nor stay float: {problem.reason}")
        return graph, tuple(f"'{name}' ({kinds[name]}) stays float: {kept[name]}" for name in kept)

    def _attempt(self, kept: Collection[str]) -> tuple[ModelProto, Difference | None]:
        """Return a QDQ graph, and the first node that is wrong in it or that the quantizer cannot take."""
        try:
            graph, difference = self._quantize(kept, self.samples)
        except QuantizerRefusal as refusal:
            name = self._refused(kept)
            if name is None:
                raise
            return self.floats, Difference(name, f"{self.quantizer.title} cannot quantize it: {refusal.reason}")
        if difference:
            difference = replace(difference, reason=f"{self.quantizer.title} changes the network: {difference.reason}")
        return graph, difference

    def _quantize(self, kept: Collection[str], samples: CalibrationSamples) -> tuple[ModelProto, Difference | None]:
        """Return a QDQ graph, and the first node that is wrong in it."""
        quantizer = self.quantizer
        left = with_limits(self.floats.graph, raw_nodes(self.floats.graph).union(kept))
        with refusals(self.model, quantizer.title, quantizer.error_modules(), quantizer.packages):
            path = quantizer.write(self.work / PREPARED, samples, self.scheme, self.work, left)
            graph = need("onnx", "build").load(str(path))
            sort_nodes(graph.graph)
            quantize_stored(graph)
            unquantize_outputs(graph, self.floats)
            read_float(graph, self.floats, left)
            graph = drop_idle(graph, self.floats, self.scheme.operators, left)
            return graph, first_misquantized(graph, self.floats, self.feeds, self.masked)

    def _refused(self, kept: Collection[str]) -> str | None:
        """Return a node without which the quantizer takes more of the graph; None where it takes none of it.

        It is the last of the fewest first nodes that the quantizer refuses together, found by bisection.
        """
        nodes = [node for node in self.floats.graph.node if node.op_type in self.scheme.operators]
        names = [str(node.name) for node in nodes if node.name not in kept]
        few = self.samples.fewer(SAMPLES)
        samples = self.samples if self._takes(kept, few) else few
        if not self._takes({*kept, *names}, samples):
            return None
        taken, refused = 0, len(names)
        while refused - taken > 1:
            middle = (taken + refused) // 2
            if self._takes({*kept, *names[middle:]}, samples):
                taken = middle
            else:
                refused = middle
        return names[taken]

    def _takes(self, kept: Collection[str], samples: CalibrationSamples) -> bool:
        try:
            self._quantize(kept, samples)
        except QuantizerRefusal:
            return False
        return True
