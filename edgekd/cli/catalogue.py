"""Commands that show what ships with edgekd, and start a project: init, tasks, targets, recipe."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli.init import TEMPLATES
from edgekd.cli.main import main
from edgekd.cli.options import recipe_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.tasks import TaskInfo


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--template",
    type=click.Choice(tuple(TEMPLATES)),
    default="classes",
    show_default=True,
    help="What the task is like: " + "; ".join(f"{name}: {told}" for name, told in TEMPLATES.items()) + ".",
)
def init(folder: Path, template: str) -> None:
    """Start a project that builds as it stands.

    Writes a recipe, edgekd.toml, and a commented task, task.py, into FOLDER.
    """
    from edgekd.cli.init import init as write
    from edgekd.cli.terminal import say

    for path in write(folder, template):
        say(f"wrote {path}")
    click.echo()
    say(f"Next:  cd {shlex.quote(str(folder))} && edgekd build")
    say("Then replace the data and the two networks in task.py.")


@main.command()
def tasks() -> None:
    """List the shipped tasks, with the licence of their data."""
    from edgekd.cli.terminal import print_tasks
    from edgekd.tasks import describe

    def lines(task: TaskInfo) -> Iterator[tuple[str, str]]:
        yield task.name, f"{task.summary}; {task.samples} samples of {', '.join(task.modalities)}"
        yield "", f"{task.licence}; {task.citation}"

    print_tasks(line for task in describe() for line in lines(task))


@main.group(invoke_without_command=True)
@click.pass_context
def targets(context: click.Context) -> None:
    """List the kinds of device.

    `targets show NAME` prints one, to copy and change.
    """
    if context.invoked_subcommand is None:
        from edgekd.cli.terminal import print_targets
        from edgekd.config.target import shipped_targets
        from edgekd.devices.targets import load_target

        shipped = [load_target(name) for name in shipped_targets()]
        print_targets((target.name, target.runtime, target.description) for target in shipped)


@targets.command("show")
@click.argument("name")
def show_target(name: str) -> None:
    """Print a target's TOML."""
    from edgekd.config.target import find_target
    from edgekd.config.toml import read_toml
    from edgekd.errors import TargetError
    from edgekd.files import read_text
    from edgekd.report.escape import visible

    path = find_target(name)
    text = read_text(path, TargetError)
    read_toml(path, TargetError)  # what is no TOML is said to be that
    click.echo(visible(text, keep="\n\t"), nl=False)


@main.group()
def recipe() -> None:
    """Show a recipe, or the schema of all."""


@recipe.command("schema")
def schema() -> None:
    """Print the JSON schema of edgekd.toml: every key, default and description."""
    from edgekd.training.distillation.loss_help import full_recipe_schema

    click.echo(json.dumps(full_recipe_schema(), indent=2))


@recipe.command("losses")
@click.argument("own", nargs=-1, metavar="[FILE.py:NAME]...")
def show_losses(own: tuple[str, ...]) -> None:
    """List the losses that a recipe can add, with their options; or those of your own that you name."""
    from edgekd.cli.terminal import say
    from edgekd.training.distillation.loss_help import describe_losses
    from edgekd.training.distillation.loss_registry import shipped_losses

    known = list(shipped_losses().values())
    if own:
        from edgekd.training.distillation.own_losses import find_loss

        known = [find_loss(name) for name in own]
    for line in describe_losses(known):
        say(line)


@recipe.command("show")
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show_recipe(recipe: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe as TOML, with every default filled in."""
    import msgspec

    from edgekd.config.loading import load_recipe
    from edgekd.config.toml import toml_document
    from edgekd.training.distillation.loss_registry import check_losses
    from edgekd.training.loop.settings import check_training

    loaded = load_recipe(recipe, overrides)
    check_losses(loaded)
    check_training(loaded)
    content = msgspec.to_builtins(loaded)
    click.echo(json.dumps(content, indent=2) if as_json else toml_document(content), nl=as_json)
