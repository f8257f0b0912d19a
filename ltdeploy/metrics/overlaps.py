"""Intersection over union of detections and objects, given as pairs; by boxes or by masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._optional import require
from ..arrays import FloatArray, IntArray
from ..boxes import box_area
from ..datasets.boxes import Segmentation
from ..errors import DataError

__all__ = ["Mask", "Overlap", "box_overlap", "encoded", "mask_areas", "mask_overlap"]

Mask = Mapping[str, Any]  # COCO's run-length encoding: {"size": [height, width], "counts": ...}

Overlap = Callable[[IntArray, IntArray], FloatArray]
"""The IoU of each pair, shape (P,), from the places of its detection and of its object."""


def box_overlap(found: FloatArray, there: FloatArray, crowd: npt.NDArray[np.bool_]) -> Overlap:
    """Return the IoU of pairs of boxes; in a crowd, the share of the detection that lies inside.

    Parameters
    ----------
    found, there : arrays of shape (D, 4) and (G, 4), float64, xyxy.
    crowd : array of shape (G,).
    """
    found_area, there_area = box_area(found), box_area(there)

    def overlap(d: IntArray, g: IntArray) -> FloatArray:
        low = np.maximum(found[d, :2], there[g, :2])
        high = np.minimum(found[d, 2:], there[g, 2:])
        sides = np.clip(high - low, 0, None)
        shared = sides[:, 0] * sides[:, 1]
        union = found_area[d] + np.where(crowd[g], 0, there_area[g] - shared)
        iou: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        return iou

    return overlap


def encoded(segmentation: Segmentation, width_px: int, height_px: int) -> Mask:
    """Return polygons, or COCO's encoding with or without compression, as compressed encoding."""
    evaluator = _mask_evaluator()
    mask: Mask = evaluator.segmToRle(segmentation, width_px, height_px)
    return mask


def mask_areas(masks: Sequence[Mask]) -> npt.NDArray[np.float64]:
    """Return the areas of masks in square pixels, shape (D,)."""
    evaluator = _mask_evaluator()
    areas = evaluator.area(list(masks)) if masks else []
    return np.asarray(areas, np.float64)


def mask_overlap(
    found: Sequence[Mask], there: Sequence[Mask], crowd: npt.NDArray[np.bool_]
) -> Overlap:
    """Return the IoU of pairs of masks, as `box_overlap` does of boxes.

    Parameters
    ----------
    found, there : run-length encodings, D and G of them; those of one image have one size.
    crowd : array of shape (G,).

    Raises
    ------
    DataError
        If there is not one mask per object.
    """
    if len(there) != len(crowd):
        raise DataError(
            f"There are {len(there)} masks for {len(crowd)} objects; expected one run-length "
            "encoding each. Match by boxes, or give ImageTruth its masks."
        )
    evaluator = _mask_evaluator()

    def overlap(d: IntArray, g: IntArray) -> FloatArray:
        starts = np.flatnonzero(np.diff(d, prepend=-1))  # the pairs of a detection are together
        parts = [
            evaluator.iou([found[own[0]]], [there[k] for k in g[place]], crowd[g[place]].tolist())
            for place, own in (
                (slice(a, b), d[a:b]) for a, b in zip(starts, [*starts[1:], len(d)], strict=True)
            )
        ]
        return np.concatenate([np.zeros(0), *(np.ravel(part) for part in parts)])

    return overlap


def _mask_evaluator() -> Any:
    return require("faster_coco_eval.core.mask", extra="detect", purpose="compare masks")
