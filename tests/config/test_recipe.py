import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import jsonschema
import msgspec
import pytest

from edgekd.config.loading import find_recipe, load_recipe, recipe_name, recipe_schema, shipped_recipes
from edgekd.config.recipe import (
    ANCHOR_EXTRA,
    DEFAULT_EXTRA,
    LossConfig,
    ProfileConfig,
    QuantizeConfig,
    Recipe,
    Tap,
    Term,
)
from edgekd.errors import RecipeError

MINIMAL = '[task]\nname = "digits"\n'


@pytest.fixture
def write(tmp_path):
    def write(text, name="edgekd.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_meets_the_schema(name):
    assert load_recipe(name).task.name == {"demo": "av-digits"}.get(name, name)
    jsonschema.validate(msgspec.to_builtins(load_recipe(name)), recipe_schema())


def test_the_schema_is_itself_valid_and_json():
    schema = json.loads(json.dumps(recipe_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"task": {"name": "digits"}, "prun": {}}, schema)


def _sections():
    return [name for name in recipe_schema()["$defs"] if name != "Recipe"]


REQUIRED = {("TaskConfig", "name"), ("Tap", "module"), ("ModelConfig", "path"), ("ModelConfig", "calibration")}


@pytest.mark.parametrize("section", _sections())
def test_every_key_is_described_and_has_a_default(section):
    schema = recipe_schema()["$defs"][section]
    for key, field in schema["properties"].items():
        required = key in schema.get("required", [])
        assert required or "default" in field, f"{section}.{key} has no default"
        assert not required or (section, key) in REQUIRED
        variants = [field, *field.get("allOf", []), *field.get("anyOf", [])]
        assert any("description" in v for v in variants) or "$ref" in str(field), f"{section}.{key} is not described"


def test_defaults_are_those_of_an_empty_recipe(write):
    recipe = load_recipe(write(MINIMAL))
    assert recipe == Recipe(task=recipe.task)
    assert recipe.distill.loss.extra == DEFAULT_EXTRA


def test_is_frozen(write):
    recipe = load_recipe(write(MINIMAL))
    for part in (recipe, recipe.distill, recipe.distill.loss):
        with pytest.raises((AttributeError, FrozenInstanceError)):
            part.epochs = 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[distil]\nepochs = 3\n", ["the top level", "'distil'", "did you mean 'distill'"]),
        ("[distill]\nepoch = 3\n", ["[distill]", "'epoch'", "did you mean 'epochs'"]),
        ("[distill.loss]\ntemprature = 3\n", ["[distill.loss]", "did you mean 'temperature'"]),
        (
            "[distill]\nepochs = 'many'\n",
            ["distill.epochs: expected a whole number from 1 to 100,000 or 'auto', got 'many'"],
        ),
        ("[distill]\nepochs = 0\n", ["distill.epochs: expected a whole number from 1 to 100,000 or 'auto', got 0"]),
        (
            "[distill]\nlearning_rate = 0.0\n",
            ["distill.learning_rate: expected a number from 1e-09 to 10, got 0.0"],
        ),
        ("[prune]\nratio = 1.0\n", ["prune.ratio: expected a number from 0 and below 1, got 1.0"]),
        ("[prune]\nimportance = 'luck'\n", ["prune.importance", "luck"]),
        ("[gate]\nconfidence = 0.5\n", ["gate.confidence"]),
        ("[gate]\ntau_pass = 0.5\ntau_fail = 0.1\n", ["tau_fail must not be below gate.tau_pass"]),
        ("[gate]\ntau_fail = nan\n", ["gate.tau_fail", "finite", "nan"]),
        ("[gate]\ntau_fail = inf\n", ["gate.tau_fail", "finite", "inf"]),
        ("[task.options]\nwhen = [2026-01-31]\n", ["task.options.when[0]", "2026-01-31"]),
        (
            "[distill.loss.extra]\nintra = -1.0\n",
            ["distill.loss.extra.intra: expected a number from 0 to 1,000,000 or a table, got -1.0"],
        ),
        ("[student.taps]\na = { modul = 'x' }\n", ["student.taps"]),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_place(write, text, said):
    path = write(MINIMAL + text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    for words in said:
        assert words in str(error.value)


def test_a_task_must_be_named(write):
    with pytest.raises(RecipeError, match="task"):
        load_recipe(write("seed = 1\n"))


def test_a_key_that_a_table_lacks_is_named(write):
    with pytest.raises(RecipeError, match=r"edgekd.toml: task lacks the key 'name'$"):
        load_recipe(write("[task]\n"))


def test_malformed_toml_is_named_with_its_line(write):
    path = write(MINIMAL + "[distill\n")
    with pytest.raises(RecipeError, match=r"not valid TOML.*line 3") as error:
        load_recipe(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_text(write, tmp_path):
    path = tmp_path / "edgekd.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="line 1 is not UTF-8"):
        load_recipe(path)


@pytest.mark.parametrize(("reference", "said"), [("digit", "mean 'digits'"), ("none/such.toml", "no such recipe")])
def test_a_recipe_that_is_not_there(reference, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(reference)


def test_the_working_directorys_recipe_is_the_default(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="edgekd init"):
        load_recipe()
    write("seed = 5\n" + MINIMAL)
    assert find_recipe(None) == Path("edgekd.toml")
    assert load_recipe() == load_recipe(tmp_path)
    assert load_recipe().seed == 5


def test_a_recipes_name(write, tmp_path):
    assert recipe_name("digits") == "digits"
    assert recipe_name(str(write(MINIMAL, "mine.toml"))) == "mine"
    assert recipe_name(str(write(MINIMAL))) == tmp_path.name


@pytest.mark.parametrize(
    ("override", "found", "value"),
    [
        ("distill.epochs=5", lambda r: r.distill.epochs, 5),
        ("prune.ratio = 0.5", lambda r: r.prune.ratio, 0.5),
        ("seed=3", lambda r: r.seed, 3),
        ("quantize.calibration=entropy", lambda r: r.quantize.calibration, "entropy"),
        ('quantize.calibration="entropy"', lambda r: r.quantize.calibration, "entropy"),
        ("distill.loss.extra={}", lambda r: r.distill.loss.extra, {}),
        ("distill.loss.extra={cross = 2.0}", lambda r: r.distill.loss.extra, {"cross": 2.0}),
        ("distill.loss.temperature=2", lambda r: r.distill.loss.temperature, 2.0),
        ("prune.ignore=['head']", lambda r: r.prune.ignore, ["head"]),
        ("task.options.views=['fou', 'zer']", lambda r: r.task.options, {"views": ["fou", "zer"]}),
        ("teacher.taps.fou=branch", lambda r: r.teacher.taps, {"fou": "branch"}),
    ],
)
def test_overrides(write, override, found, value):
    assert found(load_recipe(write(MINIMAL), (override,))) == value


def test_later_overrides_win_and_leave_the_rest_alone(write):
    path = write(MINIMAL + "[distill]\nepochs = 7\nbatch_size = 32\n")
    recipe = load_recipe(path, ("distill.epochs=8", "distill.epochs=9"))
    assert (recipe.distill.epochs, recipe.distill.batch_size) == (9, 32)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill.epochs", "write it as key=value"),
        ("=5", "write it as key=value"),
        ("distill.epoch=5", "did you mean 'epochs'"),
        ("distil.epochs=5", "did you mean 'distill'"),
        ("seed.value=5", "'seed' is not a section"),
        ("distill.epochs=many", "distill.epochs: expected a whole number from 1 to 100,000 or 'auto', got 'many'"),
        ("gate.tau_fail=0.0001", "tau_fail"),
        ("gate.tau_fail=nan", "finite"),
        ("seed=99999999999", "seed"),
    ],
)
def test_overrides_that_are_wrong(write, override, said):
    with pytest.raises(RecipeError, match="--set") as error:
        load_recipe(write("seed = 1\n" + MINIMAL), (override,))
    assert said in str(error.value)


def test_relative_paths_mean_the_recipes_folder(write, tmp_path):
    path = write(
        '[task]\nname = "code/task.py:Mine"\n[teacher]\nweights = "t.safetensors"\n[quantize]\ncalibration = "c.toml"\n'
    )
    recipe = load_recipe(path)
    assert recipe.task.name == f"{tmp_path}/code/task.py:Mine"
    assert recipe.teacher.weights == f"{tmp_path}/t.safetensors"
    assert recipe.quantize.calibration == f"{tmp_path}/c.toml"


def test_absolute_paths_and_names_stay(write):
    path = write('[task]\nname = "package.module:Name"\n[teacher]\nweights = "/t.pt"\n')
    recipe = load_recipe(path)
    assert (recipe.task.name, recipe.teacher.weights) == ("package.module:Name", "/t.pt")
    assert recipe.quantize.calibration == "auto"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('prune.importance="magntude"', r"prune.importance: there is no 'magntude'; did you mean 'magnitude'\?"),
        ('teacher.taps={a={module="x",pool="toks"}}', r"pool: there is no 'toks'; did you mean 'tokens'"),
    ],
)
def test_a_wrong_word_names_the_nearest_of_those_allowed(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits", (override,))


def test_the_fine_tune_minimises_what_distilling_does_unless_told_otherwise():
    recipe = load_recipe("gestures", ("distill.loss.extra={}", "distill.loss.temperature=8.0"))
    assert recipe.prune.loss == recipe.distill.loss
    told = load_recipe("digits", ("distill.loss.temperature=8.0", "prune.loss.kd=0.5"))
    assert (told.prune.loss.temperature, told.prune.loss.kd, told.distill.loss.kd) == (8.0, 0.5, 0.9)


def test_an_unknown_key_of_a_tap_names_its_modality_and_the_nearest():
    with pytest.raises(RecipeError, match=r"\[teacher.taps.fou\] has no key 'modul'; did you mean 'module'"):
        load_recipe("digits", ('teacher.taps.fou={modul="x"}',))


def test_a_path_in_an_override_is_one_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("digits", ("teacher.weights=my.pt", "quantize.calibration=mine.toml"))
    assert recipe.teacher.weights == str(tmp_path / "my.pt")
    assert recipe.quantize.calibration == str(tmp_path / "mine.toml")
    assert load_recipe("digits", ("task.name=mine.py:Task",)).task.name == f"{tmp_path / 'mine.py'}:Task"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("{ fd = { weight = -1.0 } }", "extra.fd.weight"),
        ("{ fd = { weight = 'much' } }", "extra.fd.weight"),
        ("{ fd = { warm_up = 2.0 } }", "extra.fd.warm_up"),
        ("{ fd = { decay = 'cosin' } }", "extra.fd.decay: there is no 'cosin'; did you mean 'cosine'?"),
        ("{ fd = { options = 3 } }", "extra.fd.options"),
    ],
)
def test_a_key_that_every_loss_has_is_checked_when_the_recipe_is_read(write, extra, said):
    path = write(MINIMAL + f"[distill.loss]\nextra = {extra}\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ("ce = 0\nkd = 0\n", "ce and kd are 0, so 'intra' has no gradient to hold a share of: give it a number"),
        ("ce = 0\nkd = 0\nextra = {}\n", "ce and kd are 0 and nothing is added: there is no loss"),
        ("ce = 0\nkd = 0\nextra = { fd = { weight = 0 } }\n", "there is no loss"),
    ],
)
def test_there_must_be_something_to_minimise(write, losses, said):
    with pytest.raises(RecipeError, match=r"distill\.loss") as error:
        load_recipe(write(MINIMAL + "[distill.loss]\n" + losses))
    assert said in str(error.value)


