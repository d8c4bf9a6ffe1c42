import json

import jsonschema
import msgspec
import pytest

from edgekd.config.loading import load_recipe
from edgekd.errors import RecipeError
from edgekd.training.distillation.loss_help import describe_losses, full_recipe_schema
from edgekd.training.distillation.loss_registry import check_losses, own_loss_sources, shipped_losses

MINIMAL = '[task]\nname = "digits"\n'


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "edgekd.toml"
        path.write_text(MINIMAL + text)
        return path

    return write


@pytest.mark.parametrize("section", ["distill", "prune", "quantize.qat"])
@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("{ intr = 1.0 }", "extra.intr: there is no loss 'intr'; did you mean 'intra'"),
        ("{ x = 1.0 }", "extra.x: there is no loss 'x'"),
        ("{ x = { loss = 'sampel' } }", "extra.x: there is no loss 'sampel'; did you mean 'sample'"),
        ("{ intra = { pairs = ['a-b'] } }", "extra.intra: 'pairs' is no option of the loss 'intra'"),
        ("{ x = { loss = 'fd', centered = false } }", "extra.x: 'centered' is no option of the loss 'fd'"),
        ("{ sp = { temperature = 2.0 } }", "extra.sp: 'temperature' is no option of the loss 'sp'"),
        ("{ dist = { beta = 2.0 } }", "extra.dist: 'beta' is no option of the loss 'dist'"),
        ("{ joint = { distance = 'l3' } }", "extra.joint: distance: there is no 'l3'"),
        ("{ dkd = { modalities = ['a'] } }", "the loss 'dkd' is of the logits; modalities and taps say nothing to it"),
        ("{ ickd = 1.0 }", "extra.ickd: 'ickd' is of feature maps [B, C, ...]: name their modules"),
        ("{ fd = { student = { a = 'x' } } }", "extra.fd: its tables student and teacher must name the same"),
        ("{ dkd = { beta = -1.0 } }", "extra.dkd: beta: expected a number from 0 to 1,000,000, got -1.0"),
        ("{ dkd = { beta = 'much' } }", "extra.dkd: beta: expected a number from 0 to 1,000,000, got 'much'"),
        ("{ x = { loss = 'gone.py:huber' } }", "gone.py: no such file, in which the recipe has a loss"),
        ("{ x = { loss = 'gone.losses:huber' } }", "gone.losses: no such module, in which the recipe has a loss"),
        ("{ fd = { shar = 1.0 } }", "extra.fd: 'shar' is no option of the loss 'fd'; did you mean 'share'?"),
    ],
)
def test_a_loss_that_does_not_exist_or_is_told_what_it_does_not_take(write, section, extra, said):
    recipe = load_recipe(write(f"[{section}.loss]\nextra = {extra}\n"))
    with pytest.raises(RecipeError) as error:
        check_losses(recipe)
    assert said in str(error.value)
    assert str(error.value).startswith(f"[{section}.loss] extra.")
    assert "\n" not in str(error.value)


def test_a_loss_that_an_override_names_is_checked(write):
    path = write("[distill.loss.extra]\nfd = 1.0\n")
    with pytest.raises(RecipeError, match=r"extra.intr: there is no loss 'intr'; did you mean 'intra'"):
        check_losses(load_recipe(path, ("distill.loss.extra.intr=0.5",)))


def test_losses_of_feature_maps_are_not_read_from_a_cached_teacher():
    key = "distill.loss.extra.maps={loss='ickd', student={kar='e'}, teacher={kar='e'}}"
    match = r"\[distill\] cache_teacher keeps no feature maps, which 'extra.maps' \(ickd\) reads: leave one of the two"
    with pytest.raises(RecipeError, match=match):
        check_losses(load_recipe("digits", (key, "distill.cache_teacher=true")))
    check_losses(load_recipe("digits", (key,)))


def test_the_full_schema_has_every_option_of_every_loss(write):
    schema = json.loads(json.dumps(full_recipe_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    term = schema["$defs"]["Term"]["properties"]
    for loss in shipped_losses().values():
        assert f"'{loss.name}'" in term["loss"]["description"]
        for option in loss.options.__struct_fields__:
            assert f"'{loss.name}'" in json.dumps(term[option]), f"{loss.name}.{option}"
    assert term["beta"]["default"] == 8.0
    recipe = load_recipe(write("[distill.loss.extra]\ndkd = { beta = 2.0 }\njoint = { distance = 'mse' }\n"))
    jsonschema.validate(msgspec.to_builtins(recipe), schema)
    flat = {"task": {"name": "digits"}, "distill": {"loss": {"extra": {"joint": {"distance": "mse"}}}}}
    jsonschema.validate(flat, schema)
    flat["distill"]["loss"]["extra"]["joint"]["distance"] = "l3"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(flat, schema)


def test_the_help_says_what_every_loss_and_option_is():
    lines = list(describe_losses(shipped_losses().values()))
    assert (
        "    beta: Weight of the classes that are not the target; 8 is the paper's on CIFAR-100. [default: 8.0]"
        in lines
    )
    assert not any("no summary" in line or "no description" in line for line in lines)


def test_a_recipe_without_losses_of_the_users_own_depends_on_no_more_than_its_config():
    assert own_loss_sources(load_recipe("digits").distill.loss) == {}
