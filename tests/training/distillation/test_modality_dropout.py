"""Modality dropout: who is given what, how often, and that training with it goes on where it stopped."""

import numpy as np
import pytest
import torch
from small import TAPS, Remembers, TwoTowers, loaded, reporter, split

from edgekd.config.recipe import DistillConfig, LossConfig
from edgekd.errors import TaskError
from edgekd.gram.distance import GramKind, gram_distance
from edgekd.gram.matrix import SOFTNESS
from edgekd.runtime.corruption import ChannelStatistics
from edgekd.tasks.digits import Digits
from edgekd.training.distillation import distill
from edgekd.training.distillation.modality_dropout import ModalityDropout
from edgekd.training.distillation.setup import DistillationNetworks, distillation_setup
from edgekd.training.loop.input_statistics import training_channels
from edgekd.training.loop.weights import build
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps
from edgekd.training.task.protocol import ArraySplit, Modality, collate

BOTH = Taps(TAPS, TAPS)


def batch_of(samples):
    return collate([samples[index] for index in range(len(samples))])


def lacking(count, name, rows):
    """A split in which some rows lack a modality, with zeros in its stead."""
    whole = split("train", count)
    there = torch.ones(count, dtype=torch.bool)
    there[rows] = False
    inputs = {key: x.clone() for key, x in whole.inputs.items()}
    inputs[name][~there] = 0
    return ArraySplit(whole.ids, inputs, whole.labels, present={name: there})


def statistics(train, **kinds):
    inputs = [Modality(name, tuple(x.shape[1:]), **kinds.get(name, {})) for name, x in train.inputs.items()]
    return training_channels(train, inputs, 0)


def test_statistics_are_those_of_numpy():
    train = Digits().splits()["train"]
    for name, channels in statistics(train).items():
        x = train.inputs[name].double().numpy()
        over = tuple(axis for axis in range(x.ndim) if axis != 1)
        assert channels.mean == pytest.approx(x.mean(over, keepdims=True)[0], rel=1e-6, abs=1e-6)
        assert channels.deviation == pytest.approx(x.std(over, keepdims=True)[0], rel=1e-6, abs=1e-6)


def test_an_image_has_one_figure_a_channel_and_a_number_has_one_alone():
    generator = torch.Generator().manual_seed(0)
    image, scalar = torch.rand(600, 3, 4, 5, generator=generator), torch.rand(600, generator=generator)
    train = ArraySplit([str(i) for i in range(600)], {"i": image, "s": scalar}, torch.zeros(600, dtype=torch.long))
    known = statistics(train)
    assert known["i"].mean.shape == known["i"].deviation.shape == (3, 1, 1)
    assert known["i"].mean[:, 0, 0] == pytest.approx(image.mean((0, 2, 3)).numpy(), rel=1e-6)
    assert known["s"].mean.shape == ()
    assert float(known["s"].deviation) == pytest.approx(float(scalar.std(correction=0)), rel=1e-6)


def test_statistics_are_of_the_samples_that_have_the_modality():
    train = lacking(50, "a", slice(0, 20))
    known = statistics(train)
    assert known["a"].mean == pytest.approx(train.inputs["a"][20:].mean(0).numpy(), abs=1e-6)
    with pytest.raises(TaskError, match=r"no training sample has the modality 'a'.*give some samples that have it"):
        statistics(lacking(50, "a", slice(None)))


