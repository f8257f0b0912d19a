"""What to classify: which inputs are taken, in which order, under which names."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import draw_photo

from ltdeploy.bulk import open_inputs
from ltdeploy.datasets import open_dataset, open_unlabelled
from ltdeploy.errors import DataError, UsageError
from ltdeploy.images import load_image


def names(*texts: str | Path, root: str | None = None) -> list[str]:
    inputs = open_inputs([str(text) for text in texts], root=root)
    return [inputs.identifier(place) for place in range(len(inputs))]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with three photos in ``photos`` and below."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.jpg", "photos/a.png", "photos/deep/c.JPG"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        draw_photo(1, 8, 8).save(name)
    Path("photos/notes.md").write_text("no image")
    return tmp_path


def bytes_of(path: str) -> dict[str, object]:
    return {"bytes": Path(path).read_bytes(), "path": None}


def test_files_and_folders_in_the_order_asked(here: Path) -> None:
    assert names("photos") == ["photos/a.png", "photos/b.jpg", "photos/deep/c.JPG"]
    assert names("photos/b.jpg", "photos/deep") == ["photos/b.jpg", "photos/deep/c.JPG"]


def test_links_to_folders_are_followed_once(here: Path, tmp_path: Path) -> None:
    Path("photos/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    Path("elsewhere").mkdir()
    draw_photo(2, 8, 8).save("elsewhere/d.png")
    Path("elsewhere/again").symlink_to(tmp_path / "photos", target_is_directory=True)
    assert names("photos") == [
        "photos/a.png",
        "photos/b.jpg",
        "photos/deep/c.JPG",
        "photos/link/d.png",
    ]


def test_a_folder_that_cannot_be_read_is_not_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if os.fspath(path).endswith("deep"):  # root may read everything
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"photos/deep cannot be read: Permission denied"):
        names("photos")


def test_a_list_of_paths_with_and_without_labels(here: Path) -> None:
    Path("bare.txt").write_text("photos/a.png\n\nphotos/deep/c.JPG\n")
    Path("labelled.txt").write_text("a.png 3\ndeep/c.JPG 0\n")
    assert names("bare.txt") == ["photos/a.png", "photos/deep/c.JPG"]
    assert names("labelled.txt", root="photos") == ["a.png", "deep/c.JPG"]
    inputs = open_inputs(["labelled.txt"], root="photos")
    assert load_image(inputs.source(1)).size == (8, 8)
    # A data set with labels still asks for them.
    with pytest.raises(DataError, match="expected 'path label'"):
        open_dataset("bare.txt")


def test_a_parquet_file_needs_no_labels(here: Path) -> None:
    rows = [bytes_of("photos/a.png"), bytes_of("photos/b.jpg")]
    pq.write_table(pa.table({"image": rows}), "two.parquet")
    assert names("two.parquet", "photos/b.jpg") == [
        "two.parquet#0",
        "two.parquet#1",
        "photos/b.jpg",
    ]
    assert open_unlabelled("two.parquet").labels.tolist() == [0, 0]
    with pytest.raises(DataError, match="whole-number columns"):
        open_dataset("two.parquet")


def test_rows_of_files_with_one_name_are_told_apart(here: Path) -> None:
    for folder, count in (("da", 2), ("db", 1)):
        Path(folder).mkdir()
        rows = [bytes_of("photos/a.png")] * count
        for name in ("x", folder):
            pq.write_table(pa.table({"image": rows}), f"{folder}/{name}.parquet")
    assert names("da/x.parquet", here / "db/x.parquet") == [
        "da/x.parquet#0",
        "da/x.parquet#1",
        f"{here}/db/x.parquet#0",
    ]
    assert names("da/da.parquet", "db/db.parquet") == [
        "da.parquet#0",
        "da.parquet#1",
        "db.parquet#0",
    ]
    assert names("da/da.parquet", "da/da.parquet")[::2] == ["da.parquet#0"] * 2
    inputs = pickle.loads(pickle.dumps(open_inputs(["da/x.parquet", "db/x.parquet"])))
    assert inputs.identifier(2) == "db/x.parquet#0"


def test_lists_with_one_path_in_two_folders_are_told_apart(here: Path) -> None:
    for folder in ("photos", "other"):
        Path(folder).mkdir(exist_ok=True)
        draw_photo(1, 8, 8).save(f"{folder}/a.png")
        Path(f"{folder}/list.txt").write_text("a.png\n")
    assert names("photos/list.txt", "other/list.txt") == ["photos/a.png", "other/a.png"]
    assert names("photos/list.txt", "photos/list.txt") == ["a.png", "a.png"]
    assert names("photos/list.txt", "other/list.txt", root="photos") == ["a.png", "a.png"]


def test_inputs_travel(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": [bytes_of("photos/a.png")]}), "one.parquet")
    inputs = open_inputs(["one.parquet", "photos"])
    load_image(inputs.source(0))
    pickled = pickle.dumps(inputs)
    monkeypatch.chdir("/")  # an actor may stand anywhere
    arrived = pickle.loads(pickled)
    assert arrived.fingerprint() == inputs.fingerprint()
    for place in range(4):
        assert load_image(arrived.source(place)).size == (8, 8)


def test_a_fingerprint_is_of_the_list(here: Path) -> None:
    whole = open_inputs(["photos"]).fingerprint()
    assert open_inputs(["photos/a.png", "photos/b.jpg", "photos/deep"]).fingerprint() == whole
    assert open_inputs(["photos/b.jpg", "photos/a.png", "photos/deep"]).fingerprint() != whole
    assert open_inputs(["photos/deep"]).fingerprint() != whole
    pq.write_table(pa.table({"image": [bytes_of("photos/a.png")]}), "one.parquet")
    before = open_inputs(["one.parquet"]).fingerprint()
    draw_photo(2, 64, 64).save("photos/a.png")
    pq.write_table(pa.table({"image": [bytes_of("photos/a.png")]}), "one.parquet")
    assert open_inputs(["one.parquet"]).fingerprint() != before


@pytest.mark.parametrize("text", ["-", "https://example.org/a.jpg", "s3://bucket/a.jpg"])
def test_nothing_is_fetched(text: str) -> None:
    with pytest.raises(UsageError, match=r"neither stdin nor addresses"):
        open_inputs([text])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("phtos", "phtos does not exist; expected an image, a folder of images.*'photos'"),
        ("photos/a.pgn", "a.pgn does not exist.*Did you mean 'a.png'"),
        ("photos/depe/c.JPG", "does not exist.*Did you mean 'deep'"),
        ("lst.txt", "does not exist; expected .*txt list"),
        ("photos/a.png/b", "does not exist"),
        ("specis", "Did you mean 'species'"),
        ("a\0b", "cannot be read"),
    ],
)
def test_what_is_typed_wrong_is_no_input(here: Path, text: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint):
        open_inputs(["photos", text])


def test_a_path_inside_a_list_may_be_missing(here: Path) -> None:
    Path("list.txt").write_text("photos/a.png\nphotos/gone.png\n")
    assert names("list.txt") == ["photos/a.png", "photos/gone.png"]


def test_what_cannot_be_opened(here: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        open_inputs(["empty"])
    with pytest.raises(DataError, match="does not exist"):
        open_inputs(["gone.parquet"])
    with pytest.raises(UsageError, match=r"--root .* no \.txt list"):
        open_inputs(["photos"], root="photos")
