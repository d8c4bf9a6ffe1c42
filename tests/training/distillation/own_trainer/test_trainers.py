"""The examples: real digits, and the real libraries in which a Distiller is trained."""

import importlib
import sys

import pytest
import torch
from commands import ROOT

from edgekd.tasks.digits import Digits
from edgekd.training.loop.weights import load_weights

#: Far above the 10 % of a student that learned nothing, after so few epochs.
LEARNED, EPOCHS = 0.4, 2


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "own_trainer")
    yield importlib.import_module
    for name in [name for name in sys.modules if name == "digits" or name.startswith("train_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "library", "options"),
    [
        ("train_pytorch", "torch", {"half": True}),
        ("train_lightning", "pytorch_lightning", {}),
        ("train_transformers", "transformers", {}),
        ("train_accelerate", "accelerate", {}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_student_learns_in_the_library_s_own_loop(tmp_path, example, name, library, options):
    pytest.importorskip(library)
    file = tmp_path / "student.safetensors"
    reached = example(name).main(EPOCHS, file, **options)
    assert reached > LEARNED
    student = load_weights(Digits().student(), file).eval()  # what [student] weights takes
    test = Digits().splits()["test"]
    with torch.no_grad():
        right = student(*test.inputs.values()).argmax(1) == test.labels
    assert float(right.float().mean()) == pytest.approx(reached)
