"""The bundle: a folder with engines and the evidence for them. Write it, open it, let it verify itself.

Nothing of a bundle is deserialized before every file in it has the digest that the manifest states. The manifest itself
is plain JSON and is not signed: digests find damage and mixed-up files, not someone who rewrites the manifest too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edgekd import __version__
from edgekd.errors import BundleError, DeviceError, MissingDependency, ModelError, nearest
from edgekd.files import sha256_file, write_text
from edgekd.gram.matrix import comparable, pair_cosines, within_cosines
from edgekd.gram.npz import EMBEDDING_PREFIX, INPUT_PREFIX
from edgekd.runtime.backends.registry import ORT, Runtime
from edgekd.runtime.manifest import (
    BRANCHES,
    MANIFEST,
    REFERENCE,
    SCHEMA_VERSION,
    Manifest,
    check_listing,
    check_required,
    null_not_finite,
    parse_manifest,
    plain_files,
    read_file,
    read_manifest,
)
from edgekd.runtime.session import Array, Feeds, Session, TensorSpec, read_arrays, run_rows, write_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

Variant = Literal["deploy", "probe"]

#: Largest mean difference of the pair cosines that verifies: the drift that the gate passes without a word by default.
#: The same engine on another processor differs by rounding only, an order of magnitude less; INT8 that saturates, more.
MAX_GRAM_DRIFT = 0.005

_BATCH = 64


@dataclass(frozen=True)
class Verification:
    """How a bundle's two variants do on this machine against what came out where the bundle was built.

    Attributes:
        samples: how many reference samples there are.
        max_logit_error: largest absolute difference of a logit, of either variant.
        flips: how many samples' top-1 class differs, in either variant; None where the engine names no classes.
        gram_drift: mean absolute difference of the cosines between modalities, or within each where they do not
            compare.
        ok: no class differs, every logit is finite, and the drift is within :data:`MAX_GRAM_DRIFT`.
    """

    samples: int
    max_logit_error: float
    flips: int | None
    gram_drift: float
    ok: bool


def write_reference(path: Path, ids: Array, inputs: Feeds, outputs: Mapping[str, Array]) -> None:
    """Write the samples with which a bundle verifies itself.

    Args:
        path: the ``.npz``.
        ids: the samples' names [n].
        inputs: by modality [n, ...]. Take samples that the engine is sure of: one on the edge between two classes may
            flip by rounding alone on another processor.
        outputs: what ``probe.onnx`` made of them: ``logits`` [n, C] and ``embedding.<modality>`` [n, D].
    """
    arrays = {INPUT_PREFIX + name: array for name, array in inputs.items()}
    write_arrays(path, {"ids": ids, "logits": outputs["logits"], "gram": _cosines(outputs), **arrays})


def write_bundle(
    folder: Path,
    *,
    target: str,
    runtime: Runtime,
    precision: str,
    task: dict[str, Any],
    inputs: list[dict[str, Any]],
    classes: list[str],
    verdict: str,
    reasons: list[str],
    versions: dict[str, str],
    measurements: dict[str, Any],
) -> None:
    """Make a bundle of a folder that holds its files already, by writing its manifest.

    Args:
        folder: with ``probe.onnx``, ``deploy.onnx``, ``reference.npz``, ``ledger.json``, and more if wished.
        target: the target's name.
        runtime: the library that runs the engines on the target.
        precision: of the engines, "int8", "float16" or "float32".
        task: what the engine does: name, metric and the like.
        inputs: for each its name, dtype, shape (the first dimension is "batch" or 1) and preprocessing in words.
        classes: names of the logits, in their order.
        verdict: of the gate: "pass", "warn" or "fail".
        reasons: why it did not simply pass.
        versions: of the libraries that built it.
        measurements: numbers about the engine.

    Raises:
        BundleError: a file is missing, or the engines do not have the inputs and outputs that the manifest would state.
    """
    files = plain_files(folder)
    files.pop(MANIFEST, None)
    check_required(files, str(folder))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        edgekd=__version__,
        target=target,
        runtime=runtime.name,
        options=dict(runtime.options),
        precision=precision,
        released=verdict != "fail",
        verdict=verdict,
        reasons=list(reasons),
        task=task,
        inputs=inputs,
        outputs=_outputs(folder, inputs, classes),
        classes=list(classes),
        versions=versions,
        measurements=null_not_finite(measurements),
        files={name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in files.items()},
    )
    parse_manifest(vars(manifest), str(folder))  # what cannot be read back is not written
    write_text(folder / MANIFEST, json.dumps(vars(manifest), indent=2, allow_nan=False) + "\n")


def load(
    path: Path | str,
    *,
    variant: Variant = "deploy",
    threads: int = 1,
    runtime: str | None = None,
    allow_rejected: bool = False,
) -> Bundle:
    """Open a bundle after checking every file in it.

    Args:
        path: the bundle's folder.
        variant: "deploy" gives logits only, "probe" the embeddings too.
        threads: threads of one inference.
        runtime: open it with this runtime instead of its own: "onnxruntime" runs any bundle's ONNX, on any machine. A
            bundle for a user's own runtime, ``file.py:function``, needs it: no bundle chooses which code is imported.
        allow_rejected: open it even if the gate rejected it.

    Raises:
        BundleError: it is no bundle, was altered, or was rejected.
        MissingDependency: its engine library is not installed.
        ModelError: its engine cannot be opened here.
        DeviceError: the engine library lacks the device that the bundle is for.
    """
    if str(variant) == "engine":
        raise BundleError("the variant 'engine' is now called 'probe'")
    if variant not in get_args(Variant):
        raise BundleError(f"a bundle has no variant '{variant}'{nearest(variant, get_args(Variant))}")
    folder = Path(path)
    manifest, library = _look_over(folder, runtime)
    opened = engine_file(manifest, variant, library)
    for name in manifest.files:
        if name != opened:  # whose digest is checked in the very bytes that are opened
            read_file(folder, manifest, name)
    if not manifest.released and not allow_rejected:
        reasons = "; ".join(manifest.reasons) or "it gives no reason"
        raise BundleError(f"{folder}: the gate rejected this bundle ({reasons}); allow_rejected opens it all the same")
    try:
        return Bundle(folder, manifest, variant, threads, library)
    except (DeviceError, MissingDependency) as error:
        if library.name in (ORT.name, "onnxruntime-web"):
            raise
        raise type(error)(
            f"{folder}: {error}; runtime 'onnxruntime' (--runtime) runs its ONNX on any machine"
        ) from error


def examine(path: Path | str, runtime: str | None = None) -> tuple[Manifest, Runtime]:
    """Check every file of a bundle without opening its engine, as where another machine is to run it.

    Args:
        path: the bundle's folder.
        runtime: as for :func:`load`.

    Returns:
        Its manifest, and the library that is to run it.

    Raises:
        BundleError: it is no bundle, or was altered.
    """
    folder = Path(path)
    manifest, library = _look_over(folder, runtime)
    for name in manifest.files:
        read_file(folder, manifest, name)
    return manifest, library


def _look_over(folder: Path, runtime: str | None) -> tuple[Manifest, Runtime]:
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; give the folder that holds a bundle's {MANIFEST}")
    found = plain_files(folder)
    manifest = read_manifest(folder)
    library = _runtime(folder, manifest, runtime)
    check_listing(folder, manifest, found)
    return manifest, library


def _runtime(folder: Path, manifest: Manifest, wanted: str | None) -> Runtime:
    own = Runtime(manifest.runtime, manifest.options)
    if wanted is None and own.custom:
        raise BundleError(
            f"{folder}: is for a runtime of its maker's, '{manifest.runtime}'; name that code with runtime= (on the "
            "command line --runtime) if you trust it, or open the bundle with 'onnxruntime'"
        )
    if wanted is None or wanted == own.name:
        return own
    chosen = Runtime(wanted)
    return Runtime(wanted, manifest.options) if chosen.custom else chosen


class Bundle:
    """An open bundle. Close it, or use it as a context manager."""

    def __init__(self, folder: Path, manifest: Manifest, variant: Variant, threads: int, runtime: Runtime) -> None:
        self.folder = folder
        self.manifest = manifest
        self.variant = variant
        self.runtime = runtime
        self._threads = threads
        self._session = self._open(variant)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What :meth:`run` must be fed."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What :meth:`run` returns."""
        return self._session.outputs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the logits, in their order."""
        return tuple(self.manifest.classes)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the engine: inputs by name, a row a sample, to outputs by name.

        Raises:
            ModelError: the feeds do not fit :attr:`inputs`; it says what was expected.
        """
        return self._session.run(feeds)

    def predict(self, feeds: Feeds) -> list[str]:
        """Return each sample's most likely class by name.

        Raises:
            ModelError: the feeds do not fit :attr:`inputs`, a logit is not a number, or the engine is no classifier.
        """
        if not self.manifest.classes:
            raise ModelError(f"{self.folder}: the engine is no classifier; use run()")
        logits = self.run(feeds)["logits"]
        if not np.isfinite(logits).all():
            raise ModelError(f"{self.folder}: the engine gave logits that are not finite; check its inputs")
        return [self.manifest.classes[index] for index in logits.argmax(-1)]

    def verify(self) -> Verification:
        """Run the reference samples through both variants; compare with what came out where the bundle was built.

        It needs no labels and no teacher.

        Raises:
            BundleError: a file was altered since the bundle was opened, or the reference is not this engine's.
        """
        reference = self._reference()
        other: Variant = "probe" if self.variant == "deploy" else "deploy"
        outputs = {self.variant: _run_reference(self._session, reference)}
        with self._open(other) as session:
            outputs[other] = _run_reference(session, reference)
        return _compare(outputs["deploy"], outputs["probe"], reference, bool(self.manifest.classes))

    def close(self) -> None:
        """Free the engine; the bundle cannot be run again."""
        self._session.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, variant: Variant) -> Session:
        """Open a variant's file, checked in the very bytes that the engine library gets."""
        name = engine_file(self.manifest, variant, self.runtime)
        content = read_file(self.folder, self.manifest, name)
        return self.runtime.open(content, self._threads, str(self.folder / name), keep=True)

    def _reference(self) -> dict[str, Array]:
        content = read_file(self.folder, self.manifest, REFERENCE)
        keys = [INPUT_PREFIX + spec.name for spec in self.inputs]
        try:
            return read_arrays(BytesIO(content), [*keys, "logits", "gram", "ids"])
        except ModelError as error:
            raise BundleError(f"{self.folder / REFERENCE}: is not a bundle's reference: {error}") from error


