"""The benchmarks: each answers, quick runs keep nothing, and the pages are what the committed results give."""

import json
import re
import subprocess
import sys

import matplotlib as mpl
import pytest
from commands import ROOT

BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
PAGES = ROOT / "docs" / "explanation"
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
#: What is made of results alone.
MADE = sorted(
    [path for name in ("alarm", "compress", "distill") for path in PAGES.glob(f"{name}*")]
    + [ROOT / "docs" / "reference" / "known-models.md"],
    key=lambda path: path.name,
)

#: Runs in one process, for most of the time goes into imports: each script with ``--help``, all other modules, and the
#: recipes of quick runs.
ANSWERS = """
import contextlib, importlib, io, json, runpy, sys
from pathlib import Path

folder, scripts = Path(sys.argv[1]), sys.argv[2:]
sys.path.insert(0, str(folder))
said = {}
for script in scripts:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            said[Path(script).name] = [ended.code, printed.getvalue()]
for path in folder.glob("*.py"):
    importlib.import_module(path.stem)
importlib.import_module("peers.quantize")
import common, edgekd
for task in common.TASKS:
    edgekd.load_recipe(task, common.QUICK_RECIPE)
print(json.dumps(said))
"""

#: Makes in a folder all that is made of results.
DRAWS = """
import json, sys
from pathlib import Path

benchmarks, folder = map(Path, sys.argv[1:])
sys.path.insert(0, str(benchmarks))
import alarm, compress_page, distill_page, real_page

def result(name):
    return json.loads((benchmarks / "results" / f"{name}.json").read_text(encoding="utf-8"))

compress_page.write_page(result("compress"), folder)
distill_page.write_page(result("distill"), folder)
alarm.draw(result("alarm"), folder / alarm.PICTURE)
alarm.write_page(result("alarm"), folder)
real_page.write_page(result("real"), folder)
"""


def python(*arguments, cwd):
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with what the committed results give."""
    folder = tmp_path_factory.mktemp("pages")
    python("-c", DRAWS, str(BENCHMARKS), str(folder), cwd=folder)
    return folder


def committed():
    return {path: path.read_bytes() for folder in (RESULTS, PAGES) for path in folder.iterdir()}


def test_every_module_imports_and_every_script_answers_and_can_be_quick(tmp_path):
    said = json.loads(python("-c", ANSWERS, str(BENCHMARKS), *map(str, SCRIPTS), cwd=tmp_path))
    assert sorted(said) == [path.name for path in SCRIPTS]
    for name, (code, text) in said.items():
        assert code == 0, name
        assert {"--quick", "--output"} <= set(re.findall(r"--[a-z-]+", text)), name
    assert list(tmp_path.iterdir()) == []


def test_every_script_has_a_result_and_every_result_a_script():
    assert [path.stem for path in SCRIPTS] == sorted(path.stem for path in RESULTS.iterdir())
    for path in RESULTS.iterdir():
        result = json.loads(path.read_text(encoding="utf-8"))
        assert {"edgekd", "numpy"} <= set(result["versions"]), path
        assert result["machine"]["cpu"], path
        assert "quick" not in result, path


def test_a_quick_run_goes_the_whole_way_and_leaves_what_it_was_asked_for_alone(tmp_path):
    before = committed()
    quickly = ["--quick", "--samples", "600", "1200", "--output", "here.json"]
    python(str(BENCHMARKS / "ledger_memory.py"), *quickly, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["here.json"]
    assert committed() == before
    quick = json.loads((tmp_path / "here.json").read_text(encoding="utf-8"))
    measured = json.loads((RESULTS / "ledger_memory.json").read_text(encoding="utf-8"))
    assert quick["quick"] is True
    assert quick.keys() - {"quick"} == measured.keys()
    assert [run.keys() for run in quick["scopes"]["intra"]["runs"]] == [
        run.keys() for run in measured["scopes"]["intra"]["runs"]
    ]


def words(picture):
    """Return the texts of an SVG of Matplotlib's, which notes beside each path what it says."""
    return re.findall(r"<!-- (.+?) -->|<text[^>]*>([^<]*)", picture)


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_the_pages_are_what_the_committed_results_give(made, path):
    ours, theirs = (file.read_text(encoding="utf-8") for file in (made / path.name, path))
    if path.suffix == ".svg":
        assert words(ours) == words(theirs)
        assert len(words(ours)) > 10
    # Another Matplotlib may draw the same otherwise.
    if path.suffix != ".svg" or f"Matplotlib v{mpl.__version__}," in theirs:
        assert ours == theirs


def test_all_that_is_made_is_committed(made):
    assert sorted(path.name for path in made.iterdir()) == [path.name for path in MADE]
    assert len(MADE) > 5
