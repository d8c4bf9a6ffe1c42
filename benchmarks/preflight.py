"""What the preflight costs: the time of its stages, and from the command to the first training, in a cache of its own.

Each build is a process that is ended when its first training begins. Reading the data and importing PyTorch are part of
the whole, and not of the stages. Beside wall time stand the processor's seconds of the whole, which what else the
machine does changes little.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time

from common import arguments, parse, write_result

#: Shipped tasks, and targets of three libraries.
CASES = {
    "digits": ("cpu", "openvino-cpu", "jetson-orin"),
    "gestures": ("cpu", "openvino-cpu", "jetson-orin"),
    "demo": ("cpu",),
}
WALL, CPU = "until the first training", "processor, until the first training"


def until_training(recipe: str, targets: tuple[str, ...], overrides: list[str]) -> dict[str, float]:
    """Build a recipe until its first training begins; return the seconds of each stage before, and of all."""
    with tempfile.TemporaryDirectory() as folder:
        places = ("--cache", f"{folder}/cache", "--output", f"{folder}/out")
        named = [f"--target={target}" for target in targets]
        settings = [f"--set={override}" for override in overrides]
        command = [sys.executable, "-m", "edgekd", "build", "--json", "--recipe", recipe, *places, *named, *settings]
        begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds: dict[str, float] = {}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                event = json.loads(line)
                if event["event"] == "finish":
                    seconds[event["stage"]] = event["seconds"]
                if event["event"] == "start" and event["stage"] == "teacher":
                    break
            seconds[WALL] = time.perf_counter() - begun
            process.kill()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds[CPU] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipes", nargs="+", default=list(CASES), choices=list(CASES))
    options = parse(parser, recipes=["digits"])
    cases = {name: CASES[name][:1] if options.quick else CASES[name] for name in options.recipes}
    measured = {recipe: until_training(recipe, targets, options.recipe) for recipe, targets in cases.items()}
    for recipe, seconds in measured.items():
        stages = sum(value for name, value in seconds.items() if name.startswith(("preflight", "rehearsal")))
        print(f"{recipe}: stages {stages:.1f} s, to training {seconds[WALL]:.1f} s, processor {seconds[CPU]:.1f} s")
    write_result(__file__, {"seconds": measured, "targets": {name: list(cases[name]) for name in cases}}, options)


if __name__ == "__main__":
    main()
