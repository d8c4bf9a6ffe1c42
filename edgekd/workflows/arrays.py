"""The drift and the gate for arrays: whatever made them, this is what edgekd would say of them. It needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np

from edgekd.config.loading import gate_config
from edgekd.errors import TaskError, nearest
from edgekd.gram.answers import Answers, compare_outputs
from edgekd.gram.drift import Drift, measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.measures.guess import are_probabilities
from edgekd.gram.metric import LedgerMetrics
from edgekd.gram.output_kind import OutputKind, OutputName
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import Answered, Measured, join_answers, judge_behaviour, judge_learned, judge_structure
from edgekd.stages.judging import gate_rules, measure_metrics
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.metrics import default_metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from edgekd.gram.gate import GateRules
    from edgekd.gram.nest import Nest
    from edgekd.gram.verdict import Verdict

#: One array, or several by name.
Named: TypeAlias = "ArrayLike | Mapping[str, ArrayLike]"

#: Names of the one output and the one modality that need none, and of the two rows that are compared.
_OUTPUT, _MODALITY = "logits", "embedding"
_REFERENCE, _OWN = "float", "own"

#: Stands in where no embeddings were given.
_NO_DRIFT = Drift(np.nan, np.nan, "", np.nan, np.nan, None, None, 0, None, "intra")


@dataclass(frozen=True)
class Judgement:
    """What the gate says of a network's outputs beside those of its reference.

    Attributes:
        verdict: "pass", "warn", "undecided" or "fail".
        reasons: The reasons for it.
        warnings: What is less severe than the verdict.
        questions: The answers to the three questions: did the reference learn, does the network still answer the same,
            does the structure survive. Each has the figures that it rests on, in words.
        answers: For each output what was measured of it, with bounds.
        drift: The drift of the Gram; None where no embeddings were given.
        metric: The network's metric, the default one of the outputs' kinds, such as accuracy; None without labels.
        reference_metric: The reference's; None without labels.
        released: Whether a build with this verdict is released.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    questions: tuple[Answered, ...]
    answers: Mapping[str, Answers]
    drift: Drift | None
    metric: float | None
    reference_metric: float | None
    released: bool


def gram_drift(
    embeddings: Named, reference: Named, groups: ArrayLike | None = None, *, confidence: float = 0.95, seed: int = 0
) -> Drift:
    """Measure how far the modality Gram of some embeddings is from that of a reference's, on the same samples.

    Between the modalities of each sample where there are two or more of one width, in each of the two networks; else
    between samples, within each modality. The reference's widths may be others.

    Args:
        embeddings: For each modality the network's embeddings [N, D], or those of one modality alone: numpy arrays,
            torch tensors on any device, or what numpy makes an array of.
        reference: The reference's embeddings of the same samples in the same order, likewise.
        groups: Each sample's group [N], such as its subject, or None where samples are independent.
        confidence: Confidence of the one-sided bound.
        seed: Seed for drawing the resamples behind it.

    Returns:
        The drift: among others its ``mean`` (0 is the same Gram, 2 the opposite), ``bound`` and ``worst_pair``.

    Raises:
        TaskError: Arrays are not of the same samples or modalities, are no numbers, or have another shape.
    """
    if not 0 < confidence < 1:
        raise TaskError(f"confidence = {confidence:g} must lie between 0 and 1")
    probes = [Probe(_ids(sides), {}, sides) for sides in _embedding_sides(embeddings, reference)]
    count = len(probes[0])
    return measure_drift(probes[0], probes[1], _groups(groups, count), Bootstrap(confidence, seed=seed))


