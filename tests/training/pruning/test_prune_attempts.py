"""What is tried after an attempt that the gate rejected, and how it prunes less."""

import json
from dataclasses import replace

import pytest
import torch
from pruned import Wide, batch, pruning, widths
from small import TAPS, Remembers, loaded, reporter

from edgekd.config.recipe import LossConfig, PruneBudget, Term
from edgekd.gram.answers import Answers
from edgekd.gram.gate import LedgerRow
from edgekd.gram.intervals import Estimate
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import GateLimits
from edgekd.stages.artifacts import CUT_PROBE, PROBE, REMOVED
from edgekd.stages.trained import PruneAttempt
from edgekd.training.loop.evaluate import probe
from edgekd.training.loop.weights import build
from edgekd.training.pruning import stage as prune
from edgekd.training.pruning.attempts import (
    PrunePlan,
    by_student,
    describe_attempts,
    describe_verdict,
    follow,
    next_plan,
)
from edgekd.training.pruning.budget import spare
from edgekd.training.pruning.cutter import Cutter
from edgekd.training.pruning.groups import Group
from edgekd.training.pruning.stage import PruningNetworks
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps
from edgekd.training.task.protocol import Batch

LIMITS = GateLimits(tau_pass=0.005, tau_fail=0.02, max_flips=0.03, max_metric_drop=0.015)
CONFIG = pruning(epochs=10)


def row(verdict="fail", loss=0.05, divergence=0.1):
    one = Estimate(divergence, 0.8 * divergence, 1.2 * divergence)
    answers = Answers("classes", one, 1.0, one, one, None, None, 100, 100)
    bounds = None if loss is None else Estimate(loss, loss - 0.01, loss + 0.01)
    reasons = () if verdict == "pass" else ("KL divergence, nats 0.1, more than 0.02",)
    return LedgerRow("finetuned", 0.9, bounds, {"logits": answers}, None, None, verdict, reasons)


def attempt(verdict="fail", loss=0.05, seconds=10.0, divergence=0.1, **changes):
    given = {
        "ratio": 0.25, "ratios": {"a": 0.25, "b": 0.25, "fusion": 0.25}, "epochs": 10, "parameters": 900,
        "seconds": seconds, "row": row(verdict, loss, divergence), "drifts": {"a": 0.01, "b": 0.01}, **changes,
    }  # fmt: skip
    return PruneAttempt(**given)


#: The plan of a second attempt.
TAUGHT = PrunePlan(10, by_student=True)


def after(last, plan=TAUGHT, left_s=600.0, config=CONFIG):
    return next_plan(plan, [attempt(), last], config, LIMITS, left_s)


def test_first_the_student_teaches_and_the_same_is_pruned():
    plan = after(attempt(), PrunePlan(10))
    assert plan.shares == {"a": 1.0, "b": 1.0, "fusion": 1.0}
    assert (plan.epochs, plan.by_student) == (20, True)
    assert plan.reason == (
        "epochs 10 -> 20, the student for the teacher, because of fail, KL divergence, nats 0.1, more than 0.02"
    )


def test_where_no_branch_stands_out_all_give_half_and_the_fine_tune_takes_twice_as_long():
    plan = after(attempt())
    assert plan.shares == {"a": 0.5, "b": 0.5, "fusion": 0.5}
    assert (plan.epochs, plan.by_student) == (20, True)
    assert plan.reason == (
        "prune a 25% -> at most 12%, prune b 25% -> at most 12%, prune fusion 25% -> at most 12%, epochs 10 -> 20, "
        "because of fail, KL divergence, nats 0.1, more than 0.02"
    )


def test_a_branch_that_drifted_most_gives_a_quarter():
    plan = after(attempt(drifts={"a": 0.01, "b": 0.03}))
    assert plan.shares == {"a": 0.5, "b": 0.25, "fusion": 0.5}
    assert "'b' drifted most, 0.0300 against 0.0100" in plan.reason


def test_where_the_embeddings_kept_their_gram_it_is_what_comes_after_them_that_gives_a_quarter():
    plan = after(attempt(drifts={"a": 0.001, "b": 0.004}))
    assert plan.shares == {"a": 0.5, "b": 0.5, "fusion": 0.25}
    assert "no modality drifted by more than 0.005" in plan.reason


def test_a_branch_that_gave_nothing_is_not_to_blame():
    last = attempt(ratios={"a": 0.25, "b": 0.0}, drifts={"a": 0.006, "b": 0.03})
    assert after(last).shares == {"a": 0.5, "b": 0.5}


def test_an_attempt_for_which_there_is_no_time_takes_as_long_as_the_last_or_is_not_begun():
    assert after(attempt(), left_s=19.0).epochs == 10
    plan = after(attempt(), left_s=9.0, config=pruning(epochs=10, repair_s=9.0))
    assert plan.epochs == 0
    assert set(plan.shares.values()) == {0.0}
    assert "another attempt takes about 10 s, and of prune.repair_s = 9 9 s are left" in plan.reason


