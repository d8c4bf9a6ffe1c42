"""The docs: what they show runs, their links hold, and what they list is what there is.

A block of the tutorial or of README.md is run unless the line above it says ``<!-- not run: REASON -->``. Commands of a
``console`` block begin with ``$ ``; what follows is what they print, with numbers, verdicts and precisions of another
machine, and ``…`` for lines that are left out. A block with a title is written to that file.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import click
import jsonschema
import pytest
import tomllib
from commands import ROOT

import edgekd
from edgekd.cli import main
from edgekd.config.target import load_calibration
from edgekd.report.compare.budgets import read_budgets

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))])
#: Why a block of the tutorial or of README.md is not run.
REASONS = ("needs a package index", "sets up an environment of its own", "needs a board")
LANGUAGES = ("console", "python", "toml", "text", "json")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self):
        """Each command of a console block with the lines that it prints."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        assert not parts[0].strip(), f"{self}: output without a command"
        return [(command, output.splitlines()) for command, _, output in (part.partition("\n") for part in parts[1:])]


def blocks(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    found, at = [], 0
    while at < len(lines):
        if opened := re.fullmatch(r"( *)```(\w*)(?: title=\"([^\"]+)\")?", lines[at]):
            body = list(takewhile(lambda line: line.strip() != "```", lines[at + 1 :]))
            above = re.fullmatch(r"<!-- not run: (.+) -->", lines[at - 1].strip())
            text = "\n".join(line.removeprefix(opened[1]) for line in body)
            found.append(Block(page, at + 1, opened[2], opened[3] or "", text, above[1] if above else ""))
            at += len(body) + 1
        at += 1
    return found


ALL = [block for page in PAGES for block in blocks(page)]


def test_every_block_says_what_it_is():
    assert len(ALL) > 50
    assert [f"{block}: {block.language}" for block in ALL if block.language not in LANGUAGES] == []


class Run:
    """Runs the blocks of a page in order, as a reader would: in one shell, in one folder."""

    def __init__(self, folder, cache):
        self.folder = folder
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "EDGEKD_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
        }
        self.environment = {**os.environ, **own}

    def page(self, page):
        """Return how many blocks were run."""
        run = 0
        for block in blocks(page):
            assert not block.reason or block.reason in REASONS, f"{block}: '{block.reason}' is no reason"
            if not block.reason:
                self.block(block)
                run += 1
        return run

    def block(self, block):
        if block.title:
            (self.folder / block.title).write_text(block.text + "\n", encoding="utf-8")
        elif block.language == "python":
            self.shell(block, shlex.join([sys.executable, "-c", block.text]))
        elif block.language == "console":
            for command, expected in block.commands:
                if command.startswith("cd "):
                    self.folder = self.folder / command.removeprefix("cd ")
                    assert self.folder.is_dir(), f"{block}: {command}"
                else:
                    compare(block, command, expected, self.shell(block, command))

    def shell(self, block, command):
        done = subprocess.run(
            command, shell=True, executable="/bin/bash", cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}: {command}\n{done.stdout}"
        return done.stdout.splitlines()


def shape(line):
    """Return a line without what another machine, or another run, has otherwise."""
    line = re.sub(r"\b(int8|float32)\b", "PRECISION", line)
    line = re.sub(r"\b(pass|warn|fail)\b", "VERDICT", line, flags=re.IGNORECASE)
    line = re.sub(r"(?:\b\d[\d.]* (?:h|min|s)\b ?)+", "TIME ", line)
    line = re.sub(r"[+-]?\d[\d,.]*(?:e[+-]?\d+)?×?%?", "#", line)
    line = re.sub(r"\b[kM]?B\b", "B", line)
    return " ".join(re.sub(r"─+", "─", line).split())


def compare(block, command, expected, printed):
    """Assert that the lines that a page shows are printed, in order; between two ``…`` without a gap."""
    there = [shape(line) for line in printed]
    start, exact = 0, True
    for line in expected:
        if line.strip() == "…":
            exact = False
            continue
        wanted = shape(line)
        at = start if exact else next((i for i in range(start, len(there)) if there[i] == wanted), len(there))
        found = there[at] if at < len(there) else None
        told = f"{block}: {command}\nafter line {start} of what it prints it must say\n{line}\nbut it says\n"
        assert found == wanted, told + "\n".join(printed)
        start, exact = at + 1, True
    left = [line for line in there[start:] if line] if exact and expected else []
    assert left == [], f"{block}: {command} also prints\n" + "\n".join(left)


