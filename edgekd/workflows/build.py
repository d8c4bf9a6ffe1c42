"""Build a recipe for some targets, from plain arguments: the work behind ``edgekd build``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.pipeline.build import build as run_pipeline
from edgekd.workflows.arguments import DEFAULT_CACHE, resolve_paths, resolve_recipe, resolve_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.report.results import BuildReport
    from edgekd.stages.progress import Observer
    from edgekd.workflows.arguments import PathArgument, RecipeArgument, TargetsArgument


def build(
    recipe: RecipeArgument = None,
    targets: TargetsArgument = "cpu",
    *,
    overrides: Sequence[str] = (),
    output: PathArgument | None = None,
    devices: Sequence[str] = (),
    cache: PathArgument = DEFAULT_CACHE,
    observer: Observer | None = None,
) -> BuildReport:
    """Build a recipe for some targets: from teacher to bundle.

    Stages that are up to date are not run again; a build that was killed continues when it is called again.

    Args:
        recipe: A shipped recipe's name, a file, or a loaded recipe; by default ``edgekd.toml`` in the working
            directory.
        targets: The kinds of device to build for: shipped names, ``.toml`` files, or loaded targets.
        overrides: Changes of the recipe, e.g. ``"distill.epochs=5"``.
        output: Folder of the report, and of one folder for each target; by default ``build/`` and the recipe's name.
        devices: Where engines run, ``DEVICE`` or ``TARGET=DEVICE`` each, as for ``edgekd build --device``; by default
            what is at hand for each target.
        cache: Folder of finished stages.
        observer: Receives the progress of each stage.

    Returns:
        The report, which is also written into ``output`` as ``report.json``, ``report.md`` and ``report.html``. A build
        that the gate rejects returns too: its ``released`` is False.

    Raises:
        EdgekdError: Any error that a user can cause.
    """
    loaded, name = resolve_recipe(recipe, overrides)
    paths = resolve_paths(output, cache, name)
    return run_pipeline(loaded, resolve_targets(targets), paths, devices=devices, name=name, observer=observer)
