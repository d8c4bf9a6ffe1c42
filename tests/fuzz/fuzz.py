"""Fuzz what users give edgekd: each input must be taken, or refused by an EdgekdError, within a minute.

    python tests/fuzz/fuzz.py --inputs 10000
    python tests/fuzz/fuzz.py --kind onnx --seed 123

Hypothesis draws the inputs. Each is made and read in a process of its own, forked from this one, so that neither a
crash of a library nor a hang nor a ``sys.exit`` ends the run. What fails is kept in ``--keep``, with its seed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
for shared in ("", "runtime", "pipeline/onnx_import", "fuzz"):
    sys.path.insert(0, str(Path(__file__).parents[1] / shared))

import fuzz_inputs
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from edgekd.errors import EdgekdError

#: The longest time of one input in seconds, and the largest address space of the process that reads it.
LIMIT_SECONDS, _MEMORY_BYTES = 60.0, 24 << 30

_PROGRESS = 500


def run_input(kind: str, number: int, folder: Path) -> str | None:
    """Make an input and read it in a process of its own; return what went wrong, or None."""
    child = os.fork()
    if not child:
        os._exit(_child(kind, number, folder))
    end = time.monotonic() + LIMIT_SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"hangs for {LIMIT_SECONDS:g} s"
        time.sleep(0.001)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    if os.WEXITSTATUS(status) == 0:
        return None
    kept = folder / "traceback.txt"
    return kept.read_text(errors="replace").strip() if kept.exists() else f"exits with {os.WEXITSTATUS(status)}"


def _child(kind: str, number: int, folder: Path) -> int:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        fuzz_inputs.KINDS[kind](folder, random.Random(number))
    except EdgekdError:
        return 0
    except BaseException:  # noqa: BLE001 - what else comes is what is looked for
        (folder / "traceback.txt").write_text(traceback.format_exc(), errors="backslashreplace")
        return 1
    return 0


class Run:
    """The inputs of one run, and what came out of them.

    Args:
        keep: Folder for inputs that fail.
        total: The number of inputs.
    """

    def __init__(self, keep: Path, total: int) -> None:
        self.keep, self.total = keep, total
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self._start = time.monotonic()

    def take(self, kind: str, number: int) -> None:
        """Try one input, and keep its files where it fails."""
        self.counts[kind] += 1
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            problem = run_input(kind, number, folder)
            if problem:
                last = problem.splitlines()[-1]
                print(f"--kind {kind} --seed {number}: {last}", flush=True)
                self.failures[f"--kind {kind} --seed {number}"] = problem
                shutil.copytree(folder, self.keep / f"{kind}-{number}", dirs_exist_ok=True, symlinks=True)
        if self.counts.total() % _PROGRESS == 0:
            print(f"{self.counts.total()} of {self.total} inputs, {self._seconds():.0f} s", flush=True)

    def close(self) -> int:
        """Print the last line, and return the exit code."""
        each = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
        told = f"{len(self.failures)} failed, see {self.keep}" if self.failures else "none failed"
        print(f"{self.counts.total()} inputs ({each}) in {self._seconds():.0f} s: {told}")
        return 1 if self.failures else 0

    def _seconds(self) -> float:
        return time.monotonic() - self._start


def warm() -> None:
    """Import what the forked processes need, and make the inputs that others are made of."""
    import edgekd.pipeline.onnx_import.stage
    import edgekd.training.preflight.check
    import edgekd.workflows.bundles  # noqa: F401 - imported once, for all

    fuzz_inputs._models(), fuzz_inputs._bundle(), fuzz_inputs._toml_files(), fuzz_inputs._keys()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--kind", choices=fuzz_inputs.KINDS, action="append", help="this kind alone; repeatable")
    parser.add_argument("--seed", type=int, help="one input, whose failure is printed")
    parser.add_argument("--start", type=int, default=0, help="another start draws other inputs")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    warm()
    run = Run(options.keep, options.inputs)
    if options.seed is not None:
        for kind in options.kind or fuzz_inputs.KINDS:
            run.take(kind, options.seed)
        print("\n".join(run.failures.values()))
        return run.close()

    drawn = options.kind or [kind for kind, share in fuzz_inputs.SHARES.items() for _ in range(share)]

    @seed(options.start)
    @settings(max_examples=options.inputs, phases=[Phase.generate], database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.sampled_from(drawn), st.integers(0, 2**32 - 1))
    def draw(kind: str, number: int) -> None:
        run.take(kind, number)

    draw()
    return run.close()


if __name__ == "__main__":
    sys.exit(main())
