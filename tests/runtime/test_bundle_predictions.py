"""Predictions for samples from a file: what each kind of output means, and a newcomer's mistakes."""

import re

import numpy as np
import pytest
from bundles import make_bundle
from engines import CLASSES, samples

import edgekd
from edgekd.errors import BundleError, ModelError
from edgekd.gram.output_kind import OutputKind
from edgekd.runtime.predict import Meaning, Predictions, describe_output
from edgekd.runtime.sample_file import read_samples
from edgekd.runtime.session import TensorSpec

SPECS = (TensorSpec("accel", "float32", ("batch", 4)), TensorSpec("image", "float32", ("batch", 1, 2, 3)))
#: Scores of two classes at four places, three of which are of the first.
SKY = np.eye(2)[[[0, 0], [0, 1]]].transpose(2, 0, 1)
HOW = {"accel": "m/s^2, divided by 9.81", "image": "0..255 divided by 255"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "cpu" / "bundle"
    make_bundle(folder)
    return folder


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_what_is_said_is_what_the_bundle_gives(bundle, tmp_path):
    rows = samples(70)
    found = edgekd.predict(bundle, saved(tmp_path / "s.npz", ids=np.array([f"s{i}" for i in range(70)]), **rows))
    with edgekd.load(bundle) as opened:
        logits = opened.run(rows)["logits"]
        names = opened.predict(rows)
    np.testing.assert_array_equal(found.outputs["logits"], logits)
    assert [answer["logits"]["top"][0]["class"] for answer in found.answers] == names
    powers = np.exp(logits[69].astype(float))
    top = found.answers[69]["logits"]["top"]
    assert [one["probability"] for one in top] == pytest.approx(sorted(powers / powers.sum(), reverse=True), abs=1e-5)
    assert found.sentences(69)["logits"].startswith(f"{names[69]} 0.")
    assert (found.ids[69], found.notes) == ("s69", ())


def test_embeddings_are_among_the_outputs_and_are_no_answers(bundle, tmp_path):
    found = edgekd.predict(bundle, saved(tmp_path / "s.npz", **samples(2)), embeddings=True)
    assert set(found.outputs) == {"logits", "embedding.accel", "embedding.image"}
    assert list(found.answers[0]) == ["logits"]


def test_a_bundle_that_states_its_kind_is_read_by_it(tmp_path):
    make_bundle(tmp_path / "bundle", outputs={"logits": OutputKind("multilabel")})
    found = edgekd.predict(tmp_path / "bundle", saved(tmp_path / "s.npz", **samples(3)))
    held = {one["label"] for one in found.answers[0]["logits"]["labels"]}
    assert held == {name for name, logit in zip(CLASSES, found.outputs["logits"][0], strict=True) if logit >= 0}


def test_a_kind_of_another_edgekd_is_one_error(tmp_path):
    make_bundle(tmp_path / "bundle", outputs={"logits": OutputKind("boxes")})
    with pytest.raises(BundleError, match="output 'logits' is of a kind that this edgekd does not know: boxes"):
        edgekd.predict(tmp_path / "bundle", saved(tmp_path / "s.npz", **samples(3)))


def words(kind, values, classes=()):
    meaning, values = Meaning(kind, classes), np.array(values, np.float32)
    found = Predictions(
        ("a",), {"out": values[None]}, ({"out": describe_output(meaning, values)},), (), {"out": meaning}
    )
    return found.sentences(0)["out"]


@pytest.mark.parametrize(
    ("kind", "values", "classes", "said"),
    [
        (OutputKind(probabilities=True), [0.25, 0.75], ("cat", "dog"), "dog 0.750, cat 0.250"),
        (OutputKind(), [0, 0], (), "0 0.500, 1 0.500"),
        (OutputKind("multilabel"), [2, -2, 0], ("a", "b", "c"), "a 0.881, c 0.500"),
        (OutputKind("multilabel", True, 0.9), [0.5, 0.2], (), "none reaches 0.9"),
        (OutputKind("regression"), [[1, 2.5]], (), "1, 2.5"),
        (OutputKind("regression", threshold=2.0), [1.5], (), "1.5 (below 2)"),
        (OutputKind("regression"), np.zeros((1, 20, 20)), (), "1×20×20 numbers from 0 to 0, mean 0"),
        (OutputKind("embedding"), [3, 4], (), "2 numbers of length 5"),
        (
            OutputKind("dense-classes"),
            np.eye(2)[[[0, 0], [0, 1]]].transpose(2, 0, 1),
            ("sky", "sea"),
            "2×2: sky 75.0%, sea 25.0%",
        ),
        (OutputKind("sequence-classes"), np.eye(3)[[0, 1, 1]], ("up", "down", "-"), "up down down"),
        (OutputKind("sequence-classes", blank=0), np.eye(3)[[1, 1, 0, 1, 2]], ("_", "a", "b"), "aab"),
        (OutputKind(), [np.nan, 1], (), "no answer: the engine gave what is not a finite number"),
    ],
)
def test_each_kind_is_told_in_its_own_words(kind, values, classes, said):
    assert words(kind, values, classes) == said


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda rows: {f"input.{name}": array for name, array in rows.items()}, None),
        (lambda rows: {**rows, "labels": np.zeros(3), "target.boxes": np.zeros(3)}, None),
        (lambda rows: {**rows, "speed": np.zeros(3)}, "Not read: 'speed'."),
        (
            lambda rows: {**rows, "accel": rows["accel"].astype(float)},
            "'accel' was float64 and was converted",
        ),
        (lambda rows: {**rows, "accel": rows["accel"].astype(">f4")}, "'accel' was >f4 and was converted"),
    ],
    ids=["prefixed", "beside", "unknown", "double", "big-endian"],
)
def test_what_can_be_mended_safely_is_and_is_said(tmp_path, change, note):
    rows = samples(3)
    read = read_samples(saved(tmp_path / "s.npz", **change(rows)), SPECS, HOW)
    assert [told.removesuffix(" to float32.") for told in read.notes] == ([note] if note else [])
    for name, array in rows.items():
        np.testing.assert_array_equal(read.feeds[name], array)


