"""Several detectors' findings of one photograph made into one.

An ensemble of a main model and experts differs from one of equals: most classes are known to some
models only. The usual formulas divide by the number of all models, and so lower the scores of what
a single expert knows, mostly the tail. Here a class counts the models that know it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .arrays import FloatArray, IntArray
from .boxes import Detections, pairwise_iou
from .errors import DataError, UsageError, did_you_mean
from .suppression import soft_nms

__all__ = ["FusionMethod", "FusionRule", "fuse", "known_classes"]

FusionMethod = Literal["weighted_boxes", "soft_nms"]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FusionRule:
    """How detections of one object by several models become one.

    ``w_m`` is a model's weight, ``K(c)`` the models that know class c, and ``W_c`` the sum of
    their weights; the published formulas have all models in place of ``K(c)``.

    ``"weighted_boxes"``: boxes of a class that overlap make a cluster, in the order of ``w_m s``.
    Its box is their mean weighted by ``w_m s``, its score
    ``mean(w_m s) · min(|K(c)|, size) / W_c``: what only some of those that know it saw counts less.
    Solovyev, Wang & Gabruseva 2021, *Weighted boxes fusion*, arXiv 1910.13302, §3, eq. 1–5.

    ``"soft_nms"``: all boxes with the scores ``s · w_m / max_{K(c)} w`` through gaussian soft-NMS.
    Bodla et al. 2017, arXiv 1704.04503.

    Parameters
    ----------
    method : as above.
    iou : overlap above which boxes are of one object, for ``"weighted_boxes"``.
    sigma : σ of ``"soft_nms"``.
    score_threshold : what has not more than this is left out, before and after.

    Raises
    ------
    UsageError
        For values out of range, or an unknown method.
    """

    method: FusionMethod = "weighted_boxes"
    iou: float = 0.55
    sigma: float = 0.5
    score_threshold: float = 1e-4

    def __post_init__(self) -> None:
        if self.method not in get_args(FusionMethod):
            raise UsageError(
                f"Unknown fusion method {self.method!r}; known are "
                f"{', '.join(get_args(FusionMethod))}."
                f"{did_you_mean(str(self.method), get_args(FusionMethod))}"
            )
        for name, value in (("score_threshold", self.score_threshold), ("iou", self.iou)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; expected a number from 0 to 1.")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"sigma is {self.sigma}; expected a number above 0, like 0.5.")


def known_classes(maps: Sequence[IntArray | None], classes: int) -> Bools:
    """Return which model knows which class, shape (M, F).

    Parameters
    ----------
    maps : per model its map of :func:`ltdeploy.vocabulary.class_maps`; None for the main model,
        which knows them all.
    classes : F, of the main model.
    """
    knows = np.ones((len(maps), classes), dtype=np.bool_)
    for row, labels in zip(knows, maps, strict=True):
        if labels is not None:
            row[:] = np.isin(np.arange(classes), labels)
    return knows


def fuse(
    found: Sequence[Detections],
    rule: FusionRule,
    knows: Bools | None = None,
    weights: Sequence[float] | None = None,
) -> Detections:
    """Return the fused detections of one photograph, all of them, best first.

    The best K are ``fuse(…)[:K]``: cut after the scores of rare groups were raised, not before.

    Parameters
    ----------
    found : per model, in the photograph's pixels and under the main model's labels.
    knows : which model knows which class, (M, F), of :func:`known_classes`; None: all know all.
    weights : one per model, above 0; None: all 1.

    Raises
    ------
    DataError
        If a model found a class that it does not know.
    UsageError
        If there is no model, or weights that do not fit.
    """
    shares = _weights(weights, len(found))
    boxes = np.concatenate([one.boxes for one in found])
    scores = np.concatenate([one.scores for one in found])
    labels = np.concatenate([one.labels for one in found])
    models = np.repeat(np.arange(len(found)), [len(one) for one in found])
    if knows is None:
        knows = np.ones((len(found), int(labels.max(initial=0)) + 1), dtype=np.bool_)
    _check_known(knows, models, labels, len(found))
    above = scores > rule.score_threshold
    boxes, scores, labels, models = boxes[above], scores[above], labels[above], models[above]
    knowing = shares[:, None] * knows
    if rule.method == "soft_nms":
        relative = (scores * (shares[models] / knowing.max(axis=0)[labels])).astype(scores.dtype)
        kept, lowered = soft_nms(boxes, relative, labels, rule.sigma, rule.score_threshold)
        return Detections(boxes[kept], lowered, labels[kept])
    weighted = scores * shares[models]
    parts = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(-weighted[rows], kind="stable")]
        clustered, confidences, sizes = _clusters(boxes[rows], weighted[rows], rule.iou)
        share = np.minimum(knows[:, label].sum(), sizes) / knowing[:, label].sum()
        parts.append((clustered, confidences * share, np.full(len(sizes), label)))
    if not parts:
        return Detections.empty()
    fused = Detections(
        np.concatenate([part[0] for part in parts]).astype(np.float32),
        np.concatenate([part[1] for part in parts]).astype(np.float32),
        np.concatenate([part[2] for part in parts]),
    )
    order = np.argsort(-fused.scores, kind="stable")
    return fused[order[fused.scores[order] > rule.score_threshold]]


def _clusters(
    boxes: FloatArray, scores: FloatArray, iou: float
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Cluster one class's boxes, given best first: fused boxes (N, 4), mean scores and sizes (N,).

    Each box joins the cluster whose fused box it overlaps most, or begins one.
    """
    sums = np.empty((len(boxes), 4))  # of score · box
    fused = np.empty((len(boxes), 4))
    totals = np.zeros(len(boxes))
    sizes = np.zeros(len(boxes), dtype=np.int64)
    count = 0
    for box, score in zip(boxes.astype(np.float64), scores.astype(np.float64), strict=True):
        place = count
        if count:
            overlaps = pairwise_iou(box[None], fused[:count])[0]
            best = int(overlaps.argmax())
            place = best if overlaps[best] > iou else count
        if place == count:
            sums[place] = 0
            count += 1
        sums[place] += score * box
        totals[place] += score
        sizes[place] += 1
        fused[place] = sums[place] / totals[place]
    return fused[:count], totals[:count] / sizes[:count], sizes[:count]


def _weights(weights: Sequence[float] | None, models: int) -> npt.NDArray[np.float64]:
    if not models:
        raise UsageError("There is nothing to fuse; expected the detections of one model or more.")
    shares = np.ones(models) if weights is None else np.array(weights, dtype=np.float64)
    if shares.shape != (models,) or not (np.isfinite(shares) & (shares > 0)).all():
        raise UsageError(
            f"The weights of the models are {weights}; expected {models} finite numbers above 0."
        )
    return shares


def _check_known(knows: Bools, models: IntArray, labels: IntArray, count: int) -> None:
    if knows.ndim != 2 or len(knows) != count:
        raise DataError(
            f"Which model knows which class has the shape {knows.shape}; expected ({count}, F)."
        )
    outside = (labels < 0) | (labels >= knows.shape[1])
    unknown = outside | ~knows[models, np.where(outside, 0, labels)]
    if unknown.any():
        first = int(np.flatnonzero(unknown)[0])
        raise DataError(
            f"Model {models[first]} found the label {labels[first]}, which it does not know. "
            "Translate an expert's detections to the main model's labels first: "
            "ltdeploy.vocabulary.translate."
        )
