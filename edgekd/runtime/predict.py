"""Run a bundle on samples from a file, and say in words what its outputs mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from edgekd.errors import BundleError
from edgekd.gram.output_kind import OutputKind, OutputName
from edgekd.runtime.bundle import load
from edgekd.runtime.manifest import STATE, answers_in, states_in
from edgekd.runtime.sample_file import read_samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.files import JsonObject
    from edgekd.runtime.manifest import Manifest, Variant
    from edgekd.runtime.session import Array

#: Classes of a sample that are told, numbers that are, and characters of a list of tokens.
_TOLD_CLASSES, _TOLD_NUMBERS = 3, 8

#: Numbers of an output that its JSON holds; a larger one is told by its shape and its range.
_HELD_NUMBERS = 256


@dataclass(frozen=True)
class Meaning:
    """What an output means.

    Attributes:
        kind: What it is.
        classes: Names of its classes, in their order; empty where it has none.
    """

    kind: OutputKind
    classes: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """Return the name of a class; one without a name is called by its index."""
        return self.classes[index] if 0 <= index < len(self.classes) else str(index)


@dataclass(frozen=True)
class Predictions:
    """What a bundle said of some samples.

    Attributes:
        ids: Names of the samples; where the file gives none, their numbers from 0.
        outputs: Every output of the engine by its name, a row for each sample.
        answers: For each sample what each output means, by its name, as JSON values; embeddings of modalities are not
            among them.
        notes: What was done to the samples before they were run, in sentences.
        meanings: What each output means.
    """

    ids: tuple[str, ...]
    outputs: Mapping[str, Array]
    answers: tuple[dict[str, JsonObject], ...]
    notes: tuple[str, ...]
    meanings: Mapping[str, Meaning]

    def sentences(self, index: int) -> dict[str, str]:
        """Return what each output says of one sample, in words, by its name."""
        return {name: _words(self.meanings[name], answer) for name, answer in self.answers[index].items()}


def predict(
    bundle: Path | str,
    samples: Path | str,
    *,
    runtime: str | None = None,
    threads: int = 1,
    embeddings: bool = False,
    allow_rejected: bool = False,
) -> Predictions:
    """Run a bundle on the samples of an ``.npz``, and say what it says of them.

    The file has an array for each input, called ``image`` or ``input.image``: a row for each sample, or one sample
    without the dimension of the batch. Names of the samples may be in it as ``ids``. Where it lacks a state, samples
    are the steps of a sequence, in their order; of several, where ``groups`` says which each is a step of.

    Args:
        bundle: The bundle's folder.
        samples: The file.
        runtime: The runtime to open it with instead of its own; see :func:`edgekd.load`.
        threads: The number of threads of one inference.
        embeddings: Whether the embeddings of the modalities are among the outputs.
        allow_rejected: Whether the bundle is opened even if the gate rejected it.

    Raises:
        BundleError: It is no bundle, was altered, or was rejected.
        MissingDependency: Its engine library is not installed.
        ModelError: The samples do not fit, or are not finite; the message says what was expected.
        DeviceError: The engine library lacks the device that the bundle is for.
    """
    variant: Variant = "probe" if embeddings else "deploy"
    with load(bundle, variant=variant, threads=threads, runtime=runtime, allow_rejected=allow_rejected) as opened:
        preprocessing = {str(given["name"]): str(given["preprocessing"]) for given in opened.manifest.inputs}
        read = read_samples(Path(samples), opened.inputs, preprocessing, states_in(opened.manifest))
        outputs = opened.run_all(read.feeds, read.groups)
        meanings = output_meanings(opened.manifest)
    rows = range(len(read.ids))
    answers = tuple(
        {name: describe_output(meaning, outputs[name][row]) for name, meaning in meanings.items()} for row in rows
    )
    return Predictions(read.ids, outputs, answers, read.notes, meanings)


def output_meanings(manifest: Manifest) -> dict[str, Meaning]:
    """Return what each of a network's answers means, by its name, as a bundle states it."""
    meanings = {}
    for name, stated in answers_in(manifest).items():
        if stated["kind"] == STATE:  # what is carried says nothing to a user
            continue
        if stated["kind"] not in get_args(OutputName):
            raise BundleError(
                f"the manifest's output '{name}' is of a kind that this edgekd does not know: {stated['kind']}"
            )
        kind = OutputKind(stated["kind"], stated["probabilities"], stated["threshold"], stated["blank"])
        meanings[name] = Meaning(kind, tuple(stated["classes"]))
    return meanings


