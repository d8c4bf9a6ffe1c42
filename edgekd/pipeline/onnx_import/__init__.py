"""Import of a trained ONNX model: read model and samples, find the taps, write them as a build takes them."""
