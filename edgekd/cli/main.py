"""The command `edgekd`: the order in which its commands are listed, and how errors end."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import edgekd
from edgekd.cli.signals import Signals
from edgekd.cli.streams import READER_GONE, discard_output, open_streams
from edgekd.errors import EdgekdError, OutputError
from edgekd.files import DISK_FULL, REFUSALS
from edgekd.report.escape import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Commands that go on where they stopped.
_RESUMED = ("build", "check", "blame", "search", "advise")

#: Parts of a message that are not broken at their spaces: what is quoted, and a command to install something.
_WHOLE = re.compile(r"""(?<!\w)'[^']{1,60}'(?!\w)|pip install \S+|edgekd device install \S+""")
#: Stands for a space that is not broken at; no message has it.
_NO_BREAK = "\0"


class _EdgekdGroup(click.Group):
    """Prints a user's error as one line and exits with its code; a defect keeps its traceback."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the commands in the order in which they are defined, the most important first."""
        return list(self.commands)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the options; what an error quotes of them is shown as text."""
        with _shown_errors():
            return super().make_context(info_name, args, parent, **extra)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line; see :meth:`click.Command.main`."""
        open_streams()
        try:
            return super().main(*args, **options)
        except OSError as error:  # of the help, which is written before a command runs
            if error.errno not in REFUSALS:
                raise
            _say(f"error: the output cannot be written: {error.strerror}")
            discard_output()
            sys.exit(OutputError.exit_code)

    def invoke(self, context: click.Context) -> Any:
        """Run a command, and say how it ended where it did not end well."""
        with Signals() as signals:
            context.obj = signals
            try:
                with _shown_errors():
                    value = super().invoke(context)
                sys.stdout.flush()
            except (click.ClickException, click.exceptions.Exit):
                raise
            except BaseException as error:
                ending = _ending(error, signals, context)
                if ending is None:
                    raise
                _say(ending.line)
                discard_output()
                context.exit(ending.exit_code)
            return value


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Let click's own errors show what they quote as text, which a terminal does not obey."""
    try:
        yield
    except click.ClickException as error:
        error.message = visible(error.message, keep="\n")  # type: ignore[misc]  # final for others: show() reads it
        raise


@dataclass(frozen=True)
class _Ending:
    """How a command ended that did not end well: the line to print, which may be empty, and the exit code."""

    line: str
    exit_code: int


def _ending(error: BaseException, signals: Signals, context: click.Context) -> _Ending | None:
    """Return how a command ends; None for a defect of edgekd.

    After a signal it does not matter what became of it: a library may have caught it, and raised something of its own.
    """
    resumes = "; the same command goes on from here" if context.invoked_subcommand in _RESUMED else ""
    if signals.received is not None or isinstance(error, KeyboardInterrupt):
        return _Ending(f"{signals.word}{resumes}", signals.exit_code)
    if isinstance(error, BrokenPipeError):
        return _Ending(f"nobody reads the output any more{resumes}" if resumes else "", READER_GONE)
    if isinstance(error, OSError) and error.errno in REFUSALS:
        error = OutputError(f"{error.filename or 'the output'}: {error.strerror}{_room_hint(error)}")
    if isinstance(error, FileNotFoundError) and not _in_a_folder():
        error = OutputError("the folder that this command was started in is gone; start it in one that exists")
    return _Ending(f"error: {error}", error.exit_code) if isinstance(error, EdgekdError) else None


def _room_hint(error: OSError) -> str:
    return "; make room there" if error.errno in DISK_FULL and error.filename else ""


def _in_a_folder() -> bool:
    """Whether the working directory still exists."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _say(line: str) -> None:
    """Print one line on stderr, whatever has become of it."""
    line = visible(" ".join(line.split()))
    if not line:
        return
    if sys.stderr.isatty():
        line = _wrap(line, shutil.get_terminal_size().columns)
    head = "error" if line.startswith("error:") else ""
    with suppress(OSError):  # the terminal is gone, or its disk is full
        click.echo(f"{click.style(head, fg='red', bold=True) if head else ''}{line.removeprefix(head)}", err=True)


def _wrap(text: str, width: int) -> str:
    """Break a text at spaces, and leave paths, quoted words and commands whole where a line has room for them."""
    whole = _WHOLE.sub(lambda match: match.group().replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(_NO_BREAK, " ")


@click.group(cls=_EdgekdGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(edgekd.__version__, "-V", "--version", prog_name="edgekd")
def main() -> None:
    """Distil multi-modal models for edge devices, and prove that their Gram structure survives."""
