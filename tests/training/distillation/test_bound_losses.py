import pytest
import torch
from msgspec.structs import replace

from edgekd.config.recipe import LossConfig, Tap, Term
from edgekd.errors import TaskError
from edgekd.gram.distance import GramKind, gram_distance
from edgekd.gram.matrix import SOFTNESS
from edgekd.training.distillation.bound_losses import bind_losses
from edgekd.training.distillation.loss_registry import shipped_losses
from edgekd.training.distillation.loss_taps import LossTaps, taps_with_losses
from edgekd.training.distillation.losses.logits import dist_loss, dkd_loss
from edgekd.training.distillation.losses.relations import affinity_loss, pkt_loss, rkd_loss, sp_loss
from edgekd.training.distillation.outputs import BatchOutputs, NetworkOutputs

LOSSES = list(shipped_losses())

NAMES = ["a", "b", "c"]
TAPS = {name: Tap(module=name) for name in NAMES}
WHERE = LossTaps(NAMES, TAPS, TAPS, "teacher")
BATCH = 6
RELATIONS = {"sp": sp_loss, "rkd": rkd_loss, "pkt": pkt_loss}
#: Which samples have which modality; c is with one sample alone.
THERE = {"a": [0, 1, 2, 3, 4, 5], "b": [0, 2, 3, 5], "c": [4]}
FEATURES = [name for name, loss in shipped_losses().items() if loss.projection]
OF_EMBEDDINGS = [name for name in LOSSES if name not in ("dkd", "dist")]


def made_side(seed, width, places=NAMES):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    maps = {name: draw(BATCH, width, 4) for name in places}
    return NetworkOutputs({"logits": draw(BATCH, 3)}, {name: x.mean(2).requires_grad_() for name, x in maps.items()},
                {name: x.requires_grad_() for name, x in maps.items()})  # fmt: skip


def mask(there):
    return {name: torch.tensor([float(b in rows) for b in range(BATCH)]) for name, rows in there.items()}


def made_seen(there=None, anchors=1, places=NAMES):
    student = made_side(0, 4, places)
    others = [made_side(1 + seed, 5) for seed in range(anchors)]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return BatchOutputs(student, others[0].answers, others, labels, {} if there is None else mask(there), labels)


def term_of(name, **keys):
    tables = {"student": TAPS, "teacher": TAPS} if name == "ickd" and "student" not in keys else {}
    options = {key: keys.pop(key) for key in list(keys) if key not in Term.__struct_fields__}
    return Term(loss=name, options=options, **tables, **keys)


def made(name, seen, **options):
    extra = bind_losses(LossConfig(extra={"x": term_of(name, **options)}), WHERE)["x"]
    torch.manual_seed(0)
    extra.prepare(seen)
    return extra


def sources(side, name):
    return side.outputs if name == "ickd" else side.embeddings


@pytest.mark.parametrize("name", RELATIONS)
def test_a_relation_is_the_mean_over_modalities_of_the_samples_that_have_them(name):
    seen = made_seen(THERE)
    ours, theirs = seen.student.embeddings, seen.anchors[0].embeddings
    parts = [RELATIONS[name](ours[m][THERE[m]], theirs[m][THERE[m]]) for m in "ab"]
    assert made(name, seen)(seen).item() == pytest.approx((sum(parts) / 2).item(), rel=1e-6)


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_those_of_the_samples_that_have_them(name):
    seen = made_seen(THERE)
    extra = made(name, seen)
    ours, theirs = sources(seen.student, name), sources(seen.anchors[0], name)
    loss = shipped_losses()[name].function
    parts = [
        loss(projection(ours[m][THERE[m]]), theirs[m][THERE[m]])
        for m, projection in zip("ab", extra.projections, strict=False)
    ]
    assert extra(seen).item() == pytest.approx((sum(parts) / 2).item(), rel=1e-6)


def test_affinity_is_of_the_samples_that_have_both():
    seen = made_seen(THERE)
    ours, theirs = ([side.embeddings[m][THERE["b"]] for m in "ab"] for side in (seen.student, seen.anchors[0]))
    expected = affinity_loss(tuple(ours), tuple(theirs), 0.1)
    assert made("affinity", seen)(seen).item() == pytest.approx(expected.item(), rel=1e-6)
    expected = affinity_loss(tuple(ours), tuple(theirs), 0.5)
    assert made("affinity", seen, temperature=0.5)(seen).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("scope", ["sample", "intra", "cross", "joint"])
