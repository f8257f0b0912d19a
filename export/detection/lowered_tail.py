"""Which objects tell what a layer's loss of precision costs the tail, and how they tell it.

A classifier's margin is an image's own logit less the best other one. A detector has no row for an
object: its proposals come in another order, or not at all, as soon as a digit changes. What decides
an object's part in the average precision is what is found: the best detection of its class that
lies on it, against the best one of that class in the photograph that lies on nothing. The two as
log-odds are an object's logits here, so that its margin and a layer's damage are those of
:mod:`...precision.damage`. Log-odds, because rare classes have scores near zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltdeploy.arrays import FloatArray, IntArray
from ltdeploy.boxes import Detections, pairwise_iou
from ltdeploy.classes import ClassTable
from ltdeploy.datasets.boxes import BoxDataset
from ltdeploy.metrics.matching import ImageTruth

from ..precision.damage import tail_images
from ..precision.sampling import class_balanced

__all__ = ["TailObjects", "balanced_photographs", "object_logits", "tail_objects"]

_RANKING_OBJECTS = 256
_RANKING_PIXELS = 256 * 224 * 224
_FEWEST_PHOTOGRAPHS = 8
_FINDS_IOU = 0.5


@dataclass(frozen=True, eq=False)
class TailObjects:
    """Objects that layers are ranked on.

    Attributes
    ----------
    photographs : their places in the gate's photographs, shape (M,), each once.
    rows : of each object the place in ``photographs``, shape (K,).
    objects : of each object its place in the truth of its photograph, shape (K,).
    """

    photographs: IntArray
    rows: IntArray
    objects: IntArray


def balanced_photographs(dataset: BoxDataset) -> IntArray:
    """Return all places in a data set: a photograph of every class, then a second, and so on.

    A photograph stands where the first of its classes asks for it; those without boxes come last.
    """
    labels = [np.unique(truth.labels) for truth in dataset.truths]
    images = np.repeat(np.arange(len(dataset)), [len(own) for own in labels])
    asked = images[class_balanced(np.concatenate(labels))]
    _, first = np.unique(asked, return_index=True)
    return np.concatenate([asked[np.sort(first)], np.setdiff1d(np.arange(len(dataset)), images)])


def tail_objects(
    truth: Sequence[ImageTruth], classes: ClassTable, canvas_pixels: int
) -> TailObjects:
    """Return objects of the rarest classes, as many of each, in a bounded number of photographs.

    Parameters
    ----------
    canvas_pixels : of one canvas: fewer large ones are looked at.
    """
    own = [np.flatnonzero(~one.crowd) for one in truth]
    images = np.repeat(np.arange(len(truth)), [len(places) for places in own])
    places = np.concatenate(own)
    labels = np.concatenate([one.labels[at] for one, at in zip(truth, own, strict=True)])
    chosen = tail_images(labels, classes, _RANKING_OBJECTS)
    most = max(_FEWEST_PHOTOGRAPHS, _RANKING_PIXELS // canvas_pixels)
    _, first = np.unique(images[chosen], return_index=True)
    photographs = images[chosen][np.sort(first)][:most]
    kept = chosen[np.isin(images[chosen], photographs)]
    place_of = {int(image): place for place, image in enumerate(photographs)}
    rows = np.array([place_of[int(image)] for image in images[kept]], np.int64)
    return TailObjects(photographs, rows, places[kept])


def object_logits(
    found: Detections, truth: ImageTruth, objects: IntArray, least_score: float
) -> FloatArray:
    """Return the log-odds of what finds each object and of what finds nothing, shape (K, 2).

    Parameters
    ----------
    found : in the photograph that ``truth`` tells of.
    objects : places in ``truth``, shape (K,).
    least_score : of a detection; what is not found has it.
    """
    overlap = pairwise_iou(truth.boxes, found.boxes) >= _FINDS_IOU
    same = truth.labels[:, None] == found.labels
    nothing = ~(overlap & same).any(axis=0)
    scores = np.full((len(objects), 2), least_score, np.float64)
    for row, place in enumerate(objects.tolist()):
        label = truth.labels[place]
        finds = found.scores[overlap[place] & same[place]]
        scores[row, 0] = finds.max(initial=least_score)
        # Of a class not exhaustively drawn nobody knows what lies on nothing.
        if truth.not_exhaustive is None or label not in truth.not_exhaustive:
            astray = found.scores[same[place] & nothing]
            scores[row, 1] = astray.max(initial=least_score)
    bounded = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(bounded / (1 - bounded))
