"""The quantizers by name: those that come with edgekd, and a user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.compress.quantizers import dynamic, nncf, onnxruntime, weights
from edgekd.compress.quantizers.quantizer import Quantizer
from edgekd.errors import ModelError, TargetError, nearest
from edgekd.plugins import guarded, import_plugin, is_plugin

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgekd.compress.activations.ranges import CalibrationSamples
    from edgekd.compress.quantizers.quantizer import Write
    from edgekd.config.target import Scheme

#: The first is the one that a target has by default.
QUANTIZERS = {
    quantizer.name: quantizer
    for quantizer in (onnxruntime.QUANTIZER, nncf.QUANTIZER, dynamic.QUANTIZER, *weights.QUANTIZERS)
}


def find_quantizer(name: str) -> Quantizer:
    """Return the quantizer that a target names.

    Args:
        name: A key of :data:`QUANTIZERS`, or a user's own as ``path/to/file.py:name`` or ``package.module:name``: a
            :class:`~edgekd.compress.quantizers.quantizer.Quantizer`, or a function like its ``write``.

    Raises:
        TargetError: There is no such quantizer, or what the name leads to is none.
    """
    if not is_plugin(name):
        if name not in QUANTIZERS:
            raise TargetError(f"quantizers: there is no '{name}'{nearest(name, QUANTIZERS)}")
        return QUANTIZERS[name]
    plugin = import_plugin(name, "quantizer", TargetError)
    if not isinstance(plugin, Quantizer) and not callable(plugin):
        raise TargetError(f"quantizer {name}: is a {type(plugin).__name__}, must be a Quantizer or a function")
    quantizer = plugin if isinstance(plugin, Quantizer) else Quantizer(name.rpartition(":")[2], "", plugin)
    return replace(quantizer, title=f"quantizer {name}", write=_checked(name, quantizer.write))


def _checked(name: str, write: Write) -> Write:
    """Return a user's ``write`` whose exceptions and whose result are looked at."""

    def checked(
        prepared: Path, samples: CalibrationSamples, scheme: Scheme, work: Path, floats: Collection[str]
    ) -> Path:
        with guarded(f"quantizer {name}", ModelError):
            written = Path(write(prepared, samples, scheme, work, floats))
        if not written.is_file():
            raise ModelError(f"quantizer {name}: returned {written}, which is no file")
        return written

    return checked
