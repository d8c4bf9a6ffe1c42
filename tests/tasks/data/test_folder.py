import wave

import numpy as np
import pytest
from PIL import Image

from edgekd.errors import DataError
from edgekd.tasks.data.files import Images, Sounds, resampled
from edgekd.tasks.data.folder import from_folder
from edgekd.training.task.protocol import SPLITS


def sound(path, values):
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(8000)
        opened.writeframes(np.asarray(values, "<i2").tobytes())


@pytest.fixture
def folders(tmp_path):
    """Twelve samples of two classes, each an image of 6 x 4 pixels in its number's colour and a sound of its number."""
    for name in ("cat", "dog"):
        for kind in ("images", "sounds"):
            (tmp_path / kind / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (4, 6), (number, 255, 0)).save(tmp_path / "images" / name / f"s{number // 2}-{number}.png")
            sound(tmp_path / "sounds" / name / f"s{number // 2}-{number}.wav", [number, -32768, 0])
    return tmp_path


def test_files_of_one_name_are_one_sample(folders):
    data = from_folder({"image": folders / "images", "sound": folders / "sounds"})
    assert data.classes == ("cat", "dog")
    assert [(m.name, m.shape) for m in data.modalities] == [("image", (3, 6, 4)), ("sound", (1, 3))]
    assert sum(len(split) for split in data.splits.values()) == 12
    for name in SPLITS:
        split = data.splits[name]
        for index in range(len(split)):
            sample = split[index]
            number = int(sample.id[-1])
            assert sample.id.startswith(data.classes[sample.label])
            np.testing.assert_allclose(sample.inputs["image"][:, 5, 3], np.array([number, 255, 0]) / 255, rtol=1e-6)
            np.testing.assert_allclose(sample.inputs["sound"][0], [number / 32768, -1, 0])


def test_the_start_of_a_name_may_be_the_group(folders):
    with pytest.raises(DataError, match="class 'cat' is in 3 groups, 'dog' is in 3 groups; each must be in 4"):
        from_folder({"image": folders / "images"}, group="s[0-9]+")
    for name in ("cat", "dog"):
        Image.new("RGB", (4, 6)).save(folders / "images" / name / "s9-9.png")
    data = from_folder({"image": folders / "images"}, group="(s[0-9]+)-")
    assert {name: set(split.groups) for name, split in data.splits.items()}["train"] <= {"s0", "s1", "s2", "s9"}
    with pytest.raises(DataError, match="'cat/s0-0': its name does not begin as the group's expression says: t"):
        from_folder({"image": folders / "images"}, group="t")


def test_images_are_resampled_and_grey_where_that_is_said(folders):
    data = from_folder({"image": Images(str(folders / "images"), size=(3, 2), channels=1)})
    assert data.modalities[0].shape == (1, 3, 2)
    value = data.splits["train"][0]
    assert value.inputs["image"].flatten() == pytest.approx((0.299 * int(value.id[-1]) + 0.587 * 255) / 255, abs=1e-5)


def test_resampling_keeps_a_slope_and_the_mean():
    slope = np.arange(12, dtype=np.float32)[None, None].repeat(4, 1)
    half = resampled(slope, (2, 6))[0, 0]
    np.testing.assert_allclose(np.diff(half)[1:-1], 2, atol=1e-5)
    assert half.mean() == pytest.approx(5.5)
    np.testing.assert_allclose(resampled(slope, (4, 12)), slope)


def test_sounds_are_cut_and_filled_up(folders):
    sound(folders / "sounds" / "cat" / "s0-0.wav", [1, 2, 3, 4, 5, 6])
    with pytest.raises(DataError, match=r"s0-1.wav: has the shape \(1, 3\) .*: give Sounds\(..., frames=...\)"):
        from_folder({"sound": folders / "sounds"})
    data = from_folder({"sound": Sounds(str(folders / "sounds"), frames=4)})
    found = {
        split.ids[i]: split.inputs["sound"][i, 0] * 32768 for split in data.splits.values() for i in range(len(split))
    }
    assert found["cat/s0-0"].tolist() == [1, 2, 3, 4]
    assert found["cat/s0-1"].tolist() == [1, -32768, 0, 0]


def test_unpaired_files_are_refused_or_missing(folders):
    (folders / "sounds" / "dog" / "s1-3.wav").unlink()
    pair = {"image": folders / "images", "sound": folders / "sounds"}
    with pytest.raises(DataError, match="1 of 12 samples have no file of modality 'sound': dog/s1-3; files of one"):
        from_folder(pair)
    data = from_folder(pair, unpaired="missing")
    missing = [s[i].id for s in data.splits.values() for i in range(len(s)) if s[i].missing == ("sound",)]
    assert missing == ["dog/s1-3"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda f: Image.new("RGB", (5, 6)).save(f / "cat" / "s0-0.png"),
            r"has the shape .*Images\(..., size=\(height",
        ),
        (
            lambda f: (f / "loose.png").touch(),
            "loose.png: is in no class's folder; lay it in one, as images/CLASS/loose.png",
        ),
        (lambda f: (f / "cat" / "deeper").mkdir(), "deeper: is a folder"),
        (lambda f: (f / "cat" / "s0-0.jpg").touch(), "s0-0.png: has the same name as s0-0.jpg"),
        (lambda f: (f / "cat" / "s0-0.png").write_bytes(b"\x89PNG\r\n\x1a\n123"), "s0-0.png: is damaged, and no PNG"),
        (lambda f: (f / "cat" / "s0-0.png").write_text("x"), "s0-0.png: cannot be read as an image"),
        (lambda f: [file.rename(file.with_suffix(".xyz")) for file in (f / "cat").iterdir()], "files ending in '.xyz'"),
    ],
)
def test_what_is_wrong_in_a_folder_is_said_with_its_file(folders, spoil, told):
    spoil(folders / "images")
    with pytest.raises(DataError, match=told):
        from_folder({"image": folders / "images"})


def test_folders_that_are_not_there_or_empty_are_said_to_be(tmp_path):
    with pytest.raises(DataError, match="none: is no folder"):
        from_folder({"image": tmp_path / "none"})
    with pytest.raises(DataError, match="has no files; there must be one folder for each class"):
        from_folder({"image": tmp_path})
    with pytest.raises(DataError, match="no folder is named"):
        from_folder({})


def test_hidden_files_are_left_out(folders):
    (folders / "images" / ".DS_Store").touch()
    (folders / "images" / "cat" / ".hidden.png").touch()
    assert sum(len(split) for split in from_folder({"image": folders / "images"}).splits.values()) == 12


def test_only_whole_numbers_of_sound_are_read(folders, tmp_path):
    path = folders / "sounds" / "cat" / "s0-0.wav"
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(3)
        opened.setframerate(8000)
        opened.writeframes(b"abcdef")
    with pytest.raises(DataError, match="has 24 bits a value"):
        from_folder({"sound": folders / "sounds"})
    path.write_bytes(b"RIFF")
    with pytest.raises(DataError, match="cannot be read as WAV"):
        from_folder({"sound": folders / "sounds"})
