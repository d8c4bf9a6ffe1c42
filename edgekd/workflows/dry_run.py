"""Try a build before anything is trained, from plain arguments: the work behind ``edgekd build --dry-run``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from edgekd.errors import EdgekdError
from edgekd.pipeline.build import build_places, try_build
from edgekd.stages.progress import Silent
from edgekd.workflows.arguments import DEFAULT_CACHE, resolve_paths, resolve_recipe, resolve_targets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.stages.progress import Observer
    from edgekd.workflows.arguments import PathArgument, RecipeArgument, TargetsArgument

#: What became of a stage: "not run" where one before it was refused.
Outcome = Literal["ok", "warning", "refused", "not run"]


@dataclass(frozen=True)
class TriedStage:
    """One stage of a dry run.

    Attributes:
        name: Name of the stage.
        outcome: What became of it.
        text: Its result in a few words, or why it was refused.
        warnings: What it warned of.
    """

    name: str
    outcome: Outcome = "not run"
    text: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DryRun:
    """What a build would be refused for, as far as that can be known before anything is trained.

    Attributes:
        stages: The stages, in order.
        refused: For each of several targets that refused the reason, while the others can be built.
        error: What the build would end with before its first training; None where it could begin.
        seconds: Time that it took.
    """

    stages: tuple[TriedStage, ...]
    refused: dict[str, str]
    error: EdgekdError | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the build could begin, for every target."""
        return self.error is None and not self.refused


def dry_run(
    recipe: RecipeArgument = None,
    targets: TargetsArgument = "cpu",
    *,
    overrides: Sequence[str] = (),
    output: PathArgument | None = None,
    devices: Sequence[str] = (),
    cache: PathArgument = DEFAULT_CACHE,
    observer: Observer | None = None,
) -> DryRun:
    """Check a recipe and its task, and take untrained networks and a few samples through every stage of a build.

    Nothing is trained, and nothing is left but finished stages in the cache, which the build then finds there.

    Args:
        recipe: As for :func:`edgekd.build`.
        targets: As for :func:`edgekd.build`.
        overrides: Changes of the recipe, e.g. ``"distill.epochs=5"``.
        output: Folder that the build would write, to see whether it could.
        devices: Where engines run, ``DEVICE`` or ``TARGET=DEVICE`` each.
        cache: Folder of finished stages.
        observer: Receives the progress of each stage, but no warnings and refusals: these are in what is returned.

    Returns:
        What each stage said. What is refused is no exception but :attr:`DryRun.error`.

    Raises:
        EdgekdError: The arguments name nothing that could be tried: no such recipe, target or device.
    """
    began = time.monotonic()
    loaded, name = resolve_recipe(recipe, overrides)
    paths, on = resolve_paths(output, cache, name), resolve_targets(targets)
    paths.try_out(build_places(on))
    following = _DryRunObserver(observer or Silent())
    error: EdgekdError | None = None
    refused: dict[str, str] = {}
    try:
        refused = try_build(loaded, on, paths.cache, devices=devices, observer=following)
    except EdgekdError as raised:
        error = raised
        if not following.stages:
            raise
        following.end(str(raised))
    return DryRun(tuple(following.stages.values()), refused, error, time.monotonic() - began)


@dataclass
class _DryRunObserver:
    """Keeps what each stage says, and passes its progress on.

    Attributes:
        observer: Receives the progress.
        stages: The stages by name.
    """

    observer: Observer
    stages: dict[str, TriedStage] = field(default_factory=dict)

    def plan(self, stages: tuple[str, ...]) -> None:
        """Note the stages."""
        self.stages |= {name: TriedStage(name) for name in stages}
        self.observer.plan(stages)

    def start(self, stage: str) -> None:
        """Note that the stage began: it counts as refused until it ends."""
        self.stages[stage] = replace(self._of(stage), outcome="refused", text="")
        self.observer.start(stage)

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Pass the event on."""
        self.observer.advance(stage, done, total, note)

    def epoch(self, stage: str, number: int, figures: Mapping[str, float]) -> None:
        """Pass the event on."""
        self.observer.epoch(stage, number, figures)

    def warn(self, stage: str, message: str) -> None:
        """Keep the warning."""
        before = self._of(stage)
        self.stages[stage] = replace(before, warnings=(*before.warnings, message))

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Keep the result."""
        before = self._of(stage)
        self.stages[stage] = replace(before, outcome="warning" if before.warnings else "ok", text=summary)
        self.observer.finish(stage, seconds, cached, summary)

    def refuse(self, target: str, reason: str) -> None:
        """Keep the reason at the stage that was running."""
        if not self._keep(reason):
            self.stages[target] = TriedStage(target, "refused", reason)
        self.observer.refuse(target, reason)

    def end(self, reason: str) -> None:
        """Keep why the build would end, at the stage that began, or at the next where none has said why."""
        if not self._keep(reason) and not any(stage.outcome == "refused" for stage in self.stages.values()):
            following = next((stage for stage in self.stages.values() if stage.outcome == "not run"), None)
            if following is not None:
                self.stages[following.name] = replace(following, outcome="refused", text=reason)

    def _keep(self, reason: str) -> bool:
        """Keep why the stages that began ended; return whether there was one."""
        ended = [stage for stage in self.stages.values() if stage.outcome == "refused" and not stage.text]
        self.stages |= {stage.name: replace(stage, text=reason) for stage in ended}
        return bool(ended)

    def _of(self, stage: str) -> TriedStage:
        return self.stages.get(stage, TriedStage(stage))
