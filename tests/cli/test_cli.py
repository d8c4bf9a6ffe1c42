import json
import re
import shutil
import signal

import jsonschema
import pytest
import tomllib
from commands import STAGES, build_arguments, copy_cache, edgekd, edgekd_begun, events, python, signal_at

from edgekd import errors, load_recipe
from edgekd.cli.main import _wrap

#: In front of the command line: the extras of `edgekd[build]` are not there.
BARE = """
import sys
for name in ("torch", "torch_pruning", "onnx", "onnxscript", "onnxruntime", "safetensors", "filelock"):
    sys.modules[name] = None
import importlib.metadata as metadata
version = metadata.version
def absent(name):
    if name in ("torch", "torch-pruning", "onnx", "onnxscript", "onnxruntime", "safetensors", "filelock"):
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = absent
from edgekd.cli import main
main()
"""


def bare(*arguments, cwd):
    """Run the command line as where only the base dependencies are installed."""
    return python("-c", BARE, *arguments, cwd=cwd)


def says(found, code):
    """Return the one line on stderr of a command that failed with ``code``."""
    assert found.returncode == code, found.stderr
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ")
    return line


COMMANDS = ["", "build", "check", "blame", "search", "advise", "init", "tasks", "targets", "targets show", "recipe",
            "recipe schema", "recipe show", "predict", "verify", "profile", "device", "device install",
            "report"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_without_the_heavy_libraries(command, tmp_path):
    found = bare(*command.split(), "--help", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Usage: " in found.stdout


def test_the_commands_are_all_tested(tmp_path):
    listed = re.findall(r"^  (\w+)  ", bare("--help", cwd=tmp_path).stdout.partition("Commands:")[2], re.MULTILINE)
    assert set(listed) == {command.split()[0] for command in COMMANDS if command}


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], ["msgspec", "rich", "numpy"]),
        (["--version"], ["msgspec", "rich", "numpy"]),
        (["tasks"], []),
        (["targets"], []),
        (["recipe", "schema"], ["rich", "numpy"]),
        (["recipe", "show", "--recipe", "digits"], ["rich", "numpy"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] not in ("msgspec", "rich") else "",
)
def test_imports_only_what_it_needs(arguments, heavy, tmp_path):
    code = (
        "import sys; from edgekd.cli import main; main(sys.argv[1:], standalone_mode=False)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    found = python("-c", code, *arguments, cwd=tmp_path)
    assert found.stdout
    assert set(found.stderr.split()).isdisjoint({"torch", "onnx", "onnxruntime", "scipy", *heavy})


@pytest.mark.parametrize(
    "module", ["edgekd", "edgekd.runtime.bundle", "edgekd.cli", "edgekd.config.recipe", "edgekd.config.target"]
)
def test_modules_import_nothing_heavy(module, tmp_path):
    code = f"import {module}, sys; print(*({{'torch', 'onnx', 'onnxruntime'}} & set(sys.modules)))"
    found = python("-c", code, cwd=tmp_path)
    assert (found.stdout.split(), found.stderr) == ([], "")


def test_a_build_without_torch_says_what_to_install(tmp_path):
    assert 'pip install "edgekd[build]"' in says(bare("build", "--recipe", "digits", cwd=tmp_path), 7)


def test_verify_without_onnxruntime_says_what_to_install(built, tmp_path):
    assert 'pip install "edgekd[runtime]"' in says(bare("verify", str(built.bundle), cwd=tmp_path), 7)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["--recipe", "digits", "--set", "distill.epoch=3"], errors.RecipeError, "did you mean 'epochs'"),
        (["--recipe", "digits", "--set", "seed"], errors.RecipeError, "key=value"),
        (["--recipe", "digit"], errors.RecipeError, "did you mean 'digits'"),
        (["--recipe", "none.toml"], errors.RecipeError, "no such recipe file"),
        ([], errors.RecipeError, "edgekd init"),
        (["--recipe", "digits", "--target", "cpuu"], errors.TargetError, "did you mean 'cpu'"),
        (["--recipe", "digits", "--target", "none.toml"], errors.TargetError, "no such target file"),
        (["--recipe", "digits", "--set", "task.name=digit"], errors.TaskError, "digit"),
        (["--recipe", "digits", "--set", "task.name=none.py:Mine"], errors.TaskError, "none.py"),
        (["--recipe", "digits", "--set", "task.options.views=['fou','abc']"], errors.TaskError, "no view 'abc'"),
        (["--recipe", "digits", "--set", "task.options.wiews=['fou']"], errors.TaskError, "wiews"),
        (["--recipe", "digits", "--set", "teacher.weights=none.pt"], errors.ModelError, "none.pt: no such file"),
        (["--recipe", "digits", "--set", "teacher.taps.fou=encoders.fu"], errors.TaskError, "encoders.fu"),
        (["--recipe", "digits", "--set", "quantize.calibration=minmix"], errors.TargetError, "did you mean 'minmax'"),
        (["--recipe", "digits", "--cache", "file"], errors.CacheError, "--cache"),
        (["--recipe", "digits", "--output", "file/out"], errors.OutputError, "--output"),
        (["--recipe", "digits", "--output", "/proc/out"], errors.OutputError, "--output"),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else "",
)
def test_what_a_user_gets_wrong_is_one_line(arguments, error, said, tmp_path):
    (tmp_path / "file").touch()
    found = edgekd("build", *arguments, cwd=tmp_path)
    assert said in says(found, error.exit_code)
    assert "done in" not in found.stdout, "it is said before any work is done"


