"""Plain folders of images: what is one, what is in it, and in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from samples import draw_photo

from ltdeploy.datasets import FolderDataset, open_dataset, open_unlabelled
from ltdeploy.datasets.unlabelled import UnlabelledFolder, is_unlabelled_folder
from ltdeploy.errors import DataError, UsageError


@pytest.fixture
def field(tmp_path: Path) -> Path:
    """Return a folder of three photographs, and files that are none."""
    folder = tmp_path / "field"
    folder.mkdir()
    for name in ("b.JPG", "a.png", "c.jpeg"):
        draw_photo(0, 8, 8).save(folder / name)
    for name in ("notes.txt", ".hidden.jpg"):
        (folder / name).write_text("")
    (folder / ".thumbnails").mkdir()
    return folder


def test_a_plain_folder_of_images_is_opened(field: Path) -> None:
    dataset = open_unlabelled(str(field))
    assert isinstance(dataset, UnlabelledFolder)
    assert len(dataset) == 3
    assert dataset.name == "field"
    assert dataset.class_names is None
    assert dataset.labels.tolist() == [0, 0, 0]
    assert dataset.labels.dtype == np.int64
    names = [dataset.identifier(index) for index in range(3)]
    assert names == ["field/a.png", "field/b.JPG", "field/c.jpeg"]
    assert [dataset.source(index) for index in range(3)] == [
        field / "a.png",
        field / "b.JPG",
        field / "c.jpeg",
    ]


def test_the_folder_that_one_stands_in_has_a_name(
    field: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(field)
    dataset = open_unlabelled(".")
    assert dataset.identifier(0) == "field/a.png"
    monkeypatch.chdir("/")  # where one goes afterwards does not matter
    assert Path(str(dataset.source(0))).exists()


def test_a_home_folder_is_found(field: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(field.parent))
    assert len(open_unlabelled("~/field")) == 3


def test_labelled_data_are_opened_as_they_are(photo_folder: Path, field: Path) -> None:
    assert isinstance(open_unlabelled(str(photo_folder)), FolderDataset)
    assert not is_unlabelled_folder(photo_folder)
    # Images beside class folders are not the whole data set.
    (field / "species").mkdir()
    assert not is_unlabelled_folder(field)


def test_what_is_no_folder_of_images_is_not_taken_for_one(tmp_path: Path, field: Path) -> None:
    assert is_unlabelled_folder(field)
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (empty, tmp_path / "absent", field / "a.png", tmp_path / ("x" * 300)):
        assert not is_unlabelled_folder(path)
        with pytest.raises(DataError):
            open_unlabelled(str(path))
    with pytest.raises(UsageError, match="leave it out"):
        open_unlabelled(str(tmp_path / "empty"), root=str(tmp_path))


def test_where_labels_are_needed_a_plain_folder_is_refused(field: Path) -> None:
    for hidden in (field / ".thumbnails",):
        hidden.rmdir()
    with pytest.raises(DataError, match="no class folders, so their classes are not known"):
        open_dataset(str(field))


def test_a_list_may_have_labels_in_some_lines(tmp_path: Path) -> None:
    for name in ("a.png", "b 7"):
        draw_photo(0, 8, 8).save(tmp_path / name, format="png")
    path = tmp_path / "list.txt"
    path.write_text("a.png\nb 7\na.png 3\n")
    dataset = open_unlabelled(str(path))
    assert [dataset.identifier(index) for index in range(3)] == ["a.png", "b 7", "a.png"]
