"""The verdict's three questions, each at its limits, and the rule that joins them."""

import math
from dataclasses import replace

import pytest

from edgekd.gram.answers import Answers
from edgekd.gram.drift import Drift
from edgekd.gram.intervals import Estimate
from edgekd.gram.metric import ConstantAnswer, LedgerMetrics
from edgekd.gram.verdict import (
    Answered,
    GateLimits,
    Measured,
    join_answers,
    judge_behaviour,
    judge_learned,
    judge_structure,
    worst,
)

LIMITS = GateLimits(tau_pass=0.005, tau_fail=0.02, max_flips=0.03, max_metric_drop=0.015)
SAME = Estimate(0.0, 0.0, 0.0)


def answers(divergence=SAME, changed=SAME, kind="classes", samples=400, **others):
    stated = {
        "error": Estimate(0.05, 0.04, 0.06),
        "largest_error": 0.5,
        "worst_element": None,
        "worst_divergence": None,
    }
    return Answers(
        kind=kind, divergence=divergence, changed=changed, samples=samples, units=samples, **{**stated, **others}
    )


def drift(mean=0.001, bound=0.002, clusters=None):
    return Drift(mean, bound, "a-b", 0.002, 0.0, None, None, 100, clusters, "sample")


def behaviour(found, loss=None, limits=LIMITS, **others):
    return judge_behaviour(Measured({"logits": found}, loss, drift(), **others), limits, 0.95)


NEAR, WITHIN = Estimate(0.002, 0.001, 0.004), Estimate(0.01, 0.005, 0.019)
ACROSS, BEYOND, FAR = Estimate(0.018, 0.01, 0.03), Estimate(0.05, 0.03, 0.08), Estimate(0.3, 0.2, 0.5)
HELD, UNSURE = Estimate(0.0, -0.01, 0.01), Estimate(0.0, -0.02, 0.02)
WORSE_UNSURE, FELL = Estimate(0.02, -0.01, 0.05), Estimate(0.04, 0.02, 0.06)
SLIPPED = Estimate(0.0167, 0.003, 0.03)
FEW, SOME, MANY = Estimate(0.01, 0.0, 0.02), Estimate(0.02, 0.01, 0.05), Estimate(0.09, 0.06, 0.12)


@pytest.mark.parametrize(
    ("divergence", "changed", "loss", "expected"),
    [
        (NEAR, FEW, HELD, "pass"),
        (BEYOND, MANY, HELD, "warn"),  # it answers otherwise, and not worse
        (FAR, MANY, HELD, "warn"),
        (NEAR, FEW, FELL, "fail"),
        (NEAR, FEW, SLIPPED, "undecided"),  # a few ties that fell to the other side
        (WITHIN, FEW, SLIPPED, "fail"),
        (WITHIN, FEW, UNSURE, "pass"),
        (WITHIN, SOME, UNSURE, "undecided"),  # a few flips prove nothing
        (NEAR, SOME, UNSURE, "pass"),  # where the outputs are as near as that, flips are ties
        (NEAR, SOME, WORSE_UNSURE, "undecided"),
        (ACROSS, FEW, UNSURE, "undecided"),
        (BEYOND, MANY, UNSURE, "undecided"),
        (BEYOND, MANY, WORSE_UNSURE, "fail"),
        (FAR, MANY, UNSURE, "fail"),
        (NEAR, FEW, None, "pass"),
        (WITHIN, SOME, None, "undecided"),
        (ACROSS, FEW, None, "undecided"),
        (ACROSS, MANY, None, "fail"),
        (BEYOND, FEW, None, "fail"),
        (NEAR, None, None, "pass"),
        (Estimate(0.01, 0.0, math.inf), FEW, None, "undecided"),
    ],
)
def test_behaviour_by_metric_divergence_and_changed_answers(divergence, changed, loss, expected):
    found = behaviour(answers(divergence, changed), loss)
    assert found.verdict == expected
    assert bool(found.reasons) == (expected != "pass")