def judge(
    outputs: Named,
    reference_outputs: Named,
    *,
    labels: Named | None = None,
    embeddings: tuple[Named, Named] | None = None,
    groups: ArrayLike | None = None,
    kind: OutputName | OutputKind | Mapping[str, OutputName | OutputKind] = "classes",
    limits: Mapping[str, Any] | None = None,
) -> Judgement:
    """Judge a network's outputs against its reference's as a build's gate does.

    Args:
        outputs: The network's outputs [N, ...], or several by name: numpy arrays, torch tensors on any device, or what
            numpy makes an array of.
        reference_outputs: The outputs of what it was made of, for the same samples in the same order.
        labels: What the outputs should be, by name where there are several: of classes their indices, -100 where a
            sample has none; of other kinds as in a task's targets, with NaN where nothing is known.
        embeddings: The network's embeddings and the reference's, each as for :func:`gram_drift`; None leaves the
            question of structure open.
        groups: Each sample's group [N], such as its subject, or None where samples are independent.
        kind: What the output is, or by name what each is. Whether scores of classes or labels are logits or
            probabilities is told by the reference's values; a :class:`OutputKind` says it.
        limits: Keys of a recipe's ``[gate]``, as in ``{"max_flips": 0.02}``; others are at their defaults.

    Raises:
        TaskError: Arrays are not of the same samples, are no numbers, have another shape, or are not of that kind.
        RecipeError: A limit is not valid.
    """
    ours, theirs = _sides("outputs", _OUTPUT, outputs, reference_outputs)
    for name, x in ours.items():
        if x.shape != theirs[name].shape:
            raise TaskError(f"outputs '{name}' are {x.shape}, the reference's {theirs[name].shape}")
    kinds = {name: _kind(name, kind, theirs) for name in theirs}
    metric = default_metric(kinds)
    if metric is None and labels is not None:
        raise TaskError("labels: an output of kind 'custom' has no metric that reads them; leave them out")
    name = metric.name if metric else "metric"
    rules = gate_rules(gate_config(limits or {}, "limits"), name, kinds, higher_is_better=True, seed=0)
    sides = _embedding_sides(*_pair(embeddings)) if embeddings is not None else ({}, {})
    ids = _ids(theirs)
    probes = {_REFERENCE: Probe(ids, theirs, sides[1]), _OWN: Probe(ids, ours, sides[0])}
    for modality, z in sides[0].items():
        if len(z) != len(ids):
            raise TaskError(f"embeddings '{modality}' are of {len(z)} samples, the outputs of {len(ids)}")
    own_groups = _groups(groups, len(ids))
    if metric is None or labels is None:
        return _judged(probes, LedgerMetrics(dict.fromkeys(probes)), own_groups, rules)
    figures = measure_metrics(probes, _targets(labels, theirs, kinds), own_groups, metric.compute, rules)
    return _judged(probes, figures, own_groups, rules)


def _judged(
    probes: Mapping[str, Probe], figures: LedgerMetrics, groups: NDArray[np.str_] | None, rules: GateRules
) -> Judgement:
    own, reference, limits = probes[_OWN], probes[_REFERENCE], rules.limits
    answers = compare_outputs(own, reference, rules.kinds, groups, rules.bootstrap)
    drift = measure_drift(own, reference, groups, rules.bootstrap) if own.modalities else None
    measured = Measured(answers, figures.losses.get(_OWN), drift or _NO_DRIFT, gain=figures.gain)
    learned = judge_learned(rules.metric, figures, _REFERENCE, limits)
    behaviour = judge_behaviour(measured, limits, rules.bootstrap.confidence)
    structure = (
        Answered("structure", None, figures=("not measured: no embeddings were given",))
        if drift is None
        else judge_structure(drift, limits)
    )
    names = [kind.name for kind in rules.kinds.values()]
    verdict, reasons, warnings = join_answers(learned, behaviour, structure, limits, names)
    return Judgement(
        verdict=verdict,
        reasons=reasons,
        warnings=warnings,
        questions=(learned, behaviour, structure),
        answers=answers,
        drift=drift,
        metric=figures.values.get(_OWN),
        reference_metric=figures.values.get(_REFERENCE),
        released=limits.releases(verdict),
    )


def _pair(embeddings: object) -> tuple[Named, Named]:
    if not isinstance(embeddings, tuple | list) or len(embeddings) != 2:
        raise TaskError("embeddings must be a pair: the network's, and the reference's")
    return embeddings[0], embeddings[1]


def _embedding_sides(ours: Named, theirs: Named) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    sides = _sides("embeddings", _MODALITY, ours, theirs)
    for side in sides:
        for name, z in side.items():
            if z.ndim != 2 or not z.shape[1]:
                raise TaskError(f"embeddings '{name}' have shape {z.shape}, must be [samples, width]")
    return sides


