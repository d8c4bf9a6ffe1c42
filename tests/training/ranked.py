"""Work that several processes do together, and starting them; one process alone does the same without a group.

Run as a script: ``ranked.py FOLDER COUNT PORT JOB...``.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import torch
from small import TAPS, Remembers, TwoTowers, loaded, reporter, split
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from edgekd.config.recipe import DistillConfig, LossConfig, Tap, TeacherConfig, Term, Training
from edgekd.distillation import Distiller
from edgekd.errors import EdgekdError
from edgekd.pipeline.multi_process import _Joint
from edgekd.stages.cache import Cache
from edgekd.stages.stage import Stage, StageSpec
from edgekd.stages.trained import Trained
from edgekd.training.distillation import distill, teacher
from edgekd.training.distillation.loss_taps import LossTaps, taps_with_losses
from edgekd.training.distillation.objective import DistillationObjective
from edgekd.training.distillation.references import LiveReference
from edgekd.training.loop import distributed
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.weights import build
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps
from edgekd.training.task.protocol import UNLABELLED, Batch, collate

MAPS = {name: Tap(module=f"conv.{name}", pool="spatial") for name in TAPS}
OWN_MAPS = {"student": MAPS, "teacher": MAPS}

#: Losses by name; "auto" ones are balanced by gradient norms, which must be those of the whole batch too.
LOSSES = {
    **{name: {name: Term(weight=3.0)} for name in ("sample", "intra", "cross", "joint")},
    **{name: {name: Term(weight=3.0)} for name in ("fd", "fitnet", "sp", "rkd", "pkt", "affinity", "dist", "dkd")},
    "centred": {"intra": Term(weight=3.0, options={"centered": True, "normalize": "frobenius"})},
    "ickd": {"ickd": Term(weight=3.0, **OWN_MAPS)},
    "balanced": {"intra": Term(), "sample": Term(share=0.1), "fd": Term(share=0.5), "rkd": Term(share=2.0)},
    "kd alone": {},
}


class Maps(TwoTowers):
    """Two towers of feature maps, with no statistics of a batch."""

    def __init__(self, channels=6):
        super().__init__(width=channels)
        self.conv = nn.ModuleDict({name: nn.Conv1d(1, channels, 3) for name in "ab"})
        self.encoders = nn.ModuleDict({name: nn.Linear(channels, channels) for name in "ab"})

    def forward(self, a, b):
        maps = {name: self.conv[name](x[:, None]) for name, x in (("a", a), ("b", b))}
        return self.head(torch.cat([self.encoders[name](z.mean(2)) for name, z in maps.items()], 1))


def a_batch(count):
    """Samples of which, in the first half alone, some lack a label and one lacks a modality."""
    samples = split("train", count, seed=2)
    batch = collate([samples[index] for index in range(count)])
    batch.labels[: count // 4] = UNLABELLED
    return batch


def share_of(batch, lacking):
    """Return this process's part of a batch; a modality that none of its samples lacks is not spoken of."""
    rows = torch.arange(len(batch.ids)).tensor_split(distributed.world_size())[distributed.rank()]
    present = torch.ones(len(batch.ids))
    present[:lacking] = 0.0
    inputs = {name: x[rows].double() for name, x in batch.inputs.items()}
    own = present[rows]
    ids = [batch.ids[row] for row in rows]
    return Batch(ids, inputs, batch.labels[rows], [""] * len(rows), {} if own.all() else {"b": own})


def gradients(folder):
    """One step's loss, figures and gradients, for each loss, of batches that part evenly and that do not.

    In double precision: in single, each kind of processor adds up in an order of its own, and losses that divide by
    small spreads magnify that.
    """
    found = {}
    for name, extra in LOSSES.items():
        for count, lacking in ((64, 0), (63, 0), (21, 3)):
            config = LossConfig(extra=extra)
            student, other = build(lambda: Maps(6), 0).double(), build(lambda: Maps(8), 1).double()
            with (
                TappedModel(student, taps_with_losses(TAPS, config, "student")) as tapped,
                TappedModel(other, taps_with_losses(TAPS, config, "teacher")) as reference,
            ):
                live = LiveReference(reference)
                where = LossTaps(list(TAPS), TAPS, TAPS, "teacher")
                objective = DistillationObjective(tapped, live, live, config, where, reporter())
                batch = share_of(a_batch(count), lacking)
                objective.prepare(batch, 5)
                loss, figures = objective(batch, 0.5)
                loss.backward()
            distributed.reduce_gradients(student.parameters(), objective.parameters())
            parameters = [*student.parameters(), *objective.parameters()]
            figures = {key: float(value) for key, value in figures.items()}
            found[f"{name} {count} {lacking}"] = (loss.item(), figures, [p.grad.clone() for p in parameters])
    keep(found, folder)


