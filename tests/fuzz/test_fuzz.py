"""A few of the inputs of ``make fuzz``, the same in every run."""

import re
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).with_name("fuzz.py")


def fuzz(tmp_path, *options):
    command = [sys.executable, FUZZ, "--keep", str(tmp_path / "kept"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)


def test_broken_inputs_are_taken_or_refused_in_one_line(tmp_path):
    done = fuzz(tmp_path, "--inputs", "250")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^250 inputs \(.* bundle, .* npz, .* onnx, .* recipe, .* task\) in .* s: none failed$", done.stdout, re.M
    )


def test_an_input_that_fails_is_kept_and_named(tmp_path):
    code = (
        f"import sys; sys.argv = ['fuzz.py', '--inputs', '2', '--kind', 'recipe', '--keep', {str(tmp_path / 'kept')!r}]\n"
        f"sys.path.insert(0, {str(FUZZ.parent)!r})\n"
        "import fuzz, fuzz_inputs\n"
        "fuzz_inputs.KINDS['recipe'] = lambda folder, random: 1 / 0\n"
        "fuzz.warm = lambda: None\n"
        "sys.exit(fuzz.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "ZeroDivisionError" in done.stdout
    assert "2 inputs (2 recipe)" in done.stdout
    assert "2 failed, see" in done.stdout
    assert len(list((tmp_path / "kept").glob("recipe-*/traceback.txt"))) == 2
