"""Make a bundle of a folder with engines and the evidence for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from edgekd import __version__
from edgekd.errors import BundleError
from edgekd.files import atomic_path, sha256_file
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.runtime.backends.registry import ORT
from edgekd.runtime.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
    Variant,
    check_required,
    manifest_text,
    null_not_finite,
    parse_manifest,
    plain_files,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.session import Session


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle's manifest states besides its files and the engines' outputs.

    Attributes:
        target: The target's name.
        runtime: The library that runs the engines on the target.
        precision: The engines' precision: "int8", "float16" or "float32".
        task: What the engine does: its name, metric and the like.
        inputs: For each input its name, dtype, shape (the first dimension is "batch" or 1) and preprocessing in words.
        classes: The names of the logits, in their order; empty for an engine that is no classifier.
        released: Whether apps may open it.
        verdict: The gate's verdict: "pass", "warn", "undecided" or "fail".
        reasons: The reasons for a verdict other than "pass".
        versions: The versions of the libraries that built it.
        measurements: Numbers about the engine.
    """

    target: str
    runtime: Runtime
    precision: str
    task: JsonObject
    inputs: list[JsonObject]
    classes: list[str]
    released: bool
    verdict: str
    reasons: list[str]
    versions: dict[str, str]
    measurements: JsonObject


def write_bundle(folder: Path, facts: BundleFacts) -> None:
    """Make a bundle of a folder that holds its files already, by writing its manifest.

    Args:
        folder: A folder with ``probe.onnx``, ``deploy.onnx``, ``reference.npz``, ``ledger.json``, and more if wished.
        facts: What the manifest states.

    Raises:
        BundleError: a file is missing, or the engines do not have the inputs and outputs that the manifest would state.
    """
    files = plain_files(folder)
    files.pop(MANIFEST, None)
    check_required(files, str(folder))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        edgekd=__version__,
        target=facts.target,
        runtime=facts.runtime.name,
        options=dict(facts.runtime.options),
        precision=facts.precision,
        released=facts.released,
        verdict=facts.verdict,
        reasons=list(facts.reasons),
        task=facts.task,
        inputs=facts.inputs,
        outputs=_outputs(folder, facts.inputs, facts.classes),
        classes=list(facts.classes),
        versions=facts.versions,
        measurements=null_not_finite(facts.measurements),
        files={name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in files.items()},
    )
    parse_manifest(vars(manifest), str(folder))  # a manifest that cannot be read back is not written
    try:
        text = manifest_text(vars(manifest))
    except ValueError as error:  # a lone surrogate in a name, or a number that is none
        raise BundleError(f"{folder}: its manifest cannot be written: {error}") from error
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_bytes(text.encode())  # the same bytes on every system


def _outputs(folder: Path, inputs: list[JsonObject], classes: list[str]) -> list[JsonObject]:
    """Describe the engines' outputs, having checked that both engines are what the manifest says of them.

    ONNX Runtime looks at the ONNX of any target: the target's own library may need the target's device.
    """
    variants: dict[str, list[str]] = {}
    outputs: dict[str, JsonObject] = {}
    for variant in get_args(Variant):
        path = folder / f"{variant}.onnx"
        with ORT.open(path) as session:
            _check_inputs(path, session, inputs)
            _check_outputs(path, [spec.name for spec in session.outputs], variant)
            for spec in session.outputs:
                variants.setdefault(spec.name, []).append(variant)
                outputs[spec.name] = {"name": spec.name, "dtype": spec.dtype, "shape": _batched(spec.shape)}
    width = outputs["logits"]["shape"][-1]
    if classes and width != len(classes):
        raise BundleError(f"{folder}: the engines give {width} logits, but {len(classes)} classes were named")
    return [{**output, "variants": variants[name]} for name, output in outputs.items()]


def _batched(shape: tuple[int | str, ...]) -> list[int | str]:
    return [shape[0] if shape[0] == 1 else "batch", *shape[1:]]


def _check_outputs(path: Path, names: list[str], variant: Variant) -> None:
    others = [name for name in names if name != "logits"]
    taps = [name for name in others if name.startswith(EMBEDDING_PREFIX)]
    wanted = f"'logits' and '{EMBEDDING_PREFIX}<modality>'" if variant == "probe" else "'logits' alone"
    if len(others) == len(names) or len(taps) < len(others) or bool(taps) != (variant == "probe"):
        raise BundleError(f"{path}: must have the outputs {wanted}, but has {sorted(names)}")


def _check_inputs(path: Path, session: Session, inputs: list[JsonObject]) -> None:
    def fixed(shape: Sequence[int | str]) -> list[int | None]:
        return [size if isinstance(size, int) else None for size in shape]

    stated = {item["name"]: (item["dtype"], fixed(item["shape"])) for item in inputs}
    actual = {spec.name: (spec.dtype, fixed(spec.shape)) for spec in session.inputs}
    if stated != actual:
        raise BundleError(f"{path}: its inputs are {actual}, but the manifest would state {stated}")
