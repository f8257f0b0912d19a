"""Class tables from files, label alignment, and opening data by what the user typed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdeploy.classes import ClassTable
from ltdeploy.datasets import Dataset, align_labels, open_dataset, read_classes
from ltdeploy.errors import DataError, UsageError


class Drawn(Dataset):
    """A data set in memory."""

    def __init__(self, labels: list[int], names: tuple[str, ...] | None = None) -> None:
        super().__init__("drawn", names, np.array(labels, dtype=np.int64))

    def source(self, index: int) -> np.ndarray:
        return np.full((2, 2), index, dtype=np.uint8)

    def identifier(self, index: int) -> str:
        return f"drawn#{index}"


def table(*names: str) -> ClassTable:
    return ClassTable(names, (5,) * len(names))


def nameless(classes: int) -> ClassTable:
    return ClassTable.from_counts([5] * classes)


@given(st.permutations(["cat", "dog", "lynx", "bear"]))
def test_names_decide_whatever_the_order(names: list[str]) -> None:
    dataset = Drawn([0, 1, 2, 3, 3], tuple(names))
    aligned = align_labels(dataset, table("cat", "dog", "lynx", "bear", "fox"))
    known = ("cat", "dog", "lynx", "bear")
    assert [known[label] for label in aligned] == [names[label] for label in dataset.labels]


def test_unknown_names_are_refused_only_where_they_have_images() -> None:
    names = ("cat", "dgo", *(f"new {n}" for n in range(6)))
    with pytest.raises(DataError, match=r"'dgo', 'new 0'.* and 2 more.* Did you mean 'dog'"):
        align_labels(Drawn(list(range(8)), names), table("cat", "dog"))
    assert align_labels(Drawn([0, 0], names), table("dog", "cat")).tolist() == [1, 1]


def test_positions_decide_where_one_side_has_no_names() -> None:
    assert align_labels(Drawn([2, 0]), table("a", "b", "c")).tolist() == [2, 0]
    assert align_labels(Drawn([2, 0], ("x", "y", "z")), nameless(3)).tolist() == [2, 0]
    with pytest.raises(DataError, match="drawn#1 has the label 3, but the model has 3 classes"):
        align_labels(Drawn([0, 3]), table("a", "b", "c"))
    with pytest.raises(
        DataError, match=r"2 named classes and the model 3 without names.*--classes"
    ):
        align_labels(Drawn([0, 1], ("x", "y")), nameless(3))


def test_folders_called_by_numbers() -> None:
    padded = tuple(f"{n:02d}" for n in range(12))
    assert align_labels(Drawn([0, 11], padded), nameless(12)).tolist() == [0, 11]
    some = ("3", "7")
    assert align_labels(Drawn([0, 1], some), nameless(12)).tolist() == [3, 7]
    with pytest.raises(DataError, match="has the class 12, but the model has 12 classes"):
        align_labels(Drawn([0, 1], ("3", "12")), nameless(12))
    alphabetical = tuple(sorted(str(n) for n in range(12)))
    with pytest.raises(DataError, match=r"numbered without leading zeros.*--classes"):
        align_labels(Drawn([0, 1], alphabetical), nameless(12))
    named = table(*alphabetical)
    assert align_labels(Drawn([0, 2], alphabetical), named).tolist() == [0, 2]


def test_a_data_set_counts_its_classes() -> None:
    assert Drawn([0, 2, 2]).counts().tolist() == [1, 0, 2]
    assert Drawn([0, 0], ("a", "b", "c")).counts().tolist() == [2, 0, 0]
    with pytest.raises(
        DataError, match="Image 1 of the data set drawn has the label 2; expected 0 to 1"
    ):
        Drawn([0, 2], ("a", "b"))
    with pytest.raises(DataError, match="has no image"):
        Drawn([])


@pytest.mark.parametrize(
    ("text", "names", "counts"),
    [
        ("name,train_count\ncat,500\nlynx,4\n", ("cat", "lynx"), (500, 4)),
        ("\ufeffName , Train_Count\r\ncat, 500 \r\n\r\nlynx,4", ("cat", "lynx"), (500, 4)),
        ('label,name,train_count\n1,"big, cat",4\n0,cat,500\n', ("cat", "big, cat"), (500, 4)),
        (
            "id,name,frequency,image_count,instance_count\n1,a,r,2,9\n2,b,c,7,8\n",
            ("a", "b"),
            (2, 7),
        ),
        ("cat,500\nlynx,4\n", ("cat", "lynx"), (500, 4)),
        ("1,lynx,4\n0,cat,500\n", ("cat", "lynx"), (500, 4)),
        ("500\n4\n0\n", ("0", "1", "2"), (500, 4, 0)),
    ],
)
def test_class_tables_are_read(
    tmp_path: Path, text: str, names: tuple[str, ...], counts: tuple[int, ...]
) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(text, encoding="utf-8")
    assert read_classes(str(path)) == ClassTable(names, counts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a csv with the columns name,train_count"),
        ("name,train_count\n", "has a header and no class"),
        ("name,train_cuont\ncat,5\n", "no column 'train_count'.*Did you mean 'train_cuont'"),
        ("kind,train_count\ncat,5\n", "no column 'name'"),
        ("name,train_count\ncat,many\n", "Line 2 of .* training count 'many'; expected a whole"),
        ("name,train_count\ncat,5.5\n", "training count '5.5'"),
        ("name,train_count\ncat\n", "Line 2 of .* has 1 columns; expected 2"),
        ("name,train_count\ncat,5\nlynx,-4\n", "'lynx' .* training count -4; expected 0 or more"),
        ("name,train_count\ncat,5\ncat,4\n", "'cat' stands twice in the class table, at labels 0"),
        ("name,train_count\ncat,0\ndog,0\n", "All training counts are zero"),
        ("name,train_count\n,3\n", "has an empty name"),
        ("label,name,train_count\n0,a,1\n2,b,1\n", "label 2 stands where 1 was expected"),
        ("label,name,train_count\n0,a,1\n0,b,1\n", "label 0 stands where 1 was expected"),
        ("label,name,train_count\n5,a,1\n6,b,1\n", "do not run from 0 or 1"),
        ("1,2,3,4\n", "has 4 columns and no header"),
    ],
)
def test_wrong_class_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_classes(str(path))


def test_class_tables_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="cannot be read as a csv file"):
        read_classes(str(path))
    with pytest.raises(DataError, match=r"other\.csv does not exist"):
        read_classes(str(tmp_path / "other.csv"))


def test_the_fields_own_class_tables(data_dir: Path) -> None:
    places = read_classes(str(data_dir / "places_lt_classes.csv"))
    assert (len(places), sum(places.counts)) == (365, 62_500)
    assert (max(places.counts), min(places.counts)) == (4_980, 5)
    for name, classes in (("lvis_v0.5_categories.csv", 1230), ("lvis_v1_categories.csv", 1203)):
        assert len(read_classes(str(data_dir / "lvis" / name))) == classes
    cifar = read_classes(str(data_dir / "cifar100" / "train_lt_if100.parquet"))
    assert (cifar.names[0], cifar.counts[0], cifar.counts[-1]) == ("apple", 500, 5)


def test_any_data_can_be_counted(photo_folder: Path, tmp_path: Path) -> None:
    assert read_classes(str(photo_folder)) == ClassTable(("cat", "dog", "lynx"), (3, 2, 1))
    (tmp_path / "list.txt").write_text("cat/000.jpg 0\ndog/000.jpg 2\n")
    assert read_classes(str(tmp_path / "list.txt"), str(photo_folder)).counts == (1, 0, 1)


def test_a_wrong_path_names_what_is_there(photo_folder: Path, tmp_path: Path) -> None:
    near = photo_folder.parent / "vall"
    with pytest.raises(DataError, match=rf"vall does not exist; .* Did you mean '{photo_folder}'"):
        open_dataset(str(near))
    with pytest.raises(DataError, match=rf"Did you mean '{photo_folder}'"):
        open_dataset(str(near / "cat"))
    with pytest.raises(DataError, match=r"specis does not exist.* Did you mean 'species'"):
        open_dataset("specis")
    with pytest.raises(DataError, match=r"000\.jpg is a file, not a folder"):
        open_dataset(str(photo_folder / "cat" / "000.jpg" / "deeper"))
    with pytest.raises(DataError, match="cannot be read: File name too long; expected a folder"):
        open_dataset("x" * 300)
    with pytest.raises(DataError, match=r"no split 'tset'.* Did you mean 'test'"):
        open_dataset("species:tset")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("val.json", "COCO and LVIS json files hold boxes, which detectors need"),
        ("classes.csv", "class table .*but holds no images"),
        ("photo.jpg", r"is not a data set; expected a folder of class folders, a \.parquet"),
        ("noextension", "is not a data set"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(DataError, match=message):
        open_dataset(str(tmp_path / name))


def test_root_is_for_lists_only(photo_folder: Path) -> None:
    for spec in (str(photo_folder), "species:val"):
        with pytest.raises(UsageError, match=r"--root /x was given, but .* is not a list of paths"):
            open_dataset(spec, root="/x")