def _run_reference(session: Session, reference: Mapping[str, Array]) -> dict[str, Array]:
    return run_rows(session, {spec.name: reference[INPUT_PREFIX + spec.name] for spec in session.inputs}, _BATCH)


def _compare(
    deploy: Mapping[str, Array], probe: Mapping[str, Array], reference: Mapping[str, Array], classifies: bool
) -> Verification:
    gram = _cosines(probe)
    for name, found in (("logits", deploy["logits"]), ("logits", probe["logits"]), ("gram", gram)):
        if found.shape != reference[name].shape:
            raise BundleError(f"{REFERENCE}: has {name} {reference[name].shape}, but the engine gives {found.shape}")
    logits = np.stack([deploy["logits"], probe["logits"]])
    error = float(np.abs(logits - reference["logits"]).max())
    flips = int((logits.argmax(-1) != reference["logits"].argmax(-1)).any(0).sum()) if classifies else None
    drift = float(np.abs(gram - reference["gram"]).mean())
    ok = not flips and bool(np.isfinite(error)) and drift <= MAX_GRAM_DRIFT
    return Verification(len(gram), error, flips, drift, ok)


def _cosines(outputs: Mapping[str, Array]) -> Array:
    """Return the cosines between modalities [n, P]; within each [n, M, n] where they do not compare."""
    embeddings = {name: z for name, z in outputs.items() if name.startswith(EMBEDDING_PREFIX)}
    cosines: Array = pair_cosines(embeddings) if comparable(embeddings) else within_cosines(embeddings)
    return cosines


