"""The verdict over trials whose figures are written down here; trainings are in test_advise.py."""

import re
from dataclasses import replace

import pytest

from edgekd.cli.terminal.advice import print_advice
from edgekd.config.recipe import LossConfig
from edgekd.stages.progress import Silent
from edgekd.workflows.advise.ablate import ablate, choose_families
from edgekd.workflows.advise.budget import RESERVE, TrialCost, TrialSize
from edgekd.workflows.advise.budgeted import BudgetedTrials, TrialPlan, TrialProgress
from edgekd.workflows.advise.candidates import loss_families, loss_variants, own_variant
from edgekd.workflows.advise.format import MetricFormat
from edgekd.workflows.advise.halving import run_halving
from edgekd.workflows.advise.judge import judge_verdict, not_judged
from edgekd.workflows.advise.report import ablation_table, advice_json, advice_markdown, standings_table
from edgekd.workflows.advise.result import Advice, AdviceTrial, BudgetSpent, LossJudgement, ValidationFacts
from edgekd.workflows.advise.verdict import Known, decide_verdict, make_standings, too_short_verdict

LOSS = LossConfig()
FIELD = loss_variants(LOSS)
FACTS = ValidationFacts(["a", "b", "c"], "accuracy", True, 1000, 0, 0.001)
#: Seeds differ in how hard they are, which pairs take out.
HARD = [0.00, -0.04, 0.03, 0.01, -0.02, 0.05, -0.01, 0.02] * 4
WIGGLE = [0.001, -0.002, 0.000, 0.002, -0.001, 0.001, -0.001, 0.000] * 6


def values(seeds=6, **gains):
    """Figures of all contestants: KD at 0.8, others above or below it by a gain that hardly wiggles."""
    gains = {name.replace("_", " "): gain for name, gain in gains.items()}
    return {
        one.name: {s: 0.8 + HARD[s] + gains.get(one.name, 0.0) + WIGGLE[s + n] * (n > 0) for s in range(seeds)}
        for n, one in enumerate(FIELD)
    }


def spent(seeds=6, left_out=()):
    return BudgetSpent(600.0, 100.0, 10, 30, seeds, 42, {3: ("fd",)}, left_out)


def verdict(found, teacher=0.95, facts=FACTS, error=0.01, seeds=6, left_out=()):
    known = Known(facts, teacher, own_variant(FIELD, LOSS).name, error)
    return decide_verdict(make_standings(FIELD, found, facts, LOSS), known, spent(seeds, left_out), block=4.0)


def test_a_loss_that_is_clearly_better_is_named_with_its_interval_and_its_lines():
    found = verdict(values(joint=0.03, labels_only=-0.1))
    assert found.kind == "use"
    assert found.text.startswith("use joint: +3.0 points (+2.")
    assert found.text.endswith("over KD T=4, 6 seeds")
    assert found.lines == ("[distill.loss]", "extra = { joint = 1.0 }")
    assert found.reasons == ()


def test_what_is_level_with_the_best_is_named():
    found = verdict(values(joint=0.03, fd=0.0305))
    assert found.kind == "use"
    assert found.reasons[0] in ("Not told apart from it: joint.", "Not told apart from it: fd.")


def test_a_lower_metric_can_be_better():
    facts = replace(FACTS, higher_is_better=False, step=0.0, metric="error")
    found = verdict(values(joint=-0.03), teacher=0.6, facts=facts)
    assert found.text.startswith("use joint: +0.0300 of error (")


def test_no_room_where_kd_is_at_the_teacher():
    found = verdict(values(), teacher=0.805)
    assert found.kind == "no room"
    assert found.lines == ("[distill.loss]", "extra = {}")
    assert verdict(values(), teacher=0.79).kind == "no room", "or above it"


def test_a_wide_interval_alone_is_no_reason_to_see_no_room():
    assert verdict(values(seeds=3), teacher=0.85, error=0.01, seeds=3).kind != "no room"


def test_a_student_may_pass_the_teacher():
    assert verdict(values(joint=0.03), teacher=0.8).kind == "use"


def test_none_helps_where_all_are_below_kd():
    found = verdict(values(**{one.name.replace(" ", "_"): -0.02 for one in FIELD[1:]}))
    assert found.kind == "none"
    assert "no loss was above" in found.reasons[0].lower()


def test_none_helps_where_it_would_take_too_many_seeds_to_see_it():
    assert verdict(values()).kind == "none"