def describe_output(meaning: Meaning, values: Array) -> JsonObject:
    """Return what one output says of one sample, as JSON values."""
    name: str = meaning.kind.name
    content: JsonObject = {"kind": name}
    if not np.isfinite(values).all():
        return {**content, "finite": False}
    describe = {
        "classes": _classes,
        "multilabel": _labels,
        "dense-classes": _map_of_classes,
        "sequence-classes": _tokens,
    }.get(name, _numbers)
    return {**content, **describe(meaning, values)}


def _classes(meaning: Meaning, values: Array) -> JsonObject:
    shares = _shares(values.astype(np.float64), meaning.kind.probabilities)
    order = np.argsort(-shares, kind="stable")[: max(_TOLD_CLASSES, 5)]
    return {"top": [{"class": meaning.name(int(at)), "probability": round(float(shares[at]), 6)} for at in order]}


def _labels(meaning: Meaning, values: Array) -> JsonObject:
    scores = values.astype(np.float64)
    shares = scores if meaning.kind.probabilities else 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
    threshold = 0.5 if meaning.kind.threshold is None else meaning.kind.threshold
    held = [int(at) for at in np.argsort(-shares, kind="stable") if shares[at] >= threshold]
    return {
        "threshold": threshold,
        "labels": [{"label": meaning.name(at), "probability": round(float(shares[at]), 6)} for at in held],
    }


def _numbers(meaning: Meaning, values: Array) -> JsonObject:
    content: JsonObject = {"shape": list(values.shape)}
    if values.size <= _HELD_NUMBERS:
        content["values"] = values.tolist()
    else:
        content |= {"low": float(values.min()), "high": float(values.max()), "mean": float(values.mean())}
    if meaning.kind.name == "embedding":
        content["length"] = float(np.linalg.norm(values.astype(np.float64)))
    elif meaning.kind.threshold is not None and values.size <= _HELD_NUMBERS:
        content |= {"threshold": meaning.kind.threshold, "above": (values >= meaning.kind.threshold).tolist()}
    return content


def _map_of_classes(meaning: Meaning, values: Array) -> JsonObject:
    said, counts = np.unique(values.argmax(0), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    total = counts.sum()
    return {
        "shape": list(values.shape[1:]),
        "shares": {meaning.name(int(said[at])): round(float(counts[at] / total), 6) for at in order},
    }


def _tokens(meaning: Meaning, values: Array) -> JsonObject:
    said = values.argmax(-1)
    blank = meaning.kind.blank
    if blank is not None:
        changes = np.ones(len(said), bool)
        changes[1:] = said[1:] != said[:-1]
        said = said[changes & (said != blank)]
    return {"tokens": [meaning.name(int(token)) for token in said]}


def _shares(scores: Array, probabilities: bool) -> Array:
    """Return the probabilities [C] of scores [C]."""
    if probabilities:
        return scores
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())


def _words(meaning: Meaning, answer: JsonObject) -> str:
    """Return what an output says of a sample, in words."""
    if answer.get("finite") is False:
        return "no answer: the engine gave what is not a finite number"
    if "top" in answer:
        return ", ".join(f"{one['class']} {one['probability']:.3f}" for one in answer["top"][:_TOLD_CLASSES])
    if "labels" in answer:
        labels = ", ".join(f"{one['label']} {one['probability']:.3f}" for one in answer["labels"])
        return labels or f"none reaches {answer['threshold']:g}"
    if "shares" in answer:
        shares = list(answer["shares"].items())
        told = ", ".join(f"{name} {share:.1%}" for name, share in shares[:_TOLD_CLASSES])
        return f"{_by(answer['shape'])}: {told}{', …' if len(shares) > _TOLD_CLASSES else ''}"
    if "tokens" in answer:
        tokens: Sequence[str] = answer["tokens"]
        letters = all(len(name) == 1 for name in meaning.classes) and bool(meaning.classes)
        return ("" if letters else " ").join(tokens) or "nothing"
    return _number_words(meaning, answer)


def _number_words(meaning: Meaning, answer: JsonObject) -> str:
    shape = answer["shape"]
    if meaning.kind.name == "embedding":
        return f"{_by(shape)} numbers of length {answer['length']:.4g}"
    if "values" not in answer:
        return f"{_by(shape)} numbers from {answer['low']:.4g} to {answer['high']:.4g}, mean {answer['mean']:.4g}"
    values = np.ravel(np.array(answer["values"], np.float64))
    told = ", ".join(f"{value:.5g}" for value in values[:_TOLD_NUMBERS])
    more = f", … ({_by(shape)} numbers)" if len(values) > _TOLD_NUMBERS else ""
    above = answer.get("above")
    side = ""
    if above is not None and values.size == 1:
        side = f" ({'not below' if np.ravel(above)[0] else 'below'} {answer['threshold']:g})"
    return f"{told}{more}{side}"


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "1"