def test_fixed_weights_alone_are_a_loss(write):
    text = "[distill.loss]\nce = 0\nkd = 0\nextra = { fd = { weight = 2.0 } }\n"
    text += "[prune]\nloss.kd = 1\n[quantize]\nqat.loss.kd = 1\n"
    assert load_recipe(write(MINIMAL + text)).distill.loss.terms["fd"].weight == 2.0


SEVERAL = """
[distill.loss.extra]
intra = 2
fd = { share = 0.5, warm_up = 0.1, decay = "cosine", modalities = ["fou"] }
near = { loss = "cross", weight = 3.0, centered = true, normalize = "frobenius", distance = "mse", pairs = ["fou-zer"] }
maps = { loss = "ickd", student = { fou = "x" }, teacher = { fou = { module = "y", pool = "spatial" } } }
off = { loss = "sp", share = 0 }
"""


def test_a_number_is_short_for_a_share_and_a_table_says_more(write):
    recipe = load_recipe(write(MINIMAL + SEVERAL))
    loss = recipe.distill.loss
    assert loss.terms == {
        "intra": Term(loss="intra", share=2.0),
        "fd": Term(loss="fd", share=0.5, warm_up=0.1, decay="cosine", modalities=["fou"]),
        "near": Term(
            loss="cross",
            weight=3.0,
            options={"centered": True, "normalize": "frobenius", "distance": "mse"},
            pairs=["fou-zer"],
        ),
        "maps": Term(loss="ickd", student={"fou": "x"}, teacher={"fou": Tap(module="y", pool="spatial")}),
    }
    assert msgspec.convert(msgspec.to_builtins(loss), LossConfig) == loss
    jsonschema.validate(msgspec.to_builtins(recipe), recipe_schema())


