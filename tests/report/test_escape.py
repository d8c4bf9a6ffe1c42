"""Text of strangers in every format: each is written by edgekd and read back by a parser that edgekd did not write."""

import csv
import io
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import markdown as python_markdown
import outputs
import pytest
import tomllib
from builds import build, full_profile, target, write_run
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

import edgekd
from edgekd.cli import main
from edgekd.cli.terminal.tables import print_table
from edgekd.cli.terminal.text import shown
from edgekd.config.toml import toml_document
from edgekd.errors import ReportError, TargetError
from edgekd.files import write_text
from edgekd.report.build.markdown import report_markdown
from edgekd.report.compare.html import document, table_html
from edgekd.report.details.make import output_details
from edgekd.report.escape import csv_text, json_text, markdown_code, markdown_text, one_line
from edgekd.report.svg.draw import standalone_svg, text
from edgekd.report.table import Column, Table, markdown

#: What breaks out of one format or another, or does something to a terminal.
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07", "\x9b31m", "a\x00b\x08c\x7f", "PASS\u202eLIAF", "zero\u200bwidth\ufeff", "\ud800",
    "line\nerror: another", "a\r\nb\tc", "<script>alert(1)</script>", "</svg><!--", "&lt;b&gt;&#0;",
    "]]>", '" onload="x',
    "| a | b |", "`code` ``two``", "**bold** _it_ ~~no~~", "[x](javascript:alert(1))", "![x](http://e/x.png)", "# head",
    "> quote", "- item", "1. first", "---", "===", "\\", "a\\|b", "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "＝1", "'=1",
    "[red]markup[/red]", "[/]", "$(rm -rf)", "\U000e0001tag", "\ufffe", "    indented", "http://example.org/<b>",
)  # fmt: skip

texts = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=30))
texts = st.lists(texts, min_size=1, max_size=3).map("".join)
bounded = settings(max_examples=60, deadline=None, database=None)


def is_shown(written, keep="\n"):
    return all(sign.isprintable() or sign in keep or unicodedata.category(sign) == "Zs" for sign in written)


