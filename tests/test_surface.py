"""The public surface: every name is there, is loaded when it is used, and is known to type checkers."""

import ast
import subprocess
import sys

import pytest
from commands import ROOT, environment

import edgekd

#: Names that are classes and functions of torch, and so load it.
OF_TORCH = {
    "ArraySplit", "Arrays", "Batch", "Categories", "Division", "Images", "Modality", "Output", "Sample", "Sounds",
    "Split", "Standardize", "Task", "TaskData", "Words", "from_csv", "from_folder",
}  # fmt: skip
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "click", "rich", "msgspec", "numpy")


def printed(code):
    """Return the words that a fresh process prints."""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), cwd="/"
    )
    return process.stdout.split()


def test_importing_the_package_and_listing_its_names_loads_nothing_heavy():
    code = f"import sys, edgekd; dir(edgekd); print(*[name for name in {HEAVY} if name in sys.modules], 'end')"
    assert printed(code) == ["end"]


def test_every_name_is_found_and_only_those_of_torch_load_torch():
    names = [name for name in edgekd._HOMES if name not in OF_TORCH]
    code = (
        "import sys, edgekd\n"
        f"for name in {names}: getattr(edgekd, name)\n"
        "print('torch' in sys.modules, 'onnx' in sys.modules, 'onnxruntime' in sys.modules)\n"
        f"for name in {sorted(OF_TORCH)}: getattr(edgekd, name)\n"
        "print('torch' in sys.modules)"
    )
    assert printed(code) == ["False", "False", "False", "True"]


def test_every_name_is_of_the_package_itself_and_documented():
    for name in edgekd._MODULES:
        assert getattr(edgekd, name).__name__ == f"edgekd.{name}"
        assert getattr(edgekd, name).__doc__
        assert name in dir(edgekd)
    for name in edgekd._HOMES:
        value = getattr(edgekd, name)
        assert name in dir(edgekd)
        if name != "UNLABELLED":
            assert value.__module__.startswith("edgekd."), name
            assert value.__doc__, name
            assert value.__name__ == name


def test_a_name_that_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'edgekd' has no attribute 'Builder'"):
        edgekd.Builder  # noqa: B018


def test_type_checkers_know_the_same_names_from_the_same_modules():
    tree = ast.parse((ROOT / "edgekd" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (listed,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    assert imports == {**edgekd._HOMES, **dict.fromkeys(edgekd._MODULES, "edgekd")}
    assert set(ast.literal_eval(listed)) == set(edgekd.__all__)
    assert len(edgekd.__all__) == len(set(edgekd.__all__))
