"""Try a model whose loops may run for ever in a process of its own first, which is killed where one of them does.

ONNX Runtime cannot be told to stop while it opens a model, and it runs loops over constants then.
"""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import all_nodes
from edgekd.errors import EdgekdError, ModelError
from edgekd.gram.npz import write_npz
from edgekd.runtime.backends.onnxruntime import open_engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto

    from edgekd.runtime.session import Array

#: The longest time in which such a model must open, and the longest for each sample, in seconds.
LIMIT_SECONDS = 60.0

_MODEL, _SAMPLES = "model.onnx", "samples.npz"


def require_end(
    model: ModelProto, path: Path, samples: Mapping[str, Array], limit_seconds: float = LIMIT_SECONDS
) -> None:
    """Check that a model with a ``Loop`` opens, and ends for each of some samples. Other models always end.

    Args:
        model: The model, whose functions are inlined.
        path: File of the model, for errors.
        samples: Inputs by name, a row a sample; empty to try only whether it opens.
        limit_seconds: The longest time for opening, and for each sample.

    Raises:
        ModelError: It did not end in time, or ended the process that ran it.
    """
    loops = [node.name or node.output[0] for node in all_nodes(model.graph) if node.op_type == "Loop"]
    if not loops:
        return
    with TemporaryDirectory() as folder:
        (Path(folder) / _MODEL).write_bytes(model.SerializeToString())
        if samples:
            with (Path(folder) / _SAMPLES).open("wb") as stream:
                write_npz(stream, samples)
        command = [sys.executable, "-m", __name__, folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            try:
                while select.select([process.stdout], [], [], limit_seconds)[0]:
                    if not process.stdout.readline():
                        break
                else:
                    raise ModelError(
                        f"{path}: has not ended after {limit_seconds:g} s; one of its loops may run for ever: "
                        f"{', '.join(loops[:3])}; export it with a number of rounds that is known"
                    )
            finally:
                process.kill()
    if process.returncode < 0 and process.returncode != -signal.SIGKILL:
        name = signal.Signals(-process.returncode).name
        raise ModelError(f"{path}: ONNX Runtime crashed on it ({name}); export it without loops")


def main(folder: Path) -> None:
    """Open the model of a folder and run its samples one by one; write a line after each."""
    with suppress(EdgekdError), open_engine(folder / _MODEL) as session:  # an error is found again, and said, outside
        print("open", flush=True)
        if not (folder / _SAMPLES).exists():
            return
        with np.load(folder / _SAMPLES, allow_pickle=False) as archive:
            samples = {name: archive[name] for name in archive.files}
        for row in range(min(map(len, samples.values()))):
            session.run({name: x[row : row + 1] for name, x in samples.items()})
            print(row, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
