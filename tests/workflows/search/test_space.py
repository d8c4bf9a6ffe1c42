"""What is varied: read, checked before anything is trained, and turned into what --set takes."""

import random

import pytest

from edgekd.config.loading import draft_recipe
from edgekd.config.toml import parse_toml_value, toml_value
from edgekd.errors import RecipeError, TaskError
from edgekd.workflows.search.space import Choices, Range, make_space


@pytest.fixture
def draft(tmp_path):
    def write(space="", rest=""):
        path = tmp_path / "edgekd.toml"
        path.write_text(f'{rest}\n[task]\nname = "digits"\n[search.space]\n{space}\n')
        return draft_recipe(path)

    return write


def drawn(space, seed=0):
    params, rng = {}, random.Random(seed)
    for axis in space.asked(params):
        params[axis.key] = axis.draw(rng)
    return params


def test_the_default_varies_losses_temperature_width_and_pruning_and_knows_the_recipes_own():
    space = make_space(draft_recipe("digits"), 32)
    assert space.own == {
        "distill.loss.extra": "{ intra = 1.0, sample = 0.1 }",
        "distill.loss.extra.*": 1.0,
        "distill.loss.temperature": 4.0,
        "prune.ratio": 0.25,
        "task.options.student.width": 32,
    }
    assert space.recipe(space.own).distill == draft_recipe("digits").recipe().distill
    widths = next(axis for axis in space.axes if axis.key.endswith("width"))
    assert widths == Range("task.options.student.width", 8, 64, step=8, own=32)


def test_the_default_of_another_task_has_no_width_and_of_a_budget_no_ratio():
    space = make_space(draft_recipe("digits", ("prune.budget.macs=0.5",)), None)
    assert {axis.key for axis in space.axes} == {
        "distill.loss.extra", "distill.loss.extra.*", "distill.loss.temperature", "prune.budget.macs",
    }  # fmt: skip
    assert space.own["prune.budget.macs"] == 0.5


@pytest.mark.parametrize("seed", range(8))
def test_the_settings_of_a_trial_rebuild_its_very_recipe(seed):
    space = make_space(draft_recipe("digits"), 32)
    params = drawn(space, seed)
    assert draft_recipe("digits", space.settings(params)).recipe() == space.recipe(params)
    assert ("distill.loss.extra.*" in params) == bool(space.recipe(params).distill.loss.terms)


def test_keys_may_be_quoted_or_dotted_or_tables_and_what_is_named_is_all(draft):
    space = make_space(draft(
        '"distill.loss.temperature" = [2.0, 8.0]\n'
        'prune.importance = ["gram", "magnitude"]\n'
        "distill.epochs = { low = 1, high = 6, step = 2 }\n"
        "prune.epochs = { choices = [2, 4] }\n"
        "teacher = { learning_rate = { low = 1e-4, high = 1e-2, log = true } }\n"
        'distill.loss.extra = ["kd", "intra+sample", { fd = { share = 2.0 } }, {}]\n'
        '"distill.loss.extra.*" = [0.5, 2.0]\n'
    ), 32)  # fmt: skip
    axes = {axis.key: axis for axis in space.axes}
    assert axes == {
        "distill.loss.temperature": Range("distill.loss.temperature", 2.0, 8.0, own=4.0),
        "prune.importance": Choices("prune.importance", ("gram", "magnitude"), "gram"),
        "distill.epochs": Range("distill.epochs", 1, 5, step=2),
        "prune.epochs": Choices("prune.epochs", (2, 4)),
        "teacher.learning_rate": Range("teacher.learning_rate", 1e-4, 1e-2, log=True, own=2e-3),
        "distill.loss.extra": Choices("distill.loss.extra", ("kd", "intra+sample", "{ fd = { share = 2.0 } }", "{}")),
        "distill.loss.extra.*": Range("distill.loss.extra.*", 0.5, 2.0, own=1.0),
    }
    fd = {"distill.loss.extra": "{ fd = { share = 2.0 } }", "distill.loss.extra.*": 1.5}
    assert space.settings(fd) == ("distill.loss.extra={ fd = { share = 3.0 } }",)
    both = {"distill.loss.extra": "intra+sample", "distill.loss.temperature": 3.14159}
    assert space.settings(both) == (
        "distill.loss.extra={ intra = 1.0, sample = 1.0 }", "distill.loss.temperature=3.142",
    )  # fmt: skip


