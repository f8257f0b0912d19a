"""Suppression of duplicate boxes: hard and soft, per class or across classes, in NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .arrays import FloatArray, IntArray
from .boxes import box_area

__all__ = ["hard_nms", "soft_nms"]

Bools = npt.NDArray[np.bool_]

_BLOCK = 128  # the overlaps of a block stay in the processor's nearest cache


def hard_nms(
    boxes: FloatArray,
    scores: FloatArray,
    labels: IntArray | None,
    iou: float = 0.5,
    top_k: int | None = None,
) -> IntArray:
    """Keep each box that no kept box with a higher score overlaps by more than ``iou``.

    The order of equal scores is that of the rows, as in ``torchvision.ops.nms``. Blocks of the best
    boxes are taken in turn until ``top_k`` are kept. Within a block all decisions are made at once
    and repeated until they stand, which gives the same as one box after the other (Zheng et al.
    2020, *Cluster-NMS*, arXiv 2005.03572, proposition 1).

    Parameters
    ----------
    boxes : array of shape (N, 4), xyxy.
    scores : array of shape (N,), finite.
    labels : classes, array of shape (N,), of which none suppresses another; None: one class.
    iou : the largest overlap two kept boxes of a class may have.
    top_k : how many to keep at most; None keeps all.

    Returns
    -------
    the rows kept, best score first, array of shape (K,), int64.
    """
    order = np.argsort(-scores, kind="stable")
    limit = len(order) if top_k is None else top_k
    kept = order[:0]
    for start in range(0, len(order), _BLOCK):
        if len(kept) >= limit:
            break
        block = order[start : start + _BLOCK]
        free = ~_overlaps(boxes, labels, kept, block, iou).any(axis=0)
        block = block[free]
        rivals = np.triu(_overlaps(boxes, labels, block, block, iou), 1)
        stands: Bools = np.ones(len(block), dtype=np.bool_)
        while True:
            before, stands = stands, np.logical_not(rivals[stands].any(axis=0))
            if np.array_equal(before, stands):
                break
        kept = np.concatenate([kept, block[stands]])
    return kept[:limit]


def soft_nms(
    boxes: FloatArray,
    scores: FloatArray,
    labels: IntArray | None,
    sigma: float = 0.5,
    score_threshold: float = 1e-4,
    top_k: int | None = None,
) -> tuple[IntArray, FloatArray]:
    """Lower the score of each box by its overlaps with better ones instead of dropping it.

    The best box M is taken, then ``s_i ← s_i · exp(−IoU(M, b_i)² / σ)`` for the others of its
    class, and again. Bodla et al. 2017, *Soft-NMS*, arXiv 1704.04503, eq. 3 and figure 2.

    Parameters
    ----------
    boxes, scores, labels, top_k : as for :func:`hard_nms`.
    sigma : σ > 0; the smaller, the harder.
    score_threshold : a box is dropped when its lowered score is not above this.

    Returns
    -------
    the rows kept, array of shape (K,), int64, and their lowered scores (K,), highest first.
    """
    classes = np.zeros(len(scores), np.int64) if labels is None else labels
    # With a class's boxes side by side, each step looks at a slice of them and at nothing else.
    order = np.argsort(classes, kind="stable")
    classes, left = classes[order], scores[order]
    columns, areas = _columns(boxes[order]), box_area(boxes[order])
    starts = np.searchsorted(classes, classes, side="left")
    ends = np.searchsorted(classes, classes, side="right")
    limit = len(scores) if top_k is None else min(top_k, len(scores))
    kept = np.empty(limit, dtype=np.int64)
    lowered = np.empty(limit, dtype=scores.dtype)
    for place in range(limit):
        best = int(left.argmax())
        if left[best] <= score_threshold:
            return order[kept[:place]], lowered[:place]
        kept[place], lowered[place] = best, left[best]
        left[best] = -1
        own = slice(starts[best], ends[best])
        if ends[best] - starts[best] > 1:
            one = slice(best, best + 1)
            overlap = _iou(columns[:, one], areas[one], columns[:, own], areas[own])[0]
            left[own] *= np.exp(-np.square(overlap) / sigma)
    return order[kept], lowered


def _overlaps(
    boxes: FloatArray, labels: IntArray | None, rows: IntArray, others: IntArray, iou: float
) -> Bools:
    """Return which pairs are of one class and overlap by more than ``iou``, shape (M, N)."""
    first, second = boxes[rows], boxes[others]
    found: Bools = _iou(_columns(first), box_area(first), _columns(second), box_area(second)) > iou
    if labels is not None:
        found &= labels[rows, None] == labels[others]
    return found


def _columns(boxes: FloatArray) -> FloatArray:
    return np.ascontiguousarray(boxes.T)


def _iou(
    boxes: FloatArray, areas: FloatArray, others: FloatArray, other_areas: FloatArray
) -> FloatArray:
    """Return the overlaps of boxes given as four rows x1, y1, x2, y2, shape (M, N).

    Row by row and in place: several times as fast as on pairs of corners.
    """
    x1, y1, x2, y2 = boxes[:, :, None]
    shared: FloatArray = np.minimum(x2, others[2])
    shared -= np.maximum(x1, others[0])
    np.maximum(shared, 0, out=shared)
    height = np.minimum(y2, others[3])
    height -= np.maximum(y1, others[1])
    np.maximum(height, 0, out=height)
    shared *= height
    union = areas[:, None] + other_areas
    union -= shared
    np.maximum(union, np.finfo(union.dtype).tiny, out=union)  # 0 / 0 where neither has an area
    shared /= union
    return shared
