"""Losses of the user's own, named file.py:name, and what adding one to edgekd takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small import TAPS, Remembers, TwoTowers, loaded, reporter

import edgekd.training.distillation.losses
from edgekd.cli import main
from edgekd.config.loading import load_recipe
from edgekd.config.recipe import DistillConfig, LossConfig
from edgekd.errors import RecipeError, TaskError
from edgekd.stages.artifacts import WEIGHTS
from edgekd.training.distillation import distill
from edgekd.training.distillation.loss_help import describe_losses, option_schemas
from edgekd.training.distillation.loss_registry import check_losses, own_loss_sources
from edgekd.training.distillation.own_losses import find_loss
from edgekd.training.loop.weights import build
from edgekd.training.preflight import check as preflight
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps

OWN = """
from typing import Annotated
from msgspec import Meta
import torch
from torch import nn
from torch.nn import functional
from edgekd import Loss, LossOptions

class HuberOptions(LossOptions, frozen=True):
    delta: Annotated[float, Meta(gt=0, description="Where it turns linear.")] = 1.0

def huber(student, teacher, delta):
    return functional.huber_loss(student, teacher, delta=delta)

def fails(student, teacher):
    return student @ teacher

def wide(student, teacher):
    return student - teacher

huber = Loss("huber", "embeddings", huber, HuberOptions, "Huber loss of embeddings", projection=nn.Linear)
wide = Loss("wide", "embeddings", wide, projection=nn.Linear)
fails = Loss("fails", "embeddings", fails)
number = 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def recipe_with(own, table):
    """A recipe that asks for a loss in the user's file, by a path from the recipe's folder."""
    path = own.parent / "edgekd.toml"
    path.write_text(f"""
[task]
name = "small.py:Small"
[distill.loss.extra]
mine = {{ loss = "{own.name}:{table} }}
[prune]
ratio = 0.0
[quantize]
repair = "off"
""")
    return load_recipe(path)


def trained(folder, loss, teacher):
    settings = DistillConfig(epochs=2, batch_size=16, loss=loss)
    observer = Remembers()
    done = distill.run(loaded(), teacher, Taps(TAPS, TAPS), settings, StageRun(0, folder, reporter(observer)))
    return done, (folder / WEIGHTS).read_bytes(), observer


def test_a_loss_in_the_users_file_trains_with_its_options_and_projections(own, tmp_path):
    teacher = build(lambda: TwoTowers(width=12), 1)
    told = {
        delta: trained(tmp_path / name, recipe_with(own, f'huber", delta = {delta}, share = 0.5').distill.loss, teacher)
        for name, delta in (("near", 0.01), ("far", 5.0))
    }
    for done, _, observer in told.values():
        assert done.history[-1]["share.mine"] == pytest.approx(0.5, abs=0.1)
        assert not observer.warnings
    assert told[0.01][1] != told[5.0][1]
    assert told[0.01][0].history[-1]["loss.mine"] < told[5.0][0].history[-1]["loss.mine"]
    without = trained(tmp_path / "without", LossConfig(extra={}), teacher)
    assert without[1] != told[5.0][1]


def test_its_options_are_in_its_schema_and_help(own):
    loss = find_loss(f"{own}:huber")
    assert option_schemas(loss)["delta"] == {
        "description": "Where it turns linear.", "type": "number", "exclusiveMinimum": 0, "default": 1.0,
    }  # fmt: skip
    assert list(describe_losses([loss])) == [
        "huber: Huber loss of embeddings (kind: embeddings)",
        "    delta: Where it turns linear. [default: 1.0]",
    ]


def test_the_command_line_lists_losses_and_shows_those_in_a_file(own):
    shown = CliRunner().invoke(main, ["recipe", "losses"], catch_exceptions=False)
    assert "ickd: correlations of the channels of feature maps (kind: maps)" in shown.output
    of_own = CliRunner().invoke(main, ["recipe", "losses", f"{own}:huber"], catch_exceptions=False)
    assert of_own.output.splitlines()[-1] == "    delta: Where it turns linear. [default: 1.0]"


@pytest.mark.parametrize(
    ("table", "error", "said"),
    [
        ('hubr"', TaskError, r"mine.py: defines no 'hubr'; did you mean 'huber'"),
        ('number"', TaskError, r"mine.py: 'number' is a int, must be an edgekd.Loss"),
        (
            'huber", delt = 2.0',
            RecipeError,
            r"extra.mine: 'delt' is no option of the loss 'huber'; did you mean 'delta'",
        ),
        ('huber", delta = -1.0', RecipeError, r"extra.mine: delta: expected a number above 0, got -1.0"),
        ('huber", pairs = ["a-b"]', RecipeError, r"'pairs' is no option of the loss 'huber'"),
        ('fails"', TaskError, r"loss 'fails': RuntimeError: .*\(.*mine.py:16\)"),
        ('wide"', TaskError, r"loss 'wide': its function returns torch.float32 of shape \(2, 8\), must be a scalar"),
    ],
)
def test_what_is_wrong_with_it_is_one_line_before_any_training(own, table, error, said):
    recipe = recipe_with(own, table)
    check_losses(recipe)  # runs no code of the user's
    with pytest.raises(error, match=r"^\[distill.loss\] .*" + said) as raised:
        preflight.check(loaded(), Taps(TAPS, TAPS), recipe, reporter())
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_does_not_run_is_one_line(own):
    recipe = recipe_with(own, 'huber"')
    own.write_text("import nothing_of_that_name\n")
    with pytest.raises(TaskError, match=r"file of losses mine.py: ModuleNotFoundError: .*\(.*mine.py:1\)"):
        preflight.check(loaded(), Taps(TAPS, TAPS), recipe, reporter())
    own.unlink()
    with pytest.raises(RecipeError, match=r"\[distill.loss\] extra.mine: .*mine.py: no such file"):
        check_losses(recipe)


