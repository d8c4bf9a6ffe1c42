"""What is tried, what its parts are, and how it is written in a recipe."""

import pytest

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import DEFAULT_EXTRA, LossConfig, Tap, Term
from edgekd.workflows.advise.candidates import (
    by_promise,
    loss_families,
    loss_variants,
    own_variant,
    recipe_lines,
    with_loss,
)

FIELD = loss_variants(LossConfig())


def by_name(name, field=FIELD):
    return next(one for one in field if one.name == name).loss


@pytest.fixture
def read(tmp_path):
    def read(lines):
        (tmp_path / "edgekd.toml").write_text("\n".join(["[task]", 'name = "digits"', *lines]) + "\n")
        return load_recipe(tmp_path).distill.loss

    return read


def test_the_contestants_of_a_recipe_as_it_comes():
    names = ["KD T=4", "labels only", "KD T=8", "sample", "intra centred", "cross", "joint", "fd", "default"]
    assert [one.name for one in FIELD] == names
    assert all((one.loss.ce, one.loss.kd) == (0.1, 0.9) for one in FIELD if one.name != "labels only")
    assert by_name("default").extra == DEFAULT_EXTRA
    assert not by_name("labels only").terms


def test_weights_shares_and_options_are_the_recipes():
    own = {"cross": 3.0, "joint": Term(share=2.0, options={"normalize": "frobenius"}), "intra": Term(loss="sp")}
    field = loss_variants(LossConfig(ce=0.5, temperature=2.0, extra=own))
    assert [one.name for one in field[:4]] == ["KD T=2", "labels only", "KD T=4", "KD T=8"]
    assert field[-1].name == "recipe's own"
    assert by_name("cross", field).terms["cross"].share == 3
    assert by_name("joint", field).terms["joint"].options == {"normalize": "frobenius"}
    assert by_name("intra centred", field).terms["intra"].loss == "intra", "that of the recipe is another loss"
    assert by_name("cross", field).ce == 0.5


def test_a_recipe_without_kd_is_compared_with_kd_as_it_comes():
    field = loss_variants(LossConfig(ce=1.0, kd=0.0, extra={}))
    assert field[0].loss == LossConfig(extra={})


def test_no_loss_is_tried_twice():
    field = loss_variants(LossConfig(extra={"fd": 1.0}))
    settings = [(one.loss.ce, one.loss.kd, one.loss.temperature, one.loss.terms) for one in field]
    assert all(settings.count(each) == 1 for each in settings)
    assert "recipe's own" not in [one.name for one in field]


def test_each_pair_and_each_modality_is_switched_off_in_turn():
    joint, cross, intra = loss_families(FIELD, ["a", "b", "c"])
    assert [family.whole.name for family in (joint, cross, intra)] == ["joint", "cross", "intra centred"]
    assert {part: one.loss.terms["joint"].pairs for part, one in joint.without.items()} == {
        "a-b": ["a-c", "b-c"],
        "a-c": ["a-b", "b-c"],
        "b-c": ["a-b", "a-c"],
    }
    assert intra.without["b"].loss.terms["intra"].modalities == ["a", "c"]
    assert intra.without["b"].loss.terms["intra"].options == {"centered": True}


def test_a_single_pair_is_on_in_joint_and_off_in_intra():
    joint, intra = loss_families(FIELD, ["a", "b"])
    assert list(joint.without) == ["a-b"]
    assert joint.without["a-b"].loss.terms == LossConfig(extra={"intra": 1.0}).terms
    assert list(intra.without) == ["a", "b"]


def test_what_a_recipe_leaves_out_is_not_switched_off():
    field = loss_variants(LossConfig(extra={"joint": Term(pairs=["a-b", "b-c"]), "intra": Term(modalities=["a", "c"])}))
    joint, _, intra = loss_families(field, ["a", "b", "c"])
    assert (list(joint.without), list(intra.without)) == (["a-b", "b-c"], ["a", "c"])
    alone = loss_variants(LossConfig(extra={"intra": Term(modalities=["a"])}))
    assert loss_families(alone, ["a", "b", "c"])[-1].without == {}


@pytest.mark.parametrize(
    "loss",
    [
        *(one.loss for one in FIELD),
        LossConfig(extra={"my loss": Term(loss="fd", share=0.5, student={"a": Tap(module="x.1", pool="spatial")},
                                          teacher={"a": "y"})}),
    ],
)  # fmt: skip
def test_the_lines_to_paste_make_the_loss(read, loss):
    lines = recipe_lines(loss, LossConfig())
    assert lines[0] == "[distill.loss]"
    assert lines[-1].startswith("extra = ")
    assert read(lines).terms == loss.terms
    assert (read(lines).ce, read(lines).kd, read(lines).temperature) == (loss.ce, loss.kd, loss.temperature)


def test_the_lines_name_what_differs_from_the_recipe_alone():
    assert recipe_lines(by_name("joint"), LossConfig()) == ("[distill.loss]", "extra = { joint = 1.0 }")
    recipe = LossConfig(temperature=2.0)
    assert recipe_lines(LossConfig(extra={}), recipe) == ("[distill.loss]", "temperature = 4.0", "extra = {}")


def test_what_the_recipe_has_joins_first_and_what_helped_nowhere_last():
    assert [one.name for one in by_promise(FIELD, LossConfig())] == [
        "KD T=4", "default", "intra centred", "labels only", "KD T=8", "joint", "fd", "sample", "cross",
    ]  # fmt: skip
    own = LossConfig(extra={"cross": 1.0})
    assert [one.name for one in by_promise(loss_variants(own), own)][:3] == ["KD T=4", "cross", "default"]
    mixed = LossConfig(extra={"cross": 1.0, "fd": 1.0})
    assert by_promise(loss_variants(mixed), mixed)[1].name == "recipe's own"
    assert own_variant(FIELD, LossConfig(extra={})).name == "KD T=4"


@pytest.mark.parametrize("written", [[], ["[distill.loss]", "extra = {}"], ["[prune.loss]", "extra = { intra = 2.0 }"]])
@pytest.mark.parametrize("name", ["labels only", "KD T=8", "joint", "default"])
def test_a_recipe_with_another_loss_is_the_one_that_its_lines_make(written, name, tmp_path):
    head = ["[task]", 'name = "digits"']

    def load(lines):
        (tmp_path / "edgekd.toml").write_text("\n".join([*head, *lines]) + "\n")
        return load_recipe(tmp_path)

    recipe = load(written)
    loss = by_name(name, loss_variants(recipe.distill.loss))
    prune = [line for line in written if "distill" not in line and line != "extra = {}"]
    pasted = load([*recipe_lines(loss, recipe.distill.loss), *prune])
    ours = with_loss(recipe, loss)
    for one, other in ((ours.distill, pasted.distill), (ours.prune, pasted.prune)):
        assert (one.loss.ce, one.loss.kd, one.loss.temperature) == (
            other.loss.ce,
            other.loss.kd,
            other.loss.temperature,
        )
        assert one.loss.terms == other.loss.terms