def test_one_loss_is_overridden_by_its_name(write):
    path = write(MINIMAL + "[distill.loss.extra]\nfd = 1.0\n")
    one = ("distill.loss.extra.intra=0.5",)
    assert load_recipe(path, one).distill.loss.extra == {"fd": 1.0, "intra": 0.5}
    table = ("distill.loss.extra.intra={share=2, centered=true}", "distill.loss.extra.fd=0")
    loss = load_recipe(path, table).distill.loss
    assert loss.terms == {"intra": Term(loss="intra", share=2.0, options={"centered": True})}
    deep = load_recipe(path, (*table, "distill.loss.extra.intra.share=3")).distill.loss
    assert deep.terms["intra"] == Term(loss="intra", share=3.0, options={"centered": True})


def test_a_losss_own_options_stand_beside_its_other_keys_or_in_a_table(write):
    flat = load_recipe(write(MINIMAL + "[distill.loss.extra]\ndkd = { beta = 2.0, share = 3.0 }\n"))
    nested = load_recipe(write(MINIMAL + "[distill.loss.extra]\ndkd = { options = { beta = 2.0 }, share = 3.0 }\n"))
    assert flat == nested
    assert flat.distill.loss.terms["dkd"] == Term(loss="dkd", share=3.0, options={"beta": 2.0})
    assert flat.distill.loss.extra["dkd"].table() == {"share": 3.0, "beta": 2.0}
    tuned = load_recipe(write(MINIMAL + "[quantize]\nqat.loss.extra.dkd.beta = 4.0\n"))
    assert tuned.quantize.qat.loss.terms["dkd"].options == {"beta": 4.0}