def engine_file(manifest: Manifest, variant: Variant, runtime: Runtime) -> str:
    """Return the name of the file that a runtime is given: an engine built ahead of time for it, or ONNX."""
    plan = f"{variant}.plan"
    return plan if runtime.name == manifest.runtime and plan in manifest.files else f"{variant}.onnx"


def read_branches(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Return for nodes of the bundle's graph the modality from whose input alone each is computed, or "fusion".

    Returns:
        Nothing for a bundle without them, which an earlier edgekd wrote.

    Raises:
        BundleError: the file is not the manifest's, or not such a table.
    """
    if BRANCHES not in manifest.files:
        return {}
    where = folder / BRANCHES
    try:
        found = json.loads(read_file(folder, manifest, BRANCHES))
    except ValueError as error:
        raise BundleError(f"{where}: is not valid JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(branch, str) for branch in found.values()):
        raise BundleError(f"{where}: must be a table of nodes' names and their branches; build the bundle again")
    return found


def _outputs(folder: Path, inputs: list[dict[str, Any]], classes: list[str]) -> list[dict[str, Any]]:
    """Describe the engines' outputs, having checked that both engines are what the manifest says of them.

    ONNX Runtime looks at the ONNX of any target: the target's own library may need the target's device.
    """
    variants: dict[str, list[str]] = {}
    outputs: dict[str, dict[str, Any]] = {}
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


def _check_inputs(path: Path, session: Session, inputs: list[dict[str, Any]]) -> None:
    def fixed(shape: Any) -> list[Any]:
        return [size if isinstance(size, int) else None for size in shape]

    stated = {item["name"]: (item["dtype"], fixed(item["shape"])) for item in inputs}
    found = {spec.name: (spec.dtype, fixed(spec.shape)) for spec in session.inputs}
    if stated != found:
        raise BundleError(f"{path}: its inputs are {found}, but the manifest would state {stated}")
