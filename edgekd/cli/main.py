"""The command `edgekd`: the order in which its commands are listed, and how errors end."""

from __future__ import annotations

import errno
import io
import re
import shutil
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

import edgekd
from edgekd.errors import EdgekdError, OutputError
from edgekd.report.escape import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Refusals of the operating system that a user can mend; others are defects of edgekd.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


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

    def invoke(self, context: click.Context) -> Any:
        try:
            with _shown_errors():
                return super().invoke(context)
        except EdgekdError as error:
            _fail(context, error)
        except KeyboardInterrupt:
            resumes = context.invoked_subcommand in ("build", "search", "advise")
            click.echo(f"interrupted{'; the same command goes on from here' if resumes else ''}", err=True)
            context.exit(130)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            _fail(context, OutputError(f"{error.filename or 'a file'}: {error.strerror}"))


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Let click's own errors show what they quote as text, which a terminal does not obey."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = visible(error.message, keep="\n")  # click declares it final
        raise


def _fail(context: click.Context, error: EdgekdError) -> None:
    line = visible(" ".join(f"error: {error}".split()))
    if sys.stderr.isatty():
        line = _wrap(line, shutil.get_terminal_size().columns)
    head, message = line[:5], line[5:]
    click.echo(f"{click.style(head, fg='red', bold=True)}{message}", err=True)
    context.exit(error.exit_code)


def _wrap(text: str, width: int) -> str:
    """Break a text at spaces, and leave paths, quoted words and commands whole where a line has room for them."""
    whole = _WHOLE.sub(lambda match: match.group().replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(_NO_BREAK, " ")


@click.group(cls=_EdgekdGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(edgekd.__version__, "-V", "--version", prog_name="edgekd")
def main() -> None:
    """Distil multi-modal models for edge devices, and prove that their Gram structure survives."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sign that the terminal cannot show must not end a command
