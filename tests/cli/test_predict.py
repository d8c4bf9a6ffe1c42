"""The command predict, on a bundle that a build made."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from commands import python

from edgekd.cli import main


@pytest.fixture(scope="module")
def file(built, tmp_path_factory):
    path = tmp_path_factory.mktemp("predict") / "samples.npz"
    with np.load(built.bundle / "reference.npz") as reference:
        inputs = {key.removeprefix("input."): reference[key] for key in reference if key.startswith("input.")}
        np.savez(path, ids=reference["ids"], **inputs)
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def reference(built):
    with np.load(built.bundle / "reference.npz") as arrays:
        return arrays["ids"].tolist(), arrays["output.logits"]


def test_it_says_the_classes_of_the_bundles_own_samples(built, file):
    result = run(built.bundle, file)
    assert (result.exit_code, result.stderr) == (0, "")
    ids, logits = reference(built)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ids
    outputs = json.loads((built.bundle / "manifest.json").read_text("utf-8"))["outputs"]
    names = next(output["classes"] for output in outputs if output["name"] == "logits")
    assert [line.split()[1] for line in lines] == [names[index] for index in logits.argmax(1)]


def test_json_and_the_outputs_hold_the_same(built, file, tmp_path):
    result = run(built.bundle, file, "--json", "--embeddings", "--output", tmp_path / "out.npz")
    assert result.exit_code == 0
    ids, logits = reference(built)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["id"] for row in rows] == ids
    assert rows[0]["logits"]["kind"] == "classes"
    with np.load(tmp_path / "out.npz") as written:
        assert written["ids"].tolist() == ids
        np.testing.assert_allclose(written["logits"], logits, atol=1e-3)
        assert any(name.startswith("embedding.") for name in written)


def test_it_needs_neither_torch_nor_what_builds(built, file):
    code = (
        "import sys\nfrom edgekd.cli import main\n"
        f"main(['predict', {str(built.bundle)!r}, {str(file)!r}], standalone_mode=False)\n"
        "heavy = ('torch', 'onnx', 'openvino', 'edgekd.config.recipe', 'edgekd.training', 'edgekd.compress')\n"
        "print('loaded', [name for name in heavy if name in sys.modules])"
    )
    process = python("-c", code, cwd=file.parent)
    assert process.stdout.splitlines()[-1] == "loaded []", process.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--embeddings",), "--embeddings needs --output"),
        (("--output", "out.txt"), "must end in .npz"),
        (("--output", "nowhere/out.npz"), "its folder is not there"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_runs(built, file, options, message):
    result = run(built.bundle, file, *options)
    assert result.exit_code == 2
    assert message in result.output


def test_the_file_of_the_samples_is_not_written_over(built, file):
    before = file.read_bytes()
    assert "would be lost" in run(built.bundle, file, "--output", file).output
    assert file.read_bytes() == before


def test_the_folder_of_the_build_is_no_bundle_and_the_hint_names_it(built, file):
    result = run(built.output, file)
    assert result.exit_code == 9
    assert f"did you mean {built.bundle}?" in result.output


def test_a_mend_is_told_beside_the_answers(built, file, tmp_path):
    with np.load(file) as arrays:
        alone = {name: arrays[name][0].astype(float) for name in arrays if name != "ids"}
    np.savez(tmp_path / "one.npz", **alone)
    result = run(built.bundle, tmp_path / "one.npz")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert "note: The arrays were taken for one sample" in result.stderr
    assert result.stderr.count("was converted to float32") == len(alone)
