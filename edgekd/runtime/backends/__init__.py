"""Engine libraries, each behind the same session: ONNX Runtime, OpenVINO, TensorRT, a user's own."""