def distills(folder):
    """The same as :func:`gradients` by a Distiller, whose gradients PyTorch's own wrapper averages."""
    found = {}
    for name, extra in LOSSES.items():
        for count, lacking in ((64, 0), (63, 0), (21, 3)):
            student, other = build(lambda: Maps(6), 0).double(), build(lambda: Maps(8), 1).double()
            own = share_of(a_batch(count), lacking)
            torch.manual_seed(5)
            distiller = Distiller(other, student, TAPS, LossConfig(extra=extra), example=own)
            wrapped = DistributedDataParallel(distiller)  # while it lives, it averages gradients
            loss = wrapped(own).loss
            loss.backward()
            figures = {key: float(value) for key, value in distiller.figures.items() if key != "loss"}
            gradients = [p.grad.clone() for p in distiller.parameters()]
            found[f"{name} {count} {lacking}"] = (loss.item(), figures, gradients)
    alone = distiller.eval()(own).loss  # of this process's samples, whatever the others do meanwhile
    found["alone"] = float(alone.detach()), len(own.ids)
    keep(found, folder)


def keep(found, folder):
    torch.save(found, folder / f"{distributed.rank()}.pt")


TRAINED = LossConfig(extra={"intra": 1.0, "sample": 0.1, "fd": Term(share=0.5), "rkd": Term(share=0.5)})


def fits(folder):
    """A teacher trained on labels, and a student on it; 90 samples in batches of 30, and of 23 and 22."""
    task = loaded()
    run_teacher, run_student = folder / "teacher", folder / "student"
    for stage in (run_teacher, run_student):
        stage.mkdir(exist_ok=True)
    teacher.run(task, TAPS, TeacherConfig(epochs=2, batch_size=32), StageRun(0, run_teacher, reporter()))
    config = DistillConfig(epochs=3, batch_size=25, loss=TRAINED)
    network = build(lambda: TwoTowers(width=12), 3)
    trained = distill.run(task, network, Taps(TAPS, TAPS), config, StageRun(0, run_student, reporter()))
    keep(trained.history, folder)


class Dies:
    """An objective that ends its process in its n-th step, where it is not of rank 0."""

    def __init__(self, objective, step):
        self.objective, self.left = objective, step

    def __call__(self, batch, progress):
        self.left -= 1
        if self.left == 0 and not distributed.is_main():
            os.kill(os.getpid(), 9)
        return self.objective(batch, progress)

    def __getattr__(self, name):
        return getattr(self.objective, name)


def disturbed(folder, dies_in=None):
    """Train with dropout, which each process draws for itself, until nothing gets better."""
    student, other = build(lambda: TwoTowers(dropout=0.3), 0), build(lambda: TwoTowers(width=12), 1)
    observer = Remembers()
    with TappedModel(student, TAPS) as tapped, TappedModel(other, TAPS) as reference:
        live = LiveReference(reference)
        where = LossTaps(list(TAPS), TAPS, TAPS, "teacher")
        objective = DistillationObjective(tapped, live, live, TRAINED, where, reporter()).prepare(a_batch(4), 5)
        # A metric that stays as it is ends the training after four epochs.
        config = Training(epochs=9, batch_size=32, patience=3, ema=0.5, clip_norm=0.1)
        run = Fit(config, 0, folder, reporter(observer))
        watched = Dies(objective, dies_in) if dies_in else objective
        fit(student, watched, split("train", 90), lambda: {"validation": 0.0}, run)
    keep((student.state_dict(), observer.steps), folder)


def dies(folder):
    disturbed(folder, dies_in=8)  # of three steps an epoch


def too_small(folder):
    run = Fit(Training(epochs=1, batch_size=3), 0, folder, reporter())
    fit(TwoTowers(), DistillationObjective.__new__(DistillationObjective), split("train", 9), dict, run)


def stages(folder):
    """Two runs of a stage by the joint runner; then one that another process has other data for."""
    observer = Remembers()
    runner, ran = _Joint(Cache(folder / "cache"), observer), []

    def run(place, report):
        ran.append(place.name)
        return Trained(0.5 + distributed.rank(), 7, [])

    def stage(depends):
        return Stage(StageSpec("teacher", 1, Trained), "", depends, run)

    results = [runner.execute(stage({"seed": 0})).result for _ in range(2)]
    keep((ran, [result.metric for result in results], len(runner.times)), folder)
    runner.execute(stage({"seed": distributed.rank()}))


def work(rank, count, port, jobs, folder):
    """Do jobs as one of several processes, and end this process."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    code = 0
    try:
        with distributed.process_group():
            for job in jobs:
                globals()[job](folder / job)
    except EdgekdError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except Exception:
        traceback.print_exc()
        code = 1
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def main():
    """Fork: each process has imported PyTorch then, and this one nothing else does with it."""
    folder, count, port, *jobs = sys.argv[1:]
    torch.set_num_threads(1)
    started = []
    for rank in range(int(count)):
        pid = os.fork()
        if pid == 0:
            stream = os.open(Path(folder) / f"{rank}.stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 2)
            work(rank, int(count), port, jobs, Path(folder))
        started.append(pid)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]))


def environment():
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def together(folder, *jobs, count=2):
    """Do jobs, each in its own folder, in several processes; return exit code and stderr of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for job in jobs:
        (folder / job).mkdir(exist_ok=True)
    command = [sys.executable, __file__, str(folder), str(count), str(port), *jobs]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            codes = json.loads(process.communicate(timeout=240)[0])
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return [(code, (folder / f"{rank}.stderr").read_text()) for rank, code in enumerate(codes)]


def kept(folder, count=2):
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


if __name__ == "__main__":
    main()
