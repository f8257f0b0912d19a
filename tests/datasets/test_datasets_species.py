"""The drawn species: same seed, same photographs; long-tailed; readable as any other data set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltdeploy.classes import ClassTable
from ltdeploy.datasets import FolderDataset, align_labels, open_dataset, read_classes
from ltdeploy.datasets.species import (
    SIZE_PX,
    SPECIES,
    SPLITS,
    SpeciesDataset,
    contact_sheet,
    draw,
    split_counts,
    write_folders,
)
from ltdeploy.datasets.species_catalogue import CATALOGUE
from ltdeploy.datasets.species_grounds import KINDS, ground
from ltdeploy.errors import DataError, UsageError

# Mean red, green and blue of the left and right half of a few photographs. Another Pillow or
# another CPU may round a pixel otherwise; another drawing moves these by tens.
GOLDEN = {
    (0, "train", 0): ((88.4, 79.1, 36.8), (75.5, 66.8, 31.2)),
    (9, "val", 3): ((132.4, 118.7, 108.0), (126.9, 113.4, 102.9)),
    (27, "test", 59): ((202.6, 177.8, 139.6), (189.6, 163.7, 127.1)),
}


def halves(image: np.ndarray) -> np.ndarray:
    middle = image.shape[1] // 2
    return np.stack([image[:, :middle].mean((0, 1)), image[:, middle:].mean((0, 1))])


@pytest.mark.parametrize("key", GOLDEN)
def test_photographs_stay_what_they_are(key: tuple[int, str, int]) -> None:
    assert np.abs(halves(draw(*key)) - np.array(GOLDEN[key])).max() < 1.0


def test_the_golden_figures_tell_photographs_apart() -> None:
    values = [np.array(golden) for golden in GOLDEN.values()]
    assert min(np.abs(a - b).max() for a in values for b in values if a is not b) > 5


def test_a_photograph_depends_on_all_of_its_key_and_on_nothing_else() -> None:
    first = draw(3, "train", 7, seed=1)
    assert first.shape == (SIZE_PX, SIZE_PX, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, draw(3, "train", 7, seed=1))
    for other in (
        draw(4, "train", 7, seed=1),
        draw(3, "val", 7, seed=1),
        draw(3, "train", 8, seed=1),
        draw(3, "train", 7, seed=2),
    ):
        assert np.abs(first.astype(int) - other).mean() > 3


def test_threads_and_order_do_not_matter() -> None:
    dataset = SpeciesDataset("test")
    indices = list(range(0, len(dataset), 70))
    one_by_one = [dataset.source(index) for index in indices]
    with ThreadPoolExecutor(4) as pool:
        shuffled = list(pool.map(dataset.source, reversed(indices)))
    for expected, got in zip(one_by_one, reversed(shuffled), strict=True):
        assert np.array_equal(expected, got)


@pytest.mark.parametrize("size_px", [32, 64, 201])
def test_any_size_can_be_drawn(size_px: int) -> None:
    assert draw(6, size_px=size_px).shape == (size_px, size_px, 3)


def test_a_larger_photograph_shows_the_same_moth() -> None:
    small, large = draw(2, "test", 1), draw(2, "test", 1, size_px=2 * SIZE_PX)
    shrunk = np.asarray(Image.fromarray(large).reduce(2), dtype=float)
    correlation = np.corrcoef(small.mean(axis=2).ravel(), shrunk.mean(axis=2).ravel())[0, 1]
    assert correlation > 0.8


def test_the_training_split_has_a_long_tail() -> None:
    table = ClassTable.from_counts(split_counts("train").tolist(), SPECIES)
    assert len(table) == 28
    assert table.counts[0] == 300
    assert table.counts[-1] == 3
    assert list(table.counts) == sorted(table.counts, reverse=True)
    sizes = {group: len(table.members(group)) for group in ("many", "medium", "few")}
    assert sizes == {"many": 7, "medium": 10, "few": 11}


def test_validation_and_test_are_balanced() -> None:
    assert set(split_counts("val")) == {20}
    assert set(split_counts("test")) == {60}


def test_every_rare_species_has_a_frequent_relative() -> None:
    counts = split_counts("train")
    frequent = {
        species.name.split()[0] for species, n in zip(CATALOGUE, counts, strict=True) if n > 90
    }
    assert {species.name.split()[0] for species in CATALOGUE} == frequent


def test_no_two_species_are_the_same_drawing() -> None:
    assert len(set(SPECIES)) == len(SPECIES)
    assert len({(species.fore, species.hind) for species in CATALOGUE}) == len(CATALOGUE)


def test_a_species_varies_and_grounds_differ() -> None:
    photos = np.stack([draw(0, "val", number) for number in range(12)]).astype(float)
    corners = photos[:, :12, :12].mean((1, 2))
    assert corners.std(axis=0).min() > 15
    tones = [np.asarray(ground(kind), dtype=float).mean((0, 1)) for kind in range(len(KINDS))]
    assert min(np.abs(a - b).max() for a in tones for b in tones if a is not b) > 5


def test_labels_names_and_identifiers_agree() -> None:
    dataset = SpeciesDataset("train")
    assert dataset.name == "species:train"
    assert dataset.class_names == SPECIES
    assert len(dataset) == split_counts("train").sum()
    assert np.array_equal(dataset.counts(), split_counts("train"))
    assert dataset.identifier(0) == "train/Ocelvera regina/000.jpg"
    assert dataset.identifier(300) == "train/Cineroptis undata/000.jpg"
    assert dataset.identifier(len(dataset) - 1) == "train/Striganthe argentea/002.jpg"
    assert np.array_equal(dataset.source(301), draw(1, "train", 1))


def test_splits_and_seeds_share_no_photograph() -> None:
    sources = [SpeciesDataset(split) for split in SPLITS] + [SpeciesDataset("val", seed=1)]
    photos = [dataset.source(index).tobytes() for dataset in sources for index in (0, 1, 30)]
    assert len(set(photos)) == len(photos)


def test_it_opens_by_name() -> None:
    assert open_dataset("species:val").name == "species:val"
    assert read_classes("species").counts == tuple(split_counts("train").tolist())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"split": "val", "seed": -1}, "seed is -1"),
        ({"split": "val", "size_px": 8}, "8 px"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        SpeciesDataset(**arguments)  # type: ignore[arg-type]


def test_folders_hold_the_same_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdeploy.datasets.species._PER_SPECIES", {"val": 2, "test": 2})
    folder = write_folders(tmp_path / "photos", "val")
    assert folder == tmp_path / "photos" / "val"
    written, drawn = FolderDataset(folder), SpeciesDataset("val")
    assert len(written) == len(drawn) == 56
    table = ClassTable.from_counts(split_counts("train").tolist(), SPECIES)
    assert sorted(align_labels(written, table)) == sorted(drawn.labels)
    for index in (0, 13, 55):
        photo = np.asarray(Image.open(folder.parent / drawn.identifier(index)), dtype=float)
        assert np.abs(photo - drawn.source(index)).mean() < 5
    assert [entry.name for entry in folder.parent.iterdir()] == ["val"]


def test_folders_are_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: SpeciesDataset, index: int) -> np.ndarray:
        if index == 5:
            raise KeyboardInterrupt
        return np.zeros((32, 32, 3), dtype=np.uint8)

    monkeypatch.setattr(SpeciesDataset, "source", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_folders(tmp_path, "val")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="exists"):
        write_folders(tmp_path, "val")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_folders(tmp_path / "file", "val")


def test_the_contact_sheet_shows_every_species(tmp_path: Path) -> None:
    contact_sheet(tmp_path / "sheet.png", columns=5, size_px=48)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * 48, 6 * 48)
        pixels = np.asarray(sheet, dtype=float)
    cells = pixels.reshape(6, 48, 5, 48, 3).std(axis=(1, 3)).mean(axis=2).ravel()
    assert (cells[:28] > 5).all()
    assert (cells[28:] == 0).all()
    with pytest.raises(DataError, match="cannot be written as a picture"):
        contact_sheet(tmp_path / "sheet.nonsense", size_px=32)


def test_a_contact_sheet_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Image.Image, path: Path, format: str) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    (tmp_path / "sheet.jpg").write_bytes(b"the old one")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            contact_sheet(tmp_path / "sheet.jpg", size_px=32)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"the old one"]
    contact_sheet(tmp_path / "sheet.jpg", size_px=32)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
    with pytest.raises(DataError, match="cannot be written as a picture: No such file"):
        contact_sheet(tmp_path / "nowhere" / "sheet.png", size_px=32)
