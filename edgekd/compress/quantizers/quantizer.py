"""A quantizer: a library that writes a float graph in integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path
    from types import ModuleType

    from edgekd.compress.activations.ranges import CalibrationSamples
    from edgekd.compress.work import GraphWork
    from edgekd.config.target import Scheme

    Write = Callable[[Path, CalibrationSamples, Scheme, Path, Collection[str]], Path]


def _suits(_work: GraphWork) -> None:
    """Q/DQ nodes may make any graph faster."""


#: Runtimes that have ONNX Runtime's own operators beside those of ONNX.
ONNX_RUNTIME = ("onnxruntime", "onnxruntime-web")


@dataclass(frozen=True)
class Quantizer:
    """A library that writes a float graph in integers.

    Attributes:
        name: What a target's ``quantizers`` call it.
        title: What messages call it.
        write: Writes the QDQ graph of a float graph, given the graph's file, the calibration samples, the target's
            scheme, an existing folder for its files, and the names of the nodes that must stay float, and returns the
            file. Weights are rounded to the nearest level. Activations and nodes keep the names that they have in the
            float graph; constants are folded in it already.
        packages: Distributions whose versions decide what it writes.
        error_modules: Returns the modules whose exceptions say that the library cannot take a graph.
        pairs: Whether it writes Q/DQ nodes. Ranges, rounding, blame and repair work on these alone; a quantizer that
            writes others rounds by itself.
        runtimes: The engine libraries of edgekd that have the operators that it writes; empty for all.
        unsuitable: Explains why what it writes cannot be faster than the float graph, given the graph's work for one
            sample; None where it may.
    """

    name: str
    title: str
    write: Write
    packages: tuple[str, ...] = ()
    error_modules: Callable[[], tuple[ModuleType, ...]] = tuple
    pairs: bool = True
    runtimes: tuple[str, ...] = ()
    unsuitable: Callable[[GraphWork], str | None] = _suits


@dataclass(frozen=True)
class QuantizedGraph:
    """A graph whose weights are rounded to the nearest level.

    Attributes:
        path: Its file.
        notes: Sentences for the user on what stays float, and why.
    """

    path: Path
    notes: tuple[str, ...]
