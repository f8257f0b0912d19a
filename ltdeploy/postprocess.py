"""Raw outputs of a detector's graph to detections: scores, threshold, suppression, best K.

The order is torchvision's (``RoIHeads.postprocess_detections``): scores, foreground only, boxes
clipped to the photograph, threshold, boxes without area dropped, suppression, top K. Every class of
every box is a candidate, as LVIS is evaluated, and not only a box's best class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .arrays import FloatArray, IntArray
from .boxes import Detections
from .canvas import Placement
from .detection_rules import Activation, KeepRule, Quality, ScoreRule, Suppression
from .errors import DataError
from .masks import MaskGrids
from .suppression import hard_nms, soft_nms

__all__ = [
    "Activation",
    "KeepRule",
    "Quality",
    "ScoreRule",
    "Suppression",
    "masks_on",
    "postprocess",
    "postprocess_batch",
]

Bools = npt.NDArray[np.bool_]

_SMALLEST_SIDE_PX = 0.01  # torchvision's: clipping leaves slivers that are no boxes
_BLOCKS = 16


def postprocess(
    boxes: FloatArray,
    logits: FloatArray,
    quality: FloatArray | None,
    score_rule: ScoreRule,
    keep_rule: KeepRule,
    placement: Placement,
    *,
    name: str = "The image",
) -> Detections:
    """Turn one photograph's raw outputs into detections in its own pixels.

    Parameters
    ----------
    boxes : array of shape (P, 4), or (P, F, 4) where each class has its own, xyxy in canvas
        pixels. Rows without area are padding.
    logits : array of shape (P, C), the fix applied.
    quality : array of shape (P,), where the rule has a quality.
    placement : how the photograph stands on the canvas.
    name : what error texts call the photograph.

    Raises
    ------
    DataError
        If the shapes do not fit, or an output is not finite.
    """
    _check_finite(name, boxes=boxes, logits=logits, quality=quality)
    if boxes.shape[0] != logits.shape[0] or boxes.shape[-1] != 4:
        raise DataError(
            f"{name}: boxes of shape {boxes.shape} and logits of shape {logits.shape}; expected "
            "(P, 4) or (P, F, 4), and (P, C)."
        )
    scores = score_rule.scores(logits, quality)
    classes = scores.shape[1]
    if boxes.ndim == 3 and boxes.shape[1] != classes:
        raise DataError(
            f"{name}: {boxes.shape[1]} boxes per proposal and {classes} foreground classes; "
            "expected one box per foreground class."
        )
    scores[_is_padding(boxes)] = 0
    everything = scores.reshape(-1)
    limit = len(everything) if keep_rule.candidates is None else keep_rule.candidates
    count = 2 * keep_rule.top_k
    # The best K rarely need more than a few K candidates. Where they do, all is done again with
    # more of them until nothing left out could have come in.
    while True:
        places = _best(everything, min(count, limit), keep_rule.score_threshold)
        rows, labels = np.divmod(places, classes)
        own = (boxes[rows] if boxes.ndim == 2 else boxes[rows, labels]).astype(np.float32)
        best = everything[places].astype(np.float32)
        found = Detections(placement.to_original(own), best, labels)
        kept = _suppress(found[_has_area(found.boxes)], keep_rule)
        exhausted = len(places) < count or count >= limit
        if exhausted or (len(kept) == keep_rule.top_k and kept.scores[-1] >= found.scores[-1]):
            return kept
        count *= 4


def postprocess_batch(
    outputs: Mapping[str, FloatArray],
    score_rule: ScoreRule,
    keep_rule: KeepRule,
    placements: Sequence[Placement],
    names: Sequence[str],
) -> list[Detections]:
    """Turn a graph's outputs for a batch into detections, see :func:`postprocess`.

    Parameters
    ----------
    outputs : ``boxes``, ``logits`` and, where there is one, ``quality``, with the batch in front;
        or, of a graph that suppresses itself, ``boxes`` (N, K, 4), ``scores``, ``labels`` and,
        where there are any, ``masks`` (N, K, S, S).
    placements, names : of each photograph.

    Raises
    ------
    DataError
        If the shapes do not fit, or an output is not finite.
    """
    quality = outputs.get("quality")
    if "scores" in outputs:
        return [
            _kept_inside({k: v[at] for k, v in outputs.items()}, keep_rule, placement, name)
            for at, (placement, name) in enumerate(zip(placements, names, strict=True))
        ]
    return [
        postprocess(
            outputs["boxes"][at],
            outputs["logits"][at],
            None if quality is None else quality[at],
            score_rule,
            keep_rule,
            placement,
            name=name,
        )
        for at, (placement, name) in enumerate(zip(placements, names, strict=True))
    ]


def _kept_inside(
    kept: Mapping[str, FloatArray], keep_rule: KeepRule, placement: Placement, name: str
) -> Detections:
    """Return what a graph kept that suppresses itself; rows with the score 0 are padding."""
    boxes, scores, grids = kept["boxes"], kept["scores"], kept.get("masks")
    _check_finite(name, boxes=boxes, scores=scores, masks=grids)
    used = scores > max(keep_rule.score_threshold, 0)
    own = boxes[used].astype(np.float32)
    found = Detections(
        placement.to_original(own),
        scores[used].astype(np.float32),
        kept["labels"][used].astype(np.int64),
        None if grids is None else masks_on(placement, own, grids[used]),
    )
    return found[_has_area(found.boxes)][: keep_rule.top_k]


def masks_on(placement: Placement, boxes: FloatArray, grids: FloatArray) -> MaskGrids:
    """Return the masks of canvas boxes, (K, S, S) over (K, 4), in the photograph's pixels."""
    grids = grids[:, :, ::-1] if placement.mirrored else grids
    # torchvision's loss samples a mask's pixels by their corners: a cell tells of what lies half a
    # pixel of the canvas to the right and below.
    spanned = placement.unclipped(boxes + np.float32(0.5))
    return MaskGrids(grids, spanned, placement.height_px, placement.width_px)


