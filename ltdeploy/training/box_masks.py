"""Outlines of objects as masks on a canvas, as Mask R-CNN is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._optional import require
from ..arrays import FloatArray
from ..canvas import Canvas, Placement
from ..datasets.boxes import BoxDataset
from ..errors import DataError, ImageError

__all__ = ["check_outlined", "object_masks"]

_Mask = npt.NDArray[np.uint8]
_LEAST_CORNERS = 3
_SHOWN = 80  # characters of what is wrong
_EXPECTED = "expected polygons as lists [x1, y1, x2, y2, ...], or COCO's run-length encoding"


def check_outlined(dataset: BoxDataset, instead: str) -> None:
    """Refuse a data set in which an object to train on has no segmentation.

    Parameters
    ----------
    instead : an architecture that does without, for the error.

    Raises
    ------
    DataError
        If one has none; crowds need none. The text names the first.
    MissingExtraError
        If what draws masks is not installed.
    """
    _mask_tools()
    missing = [
        (index, annotation)
        for index in range(len(dataset))
        for annotation in dataset.truth(index).ids[~dataset.truth(index).crowd].tolist()
        if not dataset.segmentations.get(annotation)
    ]
    if missing:
        index, annotation = missing[0]
        others = len(missing) - 1
        more = f" (nor {'has' if others == 1 else 'have'} {others} more)" if others else ""
        raise DataError(
            f"Annotation {annotation} of {dataset.identifier(index)} in {dataset.name} has no "
            f"'segmentation' to learn a mask from{more}; {_EXPECTED}. To learn from boxes alone, "
            f"give --arch {instead}."
        )


def object_masks(
    dataset: BoxDataset, index: int, used: npt.NDArray[np.bool_], boxes: FloatArray, canvas: Canvas
) -> _Mask:
    """Return the masks of objects where their photograph stands on the canvas, cut to it.

    Polygons are scaled and then drawn, by COCO's rule. Run lengths are decoded and then resized,
    each pixel taking what lies under its centre. A sliver narrower than a pixel that neither way
    leaves anything of gets the pixels that its box touches.

    Parameters
    ----------
    index : place of the photograph.
    used : array of shape (all of its objects,): which are asked for, G of them.
    boxes : array of shape (G, 4): their boxes on the canvas.

    Returns
    -------
    array of shape (G, height_px, width_px), uint8: 1 inside.

    Raises
    ------
    DataError
        If a segmentation cannot be read; the text names its annotation.
    ImageError
        If one does not touch its box: the photograph is none to learn from.
    """
    width_px, height_px = dataset.size_px(index)
    placement = canvas.place(height_px, width_px)
    top, left = placement.top_px, placement.left_px
    bottom = top + round(height_px * placement.scale_y)
    right = left + round(width_px * placement.scale_x)
    masks = np.zeros((len(boxes), canvas.height_px, canvas.width_px), np.uint8)
    annotations = dataset.truth(index).ids[used].tolist()
    for mask, box, annotation in zip(masks, boxes, annotations, strict=True):
        outline = dataset.segmentations[annotation]
        where = f"Annotation {annotation} of {dataset.identifier(index)} in {dataset.name}"
        photo = mask[top:bottom, left:right]
        if isinstance(outline, dict):
            _resize(_decoded(outline, placement, where), photo)
        else:
            _draw(_polygons(outline, placement, where), placement, photo)
        (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        if photo.any():
            # A pixel around it: drawing rounds.
            if not mask[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1].any():
                corners = ", ".join(f"{side:.4g}" for side in placement.to_original(box))
                raise ImageError(
                    f"{where} has a segmentation wholly outside its box [{corners}]; expected both "
                    "on one object, in the photograph as it is shown (EXIF orientation applied). "
                    "Correct it, or leave it out of the file."
                )
        elif (box[2:] - box[:2]).min() < 1:
            mask[y1:y2, x1:x2] = 1
    return masks


def _polygons(outline: Any, placement: Placement, where: str) -> list[FloatArray]:
    """Return the polygons of an object, each of shape (corners, 2), in the photograph's pixels."""
    if not isinstance(outline, list):
        raise DataError(f"{where} has the segmentation {str(outline)[:_SHOWN]}; {_EXPECTED}.")
    size = np.array([placement.width_px, placement.height_px])
    parts: list[FloatArray] = []
    for polygon in outline:
        try:
            numbers = np.asarray(polygon)
        except ValueError:  # lists of different lengths
            numbers = np.array("")
        is_numeric = numbers.dtype.kind in "if" or not numbers.size
        if numbers.ndim != 1 or len(numbers) % 2 or not is_numeric:
            raise DataError(f"{where} has the polygon {str(polygon)[:_SHOWN]}; {_EXPECTED}.")
        corners = numbers.reshape(-1, 2).astype(np.float64)
        # What lies far outside would take all of the machine's memory to draw. False for NaN.
        near = ((corners >= -size) & (corners <= 2 * size)).all(axis=1)
        if not near.all():
            x, y = corners[~near][0]
            raise DataError(
                f"{where} has a polygon with the corner ({x:g}, {y:g}), far outside its photograph "
                f"of {size[0]} x {size[1]} pixels; expected pixels of the photograph."
            )
        if len(corners) >= _LEAST_CORNERS:  # fewer are stray clicks, which COCO's rule ignores too
            parts.append(corners)
    if not parts:
        raise DataError(
            f"{where} has the segmentation {str(outline)[:_SHOWN]}, in which no polygon has "
            f"{_LEAST_CORNERS} corners; {_EXPECTED}."
        )
    return parts


def _draw(parts: Sequence[FloatArray], placement: Placement, photo: _Mask) -> None:
    """Fill polygons, looking only at the part of the photograph that they span."""
    scaled = [part * (placement.scale_x, placement.scale_y) for part in parts]
    every = np.concatenate(scaled)
    height, width = photo.shape
    x1, y1 = np.clip(np.floor(every.min(axis=0)), 0, (width, height)).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(every.max(axis=0)) + 1, 0, (width, height)).astype(int).tolist()
    if x1 < x2 and y1 < y2:
        tools = _mask_tools()
        shifted = [(part - (x1, y1)).ravel().tolist() for part in scaled]
        photo[y1:y2, x1:x2] = tools.decode(tools.segmToRle(shifted, x2 - x1, y2 - y1))


def _decoded(outline: dict[str, Any], placement: Placement, where: str) -> _Mask:
    """Return a run-length encoding as a mask over the photograph."""
    height_px, width_px = placement.height_px, placement.width_px
    if outline.get("size") not in ([height_px, width_px], (height_px, width_px)):
        raise DataError(
            f"{where} has run lengths of the size {str(outline.get('size'))[:_SHOWN]}; expected "
            f"{[height_px, width_px]}, height and width of its photograph."
        )
    tools = _mask_tools()
    try:
        mask: _Mask = tools.decode(tools.segmToRle(outline, width_px, height_px))
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].partition(" (#define")[0]
        raise DataError(
            f"{where} has run lengths that cannot be read: {reason.rstrip('.')}. Expected 'counts' "
            "in COCO's encoding, a list of whole numbers or its compressed text."
        ) from error
    return mask


def _resize(mask: _Mask, photo: _Mask) -> None:
    """Fill the photograph's place with a mask over the photograph."""
    rows, columns = (
        ((np.arange(there) + 0.5) * (given / there)).astype(int)
        for there, given in zip(photo.shape, mask.shape, strict=True)
    )
    photo[:] = mask[np.ix_(rows, columns)]


def _mask_tools() -> Any:
    return require("faster_coco_eval.core.mask", extra="detect", purpose="train masks")