def sentences(count=40):
    """Tokens padded with 9, a mask of theirs, a length, and a vector."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 9, (count, 4), generator=generator)
    tokens[::2, 2:] = 9
    there = tokens != 9
    inputs = {"words": tokens, "mask": there, "length": there.sum(1), "v": torch.randn(count, 3, generator=generator)}
    return ArraySplit([f"s{i}" for i in range(count)], inputs, torch.zeros(count, dtype=torch.long))


WORDS = {
    "words": {"dtype": "int64", "pad": 9},
    "mask": {"dtype": "bool", "of": "words", "absent": 0},
    "length": {"dtype": "int64", "of": "words"},
}


def test_ids_and_masks_have_no_mean_and_take_what_the_task_says():
    known = statistics(sentences(), **WORDS)
    assert list(known) == ["words", "v"]
    assert (known["words"].mean.dtype, known["words"].mean.tolist(), known["words"].deviation) == (np.int64, 9, None)
    assert {name: x.tolist() for name, x in known["words"].companions.items()} == {"mask": False}
    assert known["v"].deviation.shape == (3,)
    assert statistics(sentences(), words={"dtype": "int64", "absent": 4})["words"].mean.tolist() == 4
    given = statistics(sentences(), v={"absent": -1.5})["v"]
    assert given.mean.tolist() == [-1.5] * 3
    assert given.deviation.tolist() == known["v"].deviation.tolist()


def test_a_modality_goes_with_its_mask_and_keeps_its_type():
    batch = batch_of(sentences())
    torch.manual_seed(0)
    given = ModalityDropout(statistics(sentences(), **WORDS), 1.0)(batch)
    gone = given.present["words"] == 0
    assert given.present.keys() == {"words", "v"}
    assert 0 < int(gone.sum()) < len(gone)
    assert {name: x.dtype for name, x in given.inputs.items()} == {name: x.dtype for name, x in batch.inputs.items()}
    assert list(given.inputs) == list(batch.inputs)
    assert bool((given.inputs["words"][gone] == 9).all())
    assert not given.inputs["mask"][gone].any()
    assert torch.equal(given.inputs["length"], batch.inputs["length"])
    assert torch.equal(given.inputs["words"][~gone], batch.inputs["words"][~gone])


def known_of(**means):
    return {name: ChannelStatistics(np.float32(mean), np.float32(mean)) for name, mean in means.items()}


@pytest.mark.parametrize("p", [0.3, 0.7, 1.0])
def test_each_goes_as_often_as_is_told_and_never_all(p):
    batch = batch_of(split("train", 4000))
    torch.manual_seed(1)
    gone = ModalityDropout(known_of(a=[0] * 6, b=[0] * 5), p).draw(batch)[0]
    assert not gone.all(1).any()
    # p - p^M / M, within four standard errors
    assert gone.float().mean(0).tolist() == pytest.approx([p - p**2 / 2] * 2, abs=0.032)


def test_what_goes_becomes_the_training_mean_and_the_rest_stays():
    samples = split("train", 40)
    batch, known = batch_of(samples), statistics(samples)
    before = {name: x.clone() for name, x in batch.inputs.items()}
    dropout = ModalityDropout(known, 0.5)
    torch.manual_seed(3)
    gone = dropout.draw(batch)[0]
    torch.manual_seed(3)
    given = dropout(batch)
    for index, (name, x) in enumerate(given.inputs.items()):
        assert (x[gone[:, index]] == torch.from_numpy(known[name].mean)).all()
        assert torch.equal(x[~gone[:, index]], before[name][~gone[:, index]])
        assert torch.equal(batch.inputs[name], before[name])
        assert given.present[name].tolist() == (~gone[:, index]).float().tolist()
    assert gone.any(0).all()
    assert batch.present == {}


def test_of_a_sample_that_lacks_one_the_other_stays():
    batch = batch_of(lacking(200, "a", slice(0, 150)))
    torch.manual_seed(0)
    dropout = ModalityDropout(known_of(a=[0] * 6, b=[0] * 5), 1.0)
    gone, there = dropout.draw(batch)
    assert there.sum(0).tolist() == [50, 200]
    given = dropout(batch)
    assert not given.present["a"][:150].any()
    assert given.present["b"][:150].all()
    assert not gone[:150].any()
    assert (gone[150:].sum(1) == 1).all()


def test_the_student_alone_is_given_less_and_only_in_training():
    task = loaded()
    models = DistillationNetworks(build(TwoTowers, 0), build(TwoTowers, 1))
    fed = {"student": [], "teacher": []}
    batch = collate([task.splits["train"][index] for index in range(30)])
    dropout = ModalityDropout(statistics(task.splits["train"]), 0.5)
    with distillation_setup(task, models, BOTH, LossConfig(), 0, reporter(), dropout) as (objective, validate):
        models.trained.register_forward_pre_hook(lambda _, inputs: fed["student"].append([x.clone() for x in inputs]))
        models.teacher.register_forward_pre_hook(lambda _, inputs: fed["teacher"].append([x.clone() for x in inputs]))
        models.trained.train()
        objective(batch, 0.0)
        whole = list(batch.inputs.values())
        assert all(torch.equal(x, y) for x, y in zip(fed["teacher"][0], whole, strict=True))
        assert not any(torch.equal(x, y) for x, y in zip(fed["student"][0], whole, strict=True))
        models.trained.eval()
        objective(batch, 0.0)
        assert all(torch.equal(x, y) for x, y in zip(fed["student"][1], whole, strict=True))
        validate()
        assert torch.equal(fed["student"][2][0], task.splits["val"].inputs["a"])


class Stopped(Exception):
    """What ends a build in the middle."""


class StopsAfter(Remembers):
    def advance(self, stage, done, total, note):
        super().advance(stage, done, total, note)
        if done == 2:
            raise Stopped


def run(folder, observer=None, seed=0, **config):
    folder.mkdir(exist_ok=True)
    settings = DistillConfig(**{"epochs": 4, "batch_size": 16, "modality_dropout": 0.4, **config})
    teacher = build(TwoTowers, 7)
    return distill.run(loaded(), teacher, BOTH, settings, StageRun(seed, folder, reporter(observer)))


def test_a_resumed_run_drops_what_an_undisturbed_one_drops(tmp_path):
    undisturbed = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "part", StopsAfter())
    torch.manual_seed(99)
    assert run(tmp_path / "part") == undisturbed
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]


def test_seed_and_probability_decide(tmp_path):
    first = run(tmp_path / "first").history
    assert run(tmp_path / "again").history == first
    assert run(tmp_path / "seed", seed=1).history != first
    assert run(tmp_path / "off", modality_dropout=0.0).history != first


def test_what_was_dropped_is_compared_with_nothing():
    task = loaded()
    models = DistillationNetworks(build(TwoTowers, 0), build(TwoTowers, 1))
    batch = collate([task.splits["train"][index] for index in range(30)])
    dropout = ModalityDropout(statistics(task.splits["train"]), 0.5)
    with distillation_setup(task, models, BOTH, LossConfig(extra={"intra": 1.0}), 0, reporter(), dropout) as (
        objective,
        _,
    ):
        models.trained.train()
        torch.manual_seed(5)
        gone = dropout.draw(batch)[0]
        torch.manual_seed(5)
        figure = float(objective(batch, 0.0)[1]["loss.intra"])
        student, teacher = (_embeddings(model, batch) for model in (models.trained, models.teacher))
    kind = GramKind("intra", centered=False, normalize="cosine", distance="mse", pairs=())
    present = (~gone).float()
    assert figure == pytest.approx(float(gram_distance(student, [teacher], kind, present, softness=SOFTNESS)), rel=1e-5)
    assert figure != pytest.approx(float(gram_distance(student, [teacher], kind, None, softness=SOFTNESS)), rel=1e-2)


def _embeddings(model, batch):
    with torch.no_grad():
        return {name: model.encoders[name](x) for name, x in batch.inputs.items()}
