"""Read embeddings from any model by module path, without a change to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import torch
from torch import Tensor, nn

from edgekd.config.recipe import Tap
from edgekd.errors import TaskError, nearest
from edgekd.gram.output_kind import OutputKind
from edgekd.training.taps.answers import read_answers
from edgekd.training.taps.outputs import select_tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

    from edgekd.config.recipe import Precision

#: What a network is called with: the inputs' batches in order, or by the names of its arguments.
Arguments: TypeAlias = "Sequence[Tensor] | Mapping[str, Tensor]"


class NetworkTaps(dict[str, Tap]):
    """What is read of a network: for each modality, in order, its tap; and its outputs.

    Args:
        taps: For each modality its tap.
        outputs: What each of the network's outputs is, by name, in order.
    """

    def __init__(self, taps: Mapping[str, Tap], outputs: Mapping[str, OutputKind]) -> None:
        super().__init__(taps)
        self.outputs = dict(outputs)


def outputs_read(taps: Mapping[str, Tap]) -> Mapping[str, OutputKind]:
    """Return the outputs that are read of a network with its taps: by default one, the logits of classes."""
    return taps.outputs if isinstance(taps, NetworkTaps) else {"logits": OutputKind()}


@dataclass(frozen=True)
class Taps:
    """Where the teacher and the student keep each modality's embedding.

    Attributes:
        teacher: For each modality, in order, the tap in the teacher.
        student: For each modality, in order, the tap in the student.
        precision: Precision that the teacher computes in while others learn from it.
    """

    teacher: Mapping[str, Tap]
    student: Mapping[str, Tap]
    precision: Precision = "float32"


@dataclass(frozen=True)
class TapOutputs:
    """What one forward pass gave.

    Attributes:
        answers: The network's outputs [B, ...] by name, in the task's order.
        embeddings: For each modality its embedding [B, D].
        outputs: For each modality the output of the tapped module before it was pooled. It is the tensor that the rest
            of the network reads, so the losses of answers and of embeddings both have a gradient there.
    """

    answers: dict[str, Tensor]
    embeddings: dict[str, Tensor]
    outputs: dict[str, Tensor]


class TappedModel(AbstractContextManager["TappedModel"]):
    """A model whose embeddings are read at its taps. Use it as a context manager: hooks are removed at its end.

    Meanwhile torch's transformers compute in evaluation mode what they do in training mode, and in an exported graph:
    their fast path, which runs where no gradient is asked for, gives zeros for padded positions, or leaves them out.

    Args:
        model: Any module that is called with the inputs' batches, in order or by name, and gives the task's outputs: a
            tensor, a tuple or list in their order, or a dict or an object with their names.
        taps: For each modality, in order, where its embedding is; :class:`NetworkTaps` where the outputs are other than
            the logits of classes.

    Raises:
        TaskError: A tap names no module; the message lists the nearest.
    """

    def __init__(self, model: nn.Module, taps: Mapping[str, Tap]) -> None:
        self.model = model
        self.taps = taps
        self._seen: dict[str, list[object]] | None = None
        modules = dict(model.named_modules())
        for modality, tap in taps.items():
            if tap.module not in modules:
                raise TaskError(
                    f"tap of '{modality}': {type(model).__name__} has no module '{tap.module}'"
                    + nearest(tap.module, (name for name in modules if name))
                )
        self._modules = {tap.module: modules[tap.module] for tap in taps.values()}
        self._handles: list[RemovableHandle] = []
        self._entered = 0
        self._fast = True

    def __enter__(self) -> TappedModel:
        self._entered += 1
        if self._entered == 1:
            self._fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            for path, module in self._modules.items():
                self._handles.append(module.register_forward_hook(self._record(path)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered == 0:
            torch.backends.mha.set_fastpath_enabled(self._fast)
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def _record(self, path: str) -> Callable[[nn.Module, object, object], Tensor | None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor | None:
            if self._seen is None:  # the model is run by others, e.g. to validate it
                return None
            self._seen.setdefault(path, []).append(output)
            # The next module may work in place, as ReLU(inplace=True) does; the embedding is what this one gave.
            return output.clone() if isinstance(output, Tensor) else None

        return hook

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run the model.

        Args:
            inputs: The modalities' batches, in order.

        Returns:
            The outputs [B, ...] by name, and for each modality its embedding [B, D].

        Raises:
            TaskError: A tap's module was not called, gives the same output to two modalities, or gives something that
                cannot be made one vector a sample.
        """
        reading = self.read(inputs)
        return reading.answers, reading.embeddings

    def read(self, inputs: Arguments) -> TapOutputs:
        """Run the model, as a call does, and also return the outputs of the tapped modules before they are pooled.

        Args:
            inputs: The modalities' batches, in order or by the names of the model's own arguments.
        """
        answers, outputs = self._run(inputs)
        count = next(iter(answers.values())).shape[0]  # len() would fix the batch of an exported graph
        embeddings = {name: _pool(output, self.taps[name], self._where(name)) for name, output in outputs.items()}
        for name, z in embeddings.items():
            if z.shape[0] != count:
                raise TaskError(
                    f"{self._where(name)}: gives {z.shape[0]} vectors for a batch of {count}; its first "
                    "dimension must be the batch"
                )
        return TapOutputs(answers, embeddings, outputs)

    def _run(self, inputs: Arguments) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run the model and return its answers and the taps' outputs."""
        self._seen = {}
        try:
            given: object = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(*inputs)
            answers = read_answers(given, outputs_read(self.taps))
            outputs = {modality: self._output(modality, self._seen) for modality in self.taps}
        finally:
            self._seen = None
        self._check_apart(outputs)
        return answers, outputs

    def _where(self, modality: str) -> str:
        return f"tap of '{modality}' at '{self.taps[modality].module}'"

    def _output(self, modality: str, seen: Mapping[str, list[object]]) -> Tensor:
        where, tap = self._where(modality), self.taps[modality]
        outputs = seen.get(tap.module, [])
        if tap.call >= len(outputs):
            raise TaskError(
                f"{where}: the module was called {len(outputs)} times in a forward pass, call {tap.call} is read"
            )
        return select_tensor(outputs[tap.call], tap.output, where)

    def _check_apart(self, outputs: Mapping[str, Tensor]) -> None:
        for modality, output in outputs.items():
            pool = self.taps[modality].pool  # another way of pooling makes another embedding of it
            sharing = [other for other, x in outputs.items() if x is output and self.taps[other].pool == pool]
            if len(sharing) > 1:
                raise TaskError(
                    f"{self._where(modality)}: {', '.join(sharing)} read the same output; set 'call' if the encoder is "
                    "shared, or 'output' if it puts out several"
                )