def test_a_gram_takes_the_recipes_options(scope):
    seen = made_seen(THERE)
    present = torch.stack([mask(THERE)[name] for name in NAMES], 1)
    kind = GramKind(scope, centered=True, normalize="frobenius", distance="smooth_l1")
    options = {"centered": True, "normalize": "frobenius", "distance": "smooth_l1"}
    expected = gram_distance(seen.student.embeddings, [seen.anchors[0].embeddings], kind, present, softness=SOFTNESS)
    assert torch.equal(made(scope, seen, **options)(seen), expected)
    plain = gram_distance(seen.student.embeddings, [seen.anchors[0].embeddings], GramKind(scope), present,
                          softness=SOFTNESS)  # fmt: skip
    assert torch.equal(made(scope, seen)(seen), plain)
    assert not torch.equal(plain, expected)


def test_a_modality_that_all_have_need_not_be_said():
    seen, said = made_seen({"b": THERE["b"]}), made_seen({"b": THERE["b"], "a": range(BATCH), "c": range(BATCH)})
    for name in OF_EMBEDDINGS:
        assert made(name, seen)(seen).item() == pytest.approx(made(name, said)(said).item(), rel=1e-6)


@pytest.mark.parametrize("name", OF_EMBEDDINGS)
def test_what_stands_in_for_a_missing_input_has_no_influence(name):
    found = []
    for scale in (0.0, 50.0):
        seen = made_seen({"b": THERE["b"]})
        absent = [b for b in range(BATCH) if b not in THERE["b"]]
        for side in (seen.student, *seen.anchors):
            with torch.no_grad():
                sources(side, name)["b"][absent] = scale
        extra = made(name, seen)
        loss = extra(seen)
        loss.backward()
        gradients = [sources(seen.student, name)[m].grad for m in NAMES]
        assert not gradients[1][absent].any()
        assert gradients[1].any()
        found.append([loss, *gradients])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", OF_EMBEDDINGS)
def test_a_batch_with_nothing_to_compare_has_no_loss_and_no_gradient(name):
    seen = made_seen({m: [] for m in NAMES})
    seen.student.answers["logits"].requires_grad_()
    loss = made(name, seen)(seen)
    loss.backward()
    assert loss.item() == 0
    assert all(
        z.grad is None or not z.grad.any()
        for z in [seen.student.answers["logits"], *sources(seen.student, name).values()]
    )


@pytest.mark.parametrize("name", OF_EMBEDDINGS)
def test_chosen_modalities_alone_have_a_gradient(name):
    seen = made_seen()
    chosen = ["a", "c"]
    tables = {side: {m: TAPS[m] for m in chosen} for side in ("student", "teacher")} if name == "ickd" else {}
    extra = made(name, seen, modalities=chosen, **tables)
    extra(seen).backward()
    gradients = {m: z.grad for m, z in sources(seen.student, name).items()}
    assert gradients["b"] is None
    assert all(gradients[m].any() for m in chosen)
    assert extra.student_taps == ("a", "c")


@pytest.mark.parametrize("name", ["sample", "cross", "joint", "affinity"])
def test_chosen_pairs_alone_have_a_gradient(name):
    seen = made_seen()
    made(name, seen, pairs=["a-b"])(seen).backward()
    gradients = {m: z.grad for m, z in seen.student.embeddings.items()}
    assert gradients["c"] is None or not gradients["c"].any()
    assert all(gradients[m].any() for m in "ab")


def test_losses_of_logits_have_kds_temperature_unless_given():
    seen = made_seen()
    ours, theirs, labels = seen.student.answers["logits"], seen.teacher["logits"], seen.labels
    config = LossConfig(
        temperature=3.0,
        extra={
            "dkd": 1.0,
            "dist": 1.0,
            "own": Term(loss="dkd", options={"temperature": 2.0, "beta": 1.0}),
            "free": Term(loss="dkd", options={"beta": 0.0}),
        },
    )
    found = {name: extra(seen) for name, extra in bind_losses(config, WHERE).items()}
    assert torch.equal(found["dkd"], dkd_loss(ours, theirs, labels, 3.0, 8.0))
    assert torch.equal(found["dist"], dist_loss(ours, theirs, temperature=3.0))
    assert torch.equal(found["own"], dkd_loss(ours, theirs, labels, 2.0, 1.0))
    assert torch.equal(found["free"], dkd_loss(ours, theirs, labels, 3.0, 0.0))


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (Term(loss="intra", modalities=["d"]), r"loss 'x': 'd' is no modality of the task.*a.*b.*c"),
        (Term(loss="intra", student={"bb": "b"}), r"loss 'x': 'bb' is no modality of the task; did you mean 'b'"),
        (Term(loss="cross", pairs=["b-a"]), r"loss 'x': there is no pair 'b-a' of its modalities"),
        (Term(loss="cross", pairs=["a-c"], modalities=["a", "b"]), r"there is no pair 'a-c' of its modalities"),
        (Term(loss="sample", modalities=["a"]), r"loss 'x': 'sample' is of two modalities or more, but is given a"),
        (Term(loss="affinity", teacher={"a": "b"}), r"'affinity' is of two modalities or more, but is given a"),
    ],
)
def test_a_loss_that_the_task_cannot_have_is_refused(term, said):
    with pytest.raises(TaskError, match=said):
        bind_losses(LossConfig(extra={"x": term}), WHERE)