def test_an_error_on_a_terminal_breaks_at_spaces_and_keeps_quoted_words_and_commands_whole():
    path = "/a/long/path/of/a-project-with-hyphens/build/cpu/bundle/deploy.onnx"
    text = f"error: {path}: the user's file; did you mean 'the other file'? pip install \"edgekd[build]\""
    for width in range(20, 100):
        lines = _wrap(text, width).splitlines()
        assert " ".join(lines) == text
        assert sum(path in line for line in lines) == 1
        assert any("'the other file'" in line for line in lines)
        assert any('pip install "edgekd[build]"' in line for line in lines)
        assert all(len(line) <= max(width, len(path) + 1) for line in lines)


def test_every_error_has_an_exit_code_of_its_own():
    codes = [error.exit_code for error in errors.EdgekdError.__subclasses__()]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 2, 130} & set(codes)


def test_a_defect_keeps_its_traceback(tmp_path):
    code = (
        "import edgekd.tasks; from edgekd.cli import main\ndef broken(): raise ZeroDivisionError\n"
        "edgekd.tasks.describe = broken\nmain(['tasks'])"
    )
    found = python("-c", code, cwd=tmp_path)
    assert found.returncode == 1
    assert "Traceback" in found.stderr


def test_a_full_disk_is_one_line(tmp_path):
    code = (
        "import edgekd.cli.init, errno; from edgekd.cli import main\n"
        "def full(folder, *_): raise OSError(errno.ENOSPC, 'No space left on device', str(folder))\n"
        "edgekd.cli.init.init = full\nmain(['init', 'x'])"
    )
    found = python("-c", code, cwd=tmp_path)
    assert says(found, errors.OutputError.exit_code) == "error: x: No space left on device; make room there"


def test_tasks_names_licence_and_source(tmp_path):
    found = edgekd("tasks", cwd=tmp_path).stdout
    for said in ("digits", "CC BY 4.0", "Duin", "gestures", "BSD-3-Clause", "Burns"):
        assert said in found
    for said in ("av-digits", "CC BY-SA 4.0", "LeCun", "Free Spoken Digit Dataset"):
        assert said in found


def test_targets(tmp_path):
    assert "onnxruntime" in edgekd("targets", cwd=tmp_path).stdout
    shown = edgekd("targets", "show", "cpu", cwd=tmp_path).stdout
    (tmp_path / "mine.toml").write_text(shown)
    assert edgekd("targets", "show", "./mine.toml", cwd=tmp_path).stdout == shown
    assert "did you mean 'cpu'" in says(edgekd("targets", "show", "cpuu", cwd=tmp_path), 6)


