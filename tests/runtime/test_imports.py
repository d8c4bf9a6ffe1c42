import os
import subprocess
import sys
from pathlib import Path

import pytest
from engines import save_engine

import edgekd.runtime

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx_libs", "msgspec", "click", "rich")


def _modules():
    package = Path(edgekd.runtime.__file__).parent
    return sorted(".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("[a-z]*.py"))


@pytest.mark.parametrize("module", _modules())
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
        "from edgekd.errors import MissingDependency\nfrom edgekd.runtime.backends.onnxruntime import open_engine\n"
        "try:\n    open_engine(b'')\nexcept MissingDependency as error:\n    print(error)"
    )
    assert 'pip install "edgekd[runtime]"' in _python(code)


def test_onnx_runtime_reports_nothing_to_its_maker(tmp_path):
    """It keeps a database of what it will send in the user's cache, from its import on."""
    engine = save_engine(tmp_path / "e.onnx")
    code = (
        "from pathlib import Path\nfrom edgekd.runtime.backends.onnxruntime import open_engine\n"
        f"open_engine(Path({str(engine)!r}))"
    )
    _python(code, HOME=str(tmp_path / "home"), XDG_CACHE_HOME=str(tmp_path / "home"))
    assert not (tmp_path / "home").exists()


def _python(code, **variables):
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