def test_a_factor_without_losses_to_choose_from_is_on_the_recipes_own(draft):
    own = "[distill.loss]\nextra = { intra = 2.0, fd = { weight = 3.0 } }"
    space = make_space(draft('distill.loss.extra."*" = [0.5, 2.0]', own), 32)
    assert space.settings({"distill.loss.extra.*": 2.0}) == (
        "distill.loss.extra={ intra = 4.0, fd = { weight = 6.0 } }",
    )


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("distill.loss.temperatur = [2.0, 8.0]", "[distill.loss] has no key 'temperatur'; did you mean 'temperature'?"),
        ("distil.epochs = [2, 8]", "the top level has no key 'distil'; did you mean 'distill'?"),
        ("seed = [1, 9]", "seed: decides nothing that a search measures; it varies keys below task.options"),
        ("gate.tau_pass = [0.1, 0.2]", "gate.tau_pass: decides nothing"),
        ("distill.loss.temperature = [0.0, 8.0]", "with distill.loss.temperature = 0.0: distill.loss.temperature: "),
        ("distill.loss.temperature = [8.0, 2.0]", "low below high, not { low = 8.0, high = 2.0 }"),
        ("distill.loss.temperature = { low = 2.0 }", "a range needs low and high"),
        ("distill.loss.temperature = { low = 2.0, hihg = 8.0 }", "a range has no 'hihg'; did you mean 'high'?"),
        ('distill.loss.temperature = { low = "2", high = 8.0 }', 'low must be a number, not "2"'),
        ("prune.ratio = { low = 0.0, high = 0.5, log = true }", "with log = true low must be above 0"),
        ("prune.ratio = { low = 0.0, high = 0.5, log = 1 }", "log must be true or false"),
        ("prune.ratio = { low = 0.0, high = 0.5, step = 0.7 }", "step must be above 0 and lead from low to high"),
        ("distill.loss.temperature = 4.0", "give a range, { low = 2.0, high = 8.0 }, or choices"),
        ('prune.importance = ["gram"]', "gives nothing to choose from"),
        ('prune.importance = ["gram", "gram"]', "gives nothing to choose from"),
        ('prune.importance = ["gram", "magnitud"]', "there is no 'magnitud'; did you mean 'magnitude'?"),
        ('distill.loss.extra = ["kd", "intr"]', "there is no loss 'intr'; did you mean 'intra'"),
        ('distill.loss.extra."*" = [1.0, 2.0, 3.0]', "is a factor; give it a range"),
        ('prune."*" = [1.0, 2.0]', "a * stands for the shares of all losses"),
        ("distill.loss.ce = [0.0, 1.0]\ndistill.loss.kd = { choices = [0.0, 1.0] }", "ce and kd are 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(draft, space, said):
    with pytest.raises(RecipeError) as raised:
        make_space(draft(space), 32)
    assert said in str(raised.value)
    assert "[search.space]" in str(raised.value)


@pytest.mark.parametrize("value", ["gram", "a b", "true", "3", "", {}, {"fd": {"share": 2.0, "a b": [1, True, "x"]}}])
def test_a_value_as_toml_is_the_value(value):
    assert parse_toml_value(toml_value(value)) == value


def test_an_option_that_the_task_does_not_take_costs_no_trial(draft, tmp_path):
    from edgekd.workflows.search.run import _check_tasks

    space = make_space(draft("task.options.student.widht = [8, 16]"), 32)
    with pytest.raises(TaskError, match=r"task.options.student.widht = 8.*no 'widht'; did you mean 'width'\?"):
        _check_tasks(space, tmp_path)
