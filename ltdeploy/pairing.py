"""Which detection of one model is which of another's: by class and overlap, never by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import IntArray
from .boxes import Detections, pairwise_iou

__all__ = ["Agreement", "agreement", "pair"]

_SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Agreement:
    """How far two models' detections of one photograph are apart.

    Attributes
    ----------
    score_difference : largest difference of the scores of a pair.
    box_difference_px : largest difference of a coordinate of a pair.
    alone : highest score of a detection that has no counterpart; 0 where all have one.
    """

    score_difference: float
    box_difference_px: float
    alone: float


def pair(a: Detections, b: Detections, iou: float = _SAME_OBJECT_IOU) -> IntArray:
    """Return for each detection of ``a`` its counterpart in ``b``, or −1; array of shape (K,).

    Pairs have the same label and overlap by at least ``iou``; the largest overlaps are paired
    first, and of equal overlaps the nearest scores.
    """
    found = np.full(len(a), -1, np.int64)
    overlap = pairwise_iou(a.boxes, b.boxes)
    rows, columns = np.nonzero((overlap >= iou) & (a.labels[:, None] == b.labels))
    order = np.lexsort((np.abs(a.scores[rows] - b.scores[columns]), -overlap[rows, columns]))
    taken = np.zeros(len(b), bool)
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if found[row] < 0 and not taken[column]:
            found[row], taken[column] = column, True
    return found


def agreement(a: Detections, b: Detections, least_score: float = 0.0) -> Agreement:
    """Compare what two models found in one photograph.

    Parameters
    ----------
    least_score : detections below it need no counterpart: at the threshold, and where the number of
        detections is cut, the last digit decides which are kept.
    """
    counterpart = pair(a, b)
    rows = np.flatnonzero(counterpart >= 0)
    columns = counterpart[rows]
    lonely = np.concatenate(
        [a.scores[counterpart < 0], b.scores[np.setdiff1d(np.arange(len(b)), columns)]]
    )
    lonely = lonely[lonely >= least_score]
    scores = np.abs(a.scores[rows] - b.scores[columns])
    boxes = np.abs(a.boxes[rows] - b.boxes[columns])
    return Agreement(
        float(scores.max(initial=0.0)),
        float(boxes.max(initial=0.0)),
        float(lonely.max(initial=0.0)),
    )
