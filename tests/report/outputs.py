"""Outputs of every kind: what is true, and models that stray from it more or less."""

import numpy as np

from edgekd.gram.output_kind import OutputKind
from edgekd.report.details.compared import ComparedOutput
from edgekd.report.details.content import InputPicture

COUNT = 120
NAMES = ("cat", "dog", "fox", "owl", "elk")
IDS = np.array([f"s{index:03d}" for index in range(COUNT)])
GROUPS = np.array([f"person {index % 6}" for index in range(COUNT)])
NOISE = {"shipped": 1.2, "student": 1.0, "teacher": 0.6}


def random(seed=3):
    return np.random.default_rng(seed)


def one_hot(true, count, axis=-1):
    return np.moveaxis(np.eye(count, dtype=np.float32)[np.maximum(true, 0)], -1, axis)


def _models(signal, scale=1.0):
    """What each model says: the signal with noise, of which that of what ships and the student is mostly the same."""
    shared = random(5).normal(size=signal.shape)
    other = {name: random(place).normal(size=signal.shape) for place, name in enumerate(NOISE)}
    return {
        name: (signal + scale * (0.8 * shared * noise + 0.3 * other[name])).astype(np.float32)
        for name, noise in NOISE.items()
    }


def classes():
    true = random().integers(0, len(NAMES), COUNT)
    true[:5] = -100
    return _compared("classes", _models(2.5 * one_hot(true, len(NAMES))), true, classes=NAMES)


def labels():
    true = (random().random((COUNT, 4)) < 0.3).astype(np.int64)
    true[0], true[1, 0] = -100, -100
    return _compared("multilabel", _models(4.0 * (true > 0) - 2), true, classes=NAMES[:4])


def numbers():
    true = (random().normal(size=(COUNT, 2)) * [1, 20]).astype(np.float32)
    true[3], true[4, 0] = np.nan, np.nan
    return _compared("regression", _models(np.nan_to_num(true), 0.2), true)


def maps():
    true = random().normal(size=(COUNT, 1, 12, 10)).cumsum(-1).astype(np.float32)
    return _compared("regression", _models(true, 0.5), true)


def embedding():
    true = random().integers(0, len(NAMES), COUNT)
    outputs = _models(2.5 * one_hot(true, 8))
    outputs["teacher"] = np.concatenate([outputs["teacher"], outputs["teacher"]], 1)
    return _compared("embedding", outputs, true, classes=NAMES)


def dense():
    true = np.repeat(np.repeat(random().integers(0, 3, (COUNT, 4, 5)), 6, 1), 6, 2)
    true[:, :2] = -100
    return _compared("dense-classes", _models(2.5 * one_hot(true, 3, axis=1)), true, classes=NAMES[:3])


def tokens():
    true = random().integers(0, 5, (COUNT, 9))
    true[:, 7:] = -100
    return _compared("sequence-classes", _models(3.0 * one_hot(true, 5)), true, classes=tuple("abcde"))


def custom():
    return _compared("custom", _models(random().normal(size=(COUNT, 3, 4))), None)


def _compared(kind, outputs, true, classes=()):
    return ComparedOutput(OutputKind(kind), outputs, "student", IDS, true, GROUPS, classes)


#: One output of every kind, by a name.
EVERY = {made.__name__: made for made in (classes, labels, numbers, maps, embedding, dense, tokens, custom)}


def pictures(rows):
    """Give every sample the same series; the names tell samples apart."""
    return {row: (InputPicture("accel", series=("0 50 100 50", "100 0 100 0")),) for row in rows}
