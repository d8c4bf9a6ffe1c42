"""Make a bundle of a folder with engines and the evidence for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from edgekd import __version__
from edgekd.errors import BundleError
from edgekd.files import atomic_path, sha256_file
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.runtime.backends.registry import ORT
from edgekd.runtime.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    STATE,
    TAP,
    Manifest,
    Variant,
    check_required,
    manifest_text,
    null_not_finite,
    parse_manifest,
    plain_files,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.gram.output_kind import OutputKind
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
        outputs: What each of the network's answers is, by name, in order.
        classes: For each answer that tells classes or labels apart, their names in order.
        released: Whether apps may open it.
        verdict: The gate's verdict: "pass", "warn", "undecided" or "fail".
        reasons: The reasons for a verdict other than "pass".
        versions: The versions of the libraries that built it.
        measurements: Numbers about the engine.
        states: For each input that is a state the output that holds it after a step.
    """

    target: str
    runtime: Runtime
    precision: str
    task: JsonObject
    inputs: list[JsonObject]
    outputs: Mapping[str, OutputKind]
    classes: Mapping[str, list[str]]
    released: bool
    verdict: str
    reasons: list[str]
    versions: dict[str, str]
    measurements: JsonObject
    states: Mapping[str, str] = field(default_factory=dict)

    @property
    def given(self) -> list[str]:
        """The names of the outputs of both engines: the network's answers, and its states."""
        return list(dict.fromkeys([*self.outputs, *self.states.values()]))


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
        outputs=_outputs(folder, facts),
        states=[{"input": name, "output": output, "initial": "zeros"} for name, output in facts.states.items()],
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


def _outputs(folder: Path, facts: BundleFacts) -> list[JsonObject]:
    """Describe the engines' outputs, having checked that both engines are what the manifest says of them.

    ONNX Runtime looks at the ONNX of any target: the target's own library may need the target's device.
    """
    variants: dict[str, list[str]] = {}
    outputs: dict[str, JsonObject] = {}
    for variant in get_args(Variant):
        path = folder / f"{variant}.onnx"
        with ORT.open(path) as session:
            _check_inputs(path, session, facts.inputs)
            _check_outputs(path, [spec.name for spec in session.outputs], facts.given, variant)
            for spec in session.outputs:
                variants.setdefault(spec.name, []).append(variant)
                outputs[spec.name] = {"name": spec.name, "dtype": spec.dtype, "shape": _batched(spec.shape)}
    for name, classes in facts.classes.items():
        width = outputs[name]["shape"][facts.outputs[name].class_axis or -1]
        if classes and isinstance(width, int) and width != len(classes):
            raise BundleError(f"{folder}: '{name}' has {width} scores, but {len(classes)} classes were named")
    ordered = {name: outputs[name] for name in (*facts.given, *outputs)}
    return [{**output, "variants": variants[name], **_meaning(facts, name)} for name, output in ordered.items()]


def _meaning(facts: BundleFacts, name: str) -> JsonObject:
    kind = facts.outputs.get(name)
    return {
        "kind": kind.name if kind else STATE if name in facts.states.values() else TAP,
        "probabilities": bool(kind and kind.probabilities),
        "threshold": kind.threshold if kind else None,
        "blank": kind.blank if kind else None,
        "classes": list(facts.classes.get(name, [])),
    }


def _batched(shape: tuple[int | str, ...]) -> list[int | str]:
    return [shape[0] if shape[0] == 1 else "batch", *shape[1:]]


def _check_outputs(path: Path, names: list[str], answers: list[str], variant: Variant) -> None:
    taps = [name for name in names if name.startswith(EMBEDDING_PREFIX)]
    listed = ", ".join(f"'{name}'" for name in answers)
    wanted = f"{listed} and '{EMBEDDING_PREFIX}<modality>'" if variant == "probe" else f"{listed} alone"
    if {*answers, *taps} != set(names) or bool(taps) != (variant == "probe"):
        raise BundleError(f"{path}: must have the outputs {wanted}, but has {sorted(names)}")


def _check_inputs(path: Path, session: Session, inputs: list[JsonObject]) -> None:
    def fixed(shape: Sequence[int | str]) -> list[int | None]:
        return [size if isinstance(size, int) else None for size in shape]

    stated = {item["name"]: (item["dtype"], fixed(item["shape"])) for item in inputs}
    actual = {spec.name: (spec.dtype, fixed(spec.shape)) for spec in session.inputs}
    if stated != actual:
        raise BundleError(f"{path}: its inputs are {actual}, but the manifest would state {stated}")