def test_an_effect_in_reach_is_not_decided_and_says_how_many_seeds_it_takes():
    found = verdict(values(seeds=3, joint=0.003), seeds=3)
    assert found.kind == "undecided"
    assert "more seeds (about " in found.reasons[1]
    assert "--epochs 10" in found.reasons[1]


def test_what_is_not_decided_leans_to_what_is_ahead_and_says_how_sure_that_is():
    found = verdict(values(seeds=3, joint=0.003), seeds=3)
    assert found.text == "not decided with this budget, leaning to joint"
    assert found.name == "joint"
    assert found.lines == ("[distill.loss]", "extra = { joint = 1.0 }")
    assert re.match(
        r"Joint is \+0\.\d points \(.*\) over KD T=4 after 3 seeds, which is better with 9\d% ", found.reasons[0]
    )


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_fewer_than_three_seeds_decide_nothing(seeds):
    found = verdict(values(seeds=seeds, joint=-0.1, fd=-0.1), seeds=seeds)
    assert found.kind == "undecided"
    assert f"{3 - seeds} more seed" in found.reasons[1]
    assert found.lines, "an answer all the same"
    if seeds < 2:
        assert found.text == "not decided with this budget: keep default, which the recipe has"


def test_two_seeds_lean_to_what_is_ahead():
    assert verdict(values(seeds=2, fd=0.05), seeds=2).text == "not decided with this budget, leaning to fd"


def test_what_was_left_out_is_said_with_the_budget_that_holds_it():
    found = verdict(values(joint=0.03), left_out=("sample", "cross"))
    assert found.kind == "use"
    # Three seeds of two losses, at 4 s for a seed of the seven others: 3.4 s more than 100 s, of 80 % of the budget.
    assert found.reasons[-1] == (
        "Left out, since the budget does not hold them: sample, cross. --budget 3m --epochs 10 holds all, and goes on "
        "from these trials."
    )


def test_too_short_says_what_it_takes_and_what_to_keep():
    keep = make_standings(FIELD, values(0), FACTS, LOSS)[-1]
    found = too_short_verdict(keep, 100.0, 30.0, 6, 30)
    assert found.text == "the budget is too short to compare anything: keep default, which the recipe has"
    assert "--budget 2m would hold 3 of each" in found.reasons[0]
    assert found.lines == keep.lines


def judgement(name, *reasons):
    return LossJudgement(name, "fail" if reasons else "pass", reasons, 0.9, 0.89, 5.0)


def judged(found, *answers):
    """Return the verdict after the gate, who was judged in which order, and the judgements."""
    asked, given = [], {answer.name: answer for answer in answers}

    def judge(name):
        asked.append(name)
        return given.get(name)

    known = Known(FACTS, 0.95, own_variant(FIELD, LOSS).name)
    after, judgements = judge_verdict(verdict(found), make_standings(FIELD, found, FACTS, LOSS), known, judge)
    assert judgements == tuple(given[name] for name in asked if name in given)
    return after, asked


def test_a_recommendation_that_the_gate_lets_through_says_so_with_the_metrics():
    after, asked = judged(values(joint=0.03), judgement("joint"))
    assert (after.kind, after.name, asked) == ("use", "joint", ["joint"])
    assert after.reasons[-1] == (
        "The gate lets joint through (pass): trained and pruned as in a build, accuracy 0.9000 before pruning and "
        "0.8900 after. Judged: the pruned student in float, on the validation split; of INT8 and of the test split the "
        "build decides."
    )


def test_where_the_gate_rejects_the_best_the_next_that_is_better_is_judged():
    after, asked = judged(values(joint=0.03, fd=0.02), judgement("joint", "5% of classes changed"), judgement("fd"))
    assert asked == ["joint", "fd"]
    assert (after.kind, after.name, after.lines) == ("use", "fd", ("[distill.loss]", "extra = { fd = 1.0 }"))
    assert after.text == "use fd: the gate rejects what a build makes of joint"
    assert after.reasons[0] == "With joint it is rejected: 5% of classes changed."


def test_after_all_that_is_better_come_what_the_recipe_has_and_plain_kd():
    after, asked = judged(values(joint=0.03), judgement("joint", "5% changed"), judgement("default"))
    assert (after.kind, after.name, asked) == ("undecided", "default", ["joint", "default"])
    assert after.text == "keep default, which the recipe has: the gate rejects what a build makes of joint"


