"""Stage agree: compare the float network in the target's engine library with ONNX Runtime, before it is quantized.

What an engine library gets wrong of the float network, or does not take, no candidate could mend. It is found here,
with the first node that differs, and gone round where another form of the graph or another option of the library helps.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from edgekd.compress.equivalents import FORMS, fix_sizes, in_forms
from edgekd.compress.oracles.engine import EngineTrial, locate
from edgekd.devices.base import Absent
from edgekd.devices.local import LocalDevice
from edgekd.errors import DeviceError, EdgekdError, ModelError
from edgekd.files import need
from edgekd.pipeline.refusal import in_users_terms, read_origins
from edgekd.pipeline.target.agree.engines import GRAPH, EngineRunner, few_batches
from edgekd.pipeline.target.agree.origin import AgreedOrigin, write_forms
from edgekd.pipeline.target.compile import build_ahead, compiles
from edgekd.runtime.backends.registry import Runtime
from edgekd.stages.artifacts import Exported, origins_name
from edgekd.stages.stage import Done, StageSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.compress.equivalents import Form
    from edgekd.compress.oracles.deviation import Arithmetic
    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.pipeline.source import Origin
    from edgekd.pipeline.target.context import Context
    from edgekd.stages.progress import StageReporter

#: Options of engine libraries under which they compute more exactly, and slower: by the library, the options, and what
#: is then different, as the end of a sentence.
_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "openvino": ({"precision": "f32"}, "it computes in float32"),
    "onnxruntime": ({"fused": False}, "it runs node by node as it is written, only slower"),
}


@dataclass(frozen=True)
class EngineAgreement:
    """Whether the float network gives in the target's engine library what it gives in ONNX Runtime, node by node.

    Attributes:
        engine: The library and where it ran, in words; "" where it did not.
        samples: Number of samples that were compared.
        difference: The largest |difference| of an output, as a share of its largest magnitude; None where none was
            compared.
        reason: Why none was compared; "" where some were.
        found: What the library refuses, or computes otherwise, of the graph as it is; "" where nothing.
        forms: Names of the forms in which the graph is written for the library instead.
        options: The library's options that are others than the target's.
        notes: What is different of the engine for that, as ends of sentences.
        exported: The export whose graphs are in that form; None where they stay as they are.
    """

    engine: str
    samples: int
    difference: float | None
    reason: str = ""
    found: str = ""
    forms: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    exported: Exported | None = None

    def __str__(self) -> str:
        """Say in one sentence, without its end, what was found."""
        if self.difference is None:
            return f"float32 was not compared in the engine library: {self.reason}"
        said = f"float32 in {self.engine}: agrees (largest difference {self.difference:.1g} of the largest output)"
        if not self.notes:
            return f"{said}; {self.found}" if self.found else said
        return f"{said}, since {' and '.join(self.notes)}; as the graph is: {self.found}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know: that the engine is another than was asked for."""
        return (str(self),) if self.found else ()


AGREE: StageSpec[EngineAgreement] = StageSpec(
    "agree",
    1,
    EngineAgreement,
    ("onnx", "onnxruntime", "numpy"),
    "compare the float network in the target's engine library with ONNX Runtime",
)


def agree(context: Context) -> tuple[Context, EngineAgreement]:
    """Compare the float network, and return the target as later stages take it, with what was found.

    Raises:
        ModelError: The library refuses the network, or computes something else, and nothing that was tried mends that.
    """
    if context.origin.given:
        return context, EngineAgreement("", 0, None, "the model is built as it is, and no other form of it is tried")
    host = _host(context)

    def run(folder: Path, report: StageReporter) -> EngineAgreement:
        if host is None:
            reason = context.device.reason if isinstance(context.device, Absent) else ""
            return EngineAgreement("", 0, None, f"no device ({reason})")
        found = _AgreementAttempts(context, *host, folder, report).run()
        for warning in found.warnings:
            report.warn(warning)
        return found

    config = {
        "runtime": [context.public_runtime, context.target.options, context.runtime.digest()],
        "device": host[0].describe(host[1]) if host else None,
        "threads": context.recipe.profile.threads,
        "compile": context.target.compile is not None and context.target.compile.ship,
    }
    done = context.stage(AGREE, config=config, inputs={"exported": context.exported.key}, run=run)
    return _agreed(context, done.result, done.key, done.folder), done.result


def _agreed(context: Context, agreement: EngineAgreement, key: str, folder: Path) -> Context:
    """Return the target with the options and the graphs with which its library agrees."""
    target = context.target
    origin: Origin = context.origin
    if agreement.options:
        target = replace(target, options={**target.options, **agreement.options})
    if agreement.exported is not None:
        origin = AgreedOrigin(context.runner, origin, agreement.forms, Done(key, folder, agreement.exported))
    return dataclasses.replace(context, target=target, origin=origin)


def _host(context: Context) -> tuple[Device, Runtime] | None:
    """Return what runs the target's engine library: its device, or this host in its stead; None where nothing does.

    ONNX Runtime rewrites a graph everywhere alike, and OpenVINO has one reader of graphs for all its devices.
    """
    if not isinstance(context.device, Absent):
        return context.device, context.runtime
    if context.on_onnxruntime:
        return LocalDevice(), context.host_runtime
    if context.runtime.name == "openvino":
        runtime = Runtime("openvino", {"device": "CPU"})
        try:
            return None if runtime.absent() else (LocalDevice(), runtime)
        except EdgekdError:
            return None
    return None


def _build(target: Target, graph: Path) -> Path:
    """Return the engine of a graph: one that is built ahead of time, where the target ships such, or the graph."""
    if target.compile is None or not target.compile.ship or not compiles(target):
        return graph
    plan = graph.with_suffix(".plan")
    build_ahead(target, graph, plan)
    return plan


