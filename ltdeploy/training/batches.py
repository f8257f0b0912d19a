"""Training images in random order: kept in memory where they fit, decoded anew where not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..datasets.base import Dataset
from ..datasets.loader import Batch, Loader, decode_ahead
from ..errors import DataError
from ..images import ImageSource, Preprocessing
from ..inference import fingerprints
from ..progress import Tracker, silent

__all__ = ["MEMORY_BYTES", "TrainImages", "crop_and_flip"]

MEMORY_BYTES = 2 << 30


class TrainImages:
    """The images of a data set, resized, ready to be dealt in batches.

    Parameters
    ----------
    dataset : what to read.
    preprocessing : what each image becomes before augmentation.
    memory_bytes : up to this size the resized images are decoded once and kept.

    Attributes
    ----------
    unreadable : name and reason of each image that could not be read so far; it is left out.

    Raises
    ------
    DataError
        If no image can be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocessing: Preprocessing,
        *,
        memory_bytes: int = MEMORY_BYTES,
        tracker: Tracker = silent,
    ) -> None:
        self._dataset = dataset
        self._preprocessing = preprocessing
        self._failed: dict[int, str] = {}
        self._hashes = np.zeros(len(dataset), dtype=np.uint64)
        self._kept: npt.NDArray[np.uint8] | None = None
        shape = (len(dataset), preprocessing.height_px, preprocessing.width_px, 3)
        if np.prod(shape, dtype=np.int64) <= memory_bytes:
            self._kept = self._read(shape, tracker)

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """Name and reason of each image left out so far."""
        return [(self._dataset.identifier(index), why) for index, why in self._failed.items()]

    @property
    def readable(self) -> npt.NDArray[np.int64]:
        """Positions in the data set of the images not known to be unreadable."""
        return np.array([i for i in range(len(self._dataset)) if i not in self._failed], np.int64)

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return the fingerprints of the readable images that were dealt so far, shape (M,)."""
        kept: npt.NDArray[np.uint64] = self._hashes[self.readable]
        dealt: npt.NDArray[np.uint64] = kept[kept != 0]
        return dealt

    def deal(self, random: np.random.Generator, batch_size: int) -> Iterator[Batch]:
        """Yield the images once, shuffled, in batches; a last batch that is too small is dropped.

        It would weigh its few images more than the others, and batch normalisation cannot use one.
        """
        order = random.permutation(self.readable)
        batch_size = min(batch_size, len(order))
        order = order[: len(order) // batch_size * batch_size]
        if self._kept is not None:
            for chosen in order.reshape(-1, batch_size):
                yield Batch(self._kept[chosen], self._dataset.labels[chosen], chosen)
            return
        for run in decode_ahead(order, self._fetch, self._preprocessing, batch_size=batch_size):
            for position, error in run.failures:
                self._failed[int(order[position])] = str(error)
            if len(run.positions) > 1:
                chosen = order[run.positions]
                unseen = self._hashes[chosen] == 0
                self._hashes[chosen[unseen]] = fingerprints(run.images[unseen])
                yield Batch(run.images, self._dataset.labels[chosen], chosen)
        self._check_any_readable()

    def _fetch(self, index: int) -> tuple[str, ImageSource]:
        return self._dataset.identifier(index), self._dataset.source(index)

    def _read(self, shape: tuple[int, ...], tracker: Tracker) -> npt.NDArray[np.uint8]:
        kept = np.zeros(shape, dtype=np.uint8)
        seen = np.zeros(shape[0], dtype=bool)
        loader = Loader(self._dataset, self._dataset.labels, self._preprocessing)
        batches = -(-shape[0] // 32)
        for batch in tracker(loader, total=batches, label=f"Reading {self._dataset.name}"):
            kept[batch.indices] = batch.images
            self._hashes[batch.indices] = fingerprints(batch.images)
            seen[batch.indices] = True
        reasons = dict(loader.unreadable)
        for index in np.flatnonzero(~seen):
            self._failed[int(index)] = reasons[self._dataset.identifier(int(index))]
        self._check_any_readable()
        return kept

    def _check_any_readable(self) -> None:
        if len(self._failed) == len(self._dataset):
            raise DataError(
                f"None of the {len(self._dataset)} images of {self._dataset.name} can be read; the "
                f"first: {next(iter(self._failed.values()))}"
            )


def crop_and_flip(
    images: npt.NDArray[np.uint8], random: np.random.Generator, padding_px: int
) -> npt.NDArray[np.uint8]:
    """Shift each image by up to `padding_px` both ways, mirrored at the rim, and flip every second.

    Parameters
    ----------
    images : array of shape (N, H, W, 3), uint8.

    Returns
    -------
    array of the same shape.
    """
    count, height, width, _ = images.shape
    rim = (padding_px, padding_px)
    padded = np.pad(images, ((0, 0), rim, rim, (0, 0)), mode="reflect")
    shifts = random.integers(0, 2 * padding_px + 1, (count, 2))
    flips = random.integers(0, 2, (count,))
    result = np.empty_like(images)
    for row, (top, left) in enumerate(shifts):
        window = padded[row, top : top + height, left : left + width]
        result[row] = window[:, ::-1] if flips[row] else window
    return result