def test_its_source_and_that_of_its_neighbours_is_part_of_what_a_stage_depends_on(own):
    config = recipe_with(own, 'huber"').distill.loss
    before = own_loss_sources(config)
    assert list(before["own_losses"]) == [str(own)]
    (own.parent / "neighbour.py").write_text("x = 1\n")
    with_neighbour = own_loss_sources(config)
    own.write_text(OWN.replace("delta=delta", "delta=2 * delta"))
    assert before != with_neighbour != own_loss_sources(config) != before


def test_a_changed_file_is_read_again(own):
    student, teacher = torch.zeros(4, 3), torch.full((4, 3), 4.0)
    assert find_loss(f"{own}:huber").function(student, teacher, delta=1.0) == 3.5
    own.write_text(OWN.replace("delta=delta", "delta=2 * delta"))
    assert find_loss(f"{own}:huber").function(student, teacher, delta=1.0) == 6.0


def test_a_loss_may_be_in_a_module_on_the_path(own, monkeypatch):
    own.rename(own.with_name("losses_of_mine.py"))
    monkeypatch.syspath_prepend(own.parent)
    config = recipe_with(own.with_name("losses_of_mine"), 'huber"').distill.loss
    assert config.terms["mine"].loss == "losses_of_mine:huber"
    assert list(own_loss_sources(config)["own_losses"]) == ["losses_of_mine"]
    assert find_loss("losses_of_mine:huber").name == "huber"
    with pytest.raises(TaskError, match="losses_of_mine: defines no 'hubr'"):
        find_loss("losses_of_mine:hubr")


ADDED = """
from edgekd.training.distillation.loss import Loss, LossOptions

class MeanOptions(LossOptions, frozen=True):
    power: float = 2.0

def mean_loss(student, teacher, power):
    return (student.mean(1) - teacher.mean(1)).abs().pow(power).mean()

LOSSES = (Loss("mean", "embeddings", mean_loss, MeanOptions, "means of embeddings"),)
"""

PROOF = """
import json, sys
from pathlib import Path
import edgekd.training.distillation.losses as losses
losses.__path__.append(sys.argv[1])
from edgekd.config.loading import load_recipe
from edgekd.training.distillation.loss_help import describe_losses, full_recipe_schema
from edgekd.training.distillation.loss_registry import check_losses, shipped_losses
check_losses(load_recipe("digits", ("distill.loss.extra={mean={power=3.0}}",)))
assert "torch" not in sys.modules
from edgekd.training.distillation.bound_losses import bind_losses
from edgekd.training.distillation.loss_taps import LossTaps
config = load_recipe("digits", ("distill.loss.extra={mean={power=3.0}}",)).distill.loss
bound = bind_losses(config, LossTaps(["a"], {}, {}, "teacher"))["mean"]
help = list(describe_losses([shipped_losses()["mean"]]))
print(json.dumps([help, full_recipe_schema()["$defs"]["Term"]["properties"]["power"], bound.options]))
"""


def test_a_loss_of_edgekds_own_is_added_by_one_file(tmp_path):
    (tmp_path / "means.py").write_text(ADDED)
    result = subprocess.run([sys.executable, "-c", PROOF, str(tmp_path)], capture_output=True, text=True, check=True)
    lines, schema, options = json.loads(result.stdout)
    assert lines == ["mean: means of embeddings (kind: embeddings)", "    power: no description [default: 2.0]"]
    assert (schema["default"], options) == (2.0, {"power": 3.0})


def test_no_module_beside_those_of_losses_names_a_loss_in_code():
    """What would have to be touched for another one; fd and the like are words of docstrings and messages alone."""
    package = Path(edgekd.__file__).parent
    folder = Path(edgekd.training.distillation.losses.__file__).parent
    machinery = [*package.glob("config/*.py"), *folder.parent.glob("*.py")]
    machinery += package.glob("training/preflight/*.py")
    for name in ("ickd", "dkd", "rkd", "pkt", "fitnet", "affinity"):
        assert not [file.name for file in machinery if f'"{name}"' in file.read_text(encoding="utf-8")]