def test_a_losss_file_lies_beside_the_recipe_or_where_an_override_is_given(write, tmp_path, monkeypatch):
    path = write(MINIMAL + "[distill.loss.extra]\nmine = { loss = 'mine.py:huber' }\n")
    assert load_recipe(path).distill.loss.terms["mine"].loss == f"{tmp_path / 'mine.py'}:huber"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    told = load_recipe(path, ("prune.loss.extra.mine.loss=other.py:huber",))
    assert told.prune.loss.terms["mine"].loss == f"{tmp_path / 'here' / 'other.py'}:huber"


def test_fine_tunes_inherit_weights_and_hold_the_anchors_gram_unless_told_otherwise():
    extra = "distill.loss.extra={rkd=1.0, fd={warm_up=0.2}}"
    recipe = load_recipe("gestures", (extra, "distill.loss.kd=0.5"))
    for tuned in (recipe.prune.loss, recipe.quantize.qat.loss):
        assert (tuned.extra, tuned.kd) == (ANCHOR_EXTRA, 0.5)
    told = load_recipe("gestures", (extra, "prune.loss.extra={}", "quantize.qat.loss.extra={sp=1.0}"))
    assert (told.prune.loss.extra, told.quantize.qat.loss.extra) == ({}, {"sp": 1.0})


def test_the_old_name_of_qat_is_refused_with_the_new_one(write):
    with pytest.raises(RecipeError, match=r": quantize\.tune is now quantize\.qat$"):
        load_recipe(write(MINIMAL + "[quantize.tune]\nepochs = 3\n"))
    with pytest.raises(RecipeError, match=r"^--set quantize.tune.epochs=3: quantize\.tune is now quantize\.qat$"):
        load_recipe(write(MINIMAL), ("quantize.tune.epochs=3",))


def test_a_default_that_is_written_out_is_the_same_to_the_letter():
    """Keys of stages are digests of JSON, where 0 and 0.0 differ."""
    written = msgspec.convert({"sustained_s": 0, "energy_s": 3}, ProfileConfig)
    assert msgspec.json.encode(written) == msgspec.json.encode(ProfileConfig())


@pytest.mark.parametrize(
    ("given", "calibration", "mends", "repair_s"),
    [
        ({}, "reconstruct", True, 300),
        ({"effort": "quick"}, "minmax", False, 300),
        ({"effort": "quick", "calibration": "gram", "repair": "best"}, "gram", True, 300),
        ({"effort": "best"}, "reconstruct", True, math.inf),
        ({"effort": "best", "budget_s": 60, "repair": "off"}, "reconstruct", False, 60),
    ],
)
def test_the_effort_decides_what_the_recipe_leaves_open(given, calibration, mends, repair_s):
    config = QuantizeConfig(**given)
    assert (config.ranges_and_rounding, config.mends, config.repair_s) == (calibration, mends, repair_s)
