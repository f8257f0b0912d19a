"""Boxes and detections as plain arrays; xyxy in pixels, without the historical ``+ 1``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import FloatArray, IntArray
from .errors import DataError
from .masks import MaskGrids

__all__ = ["Detections", "box_area", "clip_boxes", "pairwise_iou"]


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one photograph, best first.

    Parameters
    ----------
    boxes : array of shape (K, 4), float32, xyxy in pixels of the original photograph.
    scores : array of shape (K,), float32, in 0..1.
    labels : array of shape (K,), int64, over the foreground classes of the class table.
    masks : of all of them, where the model gives masks.

    Raises
    ------
    DataError
        If the shapes do not fit each other.
    """

    boxes: FloatArray
    scores: FloatArray
    labels: IntArray
    masks: MaskGrids | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = (self.boxes.shape, self.scores.shape, self.labels.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise DataError(
                f"Boxes, scores and labels have the shapes {shapes[0]}, {shapes[1]}, {shapes[2]}; "
                "expected (K, 4), (K,), (K,)."
            )
        if self.masks is not None and len(self.masks) != count:
            raise DataError(f"There are {len(self.masks)} masks for {count} detections.")

    @classmethod
    def empty(cls) -> Detections:
        """Return no detection."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(
        self, places: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice
    ) -> Detections:
        masks = None if self.masks is None else self.masks[places]
        return Detections(self.boxes[places], self.scores[places], self.labels[places], masks)


def box_area(boxes: FloatArray) -> FloatArray:
    """Return the areas of boxes, shape (..., 4) to (...); 0 where a side is negative or NaN."""
    sides = np.nan_to_num(boxes[..., 2:] - boxes[..., :2], nan=0.0)
    area: FloatArray = np.clip(sides, 0, None).prod(axis=-1)
    return area


def clip_boxes(boxes: FloatArray, width_px: float, height_px: float) -> FloatArray:
    """Return boxes, shape (..., 4), cut to a photograph of this size."""
    most = np.array([width_px, height_px, width_px, height_px], boxes.dtype)
    clipped: FloatArray = np.clip(boxes, 0, most)
    return clipped


def pairwise_iou(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """Return the intersection over union of each pair, shapes (M, 4) and (N, 4) to (M, N).

    It is 0 where both boxes have no area.
    """
    # One coordinate at a time: arrays of shape (M, N) stay in the cache, (M, N, 2) would not.
    x1, y1, x2, y2 = boxes.T[:, :, None]
    u1, v1, u2, v2 = np.ascontiguousarray(others.T)
    width = np.minimum(x2, u2) - np.maximum(x1, u1)
    height = np.minimum(y2, v2) - np.maximum(y1, v1)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    union = box_area(boxes)[:, None] + box_area(others) - shared
    iou: FloatArray = shared / np.maximum(union, np.finfo(union.dtype).tiny)
    return iou
