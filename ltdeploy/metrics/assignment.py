"""Give each detection at most one object, greedily by score, for all images and classes at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from .overlaps import Overlap

__all__ = ["FALSE", "IGNORED", "TRUE", "BoolArray", "Pairs", "assign", "pairs_of"]

BoolArray = npt.NDArray[np.bool_]

TRUE, IGNORED, FALSE = 1, 0, -1

_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class Pairs:
    """Detections and objects that overlap enough to matter: arrays of shape (P,).

    The pairs of a detection stand together, the best first: the larger IoU, of equal ones the later
    object (as COCO's evaluator has it).
    """

    detection: IntArray
    truth: IntArray
    iou: FloatArray


def pairs_of(cell: IntArray, truth_cell: IntArray, overlap: Overlap, least_iou: float) -> Pairs:
    """Pair detections with the objects of their image and class.

    Parameters
    ----------
    cell, truth_cell : arrays of shape (D,) and (G,): the image and class of each, as one number.
    overlap : the IoU of pairs.
    least_iou : pairs below it are left out.
    """
    by_cell = np.argsort(truth_cell, kind="stable")
    sorted_cell = truth_cell[by_cell]
    first = np.searchsorted(sorted_cell, cell, side="left")
    count = np.searchsorted(sorted_cell, cell, side="right") - first
    near = np.flatnonzero(count)
    ends = np.cumsum(count[near])
    parts = []
    start = 0
    while start < len(near):
        done = ends[start] - count[near[start]]
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        some = near[start:stop]
        detection = np.repeat(some, count[some])
        offset = np.arange(len(detection)) - np.repeat(ends[start:stop] - done, count[some])
        truth = by_cell[np.repeat(first[some] + count[some], count[some]) + offset]
        iou = overlap(detection, truth)
        enough = iou >= least_iou
        parts.append((detection[enough], truth[enough], iou[enough]))
        start = stop
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    detection, truth, iou = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((-truth, -iou, detection))
    return Pairs(detection[order], truth[order], iou[order])


def assign(
    pairs: Pairs,
    cell: IntArray,
    thresholds: FloatArray,
    counts: BoolArray,
    shared: BoolArray,
) -> tuple[IntArray, npt.NDArray[np.int8]]:
    """Let detections take objects, in the order they stand in within their cell.

    A detection takes the first of its pairs at or above the threshold whose object is free; objects
    that do not count only where no other is left. Cells have no object in common, so the first
    detections of all cells choose in one step, then all second ones, and so on: as many steps as
    the fullest cell has detections that overlap something, over arrays of the shape (pairs of the
    step, area ranges, thresholds).

    Parameters
    ----------
    pairs : what may be taken.
    cell : array of shape (D,): the image and class of each detection, best detections first.
    thresholds : array of shape (T,).
    counts : array of shape (A, G): whether an object is to be found, by area range.
    shared : array of shape (G,): objects that any number of detections may take (crowds).

    Returns
    -------
    takers : array of shape (M,): the detections with a pair.
    results : array of shape (A, T, M), int8: `TRUE` where it took an object that counts, `IGNORED`
        where one that does not, `FALSE` where none.
    """
    areas, levels = len(counts), len(thresholds)
    heads = np.flatnonzero(np.diff(pairs.detection, prepend=-1))  # the first pair of each taker
    takers = pairs.detection[heads]
    results = np.full((len(takers), areas, levels), FALSE, np.int8)
    sizes = np.diff(heads, append=len(pairs.detection))
    turn = _rank_within(cell[takers])
    free = np.ones((counts.shape[1], areas, levels), np.bool_)
    counted = counts.T[:, :, None]
    by_turn = np.argsort(turn, kind="stable")
    for own in np.split(by_turn, np.flatnonzero(np.diff(turn[by_turn])) + 1) if len(turn) else []:
        starts = np.cumsum(sizes[own]) - sizes[own]
        places = np.arange(sizes[own].sum()) + np.repeat(heads[own] - starts, sizes[own])
        truth = pairs.truth[places]
        fits = free[truth] & (pairs.iou[places, None] >= thresholds)[:, None, :]
        none = len(places)
        number = np.arange(none)[:, None, None]
        regular = np.minimum.reduceat(np.where(fits & counted[truth], number, none), starts)
        any_fit = np.minimum.reduceat(np.where(fits, number, none), starts)
        pick = np.where(regular < none, regular, any_fit)
        taker, area, level = np.nonzero(pick < none)
        taken = truth[pick[taker, area, level]]
        free[taken, area, level] = shared[taken]
        results[own[taker], area, level] = np.where(counts[area, taken], TRUE, IGNORED)
    return takers, np.moveaxis(results, 0, -1)


def _rank_within(groups: IntArray) -> IntArray:
    """Return for each element how many of its group stand before it."""
    order = np.argsort(groups, kind="stable")
    own = groups[order]
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(own)) - np.searchsorted(own, own)
    return rank
