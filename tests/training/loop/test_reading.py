"""Other processes may read the samples; it makes no difference but in time."""

import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small import split

from edgekd.config.recipe import TaskConfig
from edgekd.errors import ModelError, TaskError
from edgekd.training.loop.batches import BatchOrder
from edgekd.training.loop.reading import BatchDraw, BatchReader, TrainingBatches, _worker_errors
from edgekd.training.task.loading import load_task

TASK = f"{Path(__file__).parent / 'reads.py'}:Task"
CPU = torch.device("cpu")


def train_split(**options):
    return load_task(TaskConfig(name=TASK, options=options)).splits["train"]


def epochs(train, workers, seed=3, numbers=(0, 1, 2)):
    """Return what each epoch's batches hold, one after another from one reader."""
    order = BatchOrder(len(train), 16, seed, 1)
    batches = TrainingBatches(train, order, CPU, workers)
    seen = []
    for order.epoch in numbers:
        seen.append([(batch.ids, batch.inputs["a"][:, 0].tolist(), batch.labels.tolist()) for batch in batches])
        assert len(seen[-1]) == len(batches) == 3
    return seen


def test_any_number_of_processes_reads_the_same_samples_and_draws_the_same():
    alone = epochs(train_split(), 0)
    assert epochs(train_split(), 2) == alone
    assert len({value for epoch in alone for _, values, _ in epoch for value in values}) == 3 * 40


def test_an_epoch_draws_the_same_whatever_was_drawn_before():
    train = train_split()
    first = epochs(train, 0)
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    assert epochs(train, 0, numbers=(2,)) == first[2:]
    assert epochs(train, 0, seed=4) != first


def test_what_the_network_draws_does_not_depend_on_what_is_drawn_to_read():
    train, draws = train_split(), []
    for numbers in ((0, 1), ()):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        epochs(train, 0, numbers=numbers)
        draws.append((random.random(), np.random.rand(), torch.rand(3).tolist()))
    assert draws[0] == draws[1]


def test_what_a_sample_raises_is_one_line_and_an_answer_like_any_other_on_its_way_between_processes():
    said = r"^task .*reads.py:Task, split 'train': sample 33: OSError: .*the disk is gone"
    train = train_split(fails=True)
    with pytest.raises(TaskError, match=said):
        epochs(train, 0)
    answer = pickle.loads(pickle.dumps(BatchReader(train)))[BatchDraw(0, [32, 33])]
    assert isinstance(answer, TaskError)
    assert re.match(said, str(answer))


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("opened", "TypeError: cannot pickle 'generator' object"),
        ("inner", "<locals>.Inner is defined inside of a func"),
    ],
)
def test_a_split_that_cannot_leave_its_process_is_refused_with_what_to_do(option, reason):
    with pytest.raises(TaskError) as refused:
        pickle.dumps(BatchReader(train_split(**{option: True})))
    assert str(refused.value).startswith("workers: the split 'train' cannot be given to other processes; define its cl")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_process_that_ends_is_told_from_what_else_goes_wrong():
    with pytest.raises(ModelError, match="a process that reads samples"), _worker_errors():
        raise RuntimeError("DataLoader worker (pid(s) 17) exited unexpectedly")
    with pytest.raises(RuntimeError, match="no such kernel"), _worker_errors():
        raise RuntimeError("no such kernel")


def test_a_split_in_memory_is_read_here():
    train = split("train", 40)
    assert TrainingBatches(train, BatchOrder(40, 16, 0, 1), CPU, 4)._loader.num_workers == 0
    assert BatchReader(train).split is train
