"""Masks of detections: small grids over their boxes, pasted onto photographs when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import FloatArray
from .errors import DataError

__all__ = ["MaskGrids", "run_lengths"]

_INSIDE = 0.5  # the probability from which a pixel belongs to the object


@dataclass(frozen=True, eq=False)
class MaskGrids:
    """The masks of K detections of one photograph, as a Mask R-CNN gives them.

    Parameters
    ----------
    grids : array of shape (K, S, S), float32: the probability that each cell of a box belongs to
        the object; rows from the top, columns from the left.
    boxes : array of shape (K, 4), xyxy in pixels of the photograph: what each grid spans. They may
        reach out of it.
    height_px, width_px : of the photograph.

    Raises
    ------
    DataError
        If the shapes do not fit each other.
    """

    grids: FloatArray
    boxes: FloatArray
    height_px: int
    width_px: int

    def __post_init__(self) -> None:
        count = len(self.boxes)
        shape = self.grids.shape
        if len(shape) != 3 or shape[0] != count or self.boxes.shape != (count, 4):
            raise DataError(
                f"Mask grids and their boxes have the shapes {shape} and {self.boxes.shape}; "
                "expected (K, S, S) and (K, 4)."
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(
        self, places: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice
    ) -> MaskGrids:
        return MaskGrids(self.grids[places], self.boxes[places], self.height_px, self.width_px)

    def pixels(self, place: int) -> npt.NDArray[np.bool_]:
        """Return one mask over the photograph, shape (height_px, width_px).

        Each pixel's centre looks the probability up between the centres of the nearest cells
        (bilinear; beyond the grid's edge it falls to 0), as detectron2 pastes masks.
        """
        mask = np.zeros((self.height_px, self.width_px), np.bool_)
        first, columns = self._columns(place)
        mask[:, first : first + columns.shape[1]] = columns
        return mask

    def encoded(self) -> list[dict[str, Any]]:
        """Return all masks in COCO's run-length encoding, see :func:`run_lengths`."""
        return [
            run_lengths(columns, first=first, width_px=self.width_px)
            for first, columns in map(self._columns, range(len(self)))
        ]

    def _columns(self, place: int) -> tuple[int, npt.NDArray[np.bool_]]:
        """Return the first column that a mask's box covers, and the mask in the covered ones."""
        x1, y1, x2, y2 = (float(side) for side in self.boxes[place])
        rows = _covered(y1, y2, self.height_px)
        columns = _covered(x1, x2, self.width_px)
        mask = np.zeros((self.height_px, columns.size), np.bool_)
        if not (rows.size and columns.size):
            return 0, mask[:, :0]
        cells = self.grids.shape[1]
        down, across = _weights(rows, y1, y2, cells), _weights(columns, x1, x2, cells)
        found = down @ self.grids[place].astype(np.float32) @ across.T
        mask[rows[0] : rows[-1] + 1] = found >= _INSIDE
        return int(columns[0]), mask


def run_lengths(
    mask: npt.NDArray[np.bool_], *, first: int = 0, width_px: int | None = None
) -> dict[str, Any]:
    """Return a mask in COCO's run-length encoding, not compressed.

    Parameters
    ----------
    mask : array of shape (H, W), or some columns of it.
    first, width_px : the first of these columns, and W.

    Returns
    -------
    dict
        ``size`` [H, W] and ``counts``, the lengths of runs down the columns, the first of pixels
        outside. ``pycocotools.mask.frPyObjects`` reads it.

    Examples
    --------
    >>> run_lengths(np.array([[False, True], [True, True]]))
    {'size': [2, 2], 'counts': [1, 3]}
    """
    height, width = mask.shape[0], mask.shape[1] if width_px is None else width_px
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False)) + first * height
    end = (first + mask.shape[1]) * height
    if flat[-1:].any() and end < width * height:
        changes = np.append(changes, end)
    ends = np.append(changes, width * height)
    return {"size": [height, width], "counts": np.diff(ends, prepend=0).tolist()}


def _covered(low: float, high: float, length: int) -> npt.NDArray[np.int64]:
    """Return the pixels of an axis whose centres an interval may reach."""
    if not high > low:
        return np.zeros(0, np.int64)
    return np.arange(max(0, int(np.floor(low))), min(length, int(np.ceil(high))))


def _weights(pixels: npt.NDArray[np.int64], low: float, high: float, cells: int) -> FloatArray:
    """Return what each cell adds to each pixel of an axis, shape (pixels, cells)."""
    at = (pixels + 0.5 - low) * (cells / (high - low)) - 0.5
    apart = np.abs(at[:, None] - np.arange(cells))
    weights: FloatArray = np.clip(1 - apart, 0, None).astype(np.float32)
    return weights
