"""What a detector's manifest says beside its graph: how logits become scores, and what is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .arrays import FloatArray, IntArray, softmax
from .errors import DataError, UsageError, did_you_mean

__all__ = ["Activation", "KeepRule", "Quality", "ScoreRule", "Suppression"]

Activation = Literal["softmax", "sigmoid", "seesaw", "eqlv2"]
Quality = Literal["none", "product", "sqrt", "powers"]
Suppression = Literal["none", "hard", "soft"]

_POWERS = {"product": (1.0, 1.0), "sqrt": (0.5, 0.5)}


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

    @property
    def exponents(self) -> tuple[float, float]:
        """α and β; 1 and 0 where there is no quality."""
        return self.powers or _POWERS.get(self.quality, (1.0, 0.0))

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
        of_class, of_quality = self.exponents
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


def _sigmoid(logits: FloatArray) -> FloatArray:
    # Not through tanh: at 1e-4 that has three digits left in float32, and rare classes live there.
    exponentials = np.exp(-np.maximum(logits, -80))
    exponentials += 1
    return np.divide(1, exponentials, out=exponentials)


def _check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(
            f"Unknown {what} {value!r}; known are {', '.join(known)}."
            f"{did_you_mean(str(value), known)}"
        )
