"""Match detections to truth: which are right, which are wrong, which do not count.

The rules are COCO's (Lin et al. 2014, arXiv 1405.0312; crowds) and, for images that say which
classes were looked for, LVIS's federated ones (Gupta et al. 2019, arXiv 1908.03195, §3). Matching
stands here and not in a library because the libraries keep it to themselves: what verification
resamples over images is the outcome of every detection, and pycocotools and lvis hand it out at the
speed of Python loops, faster-coco-eval not at all. The tests hold it against all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..boxes import Detections, box_area
from ..datasets.boxes import BoxDataset
from ..errors import DataError
from .assignment import FALSE, IGNORED, TRUE, BoolArray, assign, pairs_of
from .overlaps import Mask, box_overlap, encoded, mask_areas, mask_overlap

__all__ = [
    "AREAS",
    "COCO_LIMITS",
    "FALSE",
    "FIXED_LIMITS",
    "IGNORED",
    "IOU_THRESHOLDS",
    "LVIS_LIMITS",
    "TRUE",
    "ImageTruth",
    "Limits",
    "Matches",
    "match",
    "truth_of",
]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ("all", "small", "medium", "large")
_AREA_LIMITS_PX2 = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)], np.float64)


@dataclass(frozen=True, eq=False)
class ImageTruth:
    """What is known to be in one photograph.

    Parameters
    ----------
    boxes : array of shape (G, 4), xyxy in pixels.
    labels : array of shape (G,), int64, 0..F−1.
    crowd : array of shape (G,), bool: regions of many objects, which take any number of detections
        and count neither way.
    area : array of shape (G,), float64, in square pixels as annotated (of the mask, where there is
        one): what makes an object small, medium or large.
    negative : labels known to be absent, int64. None means that the image was searched for every
        class; otherwise detections of labels neither present nor in here do not count (federated).
    not_exhaustive : labels of which some objects may lack a box, int64; unmatched detections of
        them do not count.
    masks : one run-length encoding per object, to match by masks instead of boxes.
    """

    boxes: FloatArray
    labels: IntArray
    crowd: BoolArray
    area: FloatArray
    negative: IntArray | None = None
    not_exhaustive: IntArray | None = None
    masks: Sequence[Mask] | None = None


def truth_of(dataset: BoxDataset, *, masks: bool = False) -> list[ImageTruth]:
    """Return the truth of each image of a data set, in its order.

    Parameters
    ----------
    masks : bring the data set's polygons or run-length encodings along, to match by masks.

    Raises
    ------
    DataError
        If an object has no segmentation, and masks are asked for.
    """
    truths = []
    for image, truth in zip(dataset.images, dataset.truths, strict=True):
        rles = None
        if masks:
            missing = [ann for ann in truth.ids.tolist() if ann not in dataset.segmentations]
            if missing:
                raise DataError(
                    f"{image.name} of {dataset.name} has the annotation {missing[0]} without a "
                    "segmentation; expected one each. Match by boxes instead."
                )
            outlines = [dataset.segmentations[ann] for ann in truth.ids.tolist()]
            rles = [encoded(outline, image.width_px, image.height_px) for outline in outlines]
        truths.append(
            ImageTruth(
                boxes=truth.boxes,
                labels=truth.labels,
                crowd=truth.crowd,
                area=truth.area,
                negative=image.negative,
                not_exhaustive=image.not_exhaustive,
                masks=rles,
            )
        )
    return truths


@dataclass(frozen=True)
class Limits:
    """How many detections, best first, take part; None: all of them."""

    per_image: int | None = None
    per_image_and_class: int | None = None
    per_class: int | None = None


COCO_LIMITS = Limits(per_image_and_class=100)
LVIS_LIMITS = Limits(per_image=300)
# AP_fixed and AP_pool: Dave et al. 2021, arXiv 2102.01066.
FIXED_LIMITS = Limits(per_class=10_000)


@dataclass(frozen=True, eq=False)
class Matches:
    """The outcome of every detection that takes part, D of them, by label and falling score.

    Equal scores stand in the order of the images, then of the detections, as in COCO's evaluator.

    Parameters
    ----------
    images, classes : how many there are.
    image, position : arrays of shape (D,), int64: which image, and which of its detections.
    label, score : arrays of shape (D,).
    outcome : array of shape (A, T, D), int8, by area range of `AREAS` and IoU of `IOU_THRESHOLDS`:
        `TRUE`, `FALSE` or `IGNORED`.
    truth_image, truth_label : arrays of shape (G,), int64.
    truth_counts : array of shape (A, G), bool: whether the object is to be found.
    """

    images: int
    classes: int
    image: IntArray
    position: IntArray
    label: IntArray
    score: FloatArray
    outcome: npt.NDArray[np.int8]
    truth_image: IntArray
    truth_label: IntArray
    truth_counts: BoolArray


def match(
    truth: Sequence[ImageTruth],
    detections: Sequence[Detections],
    classes: int,
    limits: Limits,
    masks: Sequence[Sequence[Mask]] | None = None,
) -> Matches:
    """Match detections to truth within each image and class, at every IoU and area range.

    Best score first, a detection takes the free object with the largest IoU at or above the
    threshold; objects that do not count (crowds, those outside the area range) only where no other
    fits. What takes such an object is ignored, as is what takes none and is itself outside the area
    range or of a class not exhaustively annotated.

    Parameters
    ----------
    truth, detections : one per image, in the same order.
    classes : F.
    limits : which detections take part; they are applied before unlisted classes are left out.
    masks : per image one run-length encoding per detection; the truth then needs masks too.

    Raises
    ------
    DataError
        If the lengths differ, a label is outside 0..F−1, a box or score is not finite, or masks
        are missing.
    """
    if len(truth) != len(detections):
        raise DataError(
            f"There are {len(truth)} images with truth and {len(detections)} with detections; "
            "expected one of each per image, empty ones included."
        )
    there = _Objects.of([t.boxes for t in truth], [t.labels for t in truth], classes, "truth")
    found = _Objects.of(
        [d.boxes for d in detections], [d.labels for d in detections], classes, "detection"
    )
    score = _joined([d.scores for d in detections], np.float64)
    if not np.isfinite(score).all():
        image = int(found.image[~np.isfinite(score)][0])
        raise DataError(f"Image {image} has a detection whose score is not a finite number.")
    crowd = _joined([t.crowd for t in truth], np.bool_)
    if masks is None:
        area = box_area(found.boxes)
        overlap = box_overlap(found.boxes, there.boxes, crowd)
    else:
        rles = [rle for own in masks for rle in own]
        if len(rles) != len(score):
            raise DataError(
                f"There are {len(rles)} masks for {len(score)} detections; expected one each."
            )
        area = mask_areas(rles)
        overlap = mask_overlap(rles, [rle for t in truth for rle in t.masks or ()], crowd)

    takes_part = _within(limits, found, score) & _listed(truth, found, there)
    chosen = np.flatnonzero(takes_part)
    order = chosen[np.lexsort((-score[chosen], found.label[chosen]))]
    cell = found.cell[order]
    truth_area = _joined([t.area for t in truth], np.float64)
    truth_counts = ~(_outside(truth_area) | crowd)

    spared = _outside(area[order]) | np.isin(
        cell, _cells([t.not_exhaustive for t in truth], classes)
    )
    outcome = np.empty((len(AREAS), len(IOU_THRESHOLDS), len(order)), np.int8)
    outcome[:] = np.where(spared, IGNORED, FALSE)[:, None, :]
    pairs = pairs_of(cell, there.cell, lambda d, t: overlap(order[d], t), IOU_THRESHOLDS[0])
    takers, taken = assign(pairs, cell, IOU_THRESHOLDS, truth_counts, crowd)
    outcome[:, :, takers] = np.where(taken == FALSE, outcome[:, :, takers], taken)
    return Matches(
        images=len(truth),
        classes=classes,
        image=found.image[order],
        position=found.position[order],
        label=found.label[order],
        score=score[order],
        outcome=outcome,
        truth_image=there.image,
        truth_label=there.label,
        truth_counts=truth_counts,
    )


@dataclass(frozen=True, eq=False)
class _Objects:
    """Boxes of all images in a row; a cell is one class in one image."""

    boxes: npt.NDArray[np.float64]
    label: IntArray
    image: IntArray
    position: IntArray
    cell: IntArray
    classes: int

    @classmethod
    def of(
        cls, boxes: Sequence[FloatArray], labels: Sequence[IntArray], classes: int, what: str
    ) -> _Objects:
        sizes = np.array([len(own) for own in labels], np.int64)
        image = np.repeat(np.arange(len(sizes)), sizes)
        position = np.arange(len(image)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        label = _joined(labels, np.int64)
        corners = _joined(boxes, np.float64).reshape(-1, 4)
        if len(corners) != len(label):
            raise DataError(f"There are {len(corners)} {what} boxes and {len(label)} labels.")
        strange = np.flatnonzero((label < 0) | (label >= classes))
        if len(strange):
            raise DataError(
                f"Image {image[strange[0]]} has a {what} with the label {label[strange[0]]}; "
                f"expected 0 to {classes - 1}, the labels of the class table."
            )
        broken = np.flatnonzero(~np.isfinite(corners).all(axis=1))
        if len(broken):
            raise DataError(
                f"Image {image[broken[0]]} has a {what} box {corners[broken[0]].tolist()}; "
                "expected four finite numbers."
            )
        return cls(corners, label, image, position, image * classes + label, classes)


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *(np.ravel(part) for part in parts)]).astype(dtype)


def _outside(area: FloatArray) -> BoolArray:
    """Return by area range whether an area, shape (K,), is outside it: shape (A, K)."""
    low, high = _AREA_LIMITS_PX2[:, :1], _AREA_LIMITS_PX2[:, 1:]
    outside: BoolArray = (area < low) | (area > high)
    return outside


def _cells(labels: Sequence[IntArray | None], classes: int) -> IntArray:
    """Return the cells of each image's labels."""
    own = [np.zeros(0, np.int64) if part is None else part for part in labels]
    image = np.repeat(np.arange(len(own)), [len(part) for part in own])
    cells: IntArray = image * classes + _joined(own, np.int64)
    return cells


def _within(limits: Limits, found: _Objects, score: FloatArray) -> BoolArray:
    """Return whether each detection is among the best of its image, class and both."""
    within = np.ones(len(score), np.bool_)
    for most, group in (
        (limits.per_image, found.image),
        (limits.per_image_and_class, found.cell),
        (limits.per_class, found.label),
    ):
        if most is not None and np.unique(group, return_counts=True)[1].max(initial=0) > most:
            order = np.lexsort((-score, group))
            own = group[order]
            within[order] &= np.arange(len(own)) - np.searchsorted(own, own) < most
    return within


def _listed(truth: Sequence[ImageTruth], found: _Objects, there: _Objects) -> BoolArray:
    """Return whether each detection is of a class that its image was searched for."""
    federated = np.array([t.negative is not None for t in truth], np.bool_)
    if not federated.any():
        return np.ones(len(found.label), np.bool_)
    absent = _cells([t.negative for t in truth], found.classes)
    listed: BoolArray = np.isin(found.cell, np.concatenate([absent, there.cell]))
    return listed | ~federated[found.image]
