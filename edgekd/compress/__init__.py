"""Calibrate and quantize ONNX graphs: numpy and ONNX, no torch."""
