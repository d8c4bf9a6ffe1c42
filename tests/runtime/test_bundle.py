import hashlib
import json
import os
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from bundles import FACTS, make_bundle, make_files
from engines import CLASSES, EMBEDDINGS, INPUTS, samples, save_engine
from manifests import edit_manifest

import edgekd
import edgekd.runtime
from edgekd.errors import BundleError, EdgekdError, ModelError
from edgekd.gram.matrix import pair_cosines
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.bundle import load
from edgekd.runtime.bundle_writer import BundleFacts, write_bundle
from edgekd.runtime.manifest import read_branches, read_manifest

_ABSENT = object()
SCHEMA = json.loads(Path(edgekd.runtime.__file__).with_name("manifest.schema.json").read_text())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "bundle"
    make_bundle(folder)
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


# --- what a bundle is


def test_a_manifest_keeps_its_published_schema(pristine):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads((pristine / "manifest.json").read_text()), SCHEMA)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("outputs"),
        lambda m: m.update(extra=1),
        lambda m: m.update(schema_version=7),
        lambda m: m.pop("digest"),
        lambda m: m.update(digest="0"),
        lambda m: m.update(verdict="maybe"),
        lambda m: m["inputs"][0].pop("preprocessing"),
        lambda m: m["inputs"][0].update(shape=[2, 4]),
        lambda m: m["files"].update({"../x": m["files"]["ledger.json"]}),
        lambda m: m["files"].update({"/x": m["files"]["ledger.json"]}),
        lambda m: m["files"]["ledger.json"].update(sha256="0"),
        lambda m: m["files"].pop("deploy.onnx"),
    ],
)
def test_the_schema_is_strict(pristine, edit):
    manifest = json.loads((pristine / "manifest.json").read_text())
    edit(manifest)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA)


def test_a_manifest_says_what_is_in_the_folder(pristine):
    manifest = load(pristine).manifest
    assert (manifest.schema_version, manifest.edgekd, manifest.released) == (6, edgekd.__version__, True)
    assert manifest.files.keys() == {"deploy.onnx", "probe.onnx", "ledger.json", "reference.npz"}
    assert manifest.files["ledger.json"]["bytes"] == 2
    assert {output["name"]: (output["shape"], output["variants"]) for output in manifest.outputs} == {
        "logits": (["batch", 3], ["deploy", "probe"]),
        "embedding.accel": (["batch", 5], ["probe"]),
        "embedding.image": (["batch", 5], ["probe"]),
    }


def test_a_reference_holds_inputs_logits_and_cosines(pristine):
    with open_engine(pristine / "probe.onnx") as session, np.load(pristine / "reference.npz") as reference:
        outputs = session.run(samples(8))
        assert set(reference.files) == {"ids", "input.accel", "input.image", "output.logits", "gram"}
        assert np.array_equal(reference["input.image"], samples(8)["image"])
        assert np.array_equal(reference["output.logits"], outputs["logits"])
        assert np.array_equal(reference["gram"], pair_cosines({name: outputs[name] for name in EMBEDDINGS}))


def test_files_in_folders_belong_to_the_bundle_too(folder):
    (folder / "docs").mkdir()
    (folder / "docs" / "report.md").write_text("good")
    write_bundle(folder, BundleFacts(**FACTS))
    assert "docs/report.md" in load(folder).manifest.files


# --- opening and running


def test_the_deploy_variant_gives_logits_only(folder):
    with load(folder) as bundle:
        assert [spec.name for spec in bundle.inputs] == ["accel", "image"]
        assert [spec.name for spec in bundle.outputs] == ["logits"]
        assert bundle.run(samples(3))["logits"].shape == (3, 3)


@pytest.mark.parametrize("call", ["run", "predict"])
@pytest.mark.parametrize("feeds", [None, 3, [np.zeros((1, 4), np.float32)]], ids=["none", "number", "list"])
def test_what_is_no_dict_of_arrays_is_refused_with_an_example(folder, call, feeds):
    with load(folder) as bundle, pytest.raises(ModelError, match=r"instead of its inputs by name; .* e\.g\. run\("):
        getattr(bundle, call)(feeds)


def test_the_engine_variant_gives_embeddings_too(folder):
    with load(str(folder), variant="probe") as bundle:
        assert bundle.run(samples(3)).keys() == {"logits", *EMBEDDINGS}


