"""PyTorch's exporter to ONNX, for a process that exports many small networks."""

import functools

from torch.onnx._internal.exporter._registration import ONNXRegistry

#: The operator sets that the tests export to.
OPSETS = (18, 20)


def keep_operators():
    """Make the table of operators once: it is made anew for each graph, which is half of a small export's time."""
    if isinstance(vars(ONNXRegistry)["from_torchlib"], classmethod):
        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