def test_a_shown_recipe_meets_the_shown_schema(tmp_path):
    schema = json.loads(edgekd("recipe", "schema", cwd=tmp_path).stdout)
    show = ("recipe", "show", "--recipe", "gestures", "--set", "seed=7")
    shown = json.loads(edgekd(*show, "--json", cwd=tmp_path).stdout)
    jsonschema.validate(shown, schema)
    assert (shown["task"]["name"], shown["seed"]) == ("gestures", 7)
    as_toml = tomllib.loads(edgekd(*show, cwd=tmp_path).stdout)
    jsonschema.validate(as_toml, schema)
    assert (as_toml["task"]["name"], as_toml["seed"]) == ("gestures", 7)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("digits", ["distill.loss.extra={}", 'task.options.teacher="a \\"b\\" c"']),
        ("gestures", ["distill.loss.extra.fd={share=2.0}", 'search.space."prune.ratio"=[0.1,0.5]']),
        ("av-digits", ["prune.budget.macs=0.5", "quantize.precision=int8"]),
    ],
)
def test_a_shown_recipe_is_a_recipe_again_and_the_same(name, overrides, tmp_path):
    settings = [f"--set={override}" for override in overrides]
    shown = edgekd("recipe", "show", "--recipe", name, *settings, cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "null" not in shown.stdout
    (tmp_path / "edgekd.toml").write_text(shown.stdout, encoding="utf-8")
    assert load_recipe(tmp_path) == load_recipe(name, tuple(overrides))


def test_verify(built, tmp_path):
    found = edgekd("verify", built.bundle, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert "16 reference samples in onnxruntime, 0 flips" in found.stdout


@pytest.mark.parametrize("name", ["deploy.onnx", "probe.onnx", "reference.npz", "ledger.json", "manifest.json"])
def test_verify_finds_a_flipped_bit(built, tmp_path, name):
    shutil.copytree(built.bundle, tmp_path / "bundle")
    content = bytearray((tmp_path / "bundle" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bundle" / name).write_bytes(content)
    assert name in says(edgekd("verify", "bundle", cwd=tmp_path), 9)


def test_verify_needs_a_bundle(tmp_path):
    says(edgekd("verify", "none", cwd=tmp_path), 9)
    says(edgekd("verify", tmp_path, cwd=tmp_path), 9)


def test_report_reads_a_build_back(built, tmp_path):
    (row,) = built.report()["rows"]
    found = edgekd("report", built.output, "--format", "json", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    (joined,) = json.loads(found.stdout)["rows"]
    assert (joined["task"], joined["target"], joined["run"]) == ("digits", "cpu", str(built.output))
    assert (joined["p50_ms"], joined["size_bytes"]) == (row["latency_ms"]["p50"], row["size_bytes"])
    assert (joined["metric_value"], joined["drift_bound"]) == (row["metric"]["device"], row["gram"]["bound"])
    assert joined["throughput_per_s"] == row["throughput_per_s"] > 0


def test_report_reads_well_at_80_columns(built, tmp_path):
    found = edgekd("report", built.output, cwd=tmp_path, COLUMNS="80")
    assert (found.returncode, found.stderr) == (0, "")
    assert max(map(len, found.stdout.splitlines())) <= 80
    for told in ("p50 ms", "accuracy", "verdict", "memory", "400 single inferences", "higher is better"):
        assert told in found.stdout


@pytest.mark.parametrize("suffix", ["md", "csv", "json", "html"])
def test_report_writes_a_file_in_the_form_of_its_suffix(built, tmp_path, suffix):
    found = edgekd("report", built.output, "--output", f"new/table.{suffix}", cwd=tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (0, f"wrote new/table.{suffix}\n", "")
    begins = {"md": "### digits", "csv": "run,task,", "json": "{", "html": "<!DOCTYPE html>"}[suffix]
    assert (tmp_path / "new" / f"table.{suffix}").read_text(encoding="utf-8").startswith(begins)


def test_a_build_leaves_the_page_that_report_writes(built, tmp_path):
    found = edgekd("report", built.output, "--format", "html", cwd=tmp_path)
    assert found.stdout == (built.output / "report.html").read_text(encoding="utf-8")
    for picture in ("latency-1", "drift-1", "metric-1", "gram-1-0", "gram-1-lost"):
        assert f'id="{picture}' in found.stdout
    assert 'id="scatter-' not in found.stdout, "one engine alone is compared with none"
    assert str(built.output) not in found.stdout


@pytest.mark.parametrize(
    ("limit", "code", "said"),
    [
        ("latency_p50_ms = 1000", 0, "1 of 1 limits kept"),
        ("size_mb = 0.001", errors.BudgetMissed.exit_code, "1 of 1 limits not kept: cpu on local: size_mb 0."),
        ("sizemb = 1", errors.BudgetError.exit_code, "has no key 'sizemb'; did you mean 'size_mb'?"),
        ("target = 'gpu'\nsize_mb = 1", errors.BudgetError.exit_code, "no row is of the target 'gpu'"),
    ],
    ids=["kept", "not kept", "typo", "no row"],
)
def test_report_holds_a_build_against_a_budget(built, tmp_path, limit, code, said):
    (tmp_path / "budget.toml").write_text(f"[[limits]]\n{limit}\n")
    found = edgekd("report", built.output, "--check", "budget.toml", cwd=tmp_path)
    assert said in (says(found, code) if code else found.stdout)
    if code == errors.BudgetMissed.exit_code:
        assert "NOT KEPT" in found.stdout


def test_report_says_in_json_what_was_kept(built, tmp_path):
    (tmp_path / "budget.toml").write_text("[[limits]]\nsize_mb = 0.001\nverdict = 'warn'\n")
    found = edgekd("report", built.output, "--check", "budget.toml", "--format", "json", cwd=tmp_path)
    assert found.returncode == errors.BudgetMissed.exit_code
    content = json.loads(found.stdout)
    assert content["kept"] is False
    assert {check["key"]: check["kept"] for check in content["checks"]} == {"size_mb": False, "verdict": True}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["none"],
            errors.ReportError.exit_code,
            "none: has neither report.json nor profile.json; give",
        ),
        (["RUN", "RUN"], errors.ReportError.exit_code, "is named twice"),
        (["RUN", "--target", "cpuu"], errors.ReportError.exit_code, "did you mean 'cpu'?"),
        (["RUN", "--max-metric", "1"], errors.ReportError.exit_code, "is better when higher: use --min-metric"),
        (["RUN", "--sort", "p5"], 2, "--sort p5: there is no such key; did you mean 'p50'"),
        (["RUN", "--output", "table.pdf"], 2, "ends in none of .md, .csv, .json, .html; give --format"),
        (["RUN", "--check", "none.toml"], errors.BudgetError.exit_code, "none.toml: no such file"),
        (["RUN", "--check", "none.toml", "--max-latency-ms", "1"], 2, "a filter would hide some"),
        (["RUN", "--check", "none.toml", "--format", "html"], 2, "--check goes with --format markdown or json"),
        ([], 2, "Missing argument 'RUNS...'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_report_cannot_do_is_said(built, tmp_path, arguments, code, said):
    found = edgekd("report", *(str(built.output) if a == "RUN" else a for a in arguments), cwd=tmp_path)
    assert found.returncode == code
    assert said in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr


def test_quiet_says_nothing(built, tmp_path):
    cache = copy_cache(built.cache, tmp_path / "cache")
    found = edgekd(*build_arguments("out", cache), "--quiet", cwd=tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_environment_names_a_cache(built, tmp_path):
    copy_cache(built.cache, tmp_path / "cache")
    arguments = [argument for argument in build_arguments("out", "") if argument not in ("--cache", "")]
    found = edgekd(*arguments, cwd=tmp_path, EDGEKD_CACHE="cache")
    assert found.stdout.count("up to date") == len(STAGES)
    assert not (tmp_path / ".edgekd").exists()


@pytest.mark.parametrize("moment", [("advance", "teacher", 1), ("advance", "profile cpu", 5)], ids=lambda m: m[1])
def test_ctrl_c_is_one_line_and_the_build_goes_on(built, tmp_path, moment):
    cache = copy_cache(built.cache, tmp_path / "cache", without=moment[1].split()[:1])
    arguments = [*build_arguments("out", cache), "--json"]
    with edgekd_begun(*arguments, cwd=tmp_path) as process:
        signal_at(process, moment, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, "interrupted; the same command goes on from here\n")
    assert events(stdout)[-1]["event"] == "stopped"
    assert edgekd(*arguments, cwd=tmp_path).returncode == 0


def test_a_new_project_builds(tmp_path):
    found = edgekd("init", "mine", cwd=tmp_path)
    assert found.returncode == 0
    assert "cd mine && edgekd build" in found.stdout
    quick = ["teacher.epochs=2", "distill.epochs=2", "prune.epochs=1", "profile.iterations=200", "gate.tau_fail=1",
             "profile.cold_starts=1", "gate.max_flips=1", "gate.max_metric_drop=1"]  # fmt: skip
    built = edgekd("build", *(f"--set={setting}" for setting in quick), cwd=tmp_path / "mine")
    assert built.returncode == 0, built.stderr
    assert edgekd("verify", "build/mine/cpu/bundle", cwd=tmp_path / "mine").returncode == 0
    assert "exists already" in says(edgekd("init", "mine", cwd=tmp_path), 3)
