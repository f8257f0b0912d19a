"""Photographs on their canvases with their boxes, as a detector is trained on them."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..boxes import box_area
from ..canvas import Canvas, Placement
from ..datasets.boxes import BoxDataset
from ..errors import DataError, ImageError
from ..inference import fingerprints
from ..progress import Tracker, silent
from .batches import MEMORY_BYTES
from .box_masks import object_masks

__all__ = ["BoxSample", "TrainCanvases", "flip"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# Pillow holds the interpreter lock for about a tenth of an image's time; more threads only wait.
_MOST_WORKERS = 16


@dataclass(frozen=True, eq=False)
class BoxSample:
    """One canvas with the boxes that are trained on.

    Parameters
    ----------
    pixels : array of shape (H, W, 3), uint8.
    placement : where the photograph stands on it.
    boxes : array of shape (G, 4), float32, xyxy in pixels of the canvas, each with an area.
    labels : array of shape (G,), int64, over the foreground classes.
    masks : array of shape (G, H, W), uint8, 1 inside the object; None where none are trained on.
    """

    pixels: npt.NDArray[np.uint8]
    placement: Placement
    boxes: FloatArray
    labels: IntArray
    masks: npt.NDArray[np.uint8] | None = None


class TrainCanvases:
    """The photographs of a data set on their canvases, kept in memory where they fit.

    All of them are read once at the start, so that what cannot be read is known, and the classes
    are counted, before hours are spent. Boxes that hold many (COCO's crowds) are not trained on.

    Parameters
    ----------
    dataset : what to read.
    canvas : what each photograph is put on.
    with_masks : whether samples have masks; they are drawn anew each time, as they are many.
    memory_bytes : up to this size the canvases are kept; above it they are decoded anew.

    Attributes
    ----------
    readable : array of shape (N,), int64: positions in the data set of what could be read.
    unreadable : name and reason of each photograph that could not, or whose masks are not where its
        boxes are; it is left out.
    hashes : array of shape (N,), uint64: the fingerprints of the canvases.

    Raises
    ------
    DataError
        If no photograph can be read, one has another size than its boxes go by, or a segmentation
        that is needed cannot be read.
    """

    def __init__(
        self,
        dataset: BoxDataset,
        canvas: Canvas,
        *,
        with_masks: bool = False,
        memory_bytes: int = MEMORY_BYTES,
        tracker: Tracker = silent,
    ) -> None:
        self._dataset = dataset
        self._canvas = canvas
        self._with_masks = with_masks
        self._kept: dict[int, npt.NDArray[np.uint8]] = {}
        keeps = len(dataset) * canvas.height_px * canvas.width_px * 3 <= memory_bytes
        failed: dict[int, str] = {}
        readable, hashes = [], []

        def read(index: int) -> npt.NDArray[np.uint8] | ImageError:
            try:
                pixels = canvas.prepare(dataset.load(index))[0]
                self._objects(index)  # refuses what it cannot read
            except ImageError as error:
                return error
            return pixels

        done = _ahead(read, range(len(dataset)))
        shown = tracker(done, total=len(dataset), label=f"Reading {dataset.name}")
        for index, pixels in enumerate(shown):
            if isinstance(pixels, ImageError):
                failed[index] = str(pixels)
                continue
            readable.append(index)
            hashes.append(fingerprints(pixels[None]))
            if keeps:
                self._kept[index] = pixels
        if not readable:
            raise DataError(
                f"None of the {len(dataset)} images of {dataset.name} can be read; the first: "
                f"{failed[0]}"
            )
        self.readable = np.array(readable, dtype=np.int64)
        self.unreadable = [(dataset.identifier(index), why) for index, why in failed.items()]
        self.hashes: npt.NDArray[np.uint64] = np.concatenate(hashes)

    def labels(self) -> list[IntArray]:
        """Return the labels of the boxes of each readable photograph, without crowds."""
        truths = [self._dataset.truth(int(index)) for index in self.readable]
        return [truth.labels[~truth.crowd] for truth in truths]

    def batches(self, plan: Iterable[IntArray]) -> Iterator[list[BoxSample]]:
        """Yield what stands at the positions of each step, decoded ahead where it is not kept."""

        def canvases(chosen: IntArray) -> list[tuple[int, npt.NDArray[np.uint8]]]:
            return [(index, self._pixels(index)) for index in chosen.tolist()]

        # Masks are not drawn ahead: those of a few dozen photographs fill gigabytes.
        for batch in map(canvases, plan) if self._kept else _ahead(canvases, plan):
            yield [BoxSample(pixels, *self._objects(index)) for index, pixels in batch]

    def _pixels(self, index: int) -> npt.NDArray[np.uint8]:
        kept = self._kept.get(index)
        return self._canvas.prepare(self._dataset.load(index))[0] if kept is None else kept

    def _objects(
        self, index: int
    ) -> tuple[Placement, FloatArray, IntArray, npt.NDArray[np.uint8] | None]:
        """Return all of a sample but its pixels."""
        dataset, truth = self._dataset, self._dataset.truth(index)
        width_px, height_px = dataset.size_px(index)
        placement = self._canvas.place(height_px, width_px)
        boxes = placement.to_canvas(truth.boxes)
        # Scaled down, a sliver can lose its area to rounding; torchvision accepts none such.
        used = ~truth.crowd & (box_area(boxes) > 0)
        masks = None
        if self._with_masks:
            masks = object_masks(dataset, index, used, boxes[used], self._canvas)
        return placement, boxes[used], truth.labels[used], masks


def flip(sample: BoxSample, *, horizontal: bool, vertical: bool) -> BoxSample:
    """Mirror the photograph where it stands, boxes and masks too; the padding stays where it is.

    A flip of the whole canvas would move the padding to where no photograph is padded later.
    """
    if not (horizontal or vertical):
        return sample
    placement, boxes = sample.placement, sample.boxes.copy()
    left, top = placement.left_px, placement.top_px
    right = left + round(placement.width_px * placement.scale_x)
    bottom = top + round(placement.height_px * placement.scale_y)
    pixels = sample.pixels.copy()
    photos = [pixels[top:bottom, left:right]]
    masks = sample.masks
    if masks is not None:
        masks = masks.copy()
        photos.append(np.moveaxis(masks, 0, 2)[top:bottom, left:right])
    if horizontal:
        boxes[:, [0, 2]] = left + right - boxes[:, [2, 0]]
    if vertical:
        boxes[:, [1, 3]] = top + bottom - boxes[:, [3, 1]]
    for photo in photos:
        if horizontal:
            photo[:] = photo[:, ::-1].copy()
        if vertical:
            photo[:] = photo[::-1].copy()
    return BoxSample(pixels, placement, boxes, sample.labels, masks)


def _ahead(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield the results in order, computed in threads ahead of the consumer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(_MOST_WORKERS, cores or 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ltdeploy-canvas")
    stream = iter(items)
    pending: deque[Future[_Result]] = deque()
    try:
        while True:
            for item in itertools.islice(stream, 2 * workers - len(pending)):
                pending.append(pool.submit(function, item))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