def test_limits_are_inclusive():
    at = answers(Estimate(0.02, 0.02, 0.02), Estimate(0.03, 0.03, 0.03))
    assert behaviour(at).verdict == "pass"
    # 0.9125 - 0.8975, as two accuracies on 400 samples differ: a little more than 0.015 in binary.
    drop = 0.9125 - 0.8975
    assert drop > LIMITS.max_metric_drop
    assert behaviour(at, Estimate(drop, drop, drop)).verdict == "pass"
    assert judge_structure(drift(0.02, 0.02), LIMITS).verdict == "warn"
    assert judge_structure(drift(0.005, 0.005), LIMITS).verdict == "pass"


@pytest.mark.parametrize(
    ("found", "loss"),
    [
        (answers(Estimate(math.nan, math.nan, math.nan)), None),
        (answers(NEAR, error=Estimate(math.nan, math.nan, math.nan)), HELD),
        (answers(NEAR), Estimate(math.nan, math.nan, math.nan)),
    ],
)
def test_what_is_not_a_number_fails(found, loss):
    assert behaviour(found, loss).verdict == "fail"
    assert judge_structure(drift(math.nan, math.nan), LIMITS).verdict == "fail"


def test_a_limit_of_the_recipe_stands_in_for_that_of_the_kind():
    assert behaviour(answers(BEYOND, FEW), limits=replace(LIMITS, max_divergence=0.1)).verdict == "pass"
    assert behaviour(answers(NEAR, FEW), limits=replace(LIMITS, max_divergence=0.0001)).verdict == "fail"


def test_one_broken_number_of_several_fails_though_the_others_are_right():
    found = behaviour(answers(NEAR, None, "regression", worst_element=3, worst_divergence=4.0))
    assert found.verdict == "fail"
    assert found.reasons == ("element 3 of the output is broken: its squared error is 4 of its variance",)


def test_an_embedding_of_another_length_fails_though_its_direction_is_the_same():
    halved = answers(SAME, SAME, "embedding", error=Estimate(0.5, 0.5, 0.5))
    assert behaviour(halved).verdict == "fail"


def test_neighbours_that_trade_places_do_not_fail_an_embedding():
    assert behaviour(answers(NEAR, MANY, "embedding")).verdict == "pass"


def test_outputs_that_are_the_same_up_to_rounding_pass_on_any_number_of_samples():
    tiny = Estimate(1e-9, 0.0, 1e-8)
    assert behaviour(answers(tiny, Estimate(0, 0, 0.78), samples=2, error=tiny)).verdict == "pass"
    assert behaviour(answers(NEAR, None, "regression", samples=2)).verdict == "undecided"


@pytest.mark.parametrize(
    ("found", "loss", "needed"),
    [
        (answers(Estimate(0.01, 0.005, 0.019), Estimate(3 / 130, 0.0063, 0.0584), samples=130), UNSURE, 240),
        (answers(NEAR, None, "regression", samples=2), None, 20),
        (answers(ACROSS, FEW), None, 14_400),  # a bound 0.012 away, of which 0.002 are left: six times as near,
    ],
)
def test_an_undecided_answer_says_how_many_samples_would_tell(found, loss, needed):
    (reason,) = behaviour(found, loss).reasons
    assert reason.startswith(f"undecided: n = {found.samples} samples, about ")
    told = int(reason.split("about ")[1].split()[0])
    assert told == pytest.approx(needed, rel=0.5)


def test_of_groups_groups_are_what_is_needed():
    found = answers(ACROSS, FEW)
    (reason,) = behaviour(replace(found, units=3)).reasons
    assert "n = 3 groups" in reason


def test_figures_at_their_limit_are_not_decided_by_more_samples():
    (reason,) = behaviour(answers(Estimate(0.02, 0.01, 0.03), FEW)).reasons
    assert "more of the same would not tell soon" in reason


def test_a_modality_missing_warns_beyond_its_limit():
    missing = {"audio": Estimate(0.12, 0.1, 0.14), "image": Estimate(0.01, 0.0, 0.02)}
    found = behaviour(answers(NEAR, FEW), HELD, missing=missing)
    assert found.verdict == "warn"
    (reason,) = found.reasons
    assert reason.startswith("without audio 12% ")
    assert behaviour(answers(NEAR, FEW), FELL, missing=missing).verdict == "fail"


def learned(own, teacher, constant, gain=0.1):
    values = {"student": own} if teacher is None else {"teacher": teacher, "student": own}
    found = None if constant is None else ConstantAnswer("class 2", constant, Estimate(gain, gain - 0.05, gain + 0.05))
    return judge_learned("accuracy", LedgerMetrics(values, {}, found), "student", LIMITS)


