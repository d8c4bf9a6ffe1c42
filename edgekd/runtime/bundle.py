"""The bundle: a folder with engines and the evidence for them, which can be opened, run and verified.

Nothing of a bundle is deserialized before every file in it has the digest that the manifest states. The manifest itself
is plain JSON and is not signed: digests find damage and mixed-up files, not someone who rewrites the manifest too.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from edgekd.errors import BundleError, DeviceError, MissingDependency, ModelError, nearest
from edgekd.gram.npz import INPUT_PREFIX, OUTPUT_PREFIX
from edgekd.runtime.backends.registry import ORT, Runtime
from edgekd.runtime.engine_check import check_engine
from edgekd.runtime.feeds import FiniteCheck
from edgekd.runtime.manifest import (
    MANIFEST,
    POSTPROCESS,
    REFERENCE,
    Manifest,
    Variant,
    answers_in,
    check_listing,
    plain_files,
    read_file,
    read_manifest,
)
from edgekd.runtime.sequences import run_feeds, sequences_of
from edgekd.runtime.session import read_arrays, run_behind, run_rows
from edgekd.runtime.stream import Initial, Stream
from edgekd.runtime.verification import Verification, compare_reference

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from edgekd.files import JsonObject
    from edgekd.runtime.session import Array, Feeds, Session, TensorSpec

_BATCH = 64


def load(
    path: Path | str,
    *,
    variant: Variant = "deploy",
    threads: int = 1,
    runtime: str | None = None,
    allow_rejected: bool = False,
    check_finite: bool = True,
) -> Bundle:
    """Open a bundle after checking every file in it.

    Args:
        path: The bundle's folder.
        variant: "deploy" for logits only, "probe" for the embeddings too.
        threads: The number of threads of one inference.
        runtime: The runtime to open it with instead of its own: "onnxruntime" runs any bundle's ONNX on any machine. A
            bundle for a user's own runtime, ``file.py:name``, needs it: no bundle chooses which code is imported.
        allow_rejected: Whether it is opened even if the gate rejected it.
        check_finite: Whether :meth:`Bundle.run` refuses inputs with NaN or infinity, of which an engine in INT8 makes
            plausible logits. It takes about 1 us for each small input.

    Raises:
        BundleError: it is no bundle, was altered, or was rejected, or its engine is not the one that it states.
        MissingDependency: its engine library is not installed.
        ModelError: its engine cannot be opened here.
        DeviceError: the engine library lacks the device that the bundle is for.
    """
    if str(variant) == "engine":
        raise BundleError("the variant 'engine' is now called 'probe'")
    if variant not in get_args(Variant):
        raise BundleError(f"a bundle has no variant '{variant}'{nearest(variant, get_args(Variant))}")
    folder = Path(path)
    manifest, library = _read(folder, runtime)
    opened = engine_file(manifest, variant, library)
    for name in manifest.files:
        if name != opened:  # whose digest is checked in the very bytes that are opened
            read_file(folder, manifest, name)
    if not manifest.released and not allow_rejected:
        reasons = "; ".join(manifest.reasons) or "it gives no reason"
        raise BundleError(f"{folder}: the gate rejected this bundle ({reasons}); allow_rejected opens it all the same")
    try:
        return Bundle(folder, manifest, variant, threads, library, check_finite)
    except (DeviceError, MissingDependency) as error:
        if library.backend.module == ORT.backend.module:  # it is what the advice would be
            raise
        raise type(error)(
            f"{folder}: {error}; runtime 'onnxruntime' (--runtime) runs its ONNX on any machine"
        ) from error


def check_bundle(path: Path | str, runtime: str | None = None) -> tuple[Manifest, Runtime]:
    """Check every file of a bundle without opening its engine, as where another machine will run it.

    Args:
        path: The bundle's folder.
        runtime: As for :func:`load`.

    Returns:
        Its manifest, and the library that will run it.

    Raises:
        BundleError: it is no bundle, or was altered.
    """
    folder = Path(path)
    manifest, library = _read(folder, runtime)
    for name in manifest.files:
        read_file(folder, manifest, name)
    return manifest, library


def _read(folder: Path, runtime: str | None) -> tuple[Manifest, Runtime]:
    if folder.is_file():
        raise BundleError(f"{folder}: is a file; give the folder that holds a bundle's {MANIFEST}")
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; give the folder that holds a bundle's {MANIFEST}")
    if not os.path.lexists(folder / MANIFEST):
        read_manifest(folder)  # says what is missing, before a walk through what may be a whole disk
    files = plain_files(folder)
    manifest = read_manifest(folder)
    library = _runtime(folder, manifest, runtime)
    check_listing(folder, manifest, files)
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

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        variant: Variant,
        threads: int,
        runtime: Runtime,
        check_finite: bool,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.variant = variant
        self.runtime = runtime
        self._threads = threads
        self._session = self._open(variant)
        self._initial = Initial(manifest, self._session.inputs)
        self._check_finite = FiniteCheck(self._session.inputs if check_finite else ())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that :meth:`run` takes."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that :meth:`run` returns."""
        return self._session.outputs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the engine tells apart, in order: those of its first output of classes."""
        entry = self._classifier()
        return tuple(entry["classes"]) if entry else ()

    def _classifier(self) -> JsonObject | None:
        return next((entry for entry in answers_in(self.manifest).values() if entry["kind"] == "classes"), None)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the engine: inputs by name, a row a sample, become outputs by name.

        A state that is left out of ``feeds`` is zero, as before the first step of a sequence; the outputs hold it as it
        is after the step. :meth:`stream` carries it.

        Any number of threads may call it: an engine of ONNX Runtime runs in all of them at once, others in one at a
        time.

        Raises:
            ModelError: the feeds do not fit :attr:`inputs`, or are not finite; it says what was expected.
        """
        self._check_finite(feeds)
        return self._session.run(self._initial.begin(feeds) if self._initial.states else feeds)

    def stream(self) -> Stream:
        """Return a new sequence of an engine with states: its ``run`` carries them from step to step.

        Raises:
            ModelError: the engine has no state, so that every sample is by itself; use :meth:`run`.
        """
        if not self._initial.states:
            raise ModelError(f"{self.folder}: the engine has no state to carry, every sample is by itself; use run()")
        return Stream(self.run, self._initial)

    def run_all(self, feeds: Feeds, groups: Array | None = None) -> dict[str, Array]:
        """Run any number of samples, some at a time, and return all rows of every output.

        Args:
            feeds: The inputs by name. Where states are left out, samples are the steps of sequences, in their order.
            groups: The sequence that each sample is a step of [N], where states are left out; None for one sequence.

        Raises:
            ModelError: as of :meth:`run`.
        """
        self._check_finite(feeds)
        carried = {name: output for name, output in self._initial.states.items() if name not in feeds}
        if not carried:
            return run_rows(self._session, feeds, _BATCH)
        rows = len(next(iter(feeds.values())))
        one = self._initial.begin({name: array[:1] for name, array in feeds.items()})
        begin = {name: np.broadcast_to(one[name], (rows, *one[name].shape[1:])) for name in carried}
        return run_feeds(self._session, {**feeds, **begin}, sequences_of(carried, groups, rows), 1)

    def postprocess(self, feeds: Feeds) -> list[dict[str, Array]]:
        """Run the engine, and what the network does behind it, sample by sample.

        Of a network whose outputs have a size that data decide, such as the boxes that NonMaxSuppression leaves, the
        engine ends before that. ONNX Runtime does the rest, on the processor.

        Returns:
            For each sample the network's own outputs, as it gives them for that sample alone.

        Raises:
            BundleError: The bundle's file for that is not its own any more.
            ModelError: As of :meth:`run`; or nothing comes behind the engine.
        """
        if POSTPROCESS not in self.manifest.files:
            raise ModelError(f"{self.folder}: nothing comes behind its engine; use run()")
        self._check_finite(feeds)
        content = read_file(self.folder, self.manifest, POSTPROCESS)
        with ORT.open(content, self._threads, str(self.folder / POSTPROCESS)) as rest:
            count = len(next(iter(feeds.values())))
            rows = ({name: x[row : row + 1] for name, x in feeds.items()} for row in range(count))
            return [run_behind(rest, {**row, **self.run(row)}) for row in rows]

    def predict(self, feeds: Feeds) -> list[str]:
        """Return each sample's most likely class by name, by the engine's first output of classes.

        Raises:
            ModelError: the feeds do not fit :attr:`inputs`, a score is not a number, or the engine is no classifier.
        """
        entry = self._classifier()
        if entry is None:
            raise ModelError(f"{self.folder}: the engine is no classifier; use run()")
        scores = self.run(feeds)[entry["name"]]
        if not np.isfinite(scores).all():
            raise ModelError(f"{self.folder}: the engine gave scores that are not finite; check its inputs")
        return [entry["classes"][index] for index in scores.argmax(-1)]

    def verify(self) -> Verification:
        """Run the reference samples through both variants and compare the outputs with those of the bundle's maker.

        This needs no labels and no teacher.

        Raises:
            BundleError: a file was altered since the bundle was opened, or the reference is not this engine's.
        """
        reference = self._reference()
        other: Variant = "probe" if self.variant == "deploy" else "deploy"
        outputs = {self.variant: _run_reference(self._session, reference)}
        with self._open(other) as session:
            outputs[other] = _run_reference(session, reference)
        return compare_reference(outputs["deploy"], outputs["probe"], reference, self._kinds())

    def _kinds(self) -> dict[str, str]:
        return {name: entry["kind"] for name, entry in answers_in(self.manifest).items()}

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
        """Open a variant's file, having checked the very bytes that the engine library gets."""
        name = engine_file(self.manifest, variant, self.runtime)
        content = read_file(self.folder, self.manifest, name)
        session = self.runtime.open(content, self._threads, str(self.folder / name), keep=True)
        try:
            check_engine(self.manifest, variant, session, str(self.folder / name))
        except BundleError:
            session.close()
            raise
        return session

    def _reference(self) -> dict[str, Array]:
        content = read_file(self.folder, self.manifest, REFERENCE)
        keys = [INPUT_PREFIX + spec.name for spec in self.inputs]
        keys += [OUTPUT_PREFIX + name for name in self._kinds()]
        try:
            return read_arrays(BytesIO(content), [*keys, "gram", "ids"])
        except ModelError as error:
            raise BundleError(f"{self.folder / REFERENCE}: is not a bundle's reference: {error}") from error


def _run_reference(session: Session, reference: Mapping[str, Array]) -> dict[str, Array]:
    return run_rows(session, {spec.name: reference[INPUT_PREFIX + spec.name] for spec in session.inputs}, _BATCH)


def engine_file(manifest: Manifest, variant: Variant, runtime: Runtime) -> str:
    """Return the name of the file that a runtime opens: an engine built ahead of time for it, or ONNX."""
    plan = f"{variant}.plan"
    return plan if runtime.name == manifest.runtime and plan in manifest.files else f"{variant}.onnx"
