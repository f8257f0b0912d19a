"""The annotations of a COCO or LVIS json: checked one by one, cut to their photographs, counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..boxes import box_area
from ..errors import DataError
from .boxes import BoxImage, BoxTruth

__all__ = ["Annotations", "inside_photographs", "read_annotations"]

_SHOWN = 5
_NUMBERS = frozenset((int, float))
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Annotations:
    """A file's annotations as columns, in its order.

    Parameters
    ----------
    ids, images, labels : arrays of shape (A,), int64; the place of the image, not its id.
    bboxes : array of shape (A, 4), float64, x, y, width and height in pixels, as the file has them.
    area : array of shape (A,), float64, px²; NaN where the file has none.
    crowd : array of shape (A,), bool.
    """

    ids: IntArray
    images: IntArray
    labels: IntArray
    bboxes: FloatArray
    area: FloatArray
    crowd: npt.NDArray[np.bool_]


def read_annotations(
    found: Sequence[Mapping[str, Any]],
    place_of: Mapping[int, int],
    label_of: Mapping[int, int],
    file: str,
) -> Annotations:
    """Return the annotations as columns.

    Parameters
    ----------
    found : the json's objects; their ids were looked at.
    place_of, label_of : place of each image id, label of each category id.
    file : what errors call the file.

    Raises
    ------
    DataError
        For images and categories that are not described, boxes that are not four finite numbers,
        areas below zero, and crowd marks other than 0 and 1.
    """
    ids, images, labels, bboxes, areas, crowds = [], [], [], [], [], []
    for one in found:
        where = f"The annotation {one['id']} of {file}"
        ids.append(one["id"])
        images.append(_known(one, "image_id", place_of, where))
        labels.append(_known(one, "category_id", label_of, where))
        bboxes.append(_bbox(one, where))
        areas.append(_area(one, where))
        crowd = one.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise DataError(f"{where} has iscrowd {crowd!r}; expected 0 or 1.")
        crowds.append(crowd)
    return Annotations(
        np.array(ids, dtype=np.int64),
        np.array(images, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.array(bboxes, dtype=np.float64).reshape(-1, 4),
        np.array(areas, dtype=np.float64),
        np.array(crowds, dtype=np.bool_),
    )


def inside_photographs(
    annotations: Annotations, images: Sequence[BoxImage]
) -> tuple[list[BoxTruth], list[str]]:
    """Return each image's boxes, cut to it, and what was cut or left out, as sentences."""
    sizes = np.array([(one.width_px, one.height_px) for one in images], np.float64).reshape(-1, 2)
    most = np.tile(sizes[annotations.images], 2)
    corner, sides = annotations.bboxes[:, :2], annotations.bboxes[:, 2:]
    given = np.concatenate([corner, corner + sides], axis=1)
    boxes = np.clip(given, 0, most).astype(np.float32)
    # In float32 already: a box that loses its area only there must not reach anyone either.
    flat = box_area(given.astype(np.float32)) <= 0
    narrow, low = (sides < 0).T
    outside = ~flat & (box_area(boxes) <= 0)
    kept = ~flat & ~outside
    reach_px = np.maximum(-given, given - most).max(axis=1, initial=0.0)
    cut = kept & (reach_px > 0)
    area = np.where(np.isnan(annotations.area), sides.prod(axis=1), annotations.area)
    ids, notes = annotations.ids, []
    furthest = f"{reach_px[cut].max(initial=0.0):.3g} px"
    for which, what in (
        (narrow & low, "a negative width and height and {were} left out"),
        (narrow & ~low, "a negative width and {were} left out"),
        (low & ~narrow, "a negative height and {were} left out"),
        (flat & ~narrow & ~low, "no area and {were} left out"),
        (outside, "no part inside {their} photograph and {were} left out"),
        (cut, f"parts up to {furthest} outside {{their}} photograph and {{were}} cut"),
        (kept & np.isnan(annotations.area), "no 'area'; that of the box itself is taken"),
    ):
        if which.any():
            notes.append(_note(what, ids[which], len(ids)))
    if 2 * (cut | outside).sum() > len(ids):
        notes.append(
            "Most boxes reach out of their photographs. If the file has [x1, y1, x2, y2], write "
            "[x, y, width, height] instead."
        )
    order = np.flatnonzero(kept)[np.argsort(annotations.images[kept], kind="stable")]
    ends = np.searchsorted(annotations.images[order], np.arange(1, len(images)))
    columns = (boxes, annotations.labels, annotations.crowd, area, ids)
    parts = (np.split(column[order], ends) for column in columns)
    return [BoxTruth(*part) for part in zip(*parts, strict=True)], notes


def _known(one: Mapping[str, Any], key: str, places: Mapping[int, int], where: str) -> int:
    value = one.get(key)
    if type(value) is not int or value not in places:
        raise DataError(
            f"{where} has the {key} {value!r}, which the file does not describe; expected one of "
            f"its {len(places)}."
        )
    return places[value]


def _bbox(one: Mapping[str, Any], where: str) -> list[float]:
    bbox = one.get("bbox")
    if bbox is None:
        raise DataError(
            f"{where} has no 'bbox'; expected [x, y, width, height]. A file without boxes is for "
            "classification."
        )
    fits = isinstance(bbox, list) and len(bbox) == 4 and _NUMBERS.issuperset(map(type, bbox))
    # NaN is smaller than nothing, and what float32 cannot hold would become infinite.
    if not fits or not all(-_LARGEST < side < _LARGEST for side in bbox):
        raise DataError(
            f"{where} has the bbox {str(bbox)[:200]}; expected four finite numbers, [x, y, width, "
            "height] in pixels."
        )
    checked: list[float] = bbox
    return checked


def _area(one: Mapping[str, Any], where: str) -> float:
    area = one.get("area")
    if area is None or min(one["bbox"][2:]) <= 0:
        return math.nan  # a box with a negative side is left out, whatever its area
    if type(area) not in _NUMBERS or not 0 <= area < _LARGEST:
        raise DataError(f"{where} has the area {area!r}; expected px², 0 or more.")
    return float(area)


def _note(what: str, ids: IntArray, total: int) -> str:
    one = len(ids) == 1
    shown = ", ".join(str(found) for found in ids[:_SHOWN])
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    words = what.format(were="was" if one else "were", their="its" if one else "their")
    return (
        f"{len(ids)} of {total} boxes {'has' if one else 'have'} {words}: "
        f"annotation{'' if one else 's'} {shown}{more}."
    )