def test_ickd_of_vectors_is_refused():
    seen = made_seen()
    vectors = NetworkOutputs(seen.student.answers, seen.student.embeddings, seen.student.embeddings)
    with pytest.raises(TaskError, match=r"loss 'x': 'ickd' is of feature maps \[B, C, ...\], but 'a' gives \[6, 4\]"):
        made("ickd", BatchOutputs(vectors, seen.teacher, seen.anchors, seen.labels, {}, seen.labels))


@pytest.mark.parametrize("name", OF_EMBEDDINGS)
def test_widths_must_agree_for_losses_between_modalities_alone(name):
    seen = made_seen()
    narrow = made_side(0, 2)
    student = NetworkOutputs(seen.student.answers, {**seen.student.embeddings, "c": narrow.embeddings["c"]},
                   {**seen.student.outputs, "c": narrow.outputs["c"]})  # fmt: skip
    seen = BatchOutputs(student, seen.teacher, seen.anchors, seen.labels, {}, seen.labels)
    if name in ("sample", "cross", "joint", "affinity"):
        with pytest.raises(TaskError, match=rf"'{name}' takes.*a 4, b 4, c 2; .*without: intra, fd, sp, rkd, pkt"):
            made(name, seen)
        assert made(name, seen, modalities=["a", "b"])(seen) > 0
    else:
        assert made(name, seen)(seen) > 0


def test_own_taps_of_a_loss_are_places_of_their_own():
    tables = {"student": {"a": "deep.a", "b": "b"}, "teacher": {"a": Tap(module="far", pool="tokens"), "b": "b"}}
    config = LossConfig(extra={"fd": Term(**tables)})
    ours, theirs = (taps_with_losses(TAPS, config, side) for side in ("student", "teacher"))
    own = [set(found) - set(TAPS) for found in (ours, theirs)]
    assert [len(names) for names in own] == [1, 1], "what the network's own taps read is read once"
    assert ours[own[0].pop()] == Tap(module="deep.a")
    assert theirs[own[1].pop()] == Tap(module="far", pool="tokens")
    assert taps_with_losses(TAPS, LossConfig(), "student") == TAPS


def test_one_module_pooled_in_two_ways_makes_two_places():
    terms = {pool: Term(loss="intra", student={"a": Tap(module="tokens", pool=pool)}) for pool in ("tokens", "first")}
    found = taps_with_losses(TAPS, LossConfig(extra=terms), "student")
    assert [tap.pool for name, tap in found.items() if name not in TAPS] == ["tokens", "first"]


def test_a_loss_reads_its_own_taps_on_either_side():
    tables = {"student": {"a": "deep"}, "teacher": {"a": "far"}}
    config = LossConfig(extra={"sp": Term(**tables)})
    place = {side: next(name for name in taps_with_losses(TAPS, config, side) if name not in TAPS) for side in tables}
    seen = made_seen(places=[*NAMES, place["student"]])
    anchor = made_side(7, 9, [*NAMES, place["teacher"]])
    seen = BatchOutputs(seen.student, seen.teacher, [anchor], seen.labels, {}, seen.labels)
    extra = bind_losses(config, WHERE)["sp"]
    expected = sp_loss(seen.student.embeddings[place["student"]], anchor.embeddings[place["teacher"]])
    assert torch.equal(extra(seen), expected)
    assert extra.student_taps == (place["student"],)
    # Where the anchor is a student, as in a fine-tune, the student's table holds for both.
    both = BatchOutputs(
        seen.student, seen.teacher, [made_side(8, 4, [*NAMES, place["student"]])], seen.labels, {}, seen.labels
    )
    extra = bind_losses(config, LossTaps(NAMES, TAPS, TAPS, "student"))["sp"]
    expected = sp_loss(*(side.embeddings[place["student"]] for side in (both.student, both.anchors[0])))
    assert torch.equal(extra(both), expected)


def test_a_loss_that_is_switched_off_is_not_made():
    extra = {"intra": 0.0, "sp": Term(share=0), "rkd": Term(weight=0.0), "fd": Term(share=0, weight=1.0), "pkt": 1.0}
    assert list(bind_losses(LossConfig(extra=extra), WHERE)) == ["fd", "pkt"]
    assert replace(LossConfig(), extra={}).terms == {}
