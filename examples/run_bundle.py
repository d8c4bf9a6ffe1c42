"""Run a bundle as an app would: numpy, one engine library, edgekd.runtime; no torch.

python examples/run_bundle.py build/demo/cpu/bundle
python examples/run_bundle.py build/demo/jetson-orin/bundle --runtime onnxruntime
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import edgekd


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [N, C]."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def main(path: Path, runtime: str | None) -> None:
    """Verify a bundle on this machine, then run its reference samples one by one."""
    with edgekd.load(path, runtime=runtime) as bundle:  # every file's digest is checked before anything is read
        check = bundle.verify()
        print(f"{path}: {'verified' if check.ok else 'DIFFERS'} on this machine, Gram drift {check.gram_drift:.1g}")
        for spec in bundle.inputs:
            print(f"  feed {spec.name}: {spec}")
        with np.load(path / "reference.npz") as samples:
            ids, feeds = samples["ids"], {spec.name: samples[f"input.{spec.name}"] for spec in bundle.inputs}
        answers = [entry for entry in bundle.manifest.outputs if entry["kind"] not in ("state", "tap")]
        answer = next((entry for entry in answers if entry["classes"]), answers[0])
        print("  run samples that came with it, one at a time:")
        for row, name in enumerate(ids[:5]):
            start = time.perf_counter()
            scores = bundle.run({key: x[row : row + 1] for key, x in feeds.items()})[answer["name"]]
            elapsed_ms = (time.perf_counter() - start) * 1e3
            if answer["kind"] == "classes":
                share = (scores if answer["probabilities"] else softmax(scores))[0]
                said = f"{bundle.classes[share.argmax()]} {share.max():.0%}"
            else:
                said = f"{answer['name']} {np.ravel(scores)[:8].astype(float).round(3).tolist()}"
            print(f"    {name}: {said}  ({elapsed_ms:.2f} ms)")
    print(f"  torch was {'' if 'torch' in sys.modules else 'not '}needed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime", help="instead of the bundle's own")
    options = parser.parse_args()
    main(options.bundle, options.runtime)
