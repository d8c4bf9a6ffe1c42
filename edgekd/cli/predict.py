"""The command that runs a bundle on samples from a file: predict."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

import edgekd
from edgekd.cli.main import main
from edgekd.cli.options import as_one_argument, runtime_option
from edgekd.cli.values import THREADS
from edgekd.report.escape import json_text

#: Characters up to which the names of samples stand in a column.
_WIDEST = 40


@dataclass(frozen=True)
class Printed:
    """What ``edgekd predict`` prints and writes, as click passes it."""

    output: Path | None
    embeddings: bool
    as_json: bool

    def check(self, samples: Path) -> None:
        """Refuse, before anything is run, what cannot be written afterwards."""
        if self.embeddings and self.output is None:
            raise click.UsageError("--embeddings needs --output: they are written, not printed")
        if self.output is None:
            return
        if self.output.suffix.lower() != ".npz":
            raise click.UsageError(f"--output {self.output}: must end in .npz")
        if self.output.is_dir() or not self.output.parent.is_dir():
            what = "is a folder" if self.output.is_dir() else "its folder is not there"
            raise click.UsageError(f"--output {self.output}: {what}")
        if samples.exists() and self.output.exists() and self.output.samefile(samples):
            raise click.UsageError(f"--output {self.output}: is the file of the samples, which would be lost")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("samples", type=click.Path(path_type=Path))
@runtime_option
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Threads of one inference.")
@click.option("--allow-rejected", is_flag=True, help="Open the bundle even if the gate rejected it.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Write every output there, a row for each sample, with their names as 'ids'.",
)
@click.option("--embeddings", is_flag=True, help="Also write the embeddings of the modalities.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each sample.")
@as_one_argument("printed", Printed)
def predict(
    bundle: Path, samples: Path, runtime: str | None, threads: int, allow_rejected: bool, printed: Printed
) -> None:
    """Say what a bundle says of samples.

    SAMPLES is an .npz with an array for each input, called as the input is: a row for each sample, or one sample
    without the dimension of the batch. Prints what each output means: the likeliest classes, the labels that hold, the
    numbers. numpy and the engine library are enough for it.
    """
    from edgekd.cli.terminal import say

    printed.check(samples)
    found = edgekd.predict(
        bundle,
        samples,
        runtime=runtime,
        threads=threads,
        embeddings=printed.embeddings,
        allow_rejected=allow_rejected,
    )
    for note in found.notes:
        say(f"note: {note}", stream=sys.stderr)
    if printed.output is not None:
        import numpy as np

        from edgekd.runtime.session import write_arrays

        write_arrays(printed.output, {"ids": np.array(found.ids), **found.outputs})
        say(f"wrote {printed.output}", stream=sys.stderr if printed.as_json else None)
    width = min(max(map(len, found.ids)), _WIDEST)
    for index, name in enumerate(found.ids):
        if printed.as_json:
            click.echo(json_text({"id": name, **found.answers[index]}))
            continue
        for output, words in found.sentences(index).items():
            say(f"{name:<{width}}  {f'{output}: ' if len(found.meanings) > 1 else ''}{words}")
