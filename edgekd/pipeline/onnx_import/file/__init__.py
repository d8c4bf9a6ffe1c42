"""Read a user's ONNX file: refuse what no build can start from, and bring the rest into one form."""
