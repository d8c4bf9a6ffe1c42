"""The float network in the engine library of a target, compared with ONNX Runtime before anything is quantized."""
