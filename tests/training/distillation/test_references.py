import math

import torch
from small import TAPS, TwoTowers, split

from edgekd.config.recipe import LossConfig
from edgekd.gram.distance import GramKind, gram_distance
from edgekd.gram.matrix import SOFTNESS, normalize
from edgekd.training.distillation.bound_losses import bind_losses
from edgekd.training.distillation.loss_taps import LossTaps
from edgekd.training.distillation.outputs import BatchOutputs
from edgekd.training.distillation.references import LiveReference, float_outputs
from edgekd.training.taps.taps import TapOutputs, TappedModel
from edgekd.training.task.protocol import collate


def batch(count=12):
    samples = split("train", count, seed=3)
    return collate([samples[index] for index in range(count)])


def tapped(seed, **options):
    torch.manual_seed(seed)
    return TappedModel(TwoTowers(**options), TAPS).__enter__()


def test_one_network_says_what_it_gives():
    network = tapped(0, dropout=0.5)
    known = LiveReference(network)(batch())
    assert not network.model.training
    answers, embeddings = network(list(batch().inputs.values()))
    logits = answers["logits"]
    assert torch.equal(known.answers["logits"], logits)
    assert len(known.networks) == 1
    assert all(torch.equal(known.networks[0].embeddings[name], embeddings[name]) for name in "ab")
    assert not known.answers["logits"].requires_grad


def test_several_networks_teach_their_mean_probability():
    networks = [tapped(0), tapped(1, width=12)]
    known = LiveReference(*networks)(batch())
    singles = [network(list(batch().inputs.values()))[0]["logits"].softmax(1) for network in networks]
    for b, row in enumerate(known.answers["logits"]):
        for c, value in enumerate(row.tolist()):
            mean = (singles[0][b, c].item() + singles[1][b, c].item()) / 2
            assert math.isclose(value, math.log(mean), rel_tol=1e-4, abs_tol=1e-5)


def test_several_anchors_are_aligned_with_through_the_mean_of_their_grams():
    student, networks = tapped(5), [tapped(0), tapped(1, width=12)]
    known = LiveReference(*networks)(batch())
    ours = float_outputs(student.read(list(batch().inputs.values())))
    where = LossTaps(list(TAPS), TAPS, TAPS, "teacher")
    extra = bind_losses(LossConfig(extra={"intra": 1.0}), where)["intra"]
    found = extra(BatchOutputs(ours, known.answers, known.networks, batch().labels, {}, batch().labels))
    total = 0.0
    for name in "ab":
        grams = []
        for one in (ours, *known.networks):
            z = normalize(one.embeddings[name], SOFTNESS)
            grams.append(z @ z.T)
        total += (grams[0] - (grams[1] + grams[2]) / 2).square().sum().item()
    assert math.isclose(found.item(), total / (2 * 12 * 11), rel_tol=1e-4)
    first = gram_distance(ours.embeddings, [known.networks[0].embeddings], GramKind("intra"), softness=SOFTNESS)
    assert not math.isclose(found.item(), first.item(), rel_tol=1e-2)


def test_features_have_a_projection_to_each_anchor():
    student, networks = tapped(5), [tapped(0), tapped(1, width=12)]
    known = LiveReference(*networks)(batch())
    seen = BatchOutputs(
        float_outputs(student.read(list(batch().inputs.values()))),
        known.answers,
        known.networks,
        batch().labels,
        {},
        batch().labels,
    )
    extra = bind_losses(LossConfig(extra={"fitnet": 1.0}), LossTaps(list(TAPS), TAPS, TAPS, "teacher"))["fitnet"]
    extra.prepare(seen)
    parts = [
        (projection(seen.student.embeddings[name]) - anchor.embeddings[name]).square().mean().item()
        for projection, (anchor, name) in zip(
            extra.projections, [(anchor, name) for anchor in known.networks for name in "ab"], strict=True
        )
    ]
    assert math.isclose(extra(seen).item(), sum(parts) / 4, rel_tol=1e-5)
    assert [projection.out_features for projection in extra.projections] == [8, 8, 12, 12]


def test_a_side_is_in_fp32():
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    made = float_outputs(TapOutputs({"logits": half}, {"a": half}, {"a": half}))
    assert {z.dtype for z in (made.answers["logits"], made.embeddings["a"], made.outputs["a"])} == {torch.float32}