def test_where_the_gate_rejects_all_nothing_is_recommended_and_the_keys_are_named():
    answers = [judgement(name, f"{name} changed") for name in ("joint", "default", "KD T=4")]
    after, asked = judged(values(joint=0.03), *answers)
    assert asked == ["joint", "default", "KD T=4"]
    assert (after.kind, after.name, after.lines) == ("rejected", "", ())
    assert after.text == "no loss can be recommended: the gate rejects what a build makes of joint, default, KD T=4"
    assert after.reasons[0] == "With joint it is rejected: joint changed."
    assert any("prune.ratio" in reason for reason in after.reasons)


def test_what_the_gate_rejects_is_not_recommended_where_there_is_no_time_to_judge_another():
    after, asked = judged(values(joint=0.03), judgement("joint", "5% changed"))
    assert (after.kind, after.name, asked) == ("undecided", "default", ["joint", "default"])
    assert after.lines == make_standings(FIELD, values(), FACTS, LOSS)[-1].lines


def test_what_the_gate_has_not_judged_says_so():
    before = verdict(values(joint=0.03))
    after, _ = judged(values(joint=0.03))
    assert after == before
    said = not_judged(after, spent(), 50.0)
    assert said.lines == before.lines
    assert said.reasons[-1].startswith(
        "Not judged by the gate: a build trains joint in full and prunes it, which takes"
    )
    assert "--budget 3m holds that" in said.reasons[-1]


class Made:
    """Trials whose figures are given, each of one second; remembers who was trained with which seed."""

    def __init__(self, fails=None, **gains):
        self.figures, self.fails, self.order = values(30, **gains) if gains else values(30), fails, []

    def __call__(self, one, seed, epochs):
        self.order.append((one.name, seed))
        if one.name == self.fails:
            return AdviceTrial(None, None, 1.0, 0.1, "training diverged")
        return AdviceTrial(self.figures.get(one.name, dict.fromkeys(range(30), 0.79))[seed], None, 1.0, 0.1)


def bench(make, budget=100.0, seeds=3):
    return BudgetedTrials(
        make, TrialProgress(Silent(), lambda: 0.0), TrialPlan(0, TrialSize(10, seeds), TrialCost(0.0, 0.1), budget, 0.0)
    )


def names(variants):
    return [variant.name for variant in variants]


def test_losses_join_one_by_one_and_then_the_worse_half_is_dropped():
    make = Made(joint=0.03, cross=0.02, fd=0.01, sample=0.005)
    race = run_halving(bench(make), FIELD, FACTS, limit=27 + 15 + 3, first_limit=100)
    assert race.seeds == 7
    assert make.order[:27] == [(one.name, seed) for one in FIELD for seed in range(3)]
    assert [seed for _, seed in make.order[27:]] == [3] * 5 + [4] * 5 + [5] * 5 + [6] * 3
    assert race.left_out == ()
    assert {one.name for one in race.alive} == {"KD T=4", "joint", "cross"}
    assert race.dropped[6] == ("fd", "sample")
    assert set(race.dropped[3]) == {"labels only", "KD T=8", "intra centred", "default"}


def test_the_contest_ends_with_a_whole_block_below_the_limit():
    make = Made()
    race = run_halving(bench(make), FIELD, FACTS, limit=31.5, first_limit=100)
    assert (race.seeds, len(make.order)) == (3, 27)
    assert all(len(figures) == 3 for figures in race.values.values())
    assert race.dropped == {}, "nothing went on without them"


def test_for_the_fewest_seeds_the_whole_budget_may_be_spent_and_no_more():
    whole = run_halving(bench(Made()), FIELD, FACTS, limit=20, first_limit=27)
    assert (whole.seeds, whole.left_out) == (3, ())


def test_what_a_short_budget_does_not_hold_is_left_out_and_the_last_go_first():
    make = Made()
    race = run_halving(bench(make), FIELD, FACTS, limit=10, first_limit=14)
    assert race.seeds == 3
    assert names(race.alive) == names(FIELD[:4])
    assert race.left_out == tuple(names(FIELD[4:]))
    assert len(make.order) == 12
    assert all(not race.values[name] for name in race.left_out)


def test_a_very_short_budget_compares_fewer_seeds():
    race = run_halving(bench(Made(), seeds=1), FIELD, FACTS, limit=1, first_limit=2.5)
    assert (race.seeds, names(race.alive)) == (1, names(FIELD[:2]))


def test_trials_that_are_cheaper_than_timed_let_more_losses_join():
    slow = BudgetedTrials(
        Made(), TrialProgress(Silent(), lambda: 0.0), TrialPlan(0, TrialSize(10, 3), TrialCost(0.0, 0.6), 36.0, 0.0)
    )  # a trial was timed at 6 s, since the machine was busy, and takes 1 s
    assert run_halving(slow, FIELD, FACTS, limit=36, first_limit=36).left_out == ()