def _suppress(found: Detections, rule: KeepRule) -> Detections:
    labels = None if rule.class_agnostic else found.labels
    if rule.suppression == "none":
        return found[: rule.top_k]
    if rule.suppression == "hard":
        return found[hard_nms(found.boxes, found.scores, labels, rule.iou, rule.top_k)]
    kept, lowered = soft_nms(
        found.boxes, found.scores, labels, rule.sigma, rule.score_threshold, rule.top_k
    )
    return Detections(found.boxes[kept], lowered, found.labels[kept])


def _best(scores: FloatArray, count: int, threshold: float) -> IntArray:
    """Return the places of the ``count`` best scores above the threshold, best first.

    Ties go to the lower place.
    """
    reached = None
    if len(scores) > 2 * _BLOCKS * count:
        # The count-th best of some of them is at most the count-th best of all: with it nearly
        # everything falls away in one comparison, and little is left to sort.
        width = len(scores) // _BLOCKS
        some = scores[: _BLOCKS * width].reshape(_BLOCKS, width).max(axis=0)
        least = np.partition(some, width - count)[width - count]
        reached = scores >= least if least > threshold else None
    places = np.flatnonzero(scores > threshold if reached is None else reached)
    order = np.argsort(-scores[places], kind="stable")[:count]
    best: IntArray = places[order]
    return best


def _is_padding(boxes: FloatArray) -> Bools:
    """Return which rows have no box with an area, shape (P,)."""
    if boxes.ndim == 2:
        return ~_has_area(boxes, 0)
    padding = ~_has_area(boxes[:, 0], 0)  # rarely true, and then the row's other classes are asked
    padding[padding] = ~_has_area(boxes[padding], 0).any(axis=1)
    return padding


def _has_area(boxes: FloatArray, smallest_side_px: float = _SMALLEST_SIDE_PX) -> Bools:
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    least = np.minimum(width, height)
    return (least > 0) & (least >= smallest_side_px)


def _check_finite(name: str, **outputs: FloatArray | None) -> None:
    for output, values in outputs.items():
        if values is None:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            total = values.sum()
        if np.isfinite(total):
            continue  # the usual case, in one pass; a sum may also overflow
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            place = tuple(int(i) for i in bad[0])
            raise DataError(
                f"{name}: {len(bad):,} of the detector's {output} are not finite, the first at "
                f"{place} ({values[place]}); expected finite numbers. Look at the model's weights, "
                "or at the precision it was exported with."
            )
