import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "msgspec", "click", "rich")


@pytest.mark.parametrize("module", ["bundle", "manifest", "session", "ort", "measure", "agent"])
def test_nothing_heavy_is_imported(module):
    code = f"import sys, edgekd.runtime.{module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    assert _python(code).split() == []


def test_the_package_itself_is_quick_to_import():
    code = "import time; s = time.perf_counter(); import edgekd.runtime; print(time.perf_counter() - s)"
    assert min(float(_python(code)) for _ in range(3)) < 0.15


def test_the_public_load_is_the_bundles():
    assert _python("import edgekd; print(edgekd.load.__module__)").strip() == "edgekd.runtime.bundle"


def test_a_missing_engine_library_names_its_install(tmp_path):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from edgekd.errors import MissingDependency\nfrom edgekd.runtime.ort import open_engine\n"
        "try:\n    open_engine(b'')\nexcept MissingDependency as error:\n    print(error)"
    )
    assert 'pip install "edgekd[runtime]"' in _python(code)


def _python(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
