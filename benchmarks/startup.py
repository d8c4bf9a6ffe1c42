"""What a user waits for when nothing is to be done: `edgekd --help`, importing the runtime, a build that is up to date.

Whole processes, one after the other in turns, against a bare interpreter start; the recipe must have been built before
(`edgekd build --recipe digits`), and is built here first if it was not.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import arguments, parse, write_result

BUILD = "edgekd build, up to date"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import edgekd.runtime": ["-c", "import edgekd.runtime"],
    "import edgekd.runtime.bundle": ["-c", "import edgekd.runtime.bundle"],
    "edgekd --help": ["-m", "edgekd", "--help"],
    BUILD: ["-m", "edgekd", "build", "--recipe", "digits"],
}


def seconds(command: list[str]) -> float:
    """Run a command and return its wall time."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=15)
    options = parse(parser, runs=1)
    commands = {**COMMANDS, BUILD: [*COMMANDS[BUILD], *(word for key in options.recipe for word in ("--set", key))]}
    for command in commands.values():
        seconds(command)  # builds what is not built, and warms the page cache
    raw: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.runs):
        for name, command in commands.items():
            raw[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in raw.items()}
    for name, value in medians.items():
        print(f"{name}: {value:.3f} s")
    write_result(__file__, {"median_s": medians, "raw_s": raw}, options)


if __name__ == "__main__":
    main()
