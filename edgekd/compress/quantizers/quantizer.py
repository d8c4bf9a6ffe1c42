"""A quantizer: a library that writes Q/DQ nodes into a float graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path
    from types import ModuleType

    from edgekd.compress.ranges import CalibrationSamples
    from edgekd.config.target import Scheme

    Write = Callable[[Path, CalibrationSamples, Scheme, Path, Collection[str]], Path]


@dataclass(frozen=True)
class Quantizer:
    """A library that writes Q/DQ nodes into a float graph.

    Attributes:
        name: What a target's ``quantizers`` call it.
        title: What messages call it.
        write: Writes the QDQ graph of a float graph, given the graph's file, the calibration samples, the target's
            scheme, an existing folder for its files, and the names of the nodes that must stay float, and returns the
            file. Weights are rounded to the nearest level. Activations and nodes keep the names that they have in the
            float graph; constants are folded in it already.
        packages: Distributions whose versions decide what it writes.
        error_modules: Returns the modules whose exceptions say that the library cannot take a graph.
    """

    name: str
    title: str
    write: Write
    packages: tuple[str, ...] = ()
    error_modules: Callable[[], tuple[ModuleType, ...]] = tuple
