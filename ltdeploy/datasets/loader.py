"""Decode images in threads ahead of whoever consumes them, in order."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..canvas import Canvas, Placement, load_on_canvas
from ..errors import ImageError, UsageError
from ..images import DEFAULT_LIMITS, ImageLimits, ImageSource, Preprocessing, load_prepared
from .base import Dataset

__all__ = ["Batch", "Decoded", "Loader", "decode_ahead"]

_Item = TypeVar("_Item")
# Pillow holds the interpreter lock for about a tenth of an image's time; more threads only wait.
_MOST_WORKERS = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that could be read, with their labels and their positions in the data set.

    Parameters
    ----------
    images : array of shape (n, H, W, 3), uint8.
    labels, indices : arrays of shape (n,), int64.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Decoded:
    """One run of consecutive items, decoded.

    Parameters
    ----------
    images : array of shape (n, H, W, 3), uint8: those that could be read, in order.
    positions : array of shape (n,), int64: where each stood in the input, counted from 0.
    failures : position and error of those that could not.
    placements : where each of the images stands on its canvas; empty for classifiers.
    """

    images: npt.NDArray[np.uint8]
    positions: npt.NDArray[np.int64]
    failures: tuple[tuple[int, ImageError], ...]
    placements: tuple[Placement, ...] = ()


class Loader:
    """Iterate over a data set in batches while threads decode the next ones.

    An image that cannot be read is left out of its batch and named in :attr:`unreadable`; the run
    goes on. A batch of which no image can be read is not given out.

    Parameters
    ----------
    dataset : what to read.
    labels : array of shape (N,), int64, one per image, as :func:`align_labels` gives them.
    preprocessing : what each image becomes.
    batch_size : images per batch; the last may be smaller.
    workers : decoding threads; None means one per core that this process may use, at most 16.
    limits : what an image may cost.

    Attributes
    ----------
    unreadable : name and reason of each image left out so far in the current iteration.
    """

    def __init__(
        self,
        dataset: Dataset,
        labels: npt.NDArray[np.int64],
        preprocessing: Preprocessing,
        batch_size: int = 32,
        workers: int | None = None,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        if len(labels) != len(dataset):
            raise UsageError(
                f"Got {len(labels)} labels for the {len(dataset)} images of {dataset.name}; "
                "expected one per image."
            )
        self.unreadable: list[tuple[str, str]] = []
        self._dataset = dataset
        self._labels = labels
        self._preprocessing = preprocessing
        self._batch_size = _positive("batch_size", batch_size)
        self._workers = workers
        self._limits = limits

    def __iter__(self) -> Iterator[Batch]:
        self.unreadable = []
        runs = decode_ahead(
            range(len(self._dataset)),
            self._fetch,
            self._preprocessing,
            batch_size=self._batch_size,
            workers=self._workers,
            limits=self._limits,
        )
        try:
            for run in runs:
                for index, error in run.failures:
                    self.unreadable.append((self._dataset.identifier(index), str(error)))
                if len(run.positions):
                    yield Batch(run.images, self._labels[run.positions], run.positions)
        finally:
            runs.close()

    def _fetch(self, index: int) -> tuple[str, ImageSource]:
        return self._dataset.identifier(index), self._dataset.source(index)


def decode_ahead(
    items: Iterable[_Item],
    fetch: Callable[[_Item], tuple[str, ImageSource]],
    preprocessing: Preprocessing | Canvas,
    *,
    batch_size: int,
    workers: int | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Generator[Decoded, None, None]:
    """Decode a stream of items in threads, at least one batch ahead of the consumer, in order.

    Parameters
    ----------
    items : taken in the consumer's thread, at least two batches before the first result.
    fetch : gives an item's name and source; runs in the threads, so reading a file belongs here.
    preprocessing : what each image becomes; on a :class:`Canvas` also where it stands there.
    batch_size : items per run; the last may be smaller.
    workers : as for :class:`Loader`.
    limits : what an image may cost.

    Yields
    ------
    Decoded
        One per run, also where no image of it could be read.
    """
    workers = _positive("workers", workers) if workers is not None else _default_workers()
    batch_size = _positive("batch_size", batch_size)
    # Small batches need more of them under way to keep every thread busy.
    ahead = max(2, math.ceil(2 * workers / batch_size))
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ltdeploy-decode")
    stream = iter(items)
    pending: deque[_Run] = deque()
    first = 0

    def decode(
        part: list[_Item],
        images: npt.NDArray[np.uint8],
        placements: list[Placement | None],
        start: int,
    ) -> list[tuple[int, ImageError]]:
        failures = []
        for row, item in enumerate(part, start):
            if stop.is_set():
                break
            try:
                name, source = fetch(item)
                if isinstance(preprocessing, Canvas):
                    images[row], placements[row] = load_on_canvas(
                        source, preprocessing, limits, name=name
                    )
                else:
                    images[row] = load_prepared(source, preprocessing, limits, name=name)
            except ImageError as error:
                failures.append((row, error))
        return failures

    try:
        while True:
            while len(pending) < ahead and (run := list(itertools.islice(stream, batch_size))):
                shape = (len(run), preprocessing.height_px, preprocessing.width_px, 3)
                images = np.empty(shape, dtype=np.uint8)
                placements: list[Placement | None] = [None] * len(run)
                size = math.ceil(len(run) / workers)
                parts = [
                    pool.submit(decode, run[start : start + size], images, placements, start)
                    for start in range(0, len(run), size)
                ]
                pending.append(_Run(first, images, placements, parts))
                first += len(run)
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        # Also on Ctrl-C: threads stop after the image in hand, and nothing waits in the queue.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Run:
    first: int
    images: npt.NDArray[np.uint8]
    placements: list[Placement | None]
    parts: list[Future[list[tuple[int, ImageError]]]]

    def result(self) -> Decoded:
        failures = [failure for part in self.parts for failure in part.result()]
        rows = np.arange(len(self.images), dtype=np.int64)
        placed = tuple(place for place in self.placements if place is not None)
        if not failures:
            return Decoded(self.images, self.first + rows, (), placed)
        rows = np.delete(rows, [row for row, _ in failures])
        named = tuple((self.first + row, error) for row, error in failures)
        return Decoded(self.images[rows], self.first + rows, named, placed)


def _default_workers() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: what this process may use, not what there is
        return min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
    return min(_MOST_WORKERS, os.cpu_count() or 1)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise UsageError(f"{name} is {value}; expected 1 or more.")
    return value
