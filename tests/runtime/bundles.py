"""Bundles of the small engine."""

import numpy as np
from engines import CLASSES, INPUTS, samples, save_engine

from edgekd.gram.output_kind import OutputKind
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.backends.registry import ORT
from edgekd.runtime.bundle_writer import BundleFacts, write_bundle
from edgekd.runtime.verification import write_reference

FACTS = {
    "target": "cpu",
    "runtime": ORT,
    "precision": "int8",
    "task": {"name": "gestures", "metric": "accuracy"},
    "inputs": INPUTS,
    "outputs": {"logits": OutputKind()},
    "classes": {"logits": CLASSES},
    "released": True,
    "verdict": "pass",
    "reasons": [],
    "versions": {"onnx": "1.23.2"},
    "measurements": {"accuracy": 0.99},
}


def make_files(folder, deploy=None, **engine):
    folder.mkdir(parents=True)
    save_engine(folder / "probe.onnx", **engine)
    save_engine(folder / "deploy.onnx", outputs=["logits"], **(deploy or {}))
    with open_engine(save_engine(folder.parent / "reference.onnx")) as session:
        write_reference(folder / "reference.npz", np.arange(8), samples(8), session.run(samples(8)))
    (folder / "ledger.json").write_text("{}")


def make_bundle(folder, engine=None, deploy=None, **facts):
    make_files(folder, deploy, **(engine or {}))
    write_bundle(folder, BundleFacts(**{**FACTS, **facts}))
