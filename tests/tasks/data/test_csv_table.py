import numpy as np
import pytest

from edgekd.errors import DataError
from edgekd.tasks.data.columns import Categories, Words
from edgekd.tasks.data.division import Division
from edgekd.tasks.data.files import Arrays
from edgekd.tasks.data.table import from_csv
from edgekd.tasks.data.words import word_tokens
from edgekd.training.task.protocol import SPLITS

HEADER = "area,rooms,about,colour,kind,price,old,red,owner"


@pytest.fixture
def table(tmp_path):
    """A function that writes a table of 40 rows, some of them replaced."""

    def write(replaced=None, header=HEADER):
        rows = [
            f"{row / 2},{row % 5},a house {row},{'red' if row % 2 else 'blue'},{'flat' if row % 3 else 'villa'},"
            f"{row * 10},{row % 2},1,o{row // 2}"
            for row in range(40)
        ]
        for row, text in (replaced or {}).items():
            rows[row] = text
        path = tmp_path / "houses.csv"
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path

    return write


def joined(data, name):
    """Return a modality of all splits in the order of the table, with the rows' numbers."""
    rows = np.array([int(name.rsplit("-", 1)[1]) for split in SPLITS for name in data.splits[split].ids])
    values = np.concatenate([data.splits[split].inputs[name].numpy() for split in SPLITS])
    return values[np.argsort(rows)]


def test_columns_become_modalities_and_classes(table):
    data = from_csv(table(), {"size": ["area", "rooms"], "about": Words("about", length=4)}, target="kind")
    assert data.classes == ("flat", "villa")
    np.testing.assert_array_equal(joined(data, "size"), [[row / 2, row % 5] for row in range(40)])
    np.testing.assert_array_equal(joined(data, "about")[7], word_tokens("a house 7", 4, 1024))
    assert [(m.name, m.shape, m.dtype, m.pad) for m in data.modalities] == [
        ("size", (2,), "float32", None),
        ("about", (4,), "int64", 0),
    ]
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 24, "val": 4, "calibration": 4, "test": 8,
    }  # fmt: skip
    for split in data.splits.values():
        assert [("villa" if int(name[-6:]) % 3 == 0 else "flat") for name in split.ids] == [
            data.classes[label] for label in split.labels
        ]
    assert (data.outputs[0].name, data.outputs[0].kind) == ("logits", "classes")


def test_names_are_indices_and_the_description_says_of_what(table):
    data = from_csv(table(), {"size": "area", "colour": Categories("colour")}, target="kind")
    assert data.modalities[1].description == "colour: 0 blue, 1 red"
    np.testing.assert_array_equal(joined(data, "colour")[:, 0], np.arange(40) % 2)


def test_a_regression_and_labels_have_targets_of_their_own(table):
    data = from_csv(table(), {"size": "area"}, target=["price", "area"], kind="regression")
    split = data.splits["test"]
    assert split.targets.shape == (8, 2)
    np.testing.assert_array_equal(split.targets[:, 1], split.inputs["size"][:, 0])
    data = from_csv(table(), {"size": "area"}, target=["old", "red"], kind="multilabel")
    assert data.splits["train"].targets[:, 1].tolist() == [1.0] * 24
    assert data.outputs[0].classes == ("old", "red")


