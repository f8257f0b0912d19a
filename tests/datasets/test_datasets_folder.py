"""Folders of class folders and lists of paths."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ltdeploy.datasets import FolderDataset, ListDataset, open_dataset
from ltdeploy.datasets.folder import IMAGE_SUFFIXES
from ltdeploy.errors import DataError


@pytest.fixture
def folder(photo_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photo_folder, tmp_path / "val"))


def test_a_folder_gives_names_labels_and_identifiers(photo_folder: Path) -> None:
    dataset = open_dataset(str(photo_folder))
    assert dataset.name == "val"
    assert dataset.class_names == ("cat", "dog", "lynx")
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert dataset.counts().tolist() == [3, 2, 1]
    assert dataset.identifier(4) == "val/dog/001.jpg"
    assert Path(dataset.source(4)) == photo_folder.resolve() / "dog" / "001.jpg"  # type: ignore[arg-type]


def test_the_order_is_torchvisions(folder: Path) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")
    for name in ("Zebra", "10", "2", "cat/b", "cat/b-c", "cat/b/deep"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for image in ("b.JPG", "a.png", "a b.webp"):
            shutil.copy(folder / "dog" / "000.jpg", folder / name / image)
    theirs = torchvision.ImageFolder(folder)
    ours = FolderDataset(folder)
    assert ours.class_names == tuple(theirs.classes)
    assert ours.labels.tolist() == theirs.targets
    paths = [str(ours.source(index)) for index in range(len(ours))]
    assert paths == [str(Path(path).resolve()) for path, _ in theirs.samples]


def test_hidden_and_other_files_are_passed_over(folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / "dog" / ".thumbnails").mkdir()
    for hidden in (".cache/x.jpg", "dog/.x.jpg", "dog/.thumbnails/x.jpg"):
        shutil.copy(folder / "dog" / "000.jpg", folder / hidden)
    (folder / "dog" / "notes.txt").write_text("a good dog")
    (folder / "readme.txt").write_text("beside the classes")
    dataset = FolderDataset(folder)
    assert dataset.counts().tolist() == [3, 2, 1]
    assert dataset.ignored_files == 1


def test_an_empty_class_stays_a_class(folder: Path) -> None:
    (folder / "bear").mkdir()
    dataset = FolderDataset(folder)
    assert dataset.class_names == ("bear", "cat", "dog", "lynx")
    assert dataset.counts().tolist() == [0, 3, 2, 1]
    assert dataset.empty_classes == ("bear",)


def test_a_folder_of_splits_needs_a_choice(folder: Path) -> None:
    parent = folder.parent
    shutil.copytree(folder, parent / "train")
    with pytest.raises(DataError, match=r"holds the splits train, val, not classes\. Name one"):
        open_dataset(str(parent))
    with pytest.raises(DataError, match=r"no split 'vall'.* Did you mean 'val'"):
        open_dataset(str(parent), split="vall")
    assert open_dataset(str(parent), split="train").name == "train"
    # Classes may be called like splits when there are images in them.
    for name in ("train", "val"):
        for path in (parent / name).rglob("*.jpg"):
            shutil.move(path, parent / name / f"{path.parent.name}{path.name}")
    assert open_dataset(str(parent)).class_names == ("train", "val")


def test_a_folder_without_classes_or_images_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds images but no class folders.*ltdeploy predict"):
        open_dataset(str(folder / "cat"))
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="has 1 class folders and no image in them"):
        open_dataset(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="has no class folders; expected FOLDER/CLASS/IMAGE"):
        open_dataset(str(tmp_path / "empty" / "cat"))
    (tmp_path / "empty" / "cat" / "test.parquet").touch()
    with pytest.raises(DataError, match=r"Name one of its files, for example .*test\.parquet"):
        open_dataset(str(tmp_path / "empty" / "cat"))


def test_links_are_followed_and_no_folder_is_entered_twice(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "dog", tmp_path / "elsewhere")
    (folder / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "dog" / "more again").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "again").symlink_to(".")
    (folder / "cat" / "up").symlink_to("..")
    (folder / "cat" / "far up").symlink_to(tmp_path.parent)
    (tmp_path / "elsewhere" / "round").symlink_to(folder / "dog")
    (folder / "wolf").symlink_to(tmp_path / "elsewhere")
    dataset = FolderDataset(folder)
    assert dataset.class_names == ("cat", "dog", "lynx", "wolf")
    assert dataset.counts().tolist() == [3, 4, 1, 4]
    assert dataset.identifier(5) == "val/dog/more/000.jpg"


def test_every_suffix_is_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


def test_a_list_in_the_layout_of_imagenet_lt(photo_folder: Path, tmp_path: Path) -> None:
    lines = ["cat/000.jpg 3", "", "dog/001.jpg\t0", f"{photo_folder}/lynx/000.jpg 7"]
    path = tmp_path / "ImageNet_LT_val.txt"
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    dataset = open_dataset(str(path), root=str(photo_folder))
    assert isinstance(dataset, ListDataset)
    assert dataset.class_names is None
    assert dataset.labels.tolist() == [3, 0, 7]
    assert dataset.counts().tolist() == [1, 0, 0, 1, 0, 0, 0, 1]
    assert dataset.identifier(1) == "dog/001.jpg"
    assert all(Path(dataset.source(index)).is_file() for index in range(3))  # type: ignore[arg-type]


def test_a_lists_paths_begin_beside_it_and_may_hold_spaces(folder: Path) -> None:
    shutil.move(folder / "cat", folder / "big cat")
    (folder / "list.txt").write_text("big cat/000.jpg 12\n")
    dataset = open_dataset(str(folder / "list.txt"))
    assert dataset.labels.tolist() == [12]
    assert Path(dataset.source(0)).is_file()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no image; expected at least one"),
        ("cat/000.jpg 0\ncat/001.jpg\n", "Line 2 of .* is 'cat/001.jpg'; expected 'path label'"),
        ("cat/000.jpg cat\n", "whole number as the label"),
        ("cat/000.jpg 1.0\n", "whole number as the label"),
        ("cat/000.jpg ²\n", "whole number as the label"),
        ("cat/000.jpg 0\ncat/001.jpg -1\n", "Image 1 of the data set .* label -1; expected 0 or"),
        ("lion/000.jpg 0\n", "first image of .* does not exist under .* --root"),
    ],
)
def test_a_wrong_list_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "list.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        open_dataset(str(folder / "list.txt"))


def test_a_list_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a text file in UTF-8"):
        open_dataset(str(folder / "list.txt"))