def test_a_loss_that_cannot_be_trained_is_out_and_said_so():
    race = run_halving(bench(Made(fails="fd")), FIELD, FACTS, limit=25, first_limit=100)
    assert race.failures == {"fd": "training diverged"}
    standings = make_standings(FIELD, race.values, FACTS, LOSS, race.failures)
    assert next(one for one in standings if one.name == "fd").difference is None
    assert race.seeds == 3


def test_without_kd_there_is_no_contest():
    race = run_halving(bench(Made(fails="KD T=4")), FIELD, FACTS, limit=30, first_limit=100)
    assert (race.seeds, list(race.failures)) == (0, ["KD T=4"])


def test_the_better_loss_between_modalities_is_taken_apart_and_the_better_of_the_two_first():
    standings = make_standings(FIELD, values(cross=0.02, joint=0.01, intra_centred=0.015), FACTS, LOSS)
    assert [one.whole.name for one in choose_families(loss_families(FIELD, ["a", "b", "c"]), standings)] == [
        "cross",
        "intra centred",
    ]


def test_parts_share_the_trials_of_the_contest_and_stop_with_the_budget():
    make = Made()
    at = bench(make, budget=40)
    run_halving(at, FIELD, FACTS, limit=27, first_limit=100)
    chosen = loss_families(FIELD, ["a", "b", "c"])[::2]  # joint, intra
    pairs, modalities = ablate(at, chosen, FACTS, LOSS, limit=40)
    assert at.spent == 27 + 4 * 3 + 1, "joint is trained with the fourth seed as well"
    assert pairs.parts.keys() == {"a-b", "a-c", "b-c"}
    assert all(len(one.values) == 4 and one.difference for one in pairs.parts.values())
    assert modalities.parts == {}
    assert "5.0 s more than the budget has left" in modalities.skipped


def advice(found, **changes):
    chosen = loss_families(FIELD, FACTS.modalities)[::2]
    at = bench(Made(), budget=100)
    run_halving(at, FIELD, FACTS, limit=27, first_limit=100)
    ablations = ablate(at, chosen, FACTS, LOSS, limit=40)
    return Advice(
        "mine", 0, FACTS, 0.95, 0.012, make_standings(FIELD, found, FACTS, LOSS), ablations, spent(), verdict(found)
    )


def test_tables_fit_80_columns_and_draw_where_0_is():
    shown = advice(values(joint=0.03, labels_only=-0.3))
    for glyphs, zero in (("unicode", "┊"), ("ascii", ":")):
        for table in (standings_table(shown, glyphs), ablation_table(shown, shown.ablations[0], glyphs)):
            widths = [max(map(len, cells)) for cells in zip((c.name for c in table.columns), *table.rows, strict=True)]
            assert sum(widths) + 2 * (len(widths) - 1) <= 78
            assert all(len(row[4]) == len(table.rows[0][4]) for row in table.rows)
        assert standings_table(shown, glyphs).rows[0][4].strip() == zero
    assert [row[0] for row in standings_table(shown).rows][:2] == ["KD T=4", "joint"]
    assert standings_table(shown).rows[-1][0] == "labels only"


def test_the_answer_as_markdown_and_json():
    shown = advice(values(joint=0.03))
    text, content = advice_markdown(shown), advice_json(shown)
    assert text.startswith("# Which loss? mine\n\n**Use joint: +3.0 points (+2.")
    assert "```toml\n[distill.loss]\nextra = { joint = 1.0 }\n```" in text
    assert "was not tried" in text
    assert content["verdict"]["kind"] == "use"
    joint = next(one for one in content["standings"] if one["name"] == "joint")
    assert joint["found"] == "better"
    assert len(joint["values"]) == 6


def test_what_other_samples_would_change_is_said():
    shown = advice(values())
    assert any("1.2 points (standard error)" in note for note in standings_table(shown).notes)
    one_group = replace(shown, error=None, facts=replace(FACTS, groups=1))
    assert any("one group" in note for note in standings_table(one_group).notes)


def test_the_terminal_shows_the_answer_last_and_nothing_wider_than_80_columns(capsys, tmp_path):
    print_advice(advice(values(joint=0.03)), tmp_path, width=80)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-2:] == ["[distill.loss]", "extra = { joint = 1.0 }"]
    assert any(line.startswith("Use joint: +3.0 points") for line in lines)


def test_a_reserve_is_left_for_the_parts():
    assert 0 < RESERVE < 0.5
    assert MetricFormat.of(FACTS).unit == " points"