def test_the_readme_and_the_tutorial_run_as_they_stand(tmp_path):
    """In one test, for one build serves both: the template that README.md builds is the tutorial's first."""
    for name in ("readme", "tutorial"):
        (tmp_path / name).mkdir()
    assert Run(tmp_path / "readme", tmp_path / "cache").page(ROOT / "README.md") > 2
    run = Run(tmp_path / "tutorial", tmp_path / "cache")
    assert run.page(DOCS / "tutorial.md") > 10
    for block in ALL:
        if block.language == "python" and not block.reason and block.page.name not in ("tutorial.md", "README.md"):
            run.block(block)
    report = json.loads((run.folder / "build" / "my-project" / "report.json").read_text(encoding="utf-8"))
    schema = (ROOT / "edgekd" / "report" / "report.schema.json").read_text(encoding="utf-8")
    jsonschema.validate(report, json.loads(schema))
    assert report["verdict"] in ("pass", "warn")


def sentences(printed):
    return compare(blocks(DOCS / "tutorial.md")[0], "a command", *printed)


def test_what_a_page_shows_may_differ_in_numbers_alone():
    sentences((["p50 1.2 ms, warn", "int8  ships"], ["p50 0.3 ms, pass", "float32   ships", ""]))
    sentences((["done in 5.1 s, drift 0"], ["done in 1 min 19 s, drift 2.1e-07"]))
    sentences((["first", "…", "last"], ["first", "one", "two", "last"]))
    for expected, printed in (
        (["first"], ["first", "second"]),
        (["first", "last"], ["first", "between", "last"]),
        (["first", "…", "last"], ["first", "between"]),
        (["tuned  0.5"], ["finetuned  0.5"]),
    ):
        with pytest.raises(AssertionError, match="a command"):
            sentences((expected, printed))


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "console"], ids=str)
def test_every_command_has_the_options_that_the_docs_give_it(block):
    for command, _ in block.commands:
        words = shlex.split(command.partition(" > ")[0])
        if "edgekd" in words[:6]:
            parse(main, words[words.index("edgekd") + 1 :])


def parse(command, words):
    """Parse a command line as click does, without running it."""
    with command.make_context(command.name, list(words)) as context:
        if isinstance(command, click.Group) and context._protected_args:
            name, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert name is not None
            parse(below, rest)


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "toml"], ids=str)
def test_every_toml_is_a_recipe_a_target_a_calibration_or_a_budget(block, tmp_path):
    content = tomllib.loads(block.text)
    file = tmp_path / "shown.toml"
    if "limits" in content:
        file.write_text(block.text, encoding="utf-8")
        read_budgets(file)
    elif "ranges" in content:
        file.write_text(block.text, encoding="utf-8")
        load_calibration(str(file))
    elif "runtime" in content:
        file.write_text(block.text, encoding="utf-8")
        edgekd.load_target(str(file))
    else:
        named = "" if {"task", "model"} & content.keys() else '\n[task]\nname = "digits"\n'
        file.write_text(block.text + named, encoding="utf-8")
        edgekd.load_recipe(file)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as strictly as MkDocs can: a link or an anchor that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_builds_and_asks_the_network_for_nothing(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        html = page.read_text(encoding="utf-8")
        asked = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(https?://[^\"' >]+)", html)
        assert asked == [], page
        assert "<!-- generated" not in html, page


def test_the_published_schemas_are_schemas(site):
    found = {path.name.partition(".")[0] for path in (site / "schemas").iterdir()}
    assert found == {"manifest", "profile", "recipe", "report", "target"}
    for path in (site / "schemas").iterdir():
        jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text(encoding="utf-8")))


def test_the_reference_names_every_key_command_and_exit_code(site):
    def text(name):
        html = (site / "reference" / f"{name}.html").read_text(encoding="utf-8")
        return re.sub(r"<[^>]+>", "", html)

    recipe = text("recipe")
    for name in ("max_metric_drop", "cache_teacher", "modality_dropout", "cold_starts", "[prune.budget]"):
        assert name in recipe
    commands = text("commands")
    for name in main.commands:
        assert f"edgekd {name}" in commands
    assert "GateFailed" in text("exit-codes")
    targets = text("targets")
    assert all(path.stem in targets for path in (ROOT / "targets").glob("*.toml"))


def test_the_list_of_public_names_is_the_packages_own():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"\| `edgekd\.(\w+)` (?=\|)", page)
    assert sorted(listed) == sorted(edgekd.__all__)
    described = re.findall(r"^::: edgekd\.(\w+)$", page, re.MULTILINE)
    errors = {
        name
        for name in listed
        if isinstance(getattr(edgekd, name), type) and issubclass(getattr(edgekd, name), Exception)
    }
    assert sorted(described) == sorted({*listed} - errors)


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_at_the_top_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", (ROOT / name).read_text(encoding="utf-8"))
    for path, anchor in links:
        target = ROOT / (path or name)
        assert target.exists(), path
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}, anchor
