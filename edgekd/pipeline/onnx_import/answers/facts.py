"""What later stages must know of an imported network: what its outputs are, its classes, and how it is measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgekd.config.recipe import OutputConfig
from edgekd.errors import ModelError
from edgekd.pipeline.onnx_import.answers.kind import settle_kinds
from edgekd.pipeline.onnx_import.answers.last_operator import last_operators
from edgekd.stages.artifacts import TaskFacts
from edgekd.stages.labels import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnx import ModelProto

    from edgekd.gram.probe import Probe
    from edgekd.pipeline.onnx_import.answers.own_metric import OwnMetric
    from edgekd.pipeline.onnx_import.samples import NpzSamples
    from edgekd.pipeline.onnx_import.source import OnnxSource
    from edgekd.runtime.session import Array, TensorSpec


def read_facts(
    model: ModelProto,
    specs: Sequence[TensorSpec],
    source: OnnxSource,
    outputs: Mapping[str, Array],
    samples: NpzSamples,
    others: NpzSamples,
    notes: list[str],
) -> tuple[TaskFacts, dict[str, str]]:
    """Return facts for later stages, and why each output is taken for its kind.

    Args:
        model: The graph that was written.
        specs: Its inputs, as ONNX Runtime states them.
        source: What the user says of it.
        outputs: The outputs that are judged, for ``samples``.
        samples: The samples that the outputs are of.
        others: More samples, which may have labels where these have none.
        notes: Sentences for the user are added here.

    Raises:
        ModelError: An output is not of the kind that the user named, or labels are of no class of the output.
    """
    asked, names = source.outputs, list(outputs)
    if source.only is not None and source.only != OutputConfig():
        if len(names) > 1:
            raise ModelError(
                f"[model] kind and threshold are of the only output, and the model has {', '.join(names)}: say what "
                "each is by outputs in [model], or --output NAME=KIND"
            )
        asked = {names[0]: source.only}
    inputs: list[dict[str, str | list[int | str]]] = [
        {
            "name": spec.name,
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "preprocessing": "as the model takes it",
        }
        for spec in specs
    ]
    labelled = any(part.labels is not None for part in (samples, others))
    last = last_operators(model.graph)
    settled = settle_kinds(asked, outputs, last, samples.every_label if labelled else None)
    kinds, reasons = settled.kinds, settled.reasons
    notes += settled.notes
    classes = {
        name: [str(index) for index in range(outputs[name].shape[1])]
        for name, kind in kinds.items()
        if kind.name == "classes"
    }
    if labelled and not classes and source.metric is None:
        what = ", ".join(f"'{kind.name}'" for kind in kinds.values())
        notes.append(f"the labels are not used: the output is {what}, and labels are for 'classes'")
    metric = source.metric
    default = "accuracy" if classes else "metric"
    name, better = (metric.name, metric.higher_is_better) if metric else (default, True)
    return TaskFacts(name, better, kinds, classes, inputs), reasons


def as_labelled(samples: tuple[NpzSamples, ...], facts: TaskFacts, metric: OwnMetric | None) -> tuple[NpzSamples, ...]:
    """Return samples with labels only where they are of an output's classes; a metric of one's own gets others.

    Raises:
        ModelError: They are of no class of the output, and there is no such metric.
    """
    width = len(next(iter(facts.classes.values()), ()))
    for part in samples if width else ():
        known = () if part.labels is None else part.labels[part.labels != UNLABELLED]
        wrong = next((label for label in known if not 0 <= label < width), None)
        if wrong is not None and metric is None:
            raise ModelError(f"'labels' holds {wrong}, but the model has classes 0 to {width - 1} only")
        width = width if wrong is None else 0
    return samples if width else tuple(part.without_labels(metric is not None) for part in samples)


def try_metric(metric: OwnMetric, splits: Iterable[tuple[NpzSamples, Probe]]) -> list[str]:
    """Compute the user's own metric of the float network on splits, before anything takes long.

    Returns:
        A sentence for the user on each split on which it is no number.

    Raises:
        TaskError: It fails, or gives no number at all.
    """
    notes = []
    for name, (part, probe) in zip(("choosing", "test"), splits, strict=True):
        if part.known is not None and math.isnan(metric(probe.answer, part.known)):
            notes.append(f"{metric.where} of the float network on the {name} samples is not a number")
    return notes


def has_two_values(x: Array) -> bool:
    """Whether an input is one of two numbers everywhere, as a mask is."""
    return bool(((x == x.min()) | (x == x.max())).all())