def _sides(
    what: str, alone: str, ours: Named, theirs: Named
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the arrays of both sides by name, in the order of the reference's, each of the same samples."""
    named = [
        {str(name): _array(f"{what} '{name}'", x) for name, x in side.items()}
        if isinstance(side, Mapping)
        else {alone: _array(what, side)}
        for side in (ours, theirs)
    ]
    if named[0].keys() != named[1].keys() or not named[1]:
        raise TaskError(f"{what} are {list(named[0])}, the reference's {list(named[1])}; both need the same names")
    first = next(iter(named[1].values()))
    for side in named:
        for name, x in side.items():
            if len(x) != len(first):
                raise TaskError(f"{what} '{name}' are of {len(x)} samples where others are of {len(first)}")
    if not len(first):
        raise TaskError(f"{what} are of no samples")
    return {name: named[0][name] for name in named[1]}, named[1]


def _array(what: str, given: Any) -> NDArray[Any]:
    """Return numbers as a numpy array, of a torch tensor too, without a need of torch."""
    if hasattr(
        given, "detach"
    ):  # a tensor may need a gradient, lie on a GPU, or be bfloat16, none of which numpy knows
        given = given.detach().cpu()
        given = given.float() if given.is_floating_point() and given.element_size() < 4 else given
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise TaskError(f"{what}: cannot be made an array: {error}") from error
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise TaskError(f"{what}: {array.dtype} of shape {array.shape}, must be numbers with a row for each sample")
    return array if array.dtype.itemsize >= 4 and array.dtype.kind == "f" else array.astype(np.float32)


def _ids(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.str_]:
    return np.arange(len(next(iter(arrays.values())))).astype(str)


def _groups(groups: ArrayLike | None, count: int) -> NDArray[np.str_] | None:
    if groups is None:
        return None
    names = np.asarray(groups.cpu() if hasattr(groups, "cpu") else groups)
    if names.shape != (count,):
        raise TaskError(f"groups have shape {names.shape}, must name the group of each of the {count} samples")
    return names.astype(str)


def _targets(labels: Named, outputs: Mapping[str, NDArray[Any]], kinds: Mapping[str, OutputKind]) -> Nest:
    """Return labels as a metric reads them, each checked against its output."""
    if not isinstance(labels, Mapping):
        if len(outputs) > 1:
            raise TaskError(f"labels must be a dict with those of each output: {', '.join(outputs)}")
        return _target("labels", labels, next(iter(outputs.values())), next(iter(kinds.values())))
    if labels.keys() != outputs.keys():
        raise TaskError(f"labels are of {list(labels)}, the outputs are {list(outputs)}")
    made: dict[str, Nest] = {
        name: _target(f"labels '{name}'", labels[name], outputs[name], kinds[name]) for name in outputs
    }
    return made if len(made) > 1 else next(iter(made.values()))


def _target(what: str, given: Any, outputs: NDArray[Any], kind: OutputKind) -> NDArray[Any]:
    found = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    if found.dtype.kind not in "iufb" or found.shape[:1] != outputs.shape[:1]:
        raise TaskError(
            f"{what} are {found.dtype} of shape {found.shape}, must be numbers with a row for each of the "
            f"{len(outputs)} samples"
        )
    axis = kind.class_axis
    if axis is None:
        return found
    expected = tuple(size for index, size in enumerate(outputs.shape) if index != axis % outputs.ndim)
    if found.dtype.kind not in "iu" or (kind.blank is None and found.shape != expected):
        raise TaskError(f"{what} are {found.dtype} of shape {found.shape}, must be class indices of shape {expected}")
    wrong = found[(found != UNLABELLED) & ((found < 0) | (found >= outputs.shape[axis]))]
    if len(wrong):
        raise TaskError(f"{what} hold {wrong[0]}, but the outputs are of {outputs.shape[axis]} classes")
    return found.astype(np.int64)


def _kind(name: str, kind: Any, outputs: Mapping[str, NDArray[Any]]) -> OutputKind:
    if isinstance(kind, Mapping):
        if kind.keys() != outputs.keys():
            raise TaskError(f"kind names the outputs {list(kind)}, but they are {list(outputs)}")
        kind = kind[name]
    if isinstance(kind, OutputKind):
        return kind
    if kind not in get_args(OutputName):
        raise TaskError(f"there is no kind '{kind}' of output{nearest(str(kind), get_args(OutputName))}")
    if kind in ("classes", "embedding") and (outputs[name].ndim != 2 or outputs[name].shape[1] < 2):
        raise TaskError(
            f"outputs '{name}' of kind '{kind}' have shape {outputs[name].shape}, must be [samples, 2 or more]"
        )
    return OutputKind(kind, are_probabilities(outputs[name], kind))
