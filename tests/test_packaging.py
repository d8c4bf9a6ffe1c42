"""What is shipped: built into a wheel, installed into an environment of its own, used outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib
from commands import ROOT

SOURCES = ("edgekd", "targets", "calibration", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def environment():
    """Return this environment without what would let Python find the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A clean copy, with folders beside the package that must not leak into the wheel."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (*SOURCES, "tests", "benchmarks", "examples"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, folder / name)
    for name in ("tests", "benchmarks", "examples", "docs"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def wheel(checkout):
    """Built by way of the source distribution, so that one is tested too."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."],
        cwd=checkout, env=environment(), check=True, capture_output=True,
    )  # fmt: skip
    (path,) = (checkout / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def test_the_wheel_has_the_data(names):
    expected = {f"edgekd/{name}/{path.name}" for name in ("targets", "calibration") for path in (ROOT / name).iterdir()}
    expected |= {f"edgekd/tasks/{path.name}" for path in (ROOT / "edgekd" / "tasks").glob("*.toml")}
    template = ROOT / "edgekd" / "cli" / "template"
    expected |= {f"edgekd/cli/template/{path.name}" for path in template.iterdir() if path.is_file()}
    expected |= {"edgekd/py.typed", "edgekd/runtime/manifest.schema.json"}
    expected |= {f"edgekd/devices/browser/{name}" for name in ("page.html", "page.js")}
    expected |= {f"edgekd/report/compare/{name}" for name in ("page.css", "page.js")}
    expected |= {f"edgekd/report/{name}.schema.json" for name in ("report", "profile")}
    assert expected <= names


def test_the_wheel_has_every_module(names):
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "edgekd").rglob("*.py")} <= names


def test_nothing_else_is_in_the_wheel(names):
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"edgekd"}
    assert {Path(name).suffix for name in names if name.startswith("edgekd/")} <= {
        ".py", ".pyi", ".toml", ".json", ".typed", ".txt", ".html", ".js", ".css", "",
    }  # fmt: skip


def test_the_licence_travels(wheel, names):
    (licence,) = (name for name in names if re.fullmatch(r"edgekd-[^/]*\.dist-info/licenses/LICENSE", name))
    with zipfile.ZipFile(wheel) as opened:
        assert opened.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_the_metadata(wheel):
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith("/METADATA"))
        metadata = opened.read(name).decode()
    assert "Name: edgekd\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    for extra in ("runtime", "build", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel and its base dependencies, taken from this one: no network."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python", "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--quiet", wheel], check=True, env=environment())
    here = Path(pytest.__file__).parents[1]
    for name in ("click", "msgspec", "rich", "numpy", "numpy.libs", "pygments", "markdown_it", "mdurl"):
        (site / name).symlink_to(here / name)
    return folder


def run(installed, *command):
    return subprocess.run(
        [installed / "venv" / "bin" / command[0], *command[1:]],
        cwd=installed, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["targets"], "onnxruntime"),
        (["targets", "show", "cpu"], "[scheme]"),
        (["tasks"], "digits"),
        (["recipe", "schema"], '"distill"'),
        (["recipe", "show", "--recipe", "digits"], 'name = "digits"'),
        (["init", "mine"], "wrote mine/task.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_installed_command(installed, arguments, said):
    found = run(installed, "edgekd", *arguments)
    assert (found.returncode, found.stderr) == (0, "")
    assert said in found.stdout


def test_a_build_says_what_else_to_install(installed):
    found = run(installed, "edgekd", "build", "--recipe", "digits")
    assert found.returncode == 7
    assert 'pip install "edgekd[build]"' in found.stderr


def test_calibrations_and_the_schema_are_found_there(installed):
    code = (
        "import edgekd, edgekd.config.target as target; from edgekd.files import data_dir\n"
        "assert 'site-packages' in edgekd.__file__, edgekd.__file__\n"
        "print(target.load_calibration('minmax').ranges, target.read_target('cpu').name)\n"
        "print(data_dir('targets').parent.name)"
    )
    found = run(installed, "python", "-c", code)
    assert found.stdout.split() == ["minmax", "cpu", "edgekd"], found.stderr


def test_the_build_system_needs_what_is_in_dev():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = metadata["build-system"]["requires"]
    assert needed
    assert set(needed) <= set(metadata["project"]["optional-dependencies"]["dev"])