def test_predictions_are_names_of_the_largest_logits(folder):
    with load(folder) as bundle:
        expected = [CLASSES[index] for index in bundle.run(samples(9))["logits"].argmax(1)]
        assert bundle.classes == tuple(CLASSES)
        assert bundle.predict(samples(9)) == expected
        assert len(set(expected)) > 1


def test_no_class_is_named_for_logits_that_are_not_numbers(tmp_path):
    make_bundle(tmp_path / "bundle", engine={"bias": np.nan}, deploy={"bias": np.nan})
    with load(tmp_path / "bundle") as bundle, pytest.raises(ModelError, match="scores that are not finite"):
        bundle.predict(samples(2))


@pytest.mark.parametrize("call", ["run", "predict"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_unless_that_is_switched_off(folder, call, value):
    feeds = samples(4)
    feeds["image"][2, 0, 1, 2] = value
    said = rf"input 'image' of sample 2 is not finite: it has {value} at \[2, 0, 1, 2\]; .* check_finite=False"
    with load(folder) as bundle, pytest.raises(ModelError, match=said):
        getattr(bundle, call)(feeds)
    with load(folder, check_finite=False) as bundle:
        assert not np.isfinite(bundle.run(feeds)["logits"][2]).all()


def test_wrong_feeds_are_refused(folder):
    with load(folder) as bundle, pytest.raises(ModelError, match="'accel'"):
        bundle.run({"image": samples(1)["image"]})


def test_a_closed_bundle_does_not_run(folder):
    with load(folder) as bundle:
        pass
    with pytest.raises(ModelError, match="closed"):
        bundle.run(samples(1))


def test_an_unknown_variant_is_named(folder):
    with pytest.raises(BundleError, match=r"no variant 'deply'; did you mean 'deploy'\?"):
        load(folder, variant="deply")


# --- what is refused


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["probe.onnx", "deploy.onnx", "reference.npz", "ledger.json"])
def test_a_flipped_bit_is_found_in_every_file(folder, name):
    _flip(folder / name)
    with pytest.raises(BundleError, match=f"{name}: is not the file that the manifest describes"):
        load(folder)


def test_a_longer_file_is_found(folder):
    with (folder / "deploy.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=r"deploy\.onnx: is not the file"):
        load(folder)


def test_altered_files_are_refused_before_any_is_opened(folder):
    # The broken model is listed as it is, the ledger is not: an engine library that saw the model would complain first.
    (folder / "deploy.onnx").write_bytes(b"broken")
    digest = hashlib.sha256(b"broken").hexdigest()
    edit_manifest(folder, lambda m: m["files"].update({"deploy.onnx": {"sha256": digest, "bytes": 6}}))
    _flip(folder / "ledger.json")
    with pytest.raises(BundleError, match=r"ledger\.json: is not the file"):
        load(folder)
    (folder / "ledger.json").write_text("{}")
    with pytest.raises(ModelError, match=r"deploy\.onnx: ONNX Runtime cannot open it"):
        load(folder)


@pytest.mark.parametrize("name", ["probe.onnx", "ledger.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: is missing"):
        load(folder)


def test_an_unlisted_file_is_named(folder):
    (folder / "more").mkdir()
    (folder / "more" / "plugin.so").write_bytes(b"")
    with pytest.raises(BundleError, match=r"more/plugin\.so: is not in the manifest"):
        load(folder)


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/../../x", "C:\\x", "./ledger.json", "a//b", ""])
def test_a_path_that_leaves_the_folder_is_refused(folder, name):
    (folder.parent / "x").write_bytes(b"")
    edit_manifest(folder, lambda m: m["files"].update({name: m["files"]["ledger.json"]}))
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        load(folder)


def test_a_pipe_for_a_manifest_is_refused_and_not_read(folder):
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json: is a link or no plain file"):
        load(folder)


@pytest.mark.parametrize("name", ["ledger.json", "manifest.json"])
def test_a_link_is_refused_even_to_the_same_content(folder, name):
    outside = (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(outside)
    with pytest.raises(BundleError, match=f"{name}: is a link or no plain file"):
        load(folder)


def test_a_linked_folder_is_refused(folder):
    (folder / "more").symlink_to(folder.parent, target_is_directory=True)
    with pytest.raises(BundleError, match="more: is a link"):
        load(folder)


def test_a_pipe_is_refused_and_not_read(folder):
    (folder / "ledger.json").unlink()
    os.mkfifo(folder / "ledger.json")
    with pytest.raises(BundleError, match=r"ledger\.json: is a link or no plain file"):
        load(folder)


def test_a_bundle_may_be_reached_by_a_link(folder):
    (folder.parent / "current").symlink_to(folder)
    with load(folder.parent / "current") as bundle:
        assert bundle.verify().ok


def test_no_folder(tmp_path):
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")


def test_no_manifest(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"is not a bundle, it has no manifest\.json"):
        load(folder)


def test_the_folder_above_a_bundle_is_told_from_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cpu" / "bundle")
    with pytest.raises(BundleError, match=r"no manifest\.json; did you mean .*cpu/bundle\?"):
        load(tmp_path / "cpu")


@pytest.mark.parametrize("text", ["", "{", "\udcff", "[" * 100_000], ids=["empty", "cut", "not-utf8", "deep"])
def test_a_manifest_that_is_not_json(folder, text):
    (folder / "manifest.json").write_text(text, errors="surrogateescape")
    with pytest.raises(BundleError, match=r"manifest\.json: is not valid JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.pop("schema_version"), "has schema_version None, and edgekd .* reads 6 only"),
        (lambda m: m.update(schema_version=3), "has schema_version 3, and edgekd .* 6 only; build the bundle again"),
        (lambda m: m.update(schema_version=True), "has schema_version True"),
        (lambda m: m.pop("outputs"), "has no 'outputs'"),
        (lambda m: m.update(files=[]), "'files' must be a dict, not a list"),
        (lambda m: m.update(tagret="cpu"), "unknown key 'tagret'; did you mean 'target'"),
        (lambda m: m["files"].update({"ledger.json": "ab"}), r"files\.ledger\.json must have exactly"),
        (lambda m: m["files"].update({"manifest.json": m["files"]["ledger.json"]}), "lists itself"),
        (lambda m: m["files"].pop("probe.onnx"), r"has no 'probe\.onnx'"),
        (lambda m: m.update(verdict="fail"), "'released' is True although the verdict is 'fail'"),
    ],
)
def test_a_malformed_manifest_is_refused(folder, edit, message):
    edit_manifest(folder, edit)
    with pytest.raises(BundleError, match=message):
        load(folder)


def test_no_bit_of_a_manifest_can_turn(folder):
    path = folder / "manifest.json"
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 13):  # every bit of a byte in its turn
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(BundleError):
            read_manifest(folder)
    path.write_bytes(content)
    assert load(folder).verify().ok


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "\n",
        lambda text: text.removesuffix("\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"pass"', '"warn"'),
        lambda text: text.replace('"left"', '"\\u006ceft"'),
        lambda text: text.replace('"target": "cpu"', '"target": "gpu",\n  "target": "cpu"'),
        lambda text: json.dumps(json.loads(text)) + "\n",
        lambda text: json.dumps(dict(sorted(json.loads(text).items())), indent=2) + "\n",
        lambda text: json.dumps({**json.loads(text), "digest": None}, indent=2) + "\n",
    ],
    ids=["more", "less", "crlf", "verdict", "escape", "twice", "one-line", "sorted", "no-digest"],
)
def test_a_manifest_has_one_text(folder, edit):
    path = folder / "manifest.json"
    before = path.read_text(encoding="utf-8")
    path.write_bytes(edit(before).encode())
    assert path.read_bytes() != before.encode()
    with pytest.raises(BundleError, match=r"manifest\.json: was altered, .*; copy or build the bundle again"):
        load(folder)


@pytest.mark.parametrize("text", ["more", "NaN", "1e999", '"\\ud800"'], ids=["longer", "nan", "inf", "surrogate"])
def test_a_manifest_that_json_or_utf8_cannot_hold(folder, text):
    path = folder / "manifest.json"
    said = path.read_text(encoding="utf-8")
    path.write_text(said + text if text == "more" else said.replace("0.99", text), encoding="utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json: is not valid JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"classes": {"logits": ["left", "right", "\udcff"]}},
            "its manifest cannot be written: .*surrogates not allowed",
        ),
        ({"task": {"name": "x", "chance": np.nan}}, "its manifest cannot be written: .*not JSON compliant"),
    ],
)
def test_what_a_manifest_cannot_hold_is_not_written(tmp_path, facts, message):
    with pytest.raises(BundleError, match=message):
        make_bundle(tmp_path / "bundle", **facts)
    assert not (tmp_path / "bundle" / "manifest.json").exists()


