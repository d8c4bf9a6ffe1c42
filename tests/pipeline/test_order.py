"""The one list of stages, and what is derived from it."""

import re
from pathlib import Path

import msgspec
from click.testing import CliRunner

from edgekd import load_recipe, load_target
from edgekd.cli.main import main
from edgekd.config.loading import model_recipe
from edgekd.config.recipe import ModelConfig
from edgekd.devices.base import Absent
from edgekd.pipeline.order import ORDER, plan, stage_purposes
from edgekd.pipeline.target.evaluate import CHECK, EVALUATE
from edgekd.pipeline.target.quantize import QUANTIZE

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
NO_DEVICE = Absent("not asked for")


def test_each_stage_has_a_name_of_its_own_and_a_purpose():
    names = [stage.spec.name for stage in ORDER]
    assert len(set(names)) == len(names)
    assert all(stage.spec.purpose and not {" ", "-"} & set(stage.spec.name) for stage in ORDER)


def test_the_documentation_lists_the_stages_in_their_order():
    rows = re.findall(r"^\| `([a-z_]+)` \| ([a-z][^|]+) \|$", ARCHITECTURE.read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == stage_purposes()
    assert [name for name, _ in rows] == list(stage_purposes())


def test_the_help_of_a_build_lists_the_stages_in_their_order():
    told = CliRunner().invoke(main, ["build", "--help"], terminal_width=200).output
    listed = told[told.index("Stages:") :].splitlines()[1:]
    assert [tuple(line.split(maxsplit=1)) for line in listed if line] == list(stage_purposes().items())


def test_a_plan_has_what_the_recipe_the_targets_and_their_devices_ask_for():
    cpu = load_target("cpu")
    older = msgspec.structs.replace(cpu, name="older", opset=18)
    devices = dict.fromkeys(("cpu", "older"), NO_DEVICE)
    recipe = load_recipe("digits")
    after = ("agree", "quantize", "check", "missing", "judge", "details", "robustness_shipped", "bundle")
    assert plan(recipe, [cpu, older], devices) == (
        *("preflight", "preflight_export", "preflight_export opset 18", "rehearsal", "rehearsal opset 18"),
        *("preflight_target cpu", "preflight_target older"),
        *("teacher", "distill", "prune", "prune_check", "export", "export opset 18", "robustness"),
        *(f"{stage} {target}" for target in ("cpu", "older") for stage in after),
    )
    quiet = load_recipe("digits", ("robustness.measure=false",))
    assert not any(name.startswith("robustness") for name in plan(quiet, [cpu], devices))


def test_a_plan_of_some_stages_has_these_alone_for_each_target():
    recipe, cpu = load_recipe("digits"), load_target("cpu")
    names = plan(recipe, [cpu], {"cpu": NO_DEVICE}, (QUANTIZE, EVALUATE, CHECK))
    tried = ("preflight", "preflight_export", "rehearsal", "preflight_target cpu")
    assert names == (*tried, "teacher", "distill", "prune", "prune_check", "export", "quantize cpu", "check cpu")


def test_a_target_is_tried_only_where_its_engines_are_to_be_written():
    names = plan(load_recipe("digits"), [load_target("cpu")], {"cpu": NO_DEVICE}, (EVALUATE,))
    assert names == ("preflight", "teacher", "distill", "prune", "prune_check", "export")


def test_a_plan_for_an_imported_model_trains_nothing():
    recipe = model_recipe(ModelConfig(path="model.onnx", calibration="samples.npz"))
    names = plan(recipe, [load_target("cpu")], {"cpu": NO_DEVICE})
    after = ("agree", "quantize", "check", "missing", "judge", "details", "bundle")
    assert names == ("import", *(f"{stage} cpu" for stage in after))