def test_attempts_come_to_an_end_with_the_student_itself_and_take_at_most_four_times_as_long():
    plan, epochs = PrunePlan(10), []
    for _ in range(9):
        plan = after(attempt(epochs=plan.epochs), plan, left_s=1e9)
        epochs.append(plan.epochs)
        if not plan.epochs:
            break
    assert epochs == [20, 40, 40, 0]
    assert set(plan.shares.values()) == {0.0}


@pytest.mark.parametrize(
    ("last", "changes", "over"),
    [
        (attempt("pass"), {}, True),
        (attempt("warn"), {}, True),
        (attempt("fail"), {}, False),
        (attempt("fail"), {"repair": "off"}, True),
        (attempt("fail", ratio=0.0), {}, True),
        (attempt("undecided", divergence=0.019), {}, True),
        (attempt("undecided", divergence=0.021), {}, False),
        (attempt("undecided", divergence=0.021), {"repair": "off"}, True),
    ],
)
def test_what_ends_the_attempts(last, changes, over):
    assert (follow(TAUGHT, [last], pruning(epochs=10, **changes), LIMITS) is None) == over


def test_what_is_undecided_stays_where_there_is_no_time_for_more():
    spent = [attempt(), attempt("undecided", seconds=500.0)]
    assert follow(TAUGHT, spent, CONFIG, LIMITS) is None
    assert follow(TAUGHT, [attempt(), attempt("fail", seconds=500.0)], CONFIG, LIMITS).epochs == 0
    assert follow(TAUGHT, [attempt(seconds=500.0)], CONFIG, LIMITS).epochs == 10, "the first attempt's time is its own"


def test_undecided_does_not_end_the_attempts_where_such_a_build_is_rejected():
    strict = GateLimits(tau_pass=0.005, tau_fail=0.02, max_flips=0.03, max_metric_drop=0.015, undecided="reject")
    assert follow(TAUGHT, [attempt("undecided", divergence=0.01)], CONFIG, strict)


def test_why_an_undecided_attempt_is_repaired_is_said():
    plan = follow(PrunePlan(10), [attempt("undecided")], CONFIG, LIMITS)
    assert plan.reason.endswith("KL divergence, nats 0.1, more than 0.02")


def test_what_the_user_is_told():
    first, second = attempt(), attempt("pass", ratio=0.125, parameters=1000)
    assert describe_attempts([attempt("warn")], pruning(), LIMITS) == ""
    assert "prune.repair = 'off' leaves it so" in describe_attempts([first], pruning(repair="off"), LIMITS)
    assert describe_attempts([first, second], pruning(), LIMITS) == (
        "pruned as [prune] asks, the network is not let through on the validation split: fail, KL divergence, nats "
        "0.1, more than 0.02. Of the channels 12% went instead of 25%, and 1,000 parameters are left instead of 900, "
        "in attempt 2"
    )
    same = attempt("undecided", reason="epochs 10 -> 20, the student for the teacher, because of fail")
    assert describe_attempts([first, same], pruning(), LIMITS).endswith(
        "than 0.02. As much is pruned in attempt 2, which is kept: epochs 10 -> 20, the student for the teacher, "
        "because of fail"
    )
    budget = pruning(budget=PruneBudget(macs=0.5))
    assert ". prune.budget is not met: Of the channels 12%" in describe_attempts([first, second], budget, LIMITS)
    none = attempt("pass", ratio=0.0, parameters=1200, reason="the student stays unpruned, because")
    assert "It ships unpruned, with 1,200 parameters instead of 900" in describe_attempts([first, none], CONFIG, LIMITS)


def test_a_verdict_is_said_once():
    assert describe_verdict(row("pass")) == "pass"
    assert describe_verdict(row("fail")) == "fail, KL divergence, nats 0.1, more than 0.02"
    undecided = replace(row("undecided"), reasons=("undecided: n = 9 samples",))
    assert describe_verdict(undecided) == "undecided: n = 9 samples"


def test_the_students_loss_has_neither_labels_nor_the_teachers_taps():
    loss = by_student(LossConfig(ce=0.1, kd=0.9, extra={"intra": 1.0, "own": Term(loss="fd", teacher={"a": "deep"})}))
    assert (loss.ce, loss.kd) == (0.0, 1.0)
    assert loss.extra == {"intra": 1.0, "own": Term(loss="fd")}


def group(root, branch, width, importance, step=8):
    return Group(root, branch, width, 1, step, tuple(importance))


