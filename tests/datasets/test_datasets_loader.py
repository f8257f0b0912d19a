"""Decoding ahead: order, failures, early exit."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.datasets import Batch, Loader, decode_ahead, open_dataset
from ltdeploy.errors import DataError, ImageError, UsageError
from ltdeploy.images import ImageLimits, ImageSource, Preprocessing, load_prepared

SMALL = Preprocessing(4, 6, resize_mode="none")


def numbered(number: int) -> tuple[str, ImageSource]:
    """Return an image that holds its own number; every seventh is damaged."""
    name = f"number {number}"
    if number % 7 == 6:
        return name, b"damaged"
    return name, np.full((4, 6), number % 256, dtype=np.uint8)


def decoding_threads() -> int:
    return sum(t.name.startswith("ltdeploy-decode") for t in threading.enumerate())


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 60), batch_size=st.integers(1, 20), workers=st.integers(1, 5))
def test_everything_comes_once_and_in_order(count: int, batch_size: int, workers: int) -> None:
    runs = list(
        decode_ahead(iter(range(count)), numbered, SMALL, batch_size=batch_size, workers=workers)
    )
    good = [number for number in range(count) if number % 7 != 6]
    bad = [number for number in range(count) if number % 7 == 6]
    assert [p for run in runs for p in run.positions.tolist()] == good
    assert [int(image[0, 0, 0]) for run in runs for image in run.images] == good
    failures = [failure for run in runs for failure in run.failures]
    assert [position for position, _ in failures] == bad
    assert all(isinstance(e, ImageError) and f"number {p} " in str(e) for p, e in failures)
    sizes = [len(run.positions) + len(run.failures) for run in runs]
    full, rest = divmod(count, batch_size)
    assert sizes == [batch_size] * full + [rest] * (rest > 0)
    assert decoding_threads() == 0


def test_a_loader_gives_the_data_sets_images(photo_folder: Path) -> None:
    dataset = open_dataset(str(photo_folder))
    options = Preprocessing(32, 32, resize_px=40)
    labels = dataset.labels + 10
    loader = Loader(dataset, labels, options, batch_size=4, workers=2)
    batches = list(loader)
    assert [len(batch.indices) for batch in batches] == [4, 2]
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.images.dtype == np.uint8
        assert batch.labels.dtype == batch.indices.dtype == np.int64
        for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
            np.testing.assert_array_equal(image, load_prepared(dataset.source(index), options))
            assert label == labels[index]
    assert loader.unreadable == []


def test_unreadable_images_are_named_and_the_run_goes_on(
    photo_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photo_folder, tmp_path / "val"))
    (folder / "cat" / "001.jpg").write_bytes(b"")
    dataset = open_dataset(str(folder))
    (folder / "lynx" / "000.jpg").unlink()
    loader = Loader(dataset, dataset.labels, SMALL, batch_size=1)
    for _ in range(2):  # a second round starts its own list
        batches = list(loader)
        assert [int(batch.indices[0]) for batch in batches] == [0, 2, 3, 4]
        assert [int(batch.labels[0]) for batch in batches] == [0, 0, 1, 1]
        names = [name for name, _ in loader.unreadable]
        assert names == ["val/cat/001.jpg", "val/lynx/000.jpg"]
        assert "val/cat/001.jpg is empty" in loader.unreadable[0][1]
        assert "val/lynx/000.jpg does not exist" in loader.unreadable[1][1]


def test_limits_reach_the_decoder(photo_folder: Path) -> None:
    dataset = open_dataset(str(photo_folder))
    loader = Loader(dataset, dataset.labels, SMALL, limits=ImageLimits(max_pixels=10))
    assert list(loader) == []
    assert len(loader.unreadable) == 6


def test_an_endless_stream_is_read_a_little_ahead() -> None:
    taken = 0

    def stream() -> Iterator[int]:
        nonlocal taken
        for number in itertools.count(1):
            taken = number
            yield number

    runs = decode_ahead(stream(), numbered, SMALL, batch_size=5, workers=2)
    next(runs)
    assert taken == 10
    next(runs)
    assert taken == 15
    runs.close()
    assert decoding_threads() == 0


def test_decoding_runs_while_the_consumer_works() -> None:
    # The last image's fetch is seen before the consumer asks for its batch.
    fetched = threading.Event()

    def fetch(number: int) -> tuple[str, ImageSource]:
        if number == 3:
            fetched.set()
        return numbered(number)

    runs = decode_ahead(range(4), fetch, SMALL, batch_size=2, workers=1)
    next(runs)
    assert fetched.wait(timeout=10)
    runs.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_an_early_exit_stops_the_threads(kind: type[BaseException]) -> None:
    fetched = 0

    def slow(number: int) -> tuple[str, ImageSource]:
        nonlocal fetched
        fetched += 1
        time.sleep(0.01)
        return numbered(number)

    def consume() -> None:
        for _ in decode_ahead(range(10_000), slow, SMALL, batch_size=100, workers=2):
            raise kind

    with pytest.raises(kind):
        consume()
    assert decoding_threads() == 0
    assert fetched < 250


def test_an_error_that_is_not_the_images_own_ends_the_run() -> None:
    def broken(number: int) -> tuple[str, ImageSource]:
        if number == 5:
            raise DataError("the disk is gone")
        return numbered(number)

    with pytest.raises(DataError, match="the disk is gone"):
        list(decode_ahead(range(100), broken, SMALL, batch_size=4, workers=2))
    assert decoding_threads() == 0


def test_wrong_numbers_are_refused(photo_folder: Path) -> None:
    dataset = open_dataset(str(photo_folder))
    with pytest.raises(UsageError, match="batch_size is 0; expected 1 or more"):
        Loader(dataset, dataset.labels, SMALL, batch_size=0)
    with pytest.raises(UsageError, match="workers is 0; expected 1 or more"):
        list(Loader(dataset, dataset.labels, SMALL, workers=0))
    with pytest.raises(UsageError, match="Got 5 labels for the 6 images of val"):
        Loader(dataset, dataset.labels[:5], SMALL)


def test_ten_thousand_small_images(data_dir: Path) -> None:
    dataset = open_dataset(str(data_dir / "cifar100" / "test.parquet"))
    loader = Loader(dataset, dataset.labels, Preprocessing(32, 32, resize_mode="none"), 256)
    start = time.perf_counter()
    images = sum(len(batch.indices) for batch in loader)
    elapsed_s = time.perf_counter() - start
    assert images == 10_000
    assert not loader.unreadable
    assert elapsed_s < 10  # 0.8 s on two free cores; the rest is for a busy machine
