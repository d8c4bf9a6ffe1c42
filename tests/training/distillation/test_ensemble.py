import onnxruntime
import pytest
import torch
from small import TAPS, Remembers, TwoTowers, loaded, reporter, split

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import DistillConfig, LossConfig, TeacherConfig
from edgekd.errors import RecipeError
from edgekd.gram.distance import GramKind, gram_distance
from edgekd.gram.matrix import joint_gram, normalize
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.cache import ROUNDS, Cache
from edgekd.stages.stage import Runner
from edgekd.training.distillation import cached_teacher, distill, teacher
from edgekd.training.distillation.ensemble import Ensemble, members, taps_of
from edgekd.training.distillation.references import LiveReference
from edgekd.training.export.onnx import ExportNetwork, write_onnx
from edgekd.training.loop.evaluate import probe
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps
from edgekd.training.task.protocol import collate


@pytest.fixture
def networks():
    return [build(lambda: TwoTowers(width=8, dropout=0.5), seed).eval() for seed in range(3)]


@pytest.fixture
def ensemble(networks):
    return Ensemble(networks, TAPS).eval()


@pytest.fixture
def batch():
    samples = split("train", 40)
    return collate([samples[index] for index in range(40)])


def read(model, taps, batch):
    with torch.no_grad(), TappedModel(model, taps) as tapped:
        answers, embeddings = tapped(list(batch.inputs.values()))
    return answers["logits"], embeddings


def gram(embeddings):
    return joint_gram(torch.stack([normalize(z.double()) for z in embeddings.values()], 1))


def test_its_cosines_are_the_mean_of_its_members_and_its_logits_their_mean_probability(ensemble, networks, batch):
    logits, embeddings = read(ensemble, ensemble.taps, batch)
    apart = [read(network, TAPS, batch) for network in networks]
    assert {name: z.shape for name, z in embeddings.items()} == {"a": (40, 24), "b": (40, 24)}
    torch.testing.assert_close(gram(embeddings), torch.stack([gram(z) for _, z in apart]).mean(0), atol=1e-6, rtol=0)
    probability = torch.stack([one.softmax(1) for one, _ in apart]).mean(0)
    torch.testing.assert_close(logits, probability.log())


def test_aligning_with_it_is_aligning_with_the_mean_of_its_members_grams(ensemble, networks, batch):
    _, whole = read(ensemble, ensemble.taps, batch)
    _, student = read(build(TwoTowers, 9), TAPS, batch)
    with TappedModel(networks[0], TAPS) as a, TappedModel(networks[1], TAPS) as b, TappedModel(networks[2], TAPS) as c:
        sides = [side.embeddings for side in LiveReference(a, b, c)(batch).networks]
    for scope in ("sample", "intra", "cross", "joint"):
        distances = [gram_distance(student, theirs, GramKind(scope)) for theirs in ([whole], sides)]
        torch.testing.assert_close(*distances)


def test_one_network_is_its_own_only_member(networks, ensemble):
    assert members(networks[0]) == [networks[0]]
    assert members(ensemble) == networks
    assert taps_of(networks[0], TAPS) == TAPS
    assert list(taps_of(ensemble, TAPS)) == list(TAPS)


def test_it_is_exported_with_its_embeddings(ensemble, batch, tmp_path):
    write_onnx(ExportNetwork(ensemble, ensemble.taps), batch.inputs, 18, tmp_path / "teacher.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "teacher.onnx")
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {n: x[:7].numpy() for n, x in batch.inputs.items()}), strict=True))
    logits, embeddings = read(ensemble, ensemble.taps, batch)
    torch.testing.assert_close(torch.from_numpy(found["logits"]), logits[:7])
    torch.testing.assert_close(torch.from_numpy(found["embedding.b"]), embeddings["b"][:7])


class Stopped(Exception):
    pass


class Stops(Remembers):
    def advance(self, stage, done, total, note):
        super().advance(stage, done, total, note)
        if done == 3:
            raise Stopped


def run(folder, observer=None, members=2):
    folder.mkdir(exist_ok=True)
    config = TeacherConfig(epochs=2, batch_size=32, members=members)
    return teacher.run(loaded(), TAPS, config, StageRun(4, folder, reporter(observer)))


def test_members_are_the_teachers_of_their_own_seeds_and_a_stopped_run_goes_on(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path / "both", Stops())
    assert sorted(path.name for path in (tmp_path / "both" / ROUNDS).iterdir()) == ["0", "1"]
    observer = Remembers()
    trained = run(tmp_path / "both", observer)
    assert [step[:2] for step in observer.steps] == [(4, 4)]
    assert len(trained.history) == 4
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [WEIGHTS, PROBE]
    both = load_weights(Ensemble([TwoTowers(), TwoTowers()], TAPS), tmp_path / "both" / WEIGHTS)
    for number, member in enumerate(both.members):
        config = TeacherConfig(epochs=2, batch_size=32)
        folder = tmp_path / str(number)
        teacher.run(loaded(), TAPS, config, StageRun(4 + number, folder, reporter()))
        alone = load_weights(TwoTowers(), folder / WEIGHTS)
        assert all(torch.equal(p, q) for p, q in zip(member.parameters(), alone.parameters(), strict=True))
    assert trained.parameters == 2 * sum(p.numel() for p in TwoTowers().parameters())


def test_a_student_learns_from_all_of_them_live_and_cached(ensemble, tmp_path):
    task, outputs = loaded(), tmp_path / "outputs"
    outputs.mkdir()
    cached_teacher.write_outputs(ensemble, TAPS, task.splits["train"], outputs, reporter())
    config = DistillConfig(epochs=4, batch_size=32, loss=LossConfig(extra={"joint": 1.0, "fd": 0.5}))
    histories = []
    for folder in (None, outputs):
        place = tmp_path / f"from {folder and folder.name}"
        place.mkdir()
        histories.append(
            distill.run(task, ensemble, Taps(TAPS, TAPS), config, StageRun(0, place, reporter()), folder).history
        )
    for live, read_back in zip(*histories, strict=True):
        assert read_back == pytest.approx(live, rel=1e-3)
    assert histories[0][-1]["drift"] < histories[0][0]["drift"]


def test_weights_and_members_are_refused():
    match = r"teacher.weights is of one network, and teacher.members asks for 3: leave one of the two out"
    with pytest.raises(RecipeError, match=match):
        load_recipe("digits", ("teacher.members=3", "teacher.weights=a.safetensors"))


def test_a_build_of_several_teachers(tmp_path):
    torch.set_num_threads(1)
    settings = ("teacher.members=2", "teacher.epochs=1", "distill.epochs=1", "prune.epochs=1", "prune.round_to=8")
    recipe = load_recipe("digits", settings)
    learned = TrainingStages(Runner(Cache(tmp_path), Remembers()), Project(recipe.task, tmp_path), recipe, 18).run()
    assert set(learned.exported.result.parity) == {"teacher", "student", "pruned"}
    probed = learned.probes("test")["teacher"]
    model = learned.stages.load_teacher(learned.teacher)
    again = probe(model, model.taps, learned.stages.project.loaded.splits["test"])
    assert (probed.answer == again.answer).all()
    assert probed.embeddings["fou"].shape == (400, 128)