def test_whether_a_student_learned():
    assert learned(0.9, 0.93, 0.1).verdict == "pass"
    assert learned(0.7, 0.93, 0.1).verdict == "warn"  # 72 % of what the teacher is above chance
    assert learned(0.16, 1.0, 0.17, gain=-0.01).verdict == "fail"
    assert learned(0.2, 1.0, 0.17, gain=0.03).verdict == "fail"  # by chance
    assert learned(0.9, None, None).verdict is None
    assert learned(None, 0.9, None).verdict is None
    assert learned(0.9, 0.93, 0.1).figures == ("accuracy 0.9000, teacher 0.9300, always class 2: 0.1000",)


def joined(behaviour, structure, limits=LIMITS, kind="classes", student="pass"):
    answered = [
        Answered(question, verdict, () if verdict == "pass" else (f"{question} {verdict}",))
        for question, verdict in (("learned", student), ("behaviour", behaviour), ("structure", structure))
    ]
    return join_answers(*answered, limits, [kind])


@pytest.mark.parametrize(
    ("behaviour", "structure", "expected"),
    [
        ("pass", "pass", "pass"),
        ("pass", "warn", "warn"),
        ("pass", "fail", "warn"),
        ("pass", "undecided", "warn"),
        ("warn", "fail", "warn"),
        ("undecided", "pass", "undecided"),
        ("undecided", "fail", "fail"),
        ("fail", "pass", "fail"),
    ],
)
def test_behaviour_decides(behaviour, structure, expected):
    assert joined(behaviour, structure)[0] == expected


def test_structure_decides_where_it_is_what_is_used_or_asked_for():
    assert joined("pass", "fail", kind="embedding")[0] == "fail"
    assert joined("pass", "fail", replace(LIMITS, structure="strict"))[0] == "fail"
    assert joined("pass", "undecided", replace(LIMITS, structure="strict"))[0] == "undecided"


def test_reasons_are_those_of_the_verdict_and_the_rest_are_warnings():
    assert joined("fail", "warn")[1:] == (("behaviour fail",), ("structure warn",))
    assert joined("undecided", "warn", student="warn")[1:] == (
        ("behaviour undecided",),
        ("learned warn", "structure warn"),
    )
    assert joined("pass", "pass", student="fail") == ("fail", ("learned fail",), ())


def test_an_undecided_build_is_released_unless_the_recipe_says_otherwise():
    assert [LIMITS.releases(verdict) for verdict in ("pass", "warn", "undecided", "fail")] == [True, True, True, False]
    assert not replace(LIMITS, undecided="reject").releases("undecided")


def test_the_worst_of_verdicts():
    assert worst("pass", "undecided", "warn") == "undecided"
    assert worst("undecided", "fail") == "fail"


GAIN, NO_GAIN = Estimate(0.5, 0.4, 0.6), Estimate(0.01, 0.005, 0.015)


def test_a_metric_that_a_constant_answer_keeps_too_excuses_nothing():
    assert behaviour(answers(FAR, SOME), HELD, gain=GAIN).verdict == "warn"
    assert behaviour(answers(FAR, SOME), HELD, gain=NO_GAIN).verdict == "fail"
    assert behaviour(answers(NEAR, FEW), HELD, gain=NO_GAIN).verdict == "pass"
    assert behaviour(answers(NEAR, FEW), FELL, gain=NO_GAIN).verdict == "fail"


def test_answers_that_provably_changed_fail_however_small_the_divergence():
    found = behaviour(answers(NEAR, MANY))  # of nearly uniform distributions any divergence is small
    assert found.verdict == "fail"
    assert found.reasons == ("9% [6, 12] of the answers changed, more than 3%",)
    assert behaviour(answers(NEAR, MANY), UNSURE).verdict == "undecided"


def test_labels_that_hold_and_changed_fail_however_many_hold_in_neither():
    lost = Estimate(0.9, 0.8, 0.95)
    found = behaviour(answers(NEAR, SAME, "multilabel", changed_held=lost), HELD)
    assert found.verdict == "fail"
    assert found.reasons == ("of the labels that hold in either network 90% [80, 95] changed",)


