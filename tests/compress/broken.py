"""Break the INT8 of one branch on purpose."""

import numpy as np
import onnx
from onnx import numpy_helper

from edgekd.compress.graph import initializers
from edgekd.compress.qdq_map import describe_sites, find_sites


def round_weights(qdq, floats, branch, bits=3):
    """Return the graph with the weights of a branch rounded to a few bits."""

    def rounded(weight):
        step = np.abs(weight.astype(int)).max() / (2 ** (bits - 1) - 1)
        return (np.round(weight / step) * step).round().astype(weight.dtype)

    return _change(qdq, floats, branch, "weight", 0, rounded)


def scale_ranges(qdq, floats, branch, factor):
    """Return the graph with other ranges of a branch's activations."""
    return _change(qdq, floats, branch, "activation", 1, lambda scale: np.asarray(scale * factor, scale.dtype))


def _change(qdq, floats, branch, kind, index, change):
    broken = onnx.ModelProto()
    broken.CopyFrom(qdq)
    places, stored = find_sites(broken, floats), initializers(broken.graph)
    wanted = [item.tensor for item in describe_sites(places, floats) if (item.branch, item.kind) == (branch, kind)]
    for name in {places[tensor].pairs[0][0].input[index] for tensor in wanted}:
        stored[name].CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(stored[name])), name))
    return broken