def test_a_branch_spares_its_most_important_channels():
    groups = [
        group("dear", "a", 32, [9.0] * 32),
        group("cheap", "a", 32, [1.0] * 32),
        group("other", "b", 32, [5.0] * 32),
    ]
    unpruned = {each.root: 32 for each in groups}
    wanted = {"dear": 16, "cheap": 16, "other": 16}
    assert spare(groups, wanted, unpruned, {}) == wanted
    assert spare(groups, wanted, unpruned, {"a": 0.5, "b": 0.5}) == {"cheap": 16, "other": 24}
    assert spare(groups, wanted, unpruned, {"a": 0.75}) == {"cheap": 16, "dear": 24, "other": 16}
    assert spare(groups, wanted, unpruned, {"a": 0.2, "b": 0.4}) == {}, "less than a step is nothing"


def test_a_second_round_counts_what_the_first_removed():
    cut = [group("one", "a", 24, [1.0] * 24), group("two", "a", 32, [2.0] * 32)]
    unpruned = {"one": 32, "two": 32}
    # Of four steps two may go, and one is gone.
    assert spare(cut, {"one": 16, "two": 16}, unpruned, {"a": 0.5}) == {"one": 16}
    assert spare(cut, {"one": 16, "two": 16}, unpruned, {"a": 0.25}) == {}


def test_odd_widths_go_in_the_steps_that_they_have():
    odd = [group("odd", "a", 20, range(20))]  # 20, 16, 8
    assert spare(odd, {"odd": 8}, {"odd": 20}, {"a": 0.5}) == {"odd": 16}


@pytest.mark.parametrize("config", [{"ratio": 0.5}, {"budget": PruneBudget(parameters=0.6)}], ids=["ratio", "budget"])
def test_a_cutter_takes_less_of_the_branches_that_give_less(config):
    inputs, labels = batch([(6,), (5,)])
    examples = Batch([""] * len(labels), dict(zip("ab", inputs, strict=True)), labels, [""] * len(labels))

    def cut(**shares):
        model = build(Wide, 0)
        done = Cutter(model, TAPS, [examples], pruning(**config), [], 0, shares).cut()
        left = {name: count for name, (count, _) in done.left.items()}
        assert left == {
            "a": widths(model)["encoders.a.0"],
            "b": widths(model)["encoders.b.0"],
            "fusion": widths(model)["head.1"],
        }
        return left

    whole, less = cut(), cut(b=0.5)
    assert (less["a"], less["fusion"]) == (whole["a"], whole["fusion"])
    assert whole["b"] < less["b"] < 64
    assert cut(a=0.0, b=0.0, fusion=0.0) == {"a": 32, "b": 64, "fusion": 24}


def run_plan(folder, plan, observer=None, **config):
    task = loaded(network=Wide)
    networks = PruningNetworks(build(Wide, 1), build(Wide, 0), build(Wide, 0))
    settings = pruning(**{"epochs": 2, "batch_size": 16, "ratio": 0.5, **config})
    trained = prune.run(task, networks, Taps(TAPS, TAPS), settings, StageRun(0, folder, reporter(observer)), plan)
    return task, networks, trained


def test_a_plan_decides_how_much_goes_and_how_long_is_tuned(tmp_path):
    observer = Remembers()
    plan = PrunePlan(3, {"a": 0.0, "b": 0.5, "fusion": 1.0}, reason="prune b 50% -> 25%")
    _, networks, trained = run_plan(tmp_path, plan, observer)
    assert trained.channels == {"a": (32, 32), "b": (48, 64), "fusion": (8, 24)}
    assert {name: widths(networks.pruned)[name] for name in ("encoders.a.0", "encoders.b.0")} == {
        "encoders.a.0": 32, "encoders.b.0": 48
    }  # fmt: skip
    assert len(trained.history) == 3
    assert trained.seconds > 0
    assert observer.steps[0] == (0, 3, "prune b 50% -> 25%")


def test_a_plan_of_no_epochs_is_the_unpruned_student(tmp_path):
    task, networks, trained = run_plan(tmp_path, PrunePlan(0, {"a": 0.0}, by_student=True, reason="no time"))
    assert (trained.history, trained.channels) == ([], {})
    assert json.loads((tmp_path / REMOVED).read_text()) == []
    student = probe(networks.student, TAPS, task.splits["test"])
    for name in (CUT_PROBE, PROBE):
        assert (Probe.load(tmp_path / name).answer == student.answer).all()


def test_tuned_by_the_student_a_network_answers_as_it_does(tmp_path):
    def divergence(name, **changes):
        task, networks, _ = run_plan(tmp_path / name, PrunePlan(30, **changes), learning_rate=0.01)
        student, pruned = (probe(each, TAPS, task.splits["val"]).answer for each in (networks.student, networks.pruned))
        ours, theirs = (torch.tensor(x).log_softmax(1) for x in (pruned, student))
        return float((theirs.exp() * (theirs - ours)).sum(1).mean())

    assert divergence("student", by_student=True) < 0.5 * divergence("teacher")
