"""Parquet files in the Hugging Face image layout."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltdeploy.datasets import open_dataset, parquet
from ltdeploy.errors import DataError, ImageError
from ltdeploy.images import load_image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(
    path: Path,
    images: list[Any],
    labels: list[Any],
    *,
    names: Any = ("cat", "dog"),
    columns: tuple[str, str] = ("image", "label"),
    image_type: Any = None,
    rows_per_group: int = 2,
) -> Path:
    image_type = image_type or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = [pa.array(images, image_type), pa.array(labels)]
    table = pa.Table.from_arrays(arrays, names=list(columns))
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def structs(count: int) -> list[dict[str, Any]]:
    return [{"bytes": b"image %d" % number, "path": None} for number in range(count)]


def test_rows_names_and_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "test.parquet", structs(5), [0, 1, 1, 0, 1])
    dataset = open_dataset(str(path))
    assert dataset.name == "test.parquet"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == [0, 1, 1, 0, 1]
    assert [dataset.source(index) for index in range(5)] == [b"image %d" % n for n in range(5)]
    assert dataset.identifier(3) == "test.parquet#3"


def test_rows_come_right_in_any_order_from_many_threads_and_a_small_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_CACHE_BYTES", 60)
    path = write(tmp_path / "test.parquet", structs(200), [0, 1] * 100, rows_per_group=3)
    dataset = open_dataset(str(path))
    order = np.random.default_rng(0).permutation(200).tolist() * 3
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(dataset.source, order))
    assert got == [b"image %d" % index for index in order]
    assert dataset._cached_bytes <= 60  # type: ignore[attr-defined]
    assert 1 <= len(dataset._groups) < 10  # type: ignore[attr-defined]


def test_paths_stand_in_for_bytes(tmp_path: Path) -> None:
    images = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}, None]
    dataset = open_dataset(str(write(tmp_path / "train.parquet", images, [0, 1, 1])))
    assert dataset.source(0) == tmp_path / "a.jpg"
    for index in (1, 2):
        with pytest.raises(ImageError, match=f"train.parquet#{index} holds neither bytes nor"):
            dataset.source(index)


@pytest.mark.parametrize("names", [{"1": "dog", "0": "cat"}, ["cat", "dog"]])
def test_both_ways_of_naming_classes(tmp_path: Path, names: Any) -> None:
    path = write(tmp_path / "a.parquet", structs(2), [0, 1], names=names)
    assert open_dataset(str(path)).class_names == ("cat", "dog")


def test_binary_images_fine_labels_and_no_names(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        [b"x", b"y"],
        pa.array([4, 9], pa.int32()),
        names=None,
        columns=("img", "fine_label"),
        image_type=pa.binary(),
    )
    dataset = open_dataset(str(path))
    assert dataset.class_names is None
    assert dataset.labels.tolist() == [4, 9]
    assert dataset.source(1) == b"y"


def test_damaged_metadata_costs_only_the_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", structs(1), [0], names=None)
    table = pq.read_table(path).replace_schema_metadata({"huggingface": "{no json"})
    pq.write_table(table, path)
    assert open_dataset(str(path)).class_names is None


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        ([], pa.array([], pa.int64()), {}, "has no image; expected at least one"),
        (structs(2), [0, None], {}, "1 rows without a value in the label column 'label'"),
        (structs(2), [0, 2], {}, "has the label 2; expected 0 to 1"),
        (structs(2), [0, -1], {}, "has the label -1; expected 0 to 1"),
        (structs(1), ["cat"], {}, r"whole-number columns \(none\); expected one called label"),
        (["a"], [0], {"image_type": pa.string()}, "columns image, label and no image among them"),
    ],
)
def test_a_wrong_file_is_refused(
    tmp_path: Path, images: list[Any], labels: list[Any], options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.parquet", images, labels, **options)
    with pytest.raises(DataError, match=message):
        open_dataset(str(path))


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing more", b"not parquet at all" * 9])
def test_what_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        open_dataset(str(tmp_path / "a.parquet"))


def test_cifar100_as_it_is(data_dir: Path) -> None:
    dataset = open_dataset(str(data_dir / "cifar100" / "test.parquet"))
    assert len(dataset) == 10_000
    assert dataset.class_names is not None
    assert dataset.class_names[0] == "apple"
    assert dataset.counts().tolist() == [100] * 100
    assert load_image(dataset.source(9_999)).size == (32, 32)
    train = open_dataset(str(data_dir / "cifar100" / "train_lt_if100.parquet"))
    assert train.class_names == dataset.class_names
    assert (train.counts().max(), train.counts().min(), len(train)) == (500, 5, 10_847)
    other = {train.source(index) for index in range(len(train))}
    assert sum(dataset.source(index) in other for index in range(1_000)) < 10
