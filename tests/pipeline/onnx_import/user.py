"""A model as its user has it."""

import onnxruntime as ort


def run_user(path, output, feeds):
    """Run a model as its user would."""
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run([output], feeds)[0]
