"""One real float graph: two modalities, convolutions, raw channels of very different scale, trained by nobody."""

import pytest
import torch
from exporter import keep_operators
from fusion import MODALITIES, make_inputs, save_samples
from torch import nn

from edgekd.config.recipe import Tap
from edgekd.training.export.onnx import ExportNetwork, write_onnx
from edgekd.training.task.models import LateFusion, Standardize

keep_operators()


@pytest.fixture(scope="session")
def network():
    torch.manual_seed(0)
    samples = {name: torch.from_numpy(x) for name, x in make_inputs(256).items()}
    image = nn.Sequential(
        Standardize(samples["image"]), nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12),
    )  # fmt: skip
    motion = nn.Sequential(
        Standardize(samples["motion"]), nn.Conv1d(3, 8, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(112, 12)
    )
    return LateFusion({"image": image, "motion": motion}, 12, 16, 4).eval()


@pytest.fixture(scope="session")
def model(network, tmp_path_factory):
    """Return the network as ONNX, with logits and both embeddings."""
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    inputs = {name: torch.from_numpy(x) for name, x in make_inputs(8).items()}
    taps = {name: Tap(module=f"encoders.{name}") for name in MODALITIES}
    write_onnx(ExportNetwork(network, taps), inputs, 20, path)
    return path


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    return save_samples(tmp_path_factory.mktemp("samples") / "calibration.npz", 200)
