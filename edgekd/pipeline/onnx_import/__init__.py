"""Builds from ONNX, for users who bring no PyTorch: read the model and its samples, find the taps, write one form."""
