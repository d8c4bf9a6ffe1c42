"""The command line, in a process of its own, in some other folder."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from warm import Forks

ROOT = Path(__file__).parents[1]

#: Quick, on real data, and limits that an untrained student keeps.
SETTINGS = {
    "quantize.precision": "int8",
    "teacher.epochs": 4,
    "distill.epochs": 4,
    "prune.epochs": 3,
    "prune.round_to": 8,
    "profile.iterations": 400,
    "profile.warmup": 20,
    "profile.cold_starts": 1,
    "gate.tau_pass": 1,
    "gate.tau_fail": 1,
    "gate.max_flips": 1,
    "gate.max_divergence": 1000,
    "gate.max_missing_flips": 1,
    "gate.min_learned": 0,
    "gate.max_metric_drop": 1,
    "gate.resamples": 200,
}

PREFLIGHT = ("preflight", "preflight_export", "rehearsal", "preflight_target")
LEARNING = ("teacher", "distill", "prune", "prune_check", "export", "robustness")
SHIPPING = (
    "agree",
    "quantize",
    "evaluate",
    "check",
    "profile",
    "missing",
    "judge",
    "details",
    "robustness_shipped",
    "bundle",
    "verify",
)
STAGES = (*PREFLIGHT, *LEARNING, *SHIPPING)

#: For what hangs: on a machine with much else to do a build takes minutes.
_PATIENCE_SECONDS = 1800
#: A user who owns nothing, on every Linux.
_NOBODY = 65534


@contextmanager
def as_nobody():
    """Take root's powers from this process for as long as this holds; another user has none to lose."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(0)


def environment(**changes):
    # One thread: with two test workers on two cores more of them only wait for each other.
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100", **changes}


def python(*arguments, cwd, **changes):
    """Run Python to its end; ``changes`` are of its environment."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_SECONDS,
    )


_FORKS = Forks()


def edgekd(*arguments, cwd, **changes):
    """Run the command line to its end, in a process that has PyTorch at hand."""
    return _FORKS.run(arguments, cwd, environment(**changes), _PATIENCE_SECONDS)


@contextmanager
def edgekd_begun(*arguments, cwd):
    """Start the command line, in a process group of its own; in the end nothing of it is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekd", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def signal_at(process, moment, signum):
    """Send a signal to a build with ``--json`` and all that it started, as soon as it says that it is there.

    Returns:
        What it said until then.
    """
    told = []
    for line in process.stdout:
        told.append(json.loads(line))
        if (told[-1]["event"], told[-1].get("stage"), told[-1].get("done")) == moment:
            os.killpg(process.pid, signum)
            break
    return told


def build_arguments(output, cache, **changes):
    """Return the arguments of a quick build; ``prune__ratio=0.5`` changes a setting."""
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    overrides = [f"--set={key}={value}" for key, value in settings.items()]
    return ["build", "--recipe", "digits", "--output", output, "--cache", cache, *overrides]


def documented(call, **replaced):
    """Return the one block of Python code in the documentation that makes a call; texts in it are replaced."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))]
    (block,) = (
        found for page in pages for found in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        if f"{call}(" in found
    )  # fmt: skip
    for old, new in replaced.items():
        assert block.count(old) == 1
        block = block.replace(old, str(new))
    return block


def events(text):
    """Return a build's JSON lines; every line must be one."""
    return [json.loads(line) for line in text.splitlines()]


def started(text):
    """Return the kinds of the stages that did work."""
    return [event["stage"].split()[0] for event in events(text) if event["event"] == "start"]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Built:
    """A finished build, and the process that made it."""

    output: Path
    cache: Path
    process: subprocess.CompletedProcess

    @property
    def bundle(self):
        return self.output / "cpu" / "bundle"

    def report(self):
        return json.loads((self.output / "report.json").read_text(encoding="utf-8"))


def kind_of(name):
    """Return the kind of a stage by the name of its folder or lock, which ends with a digest."""
    return name.rpartition("-")[0]


def copy_cache(cache, folder, without=()):
    """Copy a cache but for stages of some kinds."""
    shutil.copytree(cache, folder, ignore=lambda _, names: [n for n in names if kind_of(n) in without])
    return folder


def stage_folder(cache, kind):
    """Return the one finished folder of a kind."""
    finished = (path for path in cache.iterdir() if path.is_dir() and path.suffix != ".partial")
    (folder,) = (path for path in finished if kind_of(path.name) == kind)
    return folder


def outcome(cache):
    """Return all that a build decides: weights, graphs and the ledger; not what it measured."""
    trained = ("teacher", "distill", "prune")
    weights = {kind: sha256(stage_folder(cache, kind) / "model.safetensors") for kind in trained}
    graphs = {
        f"{kind}/{path.name}": sha256(path)
        for kind in ("export", "quantize")
        for path in sorted(stage_folder(cache, kind).glob("*.onnx"))
    }
    ledger = json.loads((stage_folder(cache, "check") / "result.json").read_text(encoding="utf-8"))["record"]
    return {**weights, **graphs, "ledger": ledger}
