"""Priors: the one that a model's logits speak under, and the one of where it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray, softmax
from ..errors import FixError, did_you_mean
from .affine import AffineMap
from .base import (
    Evidence,
    Fix,
    FixContext,
    require_numbers,
    require_softmax,
    require_uncorrected,
)

__all__ = [
    "IMPOSSIBLE",
    "UNIFORM",
    "TargetPrior",
    "checked_logits",
    "fit_intercepts",
    "label_shares",
    "log_training_prior",
]

Float64 = npt.NDArray[np.float64]


_MOST_ITERATIONS = 10_000

UNIFORM: Literal["uniform"] = "uniform"

IMPOSSIBLE = 1e-30
"""What a share of zero counts as: a logit 69 below that of a class whose share is one."""


@final
@dataclass(frozen=True)
class TargetPrior(Fix):
    """Replace the training prior by a known one: ``z'_c = z_c + log π*_c − log π_c``.

    The Bayes-optimal decision under the prior π* where the model is used, when it estimates P(y|x)
    under the training prior π and only the class shares differ (label shift).

    Saerens, Latinne & Decaestecker 2002, *Adjusting the outputs of a classifier to new a priori
    probabilities*, Neural Computation 14, eq. 2.4; Menon et al. 2021, arXiv 2007.07314, eq. 9
    for π* uniform, which is logit adjustment with τ = 1.

    Parameters
    ----------
    prior : one share per class in label order, not negative, in any unit (counts will do: they
        are divided by their sum), or ``"uniform"``. A share of zero counts as 1e-30, so that the
        class's logit is finite and no image goes to it. Classes without training images are
        counted as one image.
    """

    prior: tuple[float, ...] | Literal["uniform"] = UNIFORM

    method: ClassVar[str] = "target_prior"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"counts"})

    def __post_init__(self) -> None:
        if isinstance(self.prior, str):
            if self.prior != UNIFORM:
                raise FixError(
                    f"target_prior: the prior {self.prior!r} is unknown; expected one share per "
                    f"class, or '{UNIFORM}'.{did_you_mean(self.prior, [UNIFORM])}"
                )
            return
        shares = require_numbers(self.method, "prior", self.prior)
        bad = np.flatnonzero(~(np.isfinite(shares) & (shares >= 0)))
        if bad.size:
            raise FixError(
                f"target_prior: the share of class label {bad[0]} is {shares[bad[0]]:g}; expected "
                "a finite number that is not negative."
            )
        if not shares.any():
            raise FixError(
                "target_prior: all shares are zero; expected one share per class, e.g. the images "
                "per class that the model will meet."
            )

    @classmethod
    def takes_prior_off(cls, parameters: Mapping[str, object]) -> bool:
        """Always: another prior takes its place."""
        return True

    def _map(self, context: FixContext) -> AffineMap:
        log_source = log_training_prior(context, self.method)
        classes = len(log_source)
        shares = np.ones(classes) if isinstance(self.prior, str) else np.array(self.prior)
        if len(shares) != classes:
            raise FixError(
                f"target_prior has {len(shares)} shares and the model {classes} classes; give one "
                "share per class, in label order."
            )
        shares = shares / shares.sum()
        return AffineMap(np.ones(classes), np.log(np.maximum(shares, IMPOSSIBLE)) - log_source)

    def freedom(self, context: FixContext) -> int:
        """Return 0: the prior is known, not learnt."""
        return 0


def log_training_prior(context: FixContext, method: str) -> Float64:
    """Return log π of training, shape (C,): the prior that the model's logits speak under.

    Raises
    ------
    FixError
        If they do not: no softmax head, a background row, counts of another number of classes, or
        (unless ``context.force``) a model whose training corrected for the prior already.
    """
    assert context.classes is not None
    require_softmax(context, method)
    outputs = context.class_count()
    measured = " use label_shift:source=validation, which measures the prior on validation images,"
    require_uncorrected(method, context.trained_with, force=context.force, instead=measured)
    background = context.head is not None and context.head.background is not None
    if background or len(context.classes) != outputs:
        raise FixError(
            f"{method} needs one training count per row of the head; the head has {outputs} rows "
            f"and the class table {len(context.classes)} classes."
        )
    log_prior: Float64 = np.log(context.classes.prior())
    return log_prior


def checked_logits(logits: FloatArray, classes: int, what: str) -> Float64:
    """Return logits in float64, or raise :class:`FixError` unless finite and of shape (N, C)."""
    if logits.ndim != 2 or logits.shape[1] != classes or not len(logits):
        raise FixError(
            f"label_shift: the {what} logits have shape {logits.shape}; expected (N, {classes}) "
            "with at least one image."
        )
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise FixError(f"label_shift: the logits of {what} image {bad[0]} are not finite.")
    return np.asarray(logits, dtype=np.float64)


def label_shares(labels: IntArray, classes: int, weights: Float64 | None = None) -> Float64:
    """Return the (weighted) share of each class among labels, shape (C,).

    Raises
    ------
    FixError
        If a label is out of range or a class has no image: nothing can be said of it.
    """
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise FixError(
            f"label_shift: a validation label is {wrong}, and the logits have {classes} classes; "
            f"expected labels from 0 to {classes - 1}."
        )
    shares: Float64 = np.bincount(labels, weights=weights, minlength=classes).astype(np.float64)
    absent = np.flatnonzero(shares <= 0)
    if absent.size:
        raise FixError(
            f"label_shift: {absent.size} of {classes} classes have no validation image, among them "
            f"the labels {absent[:10].tolist()}; give at least one of each, or use "
            "label_shift:estimator=em,source=training."
        )
    shares /= shares.sum()
    return shares


def fit_intercepts(logits: FloatArray, labels: IntArray, weights: Float64 | None = None) -> Float64:
    """Return the c for which ``softmax(z + c)`` meets each class as often as the labels do.

    These c maximise the (weighted) likelihood of the labels. Iterative scaling, ``c_k ← c_k +
    log(ν_k / mean p_k)``, never lowers it (Darroch & Ratcliff 1972, Annals of Mathematical
    Statistics 43). Then the logits speak under the labels' prior ν, whatever they did before.

    Parameters
    ----------
    logits : array of shape (N, C).
    labels : array of shape (N,), with every class in it.
    weights : of images, array of shape (N,).

    Raises
    ------
    FixError
        If a class has no label, or 10,000 iterations do not converge.
    """
    shares = label_shares(labels, logits.shape[1], weights)
    image = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    image = image / image.sum()
    wide = checked_logits(logits, len(shares), "validation")
    intercepts = np.zeros(len(shares))
    for _ in range(_MOST_ITERATIONS):
        met = image @ softmax(wide + intercepts)
        if np.abs(met - shares).sum() < 1e-8:
            intercepts -= intercepts.mean()
            return intercepts
        intercepts += np.log(shares) - np.log(np.maximum(met, np.finfo(np.float64).tiny))
    raise FixError(
        f"label_shift: the intercepts did not converge in {_MOST_ITERATIONS:,} iterations; check "
        "that the validation labels belong to these logits."
    )
