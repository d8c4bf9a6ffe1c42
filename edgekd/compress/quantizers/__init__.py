"""Libraries that write Q/DQ nodes into ONNX graphs."""
