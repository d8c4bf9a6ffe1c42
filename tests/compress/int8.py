"""Quantize a float graph as a build does, and keep what later steps need: the QDQ graph and its float one."""

import numpy as np
import onnx
import onnxruntime as ort

from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.quantizers.registry import find_quantizer
from edgekd.compress.quantizers.write import write_quantized
from edgekd.config.target import Calibration, Scheme

USUAL = Scheme(activations="uint8", symmetric_activations=False)
SYMMETRIC = Scheme(activations="int8", symmetric_activations=True, bias="float")
CALIBRATION = Calibration(description="", ranges="minmax", samples=200)


def int8(model, samples, work, scheme=USUAL, quantizer="qdq"):
    """Return the QDQ graph and the float graph that it was made from."""
    work.mkdir(exist_ok=True)
    calibrate = CalibrationSamples(samples, CALIBRATION)
    written = write_quantized(find_quantizer(quantizer), model, calibrate, scheme, work)
    return onnx.load(written.path), onnx.load(work / "prepared.onnx")


def run(model, feeds, fused=False):
    """Run a graph, by default node by node as ONNX defines it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def same(found, expected):
    """Return whether all outputs are the same to the bit."""
    return list(found) == list(expected) and all(np.array_equal(found[name], expected[name]) for name in expected)
