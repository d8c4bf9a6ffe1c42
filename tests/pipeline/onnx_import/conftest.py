import numpy as np
import pytest

from edgekd.config.recipe import OutputConfig
from edgekd.pipeline.onnx_import.source import OnnxSource
from edgekd.pipeline.onnx_import.stage import import_onnx
from edgekd.stages.progress import Silent, StageReporter


class Warned(Silent):
    def __init__(self):
        self.messages = []

    def warn(self, stage, message):
        self.messages.append(message)


@pytest.fixture
def import_(tmp_path):
    """Import a model with samples that are given by name, into ``tmp_path / "out"``."""

    def run(
        model,
        samples,
        test=None,
        taps=(),
        outputs=(),
        kind="auto",
        threshold=None,
        states=None,
        fixed=(),
        metric=None,
        **options,
    ):
        np.savez(tmp_path / "samples.npz", **samples)
        if test is not None:
            np.savez(tmp_path / "test.npz", **test)
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        given = None if test is None else tmp_path / "test.npz"
        observer = Warned()
        reporter = StageReporter(observer, "import")
        only = OutputConfig(kind=kind, threshold=threshold)
        asked = {name: OutputConfig(**said) for name, said in dict(outputs).items()}
        source = OnnxSource(
            model, tmp_path / "samples.npz", given, dict(taps), asked, only, states, dict(fixed), metric
        )
        imported = import_onnx(source, folder, reporter, **options)
        assert tuple(observer.messages) == imported.notes
        return imported

    return run
