"""What a recipe, a target or a calibration may hold at most, and files that are none: each refused in one line."""

import os
import re
from functools import partial

import msgspec
import pytest
from msgspec import inspect

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import Recipe
from edgekd.config.target import Calibration, Target, load_calibration, read_target
from edgekd.config.toml import MOST_NESTED
from edgekd.errors import EdgekdError, RecipeError, TargetError

TASK = "[task]\nname = 'digits'\n"


def numbers(kind, at=""):
    """Every number of a type, with the key that leads to it."""
    match kind:
        case inspect.Metadata():
            yield from numbers(kind.type, at)
        case inspect.IntType() | inspect.FloatType():
            yield at, kind
        case inspect.StructType():
            for field in kind.fields:
                yield from numbers(field.type, f"{at}.{field.name}".lstrip("."))
        case inspect.UnionType():
            for option in kind.types:
                yield from numbers(option, at)
        case inspect.DictType():
            yield from numbers(kind.value_type, f"{at}.x")
        case inspect.ListType():
            yield from numbers(kind.item_type, f"{at}[0]")


@pytest.mark.parametrize("kind", [Recipe, Target, Calibration])
def test_every_number_has_a_lower_and_an_upper_bound(kind):
    found = dict(numbers(inspect.type_info(kind)))
    assert len(found) > 2
    for at, number in found.items():
        assert number.ge is not None or number.gt is not None, at
        assert number.le is not None or number.lt is not None, at


def _read(tmp_path, content, overrides=()):
    path = tmp_path / "x.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_recipe(path, overrides)


VALUES = ("1e308", "-1e308", "nan", "-inf", "1e-308", str(10**12), str(2**64), "true", "'many'", "[]", "{}",
          "'" + "x" * 10_000 + "'", "2026-01-31", "[[[[1]]]]", "0x" + "f" * 5000, "")  # fmt: skip
KEYS = ("distill.learning_rate", "distill.loss.temperature", "gate.resamples", "seed", "prune.round_to",
        "distill.loss.extra.intra", "prune.ratios.image", "profile.rate_hz", "export.tolerance")  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", KEYS)
def test_no_number_of_a_recipe_is_outlandish(tmp_path, key, value):
    allowed = {
        ("distill.loss.extra.intra", "{}"),
        ("distill.loss.extra.intra", "1e-308"),
        ("prune.ratios.image", "1e-308"),
    }
    for read in (
        partial(_read, tmp_path, f"{key} = {value}\n{TASK}"),
        partial(_read, tmp_path, TASK, (f"{key}={value}",)),
    ):
        if (key, value) in allowed:
            read()
            continue
        with pytest.raises(RecipeError) as refused:
            read()
        message = str(refused.value)
        assert "\n" not in message
        assert len(message) < 600
        assert not re.search(r"'(int|float|str|array|object)'", message)


@pytest.mark.parametrize("value", ["-0.0", "0"])
def test_minus_zero_is_zero(tmp_path, value):
    assert _read(tmp_path, f"distill.weight_decay = {value}\n{TASK}").distill.weight_decay == 0


@pytest.mark.parametrize("text", [
    "a = " + "[" * 100_000, "a = " + "[" * (MOST_NESTED + 2) + "]" * (MOST_NESTED + 2), "a = " + "{a = " * 100_000,
    ".".join(["a"] * 100_000) + " = 1", "[" + ".".join(["a"] * 100_000) + "]", "seed = " + "9" * 5000,
    f"[task.options]\n{'.'.join('a' * 500)} = 1", "seed = 1\nseed = 2", "seed = \x00", "\x00",
    "[model]\npath = ''\ncalibration = 'x'", "[task]\nname = ''",
], ids=range(12))  # fmt: skip
def test_toml_that_breaks_parsers(tmp_path, text):
    with pytest.raises(RecipeError) as refused:
        _read(tmp_path, text)
    assert "\n" not in str(refused.value)
    key, _, value = text.partition(" = ")
    if value:
        with pytest.raises(RecipeError):
            _read(tmp_path, TASK, (f"{key}={value}",))


def test_byte_order_marks_and_windows_lines_are_read(tmp_path):
    content = f"seed = 3\n{TASK}"
    assert _read(tmp_path, content.replace("\n", "\r\n").encode("utf-8-sig")).seed == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_other_encodings_are_named(tmp_path, encoding):
    with pytest.raises(RecipeError, match=r"is not UTF-8; save the file|not valid TOML"):
        _read(tmp_path, f"# Größe\n{TASK}".encode(encoding))


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    with (tmp_path / "large.toml").open("wb") as stream:
        stream.truncate(10_000_000_000)
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    for name in ("pipe.toml", "folder.toml", "large.toml", "loop.toml", "x" * 5000 + ".toml", "a\0b.toml"):
        for read in (load_recipe, read_target, load_calibration):
            with pytest.raises((RecipeError, TargetError)) as refused:
                read(str(tmp_path / name))
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "line", ["samples = 1e12", "samples = 0", "chunk = true", "seed = -1", f"seed = {2**63}", "seed = nan"]
)
def test_numbers_of_a_calibration(tmp_path, line):
    path = tmp_path / "c.toml"
    path.write_text(f"description = 'x'\nranges = 'minmax'\n{line}\n")
    with pytest.raises(TargetError, match=r": expected a |more than 64 bits"):
        load_calibration(str(path))


@pytest.mark.parametrize("override", [
    "", "=", "a", "..=1", ".=1", "seed.x=1", "task.name.x=1", "\x00=1", "distill.=1",
    ".".join("a" * 100_000) + "=1", "task.options." + ".".join("a" * 500) + "=1",
], ids=range(11))  # fmt: skip
def test_overrides_that_name_nothing(tmp_path, override):
    with pytest.raises(EdgekdError) as refused:
        _read(tmp_path, TASK, (override,))
    assert len(str(refused.value)) < 500


def test_a_value_is_refused_in_the_words_of_who_wrote_it(tmp_path):
    told = {
        "distill.epochs=many": "distill.epochs: expected a whole number from 1 to 100,000 or 'auto', got 'many'",
        "distill.cache_teacher=1": "distill.cache_teacher: expected true or false, got 1",
        "prune.budget.macs=2": "prune.budget.macs: expected a number above 0 and below 1, got 2",
        "task.name=3": "task.name: expected text that is not empty, got 3",
        "prune.ignore='x'": "prune.ignore: expected a list, got 'x'",
        "prune.ignore=[1]": "prune.ignore[0]: expected text, got 1",
        "gate=3": "gate: expected a table, got 3",
        "student.taps.a=3": "student.taps.a: expected text or a table, got 3",
        "quantize.repair=on": "quantize.repair: there is no 'on'",
        "quantize.repair=true": "quantize.repair: expected 'auto' or 'best' or 'off', got true",
    }
    for override, expected in told.items():
        with pytest.raises(RecipeError, match=re.escape(expected)):
            _read(tmp_path, TASK, (override,))


def test_what_is_right_is_what_msgspec_takes():
    content = msgspec.to_builtins(load_recipe("demo"))
    assert msgspec.convert(content, Recipe) == load_recipe("demo")