def _arithmetic(runtime: Runtime) -> Arithmetic:
    """Return in what an engine library computes float32: NVIDIA's GPUs round factors to TF32, which has 10 bits."""
    if runtime.backend.on_gpu:
        return "f16"
    stated = runtime.options.get("precision")
    return stated if stated in ("f16", "bf16") else "f32"


def _more_exact(runtime: Runtime) -> tuple[Runtime | None, str]:
    """Return a library with options under which it computes more exactly, and what is then different; None without."""
    options, note = _OPTIONS.get(runtime.name, ({}, ""))
    defaults = {option.name: option.default for option in runtime.backend.options}
    changed = {key: value for key, value in options.items() if runtime.options.get(key, defaults[key]) != value}
    return (Runtime(runtime.name, {**runtime.options, **changed}) if changed else None), note


@dataclass(frozen=True)
class _Seen:
    """What was seen of the network in one form: the largest difference, and what is refused or differs, if anything."""

    samples: int
    difference: float
    reason: str
    refused: bool = False


class _AgreementAttempts:
    """The float network in one engine library: as it is, else in other forms, else with other options."""

    def __init__(self, context: Context, device: Device, runtime: Runtime, folder: Path, report: StageReporter) -> None:
        self._context, self._device, self._runtime = context, device, runtime
        self._folder, self._report = folder, report
        self._model: ModelProto = need("onnx", "build").load(str(context.float_graph))
        self._sample = few_batches(context.calibration, self._model)[-1]
        self._engine = f"{context.public_runtime} on {device.name}"

    def run(self) -> EngineAgreement:
        """Return how the network agrees.

        Raises:
            ModelError: It does in no way.
        """
        self._report.advance(0, 1, f"as it is in {self._engine}")
        seen = self._compare(self._model, self._runtime)
        if not seen.reason:
            return self._result(seen)
        found, rounding = (seen.reason, False) if seen.refused else self._locate(seen.reason)
        if rounding:
            return self._result(seen, found)
        for forms, model in self._forms():
            self._report.advance(0, 1, " and ".join(form.name for form in forms))
            seen = self._compare(model, self._runtime)
            if not seen.reason:
                return self._in_form(seen, found, forms)
        exact, note = _more_exact(self._runtime)
        if exact is not None:
            seen = self._compare(self._model, exact)
            if not seen.reason:
                changed = dict(exact.options.items() - self._runtime.options.items())
                return dataclasses.replace(self._result(seen, found), options=changed, notes=(note,))
        raise ModelError(f"float32 in {self._engine}: {found}; no other form of the graph that was tried mends that")

    def _result(self, seen: _Seen, found: str = "") -> EngineAgreement:
        return EngineAgreement(self._engine, seen.samples, seen.difference, found=found)

    def _in_form(self, seen: _Seen, found: str, forms: Sequence[Form]) -> EngineAgreement:
        names = tuple(form.name for form in forms)
        exported = write_forms(self._context.exported, names, self._folder)
        notes = tuple(form.note for form in forms)
        return dataclasses.replace(self._result(seen, found), forms=names, notes=notes, exported=exported)

    def _trial(self, model: ModelProto, runtime: Runtime) -> EngineTrial:
        batches = few_batches(self._context.calibration, model)
        threads = self._context.recipe.profile.threads
        runner = EngineRunner(
            self._device, runtime, threads, batches, self._folder, partial(_build, self._context.target)
        )
        return EngineTrial(runner, batches, _arithmetic(runtime))

    def _compare(self, model: ModelProto, runtime: Runtime) -> _Seen:
        trial = self._trial(model, runtime)
        try:
            deviations = trial.deviations(model, self._model)
        except ModelError as error:
            return _Seen(0, math.inf, self._in_users_terms(error), refused=True)
        differing = (f"output '{name}' {seen.reason}" for name, seen in deviations.items() if seen.reason)
        samples = max(len(next(iter(batch.values()))) for batch in trial.batches)
        return _Seen(samples, max(seen.share for seen in deviations.values()), next(differing, ""))

    def _locate(self, reason: str) -> tuple[str, bool]:
        """Return what differs with the node where it begins, and whether that node only turns rounding into more."""
        self._report.advance(0, 1, "looking for the first node that differs")
        try:
            fault = locate(self._trial(self._model, self._runtime), self._model)
        except (ModelError, DeviceError) as error:  # of the tensors in between
            return f"{reason}; where that begins was not found: {self._in_users_terms(error)}", False
        if fault is None:
            return f"{reason}, and no single node does", False
        if fault.wrong:
            return f"{reason}; it begins at {self._in_users_terms(ModelError(str(fault)))}", False
        return f"{reason}, by rounding that {fault.operator} '{fault.node}' turns into another answer", True

    def _in_users_terms(self, error: EdgekdError) -> str:
        origins = read_origins(self._context.exported.folder / origins_name(self._context.origin.network))
        text = str(error).rpartition(f"{GRAPH}: ")[2]  # libraries begin with the file's path
        return in_users_terms(ModelError(text), [self._folder], origins)

    def _forms(self) -> Iterator[tuple[tuple[Form, ...], ModelProto]]:
        """Yield the graph in one form, in two, and in all that it can be written in, what costs an app least first."""
        fixed = fix_sizes(self._model, self._sample) or self._model  # some forms need sizes
        alone = [form for form in FORMS if form.write(self._model, self._sample) is not None]
        fitting = [form for form in FORMS if form in alone or form.write(fixed, self._sample) is not None]
        several = [(form,) for form in alone] + list(combinations(fitting, 2))
        for forms in dict.fromkeys((*several, tuple(fitting))):
            yield forms, in_forms(self._model, [form.name for form in forms], self._sample)