def test_names_of_any_script_are_kept(tmp_path):
    classes = ["gauche", "zażółć", "上"]
    make_bundle(tmp_path / "bundle", classes={"logits": classes})
    assert load(tmp_path / "bundle").classes == tuple(classes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda m: m["outputs"][0]["classes"].pop(),
            r"deploy\.onnx: 'logits' has 3 scores, but the manifest names 2 classes",
        ),
        (lambda m: m["inputs"][0].update(name="gyro"), "has an input 'accel', which the manifest does not state"),
        (lambda m: m["inputs"][0].update(dtype="int8"), r"'accel' is float32 \[.*states int8 \[batch, 4\]"),
        (lambda m: m["inputs"][0].update(shape=["batch", 5]), r"'accel' is float32 \[batch, 4\], .*\[batch, 5\]"),
        (
            lambda m: m["outputs"][0].update(shape=["batch", 3, 1]),
            r"'logits' is .*states float32 \[batch, 3, 1\]",
        ),
        (lambda m: m["outputs"][0].update(name="scores"), "an output 'logits', which the manifest does not state"),
        (lambda m: m["outputs"][1].update(variants=["deploy"]), "has no output 'embedding.accel', which the manifest"),
    ],
)
def test_an_engine_that_is_not_the_stated_one_is_refused(folder, edit, message):
    edit_manifest(folder, edit)
    with pytest.raises(BundleError, match=message):
        load(folder)


