"""Raw outputs of a detector's graph to detections: scores, threshold, suppression, best K.

The order is torchvision's (``RoIHeads.postprocess_detections``): scores, foreground only, boxes
clipped to the photograph, threshold, boxes without area dropped, suppression, top K. Every class of
every box is a candidate, as LVIS is evaluated, and not only a box's best class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .arrays import FloatArray, IntArray, softmax
from .boxes import Detections
from .canvas import Placement
from .errors import DataError, UsageError, did_you_mean
from .suppression import hard_nms, soft_nms

__all__ = [
    "Activation",
    "KeepRule",
    "Quality",
    "ScoreRule",
    "Suppression",
    "postprocess",
    "postprocess_batch",
]

Activation = Literal["softmax", "sigmoid", "seesaw", "eqlv2"]
Quality = Literal["none", "product", "sqrt", "powers"]
Suppression = Literal["none", "hard", "soft"]
Bools = npt.NDArray[np.bool_]

_POWERS = {"product": (1.0, 1.0), "sqrt": (0.5, 0.5)}
_SMALLEST_SIDE_PX = 0.01  # torchvision's: clipping leaves slivers that are no boxes
_BLOCKS = 16


@dataclass(frozen=True)
class ScoreRule:
    """How a head's logits become scores: ``score = p_class^α · p_quality^β``.

    ==========  ========================================================================
    activation  p_class of the F foreground classes, from C logits
    ==========  ========================================================================
    softmax     softmax over all C; the background column, if any, is left out
    sigmoid     σ(z), each class for itself; the background column, if any, is left out
    seesaw      softmax over the first F = C − 2, times the first of the softmax over the last two
                (objectness); Wang et al. 2021, arXiv 2008.10032, §3.3
    eqlv2       σ(z) · (1 − σ(z_background)); Tan et al. 2021, arXiv 2012.08548, and its code
    ==========  ========================================================================

    Parameters
    ----------
    activation : as above.
    background : the background's column; None where the head has none.
    quality : what the second output, a logit per box, does to the score with p_quality = σ(logit).
        ``"none"``: there is none. ``"product"``, α = β = 1: objectness (YOLO). ``"sqrt"``,
        α = β = ½: centre-ness (torchvision's FCOS). ``"powers"``: (α, β) as given.
    powers : (α, β); FastestDet multiplies p_class^0.4 by p_object^0.6.

    Raises
    ------
    UsageError
        For unknown words, a background where the activation has none, or powers that do not fit.

    Examples
    --------
    >>> ScoreRule("softmax", background=0).foreground(4)
    array([1, 2, 3])
    """

    activation: Activation = "softmax"
    background: int | None = None
    quality: Quality = "none"
    powers: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_choice("activation", self.activation, get_args(Activation))
        _check_choice("quality", self.quality, get_args(Quality))
        if self.activation == "seesaw" and self.background is not None:
            raise UsageError(
                f"background is {self.background} with the activation 'seesaw', whose last two "
                "columns are object and background; leave it out."
            )
        if self.activation == "eqlv2" and self.background is None:
            raise UsageError(
                "The activation 'eqlv2' needs the background's column; it is the last one, the "
                "number of foreground classes."
            )
        if (self.quality == "powers") != (self.powers is not None):
            raise UsageError(
                f"quality is {self.quality!r} and powers are {self.powers}; expected powers, e.g. "
                "(0.4, 0.6), with the quality 'powers' and with no other."
            )
        if self.powers is not None:
            powers = tuple(float(p) for p in self.powers)
            if len(powers) != 2 or not all(math.isfinite(p) and p > 0 for p in powers):
                raise UsageError(
                    f"powers are {self.powers}; expected two numbers above 0, of class and quality."
                )
            object.__setattr__(self, "powers", powers)

    def foreground(self, columns: int) -> IntArray:
        """Return which of C logit columns the foreground classes are, in label order, shape (F,).

        Raises
        ------
        DataError
            If the head has too few columns for this rule.
        """
        background = self.background
        special = {"seesaw": 2}.get(self.activation, background is not None)
        if columns <= special or (background is not None and not 0 <= background < columns):
            raise DataError(
                f"The detector gives {columns} logits per box, which cannot be activation "
                f"{self.activation!r} with background column {background}."
            )
        if self.activation == "seesaw":
            return np.arange(columns - 2)
        every = np.arange(columns)
        return every if background is None else np.delete(every, background)

    def scores(self, logits: FloatArray, quality: FloatArray | None = None) -> FloatArray:
        """Return the scores of the foreground classes.

        Parameters
        ----------
        logits : array of shape (P, C).
        quality : logits, array of shape (P,), where the rule has a quality.

        Returns
        -------
        array of shape (P, F) in the dtype of the logits, C-contiguous.

        Raises
        ------
        DataError
            If the shapes do not fit the rule.
        """
        if (quality is None) != (self.quality == "none"):
            raise DataError(
                f"The score rule's quality is {self.quality!r} and the detector gives "
                f"{'no' if quality is None else 'a'} quality; name the output, or use the quality "
                f"{'none' if quality is None else 'product'!r}."
            )
        self.foreground(logits.shape[1])
        scores = self._class_scores(logits)
        if quality is None:
            return scores
        if quality.shape != logits.shape[:1]:
            raise DataError(
                f"The quality has the shape {quality.shape}; expected one logit for each of the "
                f"{len(logits)} boxes."
            )
        of_class, of_quality = self.powers or _POWERS[self.quality]
        if of_class != 1:
            np.power(scores, of_class, out=scores)
        scores *= np.power(_sigmoid(quality), of_quality)[:, None]
        return scores

    def _class_scores(self, logits: FloatArray) -> FloatArray:
        if self.activation == "seesaw":
            objects = softmax(logits[:, -2:])[:, :1]
            scores: FloatArray = softmax(logits[:, :-2]) * objects
            return scores
        scores = softmax(logits) if self.activation == "softmax" else _sigmoid(logits)
        if self.background is None:
            return scores
        background = scores[:, [self.background]]
        scores = np.delete(scores, self.background, axis=1)
        if self.activation == "eqlv2":
            scores *= 1 - background
        return scores


@dataclass(frozen=True)
class KeepRule:
    """Which candidates become detections; the same for reference and candidate.

    Parameters
    ----------
    score_threshold : a score must be above it; LVIS's 1e-4.
    top_k : the most detections of one photograph; LVIS's 300.
    suppression : ``"none"`` (query detectors), ``"hard"`` (NMS) or ``"soft"`` (gaussian soft-NMS).
    iou : the largest overlap of two kept boxes of a class, for ``"hard"``.
    sigma : σ of ``"soft"``.
    class_agnostic : suppress across classes.
    candidates : how many best candidates reach the suppression at most; None: all.

    Raises
    ------
    UsageError
        For values out of range or an unknown suppression.
    """

    score_threshold: float = 1e-4
    top_k: int = 300
    suppression: Suppression = "hard"
    iou: float = 0.5
    sigma: float = 0.5
    class_agnostic: bool = False
    candidates: int | None = None

    def __post_init__(self) -> None:
        _check_choice("suppression", self.suppression, get_args(Suppression))
        for name, value in (("score_threshold", self.score_threshold), ("iou", self.iou)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; expected a number from 0 to 1.")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"sigma is {self.sigma}; expected a number above 0, like 0.5.")
        for name, count in (("top_k", self.top_k), ("candidates", self.candidates)):
            if count is None and name == "candidates":
                continue
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise UsageError(f"{name} is {count}; expected a whole number above 0.")


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
    """Turn a graph's raw outputs for a batch into detections, see :func:`postprocess`.

    Parameters
    ----------
    outputs : ``boxes``, ``logits`` and, where there is one, ``quality``, with the batch in front.
    placements, names : of each photograph.

    Raises
    ------
    DataError
        If the shapes do not fit, or an output is not finite.
    """
    quality = outputs.get("quality")
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


def _sigmoid(logits: FloatArray) -> FloatArray:
    # Not through tanh: at 1e-4 that has three digits left in float32, and rare classes live there.
    exponentials = np.exp(-np.maximum(logits, -80))
    exponentials += 1
    return np.divide(1, exponentials, out=exponentials)


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


def _check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(
            f"Unknown {what} {value!r}; known are {', '.join(known)}."
            f"{did_you_mean(str(value), known)}"
        )
