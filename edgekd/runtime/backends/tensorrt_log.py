"""The messages that TensorRT logs while it reads and builds a graph, and those of them that must stop a build."""

from __future__ import annotations

import gc
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tensorrt import ILogger

THE_GRAPH = "the graph"

#: Logged after every failure on a machine without a GPU, whatever failed.
_ECHO = "catchCudaError"

#: Logged where nothing but the GPU is missing or broken.
_NO_GPU = re.compile(r"CUDA initialization failure|cudaError")

#: The position in the library's source, which tells a user nothing.
_POSITION = re.compile(r"^\w+\.[ch]pp:\d+: |\.? ?In \w+ at /_src/[^)\s]* ?")

#: An error of the optimizer, in terms of its own sources and tensors; not one that names the operation.
_INSIDE = re.compile(r"(\w+::\w+: )?(Error Code \d+: )?Myelin \((?!.*Cannot compile operation).*\)")

#: What the parser logs when it comes to a constant or a node.
_AT = re.compile(r"(?P<kind>Importing initializer|Parsing node): (?P<name>.*?)(?: \[(?P<operator>\w+)\])?\s*$")

#: Warnings after which the engine would compute other numbers than the graph states, and what to do. Subnormal FP16
#: weights are not among them: they lose less than the least step that FP16 makes near 1e-4.
_WRONG = (
    # The bytes 128..255 are then taken as -128..-1.
    (r"UINT8 zero_point only on DLA", 'it would read uint8 as int8; set activations = "int8" in the target\'s scheme'),
    # A weight of a float64 graph, or one that a builder flag makes FP16, becomes the largest number of that type.
    (r"weights outside the range of FLOAT was clamped", "scale the weights, or keep their layer out of the network"),
    (r"would overflow in FP16", "a weight is above 65504: scale the weights, or keep their layer in float32"),
    # The engine's outputs then differ from run to run, and from the graph that was checked.
    (r'ignores the "seed" field', "an engine must not draw random numbers: take the operator out of the network"),
)  # fmt: skip

#: Refusals of the parser and the builder, and what to do. The first that fits counts.
_REFUSED = (
    (r"(?s)DequantizeLinear.*(has type Int32|only activation types allowed)",
     'TensorRT takes no INT32 bias: set bias = "float" in the target\'s scheme'),
    (r"(?i)zero.?point",
     "TensorRT takes no zero point but 0: set symmetric_activations = true in the target's scheme"),
    (r"Failed to import initializer",
     "TensorRT knows no tensor of that type: quantize to INT8, and leave the rest in float32"),
    (r"ParseFromCodedStream|Failed to parse the ONNX model",
     "the file is broken or no ONNX: export it again"),
    (r"UNSUPPORTED_NODE|Plugin not found|No importer registered",
     "TensorRT does not have this operator: write the network without it"),
    (r"for Turing \(SM75\)",
     "choose a compute capability from SM80 on"),
)  # fmt: skip


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python's garbage collector off around calls of the library, which may log.

    The library logs while it holds a lock that freeing a builder takes as well. Were the collector to run inside the
    logger, and to find an earlier builder (in the traceback of an error, say), the process would wait for ever.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Journal:
    """The messages of a library; its :attr:`logger` is given to the library and must outlive all its objects.

    Attributes:
        logger: A logger of the library's own type.
        at: The constant or ONNX node that the parser is at, in words; the graph, while it is at none.
    """

    def __init__(self, trt: ModuleType) -> None:
        self.at = THE_GRAPH
        self._warnings: dict[tuple[str, str], None] = {}
        self._errors: list[str] = []
        take, base = self._take, trt.ILogger

        class Logger(base):  # type: ignore[misc, valid-type]  # the library has no types
            def log(self, severity: ILogger.Severity, message: str) -> None:
                take(severity.name, message)

        self.logger = Logger()

    def _take(self, severity: str, message: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(message)
        elif severity == "WARNING":
            self._warnings[self.at, message] = None
        elif severity == "VERBOSE" and (at := _AT.match(message)):
            name, operator = at["name"], at["operator"]
            self.at = node(name, operator or "") if at["kind"] == "Parsing node" else f"constant '{name}'"

    def warnings(self) -> tuple[str, ...]:
        """Return every warning once, with the constant or node that it was about, where there is one."""
        said = ((at, text.strip()) for at, text in self._warnings)
        return tuple(text if at == THE_GRAPH else f"{at}: {text}" for at, text in said)

    def wrong(self) -> tuple[str, str, str] | None:
        """Return node, warning and what to do, for the first warning after which the numbers would be wrong."""
        for at, text in self._warnings:
            for pattern, what_to_do in _WRONG:
                if re.search(pattern, text):
                    return at, plain(text), what_to_do
        return None

    def reason(self) -> str:
        """Return the last errors; errors that name a cause take precedence over those about a missing GPU."""
        causes = [text for text in self._errors if not _NO_GPU.search(text)]
        return " ".join(filter(None, map(plain, (causes or self._errors)[-2:]))) or "it gave no reason"

    def lacks_gpu(self) -> bool:
        """Return whether nothing went wrong but that no GPU could be used."""
        return bool(self._errors) and all(_NO_GPU.search(text) for text in self._errors)


def node(name: str, operator: str) -> str:
    """Return an ONNX node's name in messages, or the graph where the library names no node."""
    return f"node '{name}' ({operator})" if operator else THE_GRAPH


def plain(message: str) -> str:
    """Return a message as one line, without positions in the library's source."""
    lines = [line for line in message.splitlines() if _ECHO not in line and not line.startswith("Invalid Node")]
    return _INSIDE.sub("its optimizer fails in itself", _POSITION.sub("", " ".join(lines))).strip()


def advice(message: str) -> str:
    """Return what to do about a refusal, with its separator, or nothing."""
    return next((f"; {advice}" for pattern, advice in _REFUSED if re.search(pattern, message)), "")
