"""Average precision of a detector: by class, group and object size, and of resampled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..arrays import IntArray
from ..boxes import Detections
from ..errors import DataError
from .assignment import FALSE, IGNORED, TRUE
from .matching import (
    AREAS,
    COCO_LIMITS,
    FIXED_LIMITS,
    IOU_THRESHOLDS,
    LVIS_LIMITS,
    ImageTruth,
    Limits,
    Matches,
    match,
)
from .overlaps import Mask

__all__ = ["BoxScores", "GroupScores", "average_precision", "evaluate", "mean_precision", "pooled"]

Float64 = npt.NDArray[np.float64]

_RECALLS = np.linspace(0.0, 1.0, 101)
_NUMBERS_AT_ONCE = 1 << 20
_IOU_75 = 5


@dataclass(frozen=True)
class GroupScores:
    """Average precisions of a group of classes, in percent; None without an object to find.

    Parameters
    ----------
    classes : classes of the group that have objects to find.
    ap : mean over its classes and IoU 0.50:0.05:0.95.
    fixed : the same without a limit per image (`BoxScores.fixed`).
    pool : of all its classes' detections in one ranking (`BoxScores.pool`).
    """

    classes: int
    ap: float | None
    fixed: float | None
    pool: float | None


@dataclass(frozen=True, eq=False)
class BoxScores:
    """Average precisions of a detector, in percent; None without an object to find.

    Parameters
    ----------
    limits : which detections took part in all but `fixed` and `pool`.
    ap, ap50, ap75 : means over the classes that have objects, at IoU 0.50:0.05:0.95, 0.50, 0.75.
    ap_small, ap_medium, ap_large : of objects below 32², up to 96², and from 96² square pixels.
    fixed : AP of the best 10,000 detections per class over the whole data set, without a limit per
        image, so that classes do not compete for places (Dave et al. 2021, arXiv 2102.01066).
    pool : AP of the same detections in one ranking over all classes, which rewards scores that mean
        the same in every class (as above).
    by_class : array of shape (F,): AP of each class, NaN without an object to find.
    by_group : figures of each group, in the order in which the groups were first named.
    """

    limits: Limits
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    fixed: float | None
    pool: float | None
    by_class: Float64
    by_group: dict[str, GroupScores]


def evaluate(
    truth: Sequence[ImageTruth],
    detections: Sequence[Detections],
    groups: Sequence[str],
    limits: Limits | None = None,
    masks: Sequence[Sequence[Mask]] | None = None,
) -> BoxScores:
    """Measure detections against the truth of the same images.

    Parameters
    ----------
    truth, detections : one per image, in the same order.
    groups : the group of each class, F of them: `ClassTable.groups`.
    limits : None takes LVIS's 300 per image where the truth is federated, else COCO's 100 per image
        and class.
    masks : as for `match`.

    Raises
    ------
    DataError
        As `match`.
    """
    if limits is None:
        federated = any(image.negative is not None for image in truth)
        limits = LVIS_LIMITS if federated else COCO_LIMITS
    matches = match(truth, detections, len(groups), limits, masks)
    precision = average_precision(matches)
    small, medium, large = (
        _percent(mean_precision(average_precision(matches, area=area))) for area in AREAS[1:]
    )
    unlimited = match(truth, detections, len(groups), FIXED_LIMITS, masks)
    fixed = average_precision(unlimited)
    names = np.array(groups)
    by_group = {}
    for group in dict.fromkeys(groups):
        members = np.flatnonzero(names == group)
        by_group[group] = GroupScores(
            classes=int((~np.isnan(precision[members, 0])).sum()),
            ap=_percent(mean_precision(precision, members)),
            fixed=_percent(mean_precision(fixed, members)),
            pool=_percent(mean_precision(average_precision(pooled(unlimited, members)))),
        )
    return BoxScores(
        limits=limits,
        ap=_percent(mean_precision(precision)),
        ap50=_percent(mean_precision(precision[:, :1])),
        ap75=_percent(mean_precision(precision[:, _IOU_75 : _IOU_75 + 1])),
        ap_small=small,
        ap_medium=medium,
        ap_large=large,
        fixed=_percent(mean_precision(fixed)),
        pool=_percent(mean_precision(average_precision(pooled(unlimited)))),
        by_class=100.0 * precision.mean(axis=1),
        by_group=by_group,
    )


def average_precision(
    matches: Matches, weights: Float64 | None = None, area: str = "all"
) -> Float64:
    """Return the average precision of each class at each IoU, in 0..1, NaN without an object.

    ``AP = 1/101 Σ_r max_{r' ≥ r} precision(r')`` over the recalls r = 0, 0.01, …, 1, as in COCO's
    evaluator. With weights every image counts ``w_i`` times, detections and objects alike: whole
    weights give what the evaluator says of a data set that holds image i ``w_i`` times (with the
    copies of a detection side by side), which is how a bootstrap resamples images without matching
    them anew.

    Parameters
    ----------
    matches : the outcomes of detections.
    weights : array of shape (B, images), not negative; None counts every image once.
    area : one of `AREAS`.

    Returns
    -------
    array of shape (F, T), or (B, F, T) with weights.

    Raises
    ------
    DataError
        If the weights do not fit the images, or the area is unknown.
    """
    if area not in AREAS:
        raise DataError(f"The area range is {area!r}; expected one of {', '.join(AREAS)}.")
    size = AREAS.index(area)
    w = np.ones((1, matches.images)) if weights is None else np.asarray(weights, np.float64)
    if w.ndim != 2 or w.shape[1] != matches.images:
        raise DataError(
            f"The weights have the shape {w.shape}; expected one row per replicate and "
            f"{matches.images} columns, one per image."
        )
    truth_image = matches.truth_image[matches.truth_counts[size]]
    truth_label = matches.truth_label[matches.truth_counts[size]]
    truth_image = truth_image[np.argsort(truth_label, kind="stable")]
    objects = np.cumsum(np.bincount(truth_label, minlength=matches.classes))
    ends = np.searchsorted(matches.label, np.arange(matches.classes), side="right")
    found = np.full((len(w), matches.classes, len(IOU_THRESHOLDS)), np.nan)
    for label in np.flatnonzero(np.diff(objects, prepend=0)):
        there = truth_image[objects[label - 1] if label else 0 : objects[label]]
        own = slice(ends[label - 1] if label else 0, ends[label])
        curve = _Curve.of(matches.outcome[size, :, own], matches.image[own])
        for start in range(0, len(w), max(1, _NUMBERS_AT_ONCE // curve.numbers)):
            stop = start + max(1, _NUMBERS_AT_ONCE // curve.numbers)
            found[start:stop, label] = curve.areas(w[start:stop], there)
    return found if weights is not None else found[0]


@dataclass(frozen=True, eq=False)
class _Curve:
    """The ranking of one class, taken apart: only matches raise recall, so only they are followed.

    Parameters
    ----------
    outcome : array of shape (T, M), int8: of the M detections that match at some IoU, in order.
    image : array of shape (M,): theirs.
    wrong_image : array of shape (W,): the images of detections that are wrong at every IoU.
    wrong_before : array of shape (M,): how many of those stand before each of the M.
    """

    outcome: npt.NDArray[np.int8]
    image: IntArray
    wrong_image: IntArray
    wrong_before: IntArray

    @classmethod
    def of(cls, outcome: npt.NDArray[np.int8], image: IntArray) -> _Curve:
        always = (outcome == outcome[0]).all(axis=0)
        wrong = always & (outcome[0] == FALSE)
        followed = ~always | (outcome[0] == TRUE)
        before = np.cumsum(wrong)
        return cls(outcome[:, followed], image[followed], image[wrong], before[followed])

    @property
    def numbers(self) -> int:
        """How many numbers one replicate takes."""
        return max(1, len(self.wrong_image), self.outcome.size)

    def areas(self, weights: Float64, truth_image: IntArray) -> Float64:
        """Return the average precisions, shape (B, T); NaN where no object has a weight."""
        objects = weights[:, truth_image].sum(axis=1)[:, None, None]
        wrong = np.zeros((len(weights), len(self.wrong_image) + 1))
        np.cumsum(weights[:, self.wrong_image], axis=1, out=wrong[:, 1:])
        own = weights[:, None, self.image]
        right = np.cumsum(own * (self.outcome == TRUE), axis=-1)
        ranked = np.cumsum(own * (self.outcome != IGNORED), axis=-1)
        ranked += wrong[:, None, self.wrong_before]
        precision = right / (ranked + np.spacing(1))
        precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        with np.errstate(invalid="ignore"):
            recall = right / objects
        reached = np.searchsorted(_RECALLS, recall, side="right")
        gained = np.diff(reached, axis=-1, prepend=0)
        areas: Float64 = (precision * gained).sum(axis=-1) / len(_RECALLS)
        return np.where(objects[..., 0] > 0, areas, np.nan)


def mean_precision(precision: Float64, labels: IntArray | None = None) -> Float64:
    """Return the mean over IoUs and the classes that have objects; NaN where none has.

    Parameters
    ----------
    precision : array of shape (..., F, T), of `average_precision`.
    labels : the classes to average; None means all.

    Returns
    -------
    array of shape (...).
    """
    by_class = precision.mean(axis=-1)
    if labels is not None:
        by_class = by_class[..., labels]
    there = ~np.isnan(by_class)
    total = np.where(there, by_class, 0.0).sum(axis=-1)
    classes = there.sum(axis=-1)
    mean: Float64 = np.divide(total, classes, out=np.full(total.shape, np.nan), where=classes > 0)
    return mean


def pooled(matches: Matches, labels: IntArray | None = None) -> Matches:
    """Return the matches as if all classes were one: matched apart, ranked together.

    Dave et al. 2021, arXiv 2102.01066 (AP_pool).

    Parameters
    ----------
    matches : of detections limited by `FIXED_LIMITS`.
    labels : the classes to pool; None means all.
    """
    chosen = np.arange(matches.classes) if labels is None else labels
    order = np.flatnonzero(np.isin(matches.label, chosen))
    order = order[np.argsort(-matches.score[order], kind="stable")]
    truth = np.isin(matches.truth_label, chosen)
    return replace(
        matches,
        classes=1,
        image=matches.image[order],
        position=matches.position[order],
        label=np.zeros(len(order), np.int64),
        score=matches.score[order],
        outcome=matches.outcome[:, :, order],
        truth_image=matches.truth_image[truth],
        truth_label=np.zeros(int(truth.sum()), np.int64),
        truth_counts=matches.truth_counts[:, truth],
    )


def _percent(share: Float64) -> float | None:
    return None if np.isnan(share) else 100.0 * float(share)