def test_rows_of_a_group_stay_together(table):
    data = from_csv(table(), {"size": "area"}, target="kind", group="owner")
    owners = [set(split.groups) for split in data.splits.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 20


def test_a_column_may_name_the_splits(table, tmp_path):
    path = table()
    lines = path.read_text().splitlines()
    named = [f"{line},{SPLITS[row % 4]}" for row, line in enumerate(lines[1:])]
    path.write_text("\n".join([lines[0] + ",part", *named]))
    data = from_csv(path, {"size": "area"}, target="kind", division="part")
    assert data.splits["val"].ids == [f"houses-{row:06d}" for row in range(1, 40, 4)]
    path.write_text(path.read_text().replace("calibration", "val"))
    with pytest.raises(DataError, match="column 'part' has no row 'calibration'"):
        from_csv(path, {"size": "area"}, target="kind", division="part")
    path.write_text(path.read_text().replace("train", "training", 1))
    with pytest.raises(DataError, match=r"line 2: column 'part' is 'training', must be one of .*did you mean 'train'"):
        from_csv(path, {"size": "area"}, target="kind", division="part")


def test_a_row_without_all_of_a_modality_lacks_it(table):
    path = table({5: ",,a house,red,flat,1,0,1,o2", 6: "3,1,,red,flat,1,0,1,o3"})
    data = from_csv(path, {"size": ["area", "rooms"], "about": Words("about")}, target="kind")
    missing = {s.ids[i]: s[i].missing for s in data.splits.values() for i in range(len(s)) if s[i].missing}
    assert missing == {"houses-000005": ("size",), "houses-000006": ("about",)}


def test_files_beside_the_table_are_read(table, tmp_path):
    lines = table().read_text().splitlines()
    for row in range(40):
        np.save(tmp_path / f"{row}.npy", np.full((2, 3), row, np.float64))
    (tmp_path / "houses.csv").write_text(
        "\n".join([lines[0] + ",file", *(f"{x},{i}.npy" for i, x in enumerate(lines[1:]))])
    )
    data = from_csv(tmp_path / "houses.csv", {"signal": Arrays("file"), "size": "area"}, target="kind")
    assert (data.modalities[0].shape, data.modalities[0].dtype) == ((2, 3), "float32")
    np.testing.assert_array_equal(joined(data, "signal")[:, 0, 0], np.arange(40))
    assert len(data.files) == 41


def test_semicolons_quotes_and_a_mark_at_the_start_are_read(tmp_path):
    path = tmp_path / "t.csv"
    rows = "\n".join(f'"text; {row}";{row};{"a" if row % 2 else "b"}' for row in range(10))
    path.write_bytes(b"\xef\xbb\xbf" + f"say;n;kind\n{rows}\n\n".encode())
    data = from_csv(path, {"say": Words("say", length=2), "n": "n"}, target="kind")
    np.testing.assert_array_equal(joined(data, "say")[3], word_tokens("text 3", 2, 1024))


SIZE = {"size": ["area", "rooms"]}


@pytest.mark.parametrize(
    ("replaced", "modalities", "target", "kind", "told"),
    [
        (
            {2: "1,,x,red,flat,1,0,1,o"},
            SIZE,
            "kind",
            "classes",
            "line 4: column 'rooms' is empty; fill it, leave the row",
        ),
        (
            {2: "1,two,x,red,flat,1,0,1,o"},
            SIZE,
            "kind",
            "classes",
            "line 4: column 'rooms' is 'two', which is no number; ",
        ),
        ({2: "1,inf,x,red,flat,1,0,1,o"}, SIZE, "kind", "classes", "column 'rooms' is 'inf', which is not finite"),
        ({2: "1,2,x,red,,1,0,1,o"}, SIZE, "kind", "classes", "line 4: column 'kind' is empty; fill it, or leave"),
        ({2: "1,2,x,red,hut,1,0,1,o"}, SIZE, "kind", "classes", "houses.csv: class 'hut' is in 1 sample; each must"),
        ({2: "1,2,x"}, SIZE, "kind", "classes", "line 4: has 3 cells, and the first line 9 columns"),
        ({2: "1,2,x,red,flat,,0,1,o"}, SIZE, "price", "regression", "line 4: column 'price' is empty"),
        ({2: "1,2,x,red,flat,1,2,1,o"}, SIZE, ["old", "red"], "multilabel", "line 4: column 'old' is 2; a label's"),
        (
            {2: "1,2,x,,flat,1,2,1,o"},
            {"c": Categories(["colour", "about"])},
            "kind",
            "classes",
            "column 'colour' is empty",
        ),
        (None, {"size": "aria"}, "kind", "classes", "has no column 'aria'; did you mean 'area'"),
        (None, {"size": []}, "kind", "classes", "a modality has no columns"),
        (None, SIZE, ["kind", "price"], "classes", "for classes it is one column"),
        (None, SIZE, "kind", "clases", "there is no kind of target 'clases'; did you mean 'classes'"),
        (None, {"x": Arrays("about")}, "kind", "classes", r"a house 0: cannot be read: No such file"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(table, replaced, modalities, target, kind, told):
    with pytest.raises(DataError, match=told):
        from_csv(table(replaced), modalities, target, kind)


def test_a_file_that_is_no_table_is_said_to_be_none(tmp_path):
    path = tmp_path / "t.csv"
    for content, told in (
        (b"a,b\n", "has no rows"),
        (b"", "has no rows"),
        (b"a,a\n1,2\n", "has two columns 'a'"),
        (b"a,b\n\xff\xfe,1\n", "is not in UTF-8"),
        (b'a,b\n"1,2\n', "is no CSV"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"t.csv.*{told}"):
            from_csv(path, {"x": "a"}, target="b")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        from_csv(tmp_path / "none.csv", {"x": "a"}, target="b")


def test_words_need_a_length_and_two_ids():
    with pytest.raises(DataError, match="length = 0, buckets = 1024; must be 1 and 2 or more"):
        Words("about", length=0)


def test_another_seed_is_another_division(table):
    splits = [
        from_csv(table(), SIZE, target="kind", division=Division(seed=seed)).splits["test"].ids for seed in (0, 0, 1)
    ]
    assert splits[0] == splits[1] != splits[2]