def test_one_sample_without_a_batch_becomes_a_batch_of_one(tmp_path):
    alone = {name: array[0] for name, array in samples(1).items()}
    read = read_samples(saved(tmp_path / "s.npz", **alone), SPECS, HOW)
    assert read.feeds["image"].shape == (1, 1, 2, 3)
    assert read.notes == ("The arrays were taken for one sample: they have no dimension of a batch.",)


def test_an_engine_of_one_row_at_a_time_takes_any_number(tmp_path):
    specs = tuple(TensorSpec(spec.name, spec.dtype, (1, *spec.shape[1:])) for spec in SPECS)
    assert len(read_samples(saved(tmp_path / "s.npz", **samples(5)), specs, HOW).ids) == 5


@pytest.mark.parametrize("name", ["array.npy", "array.npz"])
def test_a_lone_array_is_the_only_input(tmp_path, name):
    (np.save if name.endswith("y") else np.savez)(tmp_path / name, samples(3)["accel"])
    assert read_samples(tmp_path / name, SPECS[:1], HOW).feeds["accel"].shape == (3, 4)


def _nan(rows):
    rows["image"][2, 0, 1, 1] = np.nan
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"acel": r["accel"], "image": r["image"]}, "has no array 'accel', float32 [batch, 4]; did you mean"),
        (lambda r: {"accel": r["accel"]}, "has no array 'image', float32 [batch, 1, 2, 3]; it has 'accel'"),
        (_nan, "input 'image' of sample 2 is not finite: it has nan at [2, 0, 1, 1]"),
        (
            lambda r: {**r, "image": r["image"].astype(np.uint8)},
            "but is uint8; scale it as the network was trained",
        ),
        (lambda r: {**r, "accel": np.array(["a"])}, "must be float32 [batch, 4], but is <U1; store it as that type"),
        (
            lambda r: {**r, "accel": r["accel"] + np.float64(1e300)},
            "input 'accel' is float64, and 1e+300 at [0, 0] is no float32",
        ),
        (lambda r: {**r, "image": r["image"].transpose(0, 2, 3, 1)}, "np.transpose(array, [0, 3, 1, 2]) changes that"),
        (lambda r: {**r, "accel": r["accel"][0]}, "it has no batch, and other inputs do"),
        (lambda r: {**r, "accel": r["accel"][:, :3]}, "must be float32 [batch, 4], but has the shape [3, 3]"),
        (lambda r: {**r, "accel": r["accel"][:2]}, "but they have different numbers: 'accel' 2, 'image' 3"),
        (lambda r: {name: array[:0] for name, array in r.items()}, "has no samples, its arrays have no rows"),
        (lambda r: {**r, "accel": np.array([{}])}, "is pickled (allow_pickle), and may run code when it is read"),
    ],
    ids=["name", "missing", "nan", "uint8", "text", "overflow", "axes", "batch", "width", "rows", "empty", "pickled"],
)
def test_a_mistake_is_one_line_that_says_what_to_do(tmp_path, change, message):
    path = saved(tmp_path / "s.npz", **{name: np.asarray(a) for name, a in change(samples(3)).items()})
    with pytest.raises(ModelError, match=re.escape(f"{path}: ") + f".*{re.escape(message)}"):
        read_samples(path, SPECS, HOW)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "photo.png",
            b"\x89PNG\r\n\x1a\n",
            "is a picture or a recording, and edgekd decodes none; write an .npz",
        ),
        ("notes.txt", b"1, 2, 3", "is no .npz; write one with np.savez, with 'accel', float32 [batch, 4]; 'image'"),
        ("cut.npz", b"PK\x03\x04 and no more", "cannot be read as an .npz of plain arrays"),
        ("empty.npz", b"", "is no .npz"),
    ],
)
def test_a_file_of_another_kind_is_named_as_that(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(message)):
        read_samples(tmp_path / name, SPECS, HOW)


def test_no_file_a_folder_and_a_lone_array_for_two_inputs(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    for path, message in (
        (tmp_path / "none.npz", "no such file; give an .npz with 'accel'"),
        (tmp_path, "is a folder; give an .npz with"),
        (tmp_path / "a.npy", "is a single array, and the bundle has 2 inputs; np.savez(FILE, accel=..., image=...)"),
    ):
        with pytest.raises(ModelError, match=re.escape(message)):
            read_samples(path, SPECS, HOW)


def test_a_folder_of_a_build_and_a_file_are_no_bundles(bundle, tmp_path):
    path = saved(tmp_path / "s.npz", **samples(1))
    with pytest.raises(BundleError, match=r"is not a bundle, .*; did you mean .*/cpu/bundle\?"):
        edgekd.predict(bundle.parents[1], path)
    with pytest.raises(BundleError, match=r"s\.npz: is a file; give the folder"):
        edgekd.predict(path, path)