def test_a_classifier_without_logits_is_refused(folder):
    save_engine(folder / "deploy.onnx", outputs=["embedding.accel"])
    content = (folder / "deploy.onnx").read_bytes()
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    def edit(manifest):
        manifest["files"]["deploy.onnx"] = entry
        manifest["outputs"][0]["variants"] = ["probe"]
        manifest["outputs"][1]["variants"] = ["probe", "deploy"]

    edit_manifest(folder, edit)
    with pytest.raises(BundleError, match=r"deploy\.onnx: has no output 'logits'"):
        load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["outputs"][0]["classes"].append(3), r"outputs\.0\.classes\.3 must be a text, not of type int"),
        (lambda m: m.update(reasons=[None]), r"reasons\.0 must be a text, not of type NoneType"),
        (lambda m: m["versions"].update(onnx=1), r"versions\.onnx must be a text"),
        (lambda m: m["inputs"].append(5), r"inputs\.2 must have exactly 'name', 'dtype', 'shape', 'preprocessing'"),
        (lambda m: m["inputs"][0].update(name=["accel"]), r"inputs\.0\.name must be of type str, not list"),
        (lambda m: m["inputs"][0].update(shape=["batch", 4.0]), r"inputs\.0\.shape\.1 must be a size or a name"),
        (lambda m: m["outputs"][0].update(shape=[]), r"outputs\.0\.shape must have a batch"),
        (lambda m: m["inputs"].append(m["inputs"][0]), "inputs names one tensor twice"),
        (lambda m: m["outputs"][0].update(variants=[{}]), r"outputs\.0\.variants\.0 must be a text"),
        (lambda m: m["files"]["ledger.json"].update(bytes="2"), r"files\.ledger\.json\.bytes must be of type int"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(folder, edit, message):
    edit_manifest(folder, edit)
    with pytest.raises(BundleError, match=message):
        load(folder)


def _places(value, path=()):
    """Return the path of every value in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


def test_whatever_stands_in_a_manifest_is_refused_in_one_line_or_opens_and_runs(folder):
    original = (folder / "manifest.json").read_bytes()
    opened = 0
    for place in _places(json.loads(original))[1:]:
        for strange in (None, True, -1, 1e300, "", "\x1b[2J", [], {}, [[]], {"name": {}}, _ABSENT):

            def edit(manifest, place=place, strange=strange):
                for key in place[:-1]:
                    manifest = manifest[key]
                if strange is _ABSENT:
                    del manifest[place[-1]]
                else:
                    manifest[place[-1]] = strange

            if place == ("digest",):
                continue
            edit_manifest(folder, edit)
            try:
                with load(folder, runtime="onnxruntime", allow_rejected=True) as bundle:
                    bundle.predict(samples(1)) if bundle.classes else bundle.run(samples(1))
                    opened += 1
            except EdgekdError as error:
                assert "\n" not in str(error)  # noqa: PT017 - it may also open
            (folder / "manifest.json").write_bytes(original)
    assert opened > 10, "what only tells something may be anything"


def test_a_manifest_that_is_no_object(folder):
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="must be a JSON object, not a list"):
        load(folder)


def test_a_rejected_bundle_opens_only_when_that_is_asked_for(tmp_path):
    reasons = ["engine: 4.0% of top-1 classes changed"]
    make_bundle(tmp_path / "bundle", released=False, verdict="fail", reasons=reasons)
    with pytest.raises(BundleError, match=r"the gate rejected this bundle \(engine: 4\.0% of top-1"):
        load(tmp_path / "bundle")
    with load(tmp_path / "bundle", allow_rejected=True) as bundle:
        assert not bundle.manifest.released


def test_a_warned_bundle_is_released(tmp_path):
    make_bundle(tmp_path / "bundle", verdict="warn")
    assert load(tmp_path / "bundle").manifest.released


def test_of_an_undecided_bundle_the_recipe_has_said_whether_it_is_released(tmp_path):
    make_bundle(tmp_path / "yes" / "bundle", verdict="undecided", reasons=["undecided: n = 130 samples"])
    manifest = load(tmp_path / "yes" / "bundle").manifest
    assert (manifest.released, manifest.verdict) == (True, "undecided")
    jsonschema.validate(json.loads((tmp_path / "yes" / "bundle" / "manifest.json").read_text()), SCHEMA)
    reasons = ["undecided: n = 130 samples"]
    make_bundle(tmp_path / "no" / "bundle", released=False, verdict="undecided", reasons=reasons)
    with pytest.raises(BundleError, match=r"the gate rejected this bundle \(undecided: n = 130"):
        load(tmp_path / "no" / "bundle")


# --- what is not written


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"verdict": "perhaps"}, "although the verdict is 'perhaps'"),
        ({"classes": {"logits": CLASSES[:2]}}, "'logits' has 3 scores, but 2 classes were named"),
        ({"inputs": [{**INPUTS[0], "shape": ["batch", 5]}, INPUTS[1]]}, r"onnx: its inputs are .* would state"),
        ({"inputs": [{**INPUTS[0], "dtype": "float64"}, INPUTS[1]]}, r"onnx: its inputs are .* would state"),
    ],
)
def test_facts_that_the_engines_contradict_are_not_written(tmp_path, facts, message):
    with pytest.raises(BundleError, match=message):
        make_bundle(tmp_path / "bundle", **facts)
    assert not (tmp_path / "bundle" / "manifest.json").exists()


def test_an_engine_without_embeddings_is_not_written(tmp_path):
    with pytest.raises(BundleError, match=r"probe\.onnx: must have the outputs .*<modality>.*has \['logits'\]"):
        make_bundle(tmp_path / "bundle", engine={"outputs": ["logits"]})


def test_an_incomplete_folder_is_not_written(tmp_path):
    make_files(tmp_path / "bundle")
    (tmp_path / "bundle" / "ledger.json").unlink()
    with pytest.raises(BundleError, match=r"has no 'ledger\.json'"):
        write_bundle(tmp_path / "bundle", BundleFacts(**FACTS))


# --- verifying itself


@pytest.mark.parametrize("variant", ["deploy", "probe"])
def test_the_same_engine_verifies(folder, variant):
    with load(folder, variant=variant) as bundle:
        verification = bundle.verify()
    assert verification.ok
    assert (verification.samples, verification.flips) == (8, 0)
    assert verification.max_logit_error < 1e-5
    assert verification.gram_drift < 1e-6


def test_a_rotated_modality_does_not_verify(tmp_path):
    make_bundle(tmp_path / "bundle", engine={"turn": 0.5})
    verification = load(tmp_path / "bundle").verify()
    assert not verification.ok
    assert verification.gram_drift > 0.05


def test_flipped_classes_do_not_verify_though_the_gram_is_whole(tmp_path):
    make_bundle(tmp_path / "bundle", engine={"bias": 100.0})
    verification = load(tmp_path / "bundle").verify()
    assert not verification.ok
    assert verification.flips > 0
    assert verification.gram_drift < 1e-6


@pytest.mark.parametrize("variant", ["deploy", "probe"])
@pytest.mark.parametrize(("factor", "flips"), [(-1, True), (np.nan, True), (0.5, False)])
def test_both_variants_must_verify_though_the_other_is_whole(folder, variant, factor, flips):
    path = folder / "deploy.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "head.weight":
            weight = factor * onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight.astype(np.float32), tensor.name))
    onnx.save(model, path)
    entry = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    edit_manifest(folder, lambda m: m["files"].update({"deploy.onnx": entry}))
    with load(folder, variant=variant) as bundle:
        verification = bundle.verify()
    assert not verification.ok
    assert (verification.flips > 0) == flips
    assert not verification.output_error < 0.4
    assert verification.gram_drift < 1e-6


def test_a_measurement_that_is_not_a_number_is_null(tmp_path):
    make_bundle(tmp_path / "bundle", measurements={"accuracy": np.nan, "drift": [np.inf, 0.5]})
    assert load(tmp_path / "bundle").manifest.measurements == {"accuracy": None, "drift": [None, 0.5]}


def test_logits_that_are_not_numbers_do_not_verify(tmp_path):
    make_bundle(tmp_path / "bundle", engine={"bias": np.nan})
    assert not load(tmp_path / "bundle").verify().ok


@pytest.mark.parametrize("name", ["reference.npz", "probe.onnx"])
def test_a_file_altered_after_opening_is_found_by_verify(folder, name):
    with load(folder) as bundle:
        _flip(folder / name)
        with pytest.raises(BundleError, match=f"{name}: is not the file"):
            bundle.verify()


def test_a_reference_without_a_gram_is_named(folder):
    np.savez(folder / "reference.npz", ids=np.arange(8), **{"output.logits": np.zeros((8, 3))}, **_inputs(8))
    write_bundle(folder, BundleFacts(**FACTS))
    with pytest.raises(BundleError, match=r"reference\.npz: is not a bundle's reference: .*no array 'gram'"):
        load(folder).verify()


def test_a_reference_of_another_network_is_named(folder):
    np.savez(
        folder / "reference.npz", ids=[0], **{"output.logits": np.zeros((1, 4))}, gram=np.zeros((1, 1)), **_inputs(1)
    )
    write_bundle(folder, BundleFacts(**FACTS))
    with pytest.raises(BundleError, match=r"has logits \(1, 4\), but the engine gives \(1, 3\)"):
        load(folder).verify()


def _inputs(rows):
    return {f"input.{name}": array for name, array in samples(rows).items()}


# --- branches


def test_branches_are_those_of_the_file(tmp_path):
    make_files(tmp_path / "bundle")
    (tmp_path / "bundle" / "branches.json").write_text('{"conv": "image"}')
    write_bundle(tmp_path / "bundle", BundleFacts(**FACTS))
    assert read_branches(tmp_path / "bundle", read_manifest(tmp_path / "bundle")) == {"conv": "image"}


def test_a_bundle_of_before_has_no_branches(folder):
    assert read_branches(folder, read_manifest(folder)) == {}


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[]", "must be a table"), ('{"conv": 1}', "must be a table")]
)
def test_branches_that_are_none_are_refused(tmp_path, text, message):
    make_files(tmp_path / "bundle")
    (tmp_path / "bundle" / "branches.json").write_text(text)
    write_bundle(tmp_path / "bundle", BundleFacts(**FACTS))
    with pytest.raises(BundleError, match=rf"branches\.json: {message}"):
        read_branches(tmp_path / "bundle", read_manifest(tmp_path / "bundle"))


def test_altered_branches_are_refused(tmp_path):
    make_files(tmp_path / "bundle")
    (tmp_path / "bundle" / "branches.json").write_text('{"conv": "image"}')
    write_bundle(tmp_path / "bundle", BundleFacts(**FACTS))
    (tmp_path / "bundle" / "branches.json").write_text('{"conv": "audio"}')
    with pytest.raises(BundleError, match="is not the file that the manifest describes"):
        read_branches(tmp_path / "bundle", read_manifest(tmp_path / "bundle"))
