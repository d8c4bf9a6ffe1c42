"""Stage: remove channels in torch-pruning's dependency groups, then fine-tune with the unpruned student as Gram anchor.

What was removed is kept as a list of channel indices, so that a pruned network is rebuilt from the user's own code and
plain weights, without a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from edgekd.errors import ModelError, TaskError, nearest
from edgekd.files import need, quiet, write_text
from edgekd.learn.evaluate import batches, keep, metric
from edgekd.learn.losses import cross_entropy
from edgekd.learn.objective import Distillation
from edgekd.learn.result import REMOVED, WEIGHTS, Trained
from edgekd.learn.taps import Tapped
from edgekd.learn.task import UNLABELLED
from edgekd.learn.train import Fit, compute_device, fit
from edgekd.learn.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch.utils.data import Dataset

    from edgekd.learn.taps import Taps
    from edgekd.learn.task import Batch, LoadedTask, Split
    from edgekd.progress import StageReporter
    from edgekd.recipe import PruneConfig, Tap

_PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)

#: torch-pruning's record of one group: (module path, whether its outputs were pruned, channel indices).
History = list[tuple[str, bool, list[int]]]


@dataclass(frozen=True)
class Networks:
    """The networks of the stage, on one device: the teacher, the unpruned student, and the copy to prune."""

    teacher: nn.Module
    student: nn.Module
    pruned: nn.Module


def run(
    task: LoadedTask,
    networks: Networks,
    taps: Taps,
    config: PruneConfig,
    seed: int,
    folder: Path,
    report: StageReporter,
) -> Trained:
    """Prune and fine-tune into ``folder``.

    Raises:
        TaskError: ``ignore`` names no module.
        ModelError: the network cannot be pruned as asked, or training diverged.
    """
    device = compute_device()
    for network in (networks.teacher, networks.student, networks.pruned):
        network.to(device)
    model = networks.pruned
    examples = _some_samples(task, config.batch_size, seed).to(device)
    inputs = list(examples.inputs.values())
    removed: History = []
    if config.ratio > 0:
        removed = remove_channels(model, taps.student, inputs, examples.labels, config)
        if not removed:
            report.warn(
                f"nothing was pruned: at ratio {config.ratio} no layer gives {config.round_to} channels (round_to)"
            )
    write_text(folder / REMOVED, json.dumps(removed))
    history = []
    if removed:
        with (
            Tapped(model, taps.student) as student,
            Tapped(networks.teacher, taps.teacher) as teacher,
            Tapped(networks.student, taps.student) as anchor,
        ):
            objective = Distillation(student, teacher, anchor, config.loss, report)
            validate = lambda: metric(task, model, taps.student, "val")  # noqa: E731
            history = fit(model, objective, task.splits["train"], validate, Fit(config, seed, folder, report))
    return keep(task, model, taps.student, history, folder)


def _some_samples(task: LoadedTask, count: int, seed: int) -> Batch:
    """Return training samples drawn by the seed: the first ones are often all of one class."""
    split = task.splits["train"]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of the random importance
    drawn = Subset(cast("Dataset[Any]", split), torch.randperm(len(split), generator=generator)[:count].tolist())
    examples: Batch = next(iter(batches(cast("Split", drawn))))
    return examples


def rebuild(model: nn.Module, task: LoadedTask, folder: Path) -> nn.Module:
    """Give a freshly made student the shape and the weights of a finished prune stage, in place."""
    removed: History = [tuple(entry) for entry in json.loads((folder / REMOVED).read_text(encoding="utf-8"))]
    if removed:
        inputs = list(next(iter(batches(task.splits["train"]))).inputs.values())
        graph = need("torch_pruning", "build").DependencyGraph()
        with quiet(), _parameters_trainable(model):
            graph.build_dependency(model, tuple(x[:2] for x in inputs), output_transform=_tensors)
            graph.load_pruning_history(removed)
    return load_weights(model, folder / WEIGHTS)


def remove_channels(
    model: nn.Module, taps: Mapping[str, Tap], inputs: Sequence[Tensor], labels: Tensor, config: PruneConfig
) -> History:
    """Prune ``model`` in place; the widths of embeddings and logits are kept.

    Args:
        model: the network.
        taps: where its embeddings are.
        inputs: the modalities' batches [B, ...], which drive the tracing and the Taylor importance.
        labels: [B], for the Taylor importance.
        config: ratio, importance, round_to, ignore.

    Returns:
        What was removed; empty when nothing was.

    Raises:
        TaskError: ``ignore`` names no module, or the Taylor importance has no label to start from.
        ModelError: torch-pruning cannot prune this network, or a width that must stay has changed.
    """
    pruning = need("torch_pruning", "build")
    model.eval()
    before = _widths(model, taps, inputs)
    with quiet(), _parameters_trainable(model):
        kept = {*_width_givers(model, taps, inputs), *ignored_layers(model, config.ignore)}
        if config.importance == "taylor":
            _accumulate_gradients(model, inputs, labels)
        try:
            pruner = pruning.pruner.BasePruner(
                model,
                tuple(x[:2] for x in inputs),
                importance=_importance(pruning, config.importance),
                pruning_ratio=config.ratio,
                ignored_layers=list(kept),
                round_to=config.round_to,
                output_transform=_tensors,
            )
            pruner.step()
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise ModelError(
                f"torch-pruning cannot prune {type(model).__name__}: {error}; try [prune] ignore"
            ) from error
        model.zero_grad(set_to_none=True)
    after = _widths(model, taps, inputs)
    if before != after:
        raise ModelError(
            f"pruning changed widths that must stay: {before} became {after}; add the layers to [prune] ignore"
        )
    removed: History = pruner.pruning_history()
    return removed


def _accumulate_gradients(model: nn.Module, inputs: Sequence[Tensor], labels: Tensor) -> None:
    if bool((labels == UNLABELLED).all()):
        raise TaskError("[prune] importance = 'taylor' needs labels, and the first training samples have none")
    logits, _ = Tapped(model, {})(inputs)
    torch.autograd.backward(cross_entropy(logits, labels))


def _tensors(output: Any) -> list[Tensor]:
    """Return every tensor in what a model gives, however it is packed: torch-pruning traces back from them."""
    if isinstance(output, Tensor):
        return [output] if output.requires_grad else []
    if isinstance(output, Mapping):
        parts = list(output.values())
    else:
        parts = list(output) if isinstance(output, list | tuple) else list(getattr(output, "__dict__", {}).values())
    return [tensor for part in parts for tensor in _tensors(part)]


def _importance(pruning: Any, name: str) -> Any:
    return {
        "magnitude": lambda: pruning.importance.GroupMagnitudeImportance(p=2),
        "taylor": pruning.importance.GroupTaylorImportance,
        "random": pruning.importance.RandomImportance,
    }[name]()


def ignored_layers(model: nn.Module, paths: list[str]) -> list[nn.Module]:
    """Return the modules at these paths with all modules inside them.

    Raises:
        TaskError: there is no module at a path.
    """
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules:
            raise TaskError(f"[prune] ignore: the student has no module '{path}'{nearest(path, filter(None, modules))}")
    return [module for path in paths for module in modules[path].modules()]


def _widths(model: nn.Module, taps: Mapping[str, Tap], inputs: Sequence[Tensor]) -> dict[str, int]:
    with torch.no_grad(), Tapped(model, taps) as tapped:
        logits, embeddings = tapped(list(inputs))
    return {"logits": logits.shape[1], **{name: z.shape[1] for name, z in embeddings.items()}}


def _width_givers(model: nn.Module, taps: Mapping[str, Tap], inputs: Sequence[Tensor]) -> list[nn.Module]:
    """Return the layers whose output channels are the channels of an embedding or of the logits.

    Found on the autograd graph: from each of those outputs backwards, never past a layer that makes new channels. So a
    tap may name any module, a container or an activation too.
    """
    with Tapped(model, taps) as tapped:
        logits, embeddings = tapped(list(inputs))
    owner: dict[int, nn.Module] = {id(m.weight): m for m in model.modules() if isinstance(m, _PRUNABLE)}
    found: dict[int, nn.Module] = {}
    pending = [output.grad_fn for output in (logits, *embeddings.values())]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        layer = _layer_of(node, owner)
        if layer is not None:
            found[id(layer)] = layer
        else:
            pending += [below for below, _ in node.next_functions]
    return list(found.values())


def _layer_of(node: Any, owner: dict[int, nn.Module]) -> nn.Module | None:
    """Return the layer whose weight goes straight (or transposed) into this node."""
    for below, _ in node.next_functions:
        source = below.next_functions[0][0] if below is not None and type(below).__name__ == "TBackward0" else below
        variable = getattr(source, "variable", None)
        if variable is not None and id(variable) in owner:
            return owner[id(variable)]
    return None


@contextmanager
def _parameters_trainable(model: nn.Module) -> Iterator[None]:
    """Let gradients flow for as long as it holds: both graph walks read the autograd graph.

    Told apart by name, since pruning puts new parameters in the place of the old ones.
    """
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