def test_a_reference_that_is_not_finite_itself_is_named():
    nothing = Estimate(math.nan, math.nan, math.nan)
    (reason,) = behaviour(answers(nothing, error=nothing, reference_broken=1)).reasons
    assert reason.startswith("the reference's own output is not finite for 1 of 400 samples")


def test_the_same_outputs_and_structure_pass_on_one_group_alone():
    unbounded = Estimate(0.0, 0.0, math.inf)
    assert behaviour(answers(unbounded, Estimate(0.0, 0.0, 1.0), error=unbounded), HELD).verdict == "pass"
    assert judge_structure(drift(0.0, 2.0, clusters=1), LIMITS).verdict == "pass"
    (reason,) = behaviour(replace(answers(Estimate(0.001, 0.0, math.inf)), units=1)).reasons
    assert reason == "undecided: n = 1 group, of which one alone tells nothing of others"


def test_one_sample_alone_has_no_structure_within_a_modality():
    alone = replace(drift(math.nan, 2.0), scope="intra", samples=1)
    structure = judge_structure(alone, LIMITS)
    assert (structure.verdict, "one sample alone" in structure.reasons[0]) == (None, True)
    assert judge_behaviour(Measured({"logits": answers(NEAR, FEW)}, HELD, alone), LIMITS, 0.95).verdict == "pass"


def test_what_is_not_a_number_without_a_modality_is_said_so():
    (reason,) = behaviour(answers(NEAR, FEW), HELD, missing={"audio": Estimate(math.nan, math.nan, math.nan)}).reasons
    assert reason == "without audio its outputs are not numbers, where the reference's are"


def judged_as(figures, reference="student"):
    return judge_learned("f1", figures, reference, LIMITS)


def test_whether_a_student_learned_where_its_metric_cannot_be_compared():
    values = {"teacher": 0.9, "student": 0.8}
    all_one = LedgerMetrics(values, {}, ConstantAnswer("class 3", 1.0, Estimate(-0.2, -0.3, -0.1), alone=True))
    assert judged_as(all_one).verdict == "warn"
    assert judged_as(all_one).reasons[0].startswith("all samples are labelled class 3")
    unbounded = LedgerMetrics(values, {}, ConstantAnswer("class 3", 0.1, Estimate(0.7, -math.inf, math.inf)))
    assert judged_as(unbounded).verdict == "warn"
    assert judged_as(LedgerMetrics(values, over_chance=GAIN)).verdict == "pass"
    at_chance = judged_as(LedgerMetrics(values, over_chance=Estimate(0.01, -0.02, 0.04)))
    assert at_chance.verdict == "fail"
    assert "answers given to other samples" in at_chance.reasons[0]
    no_number = judged_as(LedgerMetrics({"student": math.nan}))
    assert (no_number.verdict, "is not a number" in no_number.reasons[0]) == ("fail", True)
    assert judged_as(LedgerMetrics({"float": math.nan}), "float").verdict == "warn"


@pytest.mark.parametrize(
    ("divergence", "changed", "loss", "least", "most"),
    [
        (
            ACROSS,
            Estimate(0.05, 0.02, 0.09),
            None,
            800,
            1000,
        ),  # 0.05 - 0.03 is two thirds of the way to the lower bound
        (NEAR, FEW, WORSE_UNSURE, 900, 1000),  # the fall is as large as two thirds of the way to its lower bound
        (BEYOND, FEW, UNSURE, 700, 720),
    ],
)
def test_an_undecided_answer_says_how_many_would_show_that_it_fails(divergence, changed, loss, least, most):
    (reason,) = behaviour(answers(divergence, changed), loss).reasons
    told = int(reason.split("about ")[1].split()[0])
    assert least <= told <= most


def test_more_than_there_are_would_tell():
    for mean in (0.001, 0.01, 0.019, 0.021, 0.05):
        for samples in (2, 19, 100, 5000):
            found = answers(Estimate(mean, mean / 3, 3 * mean), SOME, samples=samples)
            for loss in (None, UNSURE, WORSE_UNSURE):
                answered = behaviour(found, loss)
                if "about" in "".join(answered.reasons):
                    assert int(answered.reasons[0].split("about ")[1].split()[0]) > samples
