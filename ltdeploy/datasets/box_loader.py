"""Photographs with boxes on a detector's canvas, decoded ahead of whoever looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..canvas import Canvas, Placement
from ..errors import DataError
from ..images import ImageSource
from .boxes import BoxDataset
from .loader import decode_ahead

__all__ = ["BoxLoader", "CanvasBatch"]


@dataclass(frozen=True, eq=False)
class CanvasBatch:
    """Photographs that could be read.

    Parameters
    ----------
    images : canvases, array of shape (n, H, W, 3), uint8.
    indices : their positions in the data set, shape (n,), int64.
    placements : where each photograph stands on its canvas.
    names : for error texts.
    """

    images: npt.NDArray[np.uint8]
    indices: npt.NDArray[np.int64]
    placements: tuple[Placement, ...]
    names: tuple[str, ...]


class BoxLoader:
    """Iterate over a data set in batches while threads decode the next ones.

    A photograph that cannot be read is left out of its batch and named in :attr:`unreadable`; the
    run goes on. A batch of which none can be read is not given out.

    Parameters
    ----------
    batch_size : photographs in a batch, of those that can be read at most.

    Attributes
    ----------
    unreadable : identifier and reason of each photograph that was left out so far.

    Raises
    ------
    DataError
        While iterating: if a photograph has another size than its boxes go by, or none is readable.
    """

    def __init__(self, dataset: BoxDataset, canvas: Canvas, *, batch_size: int) -> None:
        self._dataset, self._canvas, self._batch_size = dataset, canvas, batch_size
        self.unreadable: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Return how many batches there are at most."""
        return -(-len(self._dataset) // self._batch_size)

    def __iter__(self) -> Iterator[CanvasBatch]:
        """Yield the batches, in the data set's order."""
        self.unreadable.clear()
        dataset, read = self._dataset, 0
        runs = decode_ahead(
            range(len(dataset)), self._fetch, self._canvas, batch_size=self._batch_size
        )
        for run in runs:
            self.unreadable += [(dataset.identifier(at), str(error)) for at, error in run.failures]
            if not len(run.positions):
                continue
            read += len(run.positions)
            for index, placement in zip(run.positions, run.placements, strict=True):
                self._require_stated_size(int(index), placement)
            names = tuple(dataset.identifier(int(index)) for index in run.positions)
            yield CanvasBatch(run.images, run.positions, run.placements, names)
        if not read:
            name, reason = self.unreadable[0]
            raise DataError(
                f"None of the {len(dataset)} images of {dataset.name} is readable; the first is "
                f"{name}: {reason}"
            )

    def _fetch(self, index: int) -> tuple[str, ImageSource]:
        return self._dataset.identifier(index), self._dataset.source(index)

    def _require_stated_size(self, index: int, placement: Placement) -> None:
        found, stated = (placement.width_px, placement.height_px), self._dataset.size_px(index)
        if found != stated:
            raise DataError(
                f"{self._dataset.identifier(index)} is {found[0]} × {found[1]} pixels and "
                f"{self._dataset.name} says {stated[0]} × {stated[1]}, so its boxes would lie "
                "elsewhere. Expected the photographs that were annotated, not resized."
            )