def _pool(output: Tensor, tap: Tap, where: str) -> Tensor:
    shape = tuple(output.shape)
    pool = tap.pool
    if output.dim() == 2:
        return output
    if pool == "auto" and output.dim() >= 4:
        pool = "spatial"
    if pool == "spatial" and output.dim() >= 3:
        return output.flatten(2).mean(2)
    if pool == "tokens" and output.dim() >= 3:
        return output.flatten(1, -2).mean(1)
    if pool == "first" and output.dim() == 3:
        return output[:, 0]
    if output.dim() == 3 and pool == "auto":
        raise TaskError(
            f"{where}: an output of shape {shape} may be features [B, C, T] or tokens [B, T, D]; "
            "say which with pool = 'spatial', 'tokens' or 'first'"
        )
    raise TaskError(f"{where}: pool = '{pool}' does not make one vector a sample of an output of shape {shape}")


def resolve_taps(
    kind: str,
    recipe_taps: Mapping[str, str | Tap],
    task_taps: Mapping[str, object],
    modalities: Sequence[str],
    outputs: Mapping[str, OutputKind] | None = None,
) -> NetworkTaps:
    """Return one tap for each modality, in order: the recipe's, or else the task's own.

    Args:
        kind: The network, "teacher" or "student".
        recipe_taps: Those of the recipe.
        task_taps: Those of the task.
        modalities: Names of the modalities.
        outputs: What each of the network's outputs is; None for the logits of classes.

    Raises:
        TaskError: A modality has no tap, a tap names no modality, or one that the task gives is not valid.
    """
    merged = {**task_taps, **recipe_taps}
    unknown = [name for name in merged if name not in modalities]
    if unknown:
        raise TaskError(f"[{kind}.taps]: '{unknown[0]}' is no modality of the task{nearest(unknown[0], modalities)}")
    absent = [name for name in modalities if name not in merged]
    if absent:
        raise TaskError(
            f"[{kind}.taps]: no tap for {', '.join(absent)}; name the module whose output is its embedding, "
            f'e.g. {absent[0]} = "encoders.{absent[0]}"'
        )
    found = {name: _tap(kind, name, merged[name]) for name in modalities}
    return NetworkTaps(found, outputs_read({}) if outputs is None else outputs)


def _tap(kind: str, modality: str, value: object) -> Tap:
    """Return a tap, which a task may give as a :class:`Tap`, as a path or as a table."""
    try:
        return msgspec.convert({"module": value} if isinstance(value, str) else value, Tap)
    except msgspec.ValidationError as error:
        raise TaskError(f"[{kind}.taps] {modality}: {error}") from error
