"""A few samples through any graph in a target's engine library, on its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.files import scratch_folder
from edgekd.gram.npz import INPUT_PREFIX
from edgekd.runtime.session import open_arrays, rows_at_once, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.devices.base import Device
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.session import Array, Feeds

#: Name of the file that the library is given, which its errors begin with.
GRAPH = "graph.onnx"
#: Number of samples of the larger batch; libraries compile a batch of one by itself.
_ROWS = 4


def few_batches(samples: Path, model: ModelProto) -> list[Feeds]:
    """Return a few samples in batches: several at once, where the graph takes them, and one alone.

    Args:
        samples: The ``.npz`` of the samples.
        model: The graph that takes them.
    """
    with open_arrays(samples) as arrays:
        feeds = {value.name: arrays[INPUT_PREFIX + value.name][:_ROWS] for value in model.graph.input}
    single = any(value.type.tensor_type.shape.dim[0].dim_value == 1 for value in model.graph.input)
    rows = len(next(iter(feeds.values())))
    at_once = 1 if single else rows_at_once(rows, sum(x.nbytes // max(rows, 1) for x in feeds.values()))
    starts = range(0, min(rows, 2 * at_once), at_once) if at_once == 1 else (0,)
    several: list[Feeds] = [{name: x[start : start + at_once] for name, x in feeds.items()} for start in starts]
    return several if at_once == 1 else [*several, {name: x[:1] for name, x in feeds.items()}]


@dataclass(frozen=True)
class EngineRunner:
    """Runs graphs with a few samples; an :data:`~edgekd.compress.oracles.engine.Engine`.

    Attributes:
        device: The machine that runs the library.
        runtime: The library.
        threads: Number of threads of one inference.
        batches: The samples, a batch each run.
        folder: Folder below which files are made and removed.
        build: Returns the engine of a graph's file, which the library opens.
    """

    device: Device
    runtime: Runtime
    threads: int
    batches: Sequence[Feeds]
    folder: Path
    build: Callable[[Path], Path]

    def __call__(self, model: ModelProto) -> list[dict[str, Array]]:
        """Return the outputs of a graph for each batch.

        Raises:
            ModelError: The library refuses the graph.
            DeviceError: The device was lost or hangs.
        """
        with scratch_folder(self.folder) as folder:
            graph = folder / GRAPH
            graph.write_bytes(model.SerializeToString())
            engine = self.build(graph)
            return [self._run(engine, batch, folder / f"{index}.npz") for index, batch in enumerate(self.batches)]

    def _run(self, engine: Path, batch: Feeds, samples: Path) -> dict[str, Array]:
        outputs = samples.with_suffix(".outputs.npz")
        write_arrays(samples, {INPUT_PREFIX + name: x for name, x in batch.items()})
        self.device.evaluate(engine, self.runtime, samples, outputs, self.threads)
        with open_arrays(outputs) as arrays:
            return {key: arrays[key] for key in arrays}