class _Reader(HTMLParser):
    """The tags of a page, and the text of each table cell and paragraph."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.cells, self.attributes = [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag in ("td", "th", "p", "li", "h3", "code", "title"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def words(content):
    return " ".join(one_line(content).split())


def table(content):
    columns = (Column(content, right=False), Column("b"))
    return Table("title", columns, ((content, "-0.5"), ("c", content)), (content,))


@given(texts)
@bounded
def test_a_cell_of_a_spreadsheet_is_never_a_formula(content):
    stream = io.StringIO()
    csv.writer(stream).writerow([csv_text(content), -0.5])
    ((cell, number),) = csv.reader(io.StringIO(stream.getvalue()))
    assert not re.match(r"\s*[=+\-@＝＋－＠]", cell)
    assert is_shown(cell)
    assert cell.lstrip("'").endswith(one_line(content).lstrip("'"))
    assert float(number) == -0.5


@given(texts)
@bounded
@pytest.mark.parametrize("parse", [
    MarkdownIt("gfm-like", {"linkify": False}).render,
    lambda source: python_markdown.markdown(source, extensions=["tables"]),
], ids=["commonmark", "python-markdown"])  # fmt: skip
def test_markdown_shows_text_as_it_is(parse, content):
    read = _Reader(parse(f"{markdown(table(content))}\n- {markdown_text(content)}\n"))
    assert set(read.tags) <= {"h3", "table", "thead", "tbody", "tr", "th", "td", "p", "ul", "li"}
    assert read.tags.count("tr") == 3
    assert is_shown(markdown(table(content)))
    if parse.__name__ != "<lambda>":  # Python-Markdown stands alone in how it reads backslashes
        expected = words(content)
        found = [" ".join(cell.split()) for cell in read.cells]
        wanted = ["title", expected, "b", expected, "-0.5", "c", expected, expected, expected]
        assert list(filter(None, found)) == list(filter(None, wanted))


@given(texts)
@example("`")
@example(" ")
@bounded
def test_markdown_code_shows_text_as_it_is(content):
    read = _Reader(MarkdownIt("gfm-like", {"linkify": False}).render(f"a {markdown_code(content)} b"))
    assert read.tags == ["p", "code"]
    assert read.cells[1].split() == [*words(content).split(), "b"]


@given(texts)
@bounded
def test_a_picture_is_well_formed_xml_and_shows_the_text(content):
    picture = standalone_svg((10, 10), content, "", [text(1, 2, content)])
    title, _, drawn = ET.fromstring(picture)
    assert [title.text or "", drawn.text or ""] == [one_line(content)] * 2
    assert is_shown(picture)


@given(texts)
@bounded
def test_a_page_shows_text_as_it_is(content):
    page = document(content, [], [table_html(table(content), content)], script=False)
    read = _Reader(page)
    assert "script" not in read.tags
    assert set(read.attributes).isdisjoint({"onload", "onclick", "src", "href"})
    cells = [cell.rstrip("\n") for cell in read.cells[1:]]
    assert cells == [one_line(content), "b", one_line(content), "-0.5", "c", *[one_line(content)] * 2]
    assert is_shown(page)


@given(texts)
@bounded
def test_json_and_toml_keep_the_text_and_show_it(content):
    known = {"key": content, content: [content]}
    assert json.loads(json_text(known, indent=1)) == known
    assert is_shown(json_text(known, indent=1))
    document = toml_document({"key": content, "list": [content]})
    assert is_shown(document)
    if not any("\ud800" <= sign <= "\udfff" for sign in content):  # TOML has no half of a pair
        assert tomllib.loads(document) == {"key": content, "list": [content]}


@given(texts)
@bounded
def test_a_terminal_gets_nothing_that_it_obeys(content):
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=False)
    print_table(console, table(content))
    console.print(shown(content), soft_wrap=True)
    assert is_shown(stream.getvalue())
    assert one_line(content).rstrip() in stream.getvalue()


def test_half_a_character_is_kept_in_a_json_file(tmp_path):
    path = tmp_path / "x.json"
    write_text(path, json.dumps({"a": "\udc80"}, ensure_ascii=False))
    assert json.loads(path.read_bytes()) == {"a": "\udc80"}


#: Keys of a report whose text stands for itself, and is refused where it is another.
_FIXED = {
    *("target", "verdict", "stage", "scope", "reference", "chosen", "raw_file", "name", "recipe", "baseline", "kind"),
    *("question", "learned", "behaviour", "structure", "undecided", "kinds", "truth", "unit", "png", "series"),
}


def poisoned(value, key=""):
    if isinstance(value, dict):
        # What an output is stands under the output's name, which is the user's own.
        return {name: poisoned(item, key if key == "kinds" else name) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, key) for item in value]
    return f"{''.join(HOSTILE[:7])}<script>{value}" if isinstance(value, str) and key not in _FIXED else value


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    details = {name: output_details(made(), outputs.pictures) for name, made in outputs.EVERY.items()}
    result = target("cpu", profile=full_profile(), details=details)
    folder = write_run(tmp_path_factory.mktemp("hostile") / "run", result)
    (folder / "report.json").write_text(json.dumps(poisoned(json.loads((folder / "report.json").read_text()))))
    return folder


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "json", "html"])
def test_a_report_from_a_stranger_is_shown_in_every_form(hostile_run, form):
    options = [] if form == "terminal" else ["--format", form]
    result = CliRunner().invoke(main, ["report", str(hostile_run), *options])
    assert result.exit_code == 0, result.output
    assert re.search(r"\\(x|u00)1b\\?\[2J", result.output)
    assert is_shown(result.output)
    if form == "html":
        assert _Reader(result.output).tags.count("script") == 0


def _first_picture(details):
    return details["classes"]["worst"][0]["pictures"][0]


@pytest.mark.parametrize(
    "change",
    [
        lambda details: _first_picture(details).update(png="http://example.org/x.png"),
        lambda details: _first_picture(details).update(series=["1 2 M0"]),
        lambda details: details["classes"]["classes"]["confusion"].pop(),
        lambda details: details["numbers"]["numbers"]["edges"].pop(),
        lambda details: details["labels"]["curves"]["shipped"]["x"].pop(),
    ],
    ids=["picture", "series", "confusion", "histogram", "curve"],
)
def test_details_that_are_not_whole_are_one_error(tmp_path, change):
    details = {name: output_details(made(), outputs.pictures) for name, made in outputs.EVERY.items()}
    folder = write_run(tmp_path / "run", target("cpu", details=details))
    report = json.loads((folder / "report.json").read_text())
    change(report["targets"][0]["details"])
    (folder / "report.json").write_text(json.dumps(report))
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert (result.exit_code, result.output.count("\n")) == (ReportError.exit_code, 1), result.output


def test_half_a_character_in_place_of_a_verdict_is_one_error(hostile_run, tmp_path):
    text = (hostile_run / "report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace('"verdict": "pass"', '"verdict": "\\ud800"'))
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == ReportError.exit_code
    assert "there is no '\\ud800'" in result.output


def test_an_error_line_shows_what_it_quotes_as_text(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('"\\u001b[31m\\nerror: \\u202e" = 1\n')
    result = CliRunner().invoke(main, ["recipe", "show", "--recipe", str(path)])
    assert result.exit_code == 3
    assert result.output.count("\n") == 1
    assert is_shown(result.output)
    result = CliRunner().invoke(main, ["report", "--format", "\x1b[31m", "x"])
    assert result.exit_code == 2
    assert is_shown(result.output)


def test_a_report_names_its_bundle_as_python_reads_it():
    hostile = 'x"); import os  # \x1b'
    lines = report_markdown(build(target(bundle=hostile)))
    (line,) = [line for line in lines.splitlines() if line.startswith("with edgekd.load(")]
    assert eval(line.removeprefix("with edgekd.load(").removesuffix(") as engine:")) == hostile


def test_a_target_of_another_encoding_is_one_line(tmp_path):
    path = tmp_path / "t.toml"
    path.write_bytes("description = 'ä'".encode("utf-16"))
    result = CliRunner().invoke(main, ["targets", "show", str(path)])
    assert result.exit_code == TargetError.exit_code
    assert "line 1 is not UTF-8" in result.output


def test_only_one_module_makes_text_for_the_terminal():
    package = Path(edgekd.__file__).parent
    makers = [
        str(path.relative_to(package))
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text().splitlines()
        if line in ("from rich.text import Text", "from html import escape", "import html")
    ]
    assert makers == ["cli/terminal/text.py", "report/escape.py"]
