"""Paired statistics of two models on the same images: an interval per group, a test per class.

An image that both models get right, or both get wrong, says nothing about their difference; only
*lost* images (right under the reference, wrong under the candidate) and *won* ones do. Group
figures average over classes, so an image of class c weighs ``w = 1 / (K n_c)`` in a group of K
classes, n_c of its images being of class c. Everything below follows from the lost and won images
per class, and works on a leading axis of simulations as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from .. import _optional
from ..arrays import FloatArray, IntArray
from ..errors import DataError, UsageError

__all__ = [
    "PairedFlips",
    "benjamini_hochberg",
    "exact_loss_test",
    "lower_limit",
    "paired_flips",
    "score_interval",
    "upper_limit",
]

_BISECTIONS = 50  # of a range of at most 2: to the last digit of float64


@dataclass(frozen=True, eq=False)
class PairedFlips:
    """The weighted flips of one or more strata; every field of shape (..., S), float64, in 0..1.

    Parameters
    ----------
    won : ``W = Σ w`` over won images: the points the candidate gains, as a share.
    lost : ``L = Σ w`` over lost images.
    square : ``Σ w²`` over won and lost images.
    heaviest : the largest weight of any image of the stratum, flipped or not.
    """

    won: npt.NDArray[np.float64]
    lost: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    heaviest: npt.NDArray[np.float64]

    @property
    def difference(self) -> npt.NDArray[np.float64]:
        """Class-averaged accuracy of the candidate minus that of the reference, ``W − L``."""
        return self.won - self.lost

    @property
    def weight(self) -> npt.NDArray[np.float64]:
        """The weight of a typical flip, ``ŵ = (Σ w² + w_max²) / (Σ w + w_max)``.

        The flips that were seen and one that was not, on the image that weighs most, as Fay and
        Feuer do for weighted rates (1997, Statistics in Medicine 16, 791–801). ``1 / ŵ`` is the
        effective number of images. With equal weights it is their number, exactly; with many flips
        ``ŵ Σ w`` tends to the linearised variance ``Σ w²``; with none it is ``1 / w_max``, because
        the classes with the fewest images are where an unseen loss would cost most.
        """
        return (self.square + self.heaviest**2) / (self.won + self.lost + self.heaviest)

    def replicated(self, factor: float) -> PairedFlips:
        """Return the flips to expect of ``factor`` times as many images at the same rates."""
        return PairedFlips(self.won, self.lost, self.square / factor, self.heaviest / factor)


def paired_flips(
    images: IntArray, lost: IntArray, won: IntArray, strata: npt.NDArray[np.bool_]
) -> PairedFlips:
    """Sum the weighted flips of each stratum over its classes that have images.

    Parameters
    ----------
    images : array of shape (C,): images per class.
    lost, won : arrays of shape (..., C): images per class that only the reference, or only the
        candidate, gets right.
    strata : array of shape (S, C): which classes belong to each stratum.

    Raises
    ------
    DataError
        If a stratum has no image, or a class more flips than images.
    """
    if np.any(lost < 0) or np.any(won < 0) or np.any(lost + won > images):
        raise DataError(
            "A class has fewer than zero flips or more flips than images; expected images that "
            "are lost plus images that are won to be at most the images of the class."
        )
    measured = strata & (images > 0)
    classes = measured.sum(axis=-1, keepdims=True)
    if not classes.all():
        raise DataError(
            f"The strata {np.flatnonzero(classes[:, 0] == 0).tolist()} have no image; leave them "
            "out, a group without images has no difference to estimate."
        )
    weights = np.where(measured, 1.0 / (classes * np.maximum(images, 1)), 0.0)
    return PairedFlips(
        won=np.asarray(won @ weights.T, dtype=np.float64),
        lost=np.asarray(lost @ weights.T, dtype=np.float64),
        square=(lost + won) @ (weights**2).T,
        heaviest=weights.max(axis=-1),
    )


def _score_lower(
    won: FloatArray, lost: FloatArray, images: FloatArray, z: float
) -> npt.NDArray[np.float64]:
    """Return Tango's lower limit for shares ``won``, ``lost`` of ``images`` (real numbers) pairs.

    Solves ``√n (W − L − θ) / √(2 q̃ + θ (1 − θ)) = z`` for θ ≤ W − L, q̃ being the most likely
    lost share given θ, by bisection: the left side falls in θ.
    """
    difference = won - lost
    below, above = np.full_like(difference, -1.0), np.array(difference, dtype=np.float64)
    for _ in range(_BISECTIONS):
        theta = (below + above) / 2
        linear = (2.0 - difference) * theta - won - lost
        constant = -lost * theta * (1.0 - theta)
        likely = (np.sqrt(np.maximum(linear**2 - 8.0 * constant, 0.0)) - linear) / 4
        variance = np.maximum(2.0 * likely + theta * (1.0 - theta), 0.0)
        excluded = np.sqrt(images) * (difference - theta) > z * np.sqrt(variance)
        below, above = np.where(excluded, theta, below), np.where(excluded, above, theta)
    return below


def lower_limit(flips: PairedFlips, confidence: float = 0.95) -> npt.NDArray[np.float64]:
    """Return the lower end of `score_interval` alone, shape (..., S)."""
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"The confidence is {confidence}; expected a share between 0 and 1.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    weight = flips.weight
    lost = np.minimum(flips.lost + flips.heaviest - weight, 1.0 - flips.won)
    return _score_lower(flips.won, lost, 1.0 / weight, z)


def upper_limit(flips: PairedFlips, confidence: float = 0.95) -> npt.NDArray[np.float64]:
    """Return the upper end of `score_interval` alone, shape (..., S)."""
    mirrored = replace(flips, won=flips.lost, lost=flips.won)
    upper: npt.NDArray[np.float64] = -lower_limit(mirrored, confidence)
    return upper


def score_interval(
    flips: PairedFlips, confidence: float = 0.95
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the score interval of the difference of two paired class-averaged accuracies.

    Tango's interval (1998, Statistics in Medicine 17, 891–908) on ``n = 1 / ŵ`` effective images
    (`PairedFlips.weight`), the lost share raised by ``w_max − ŵ`` for the lower limit and the won
    share for the upper one (after Fay and Feuer 1997). Where every image weighs the same, as in any
    balanced test set, it *is* Tango's interval. Unlike a Wald interval it does not collapse to a
    point when nothing flipped: without flips it reaches down to ``−z² / (n + z²)``.

    Images are taken as independent draws of their class; near-duplicates make it too short.

    Returns
    -------
    lower and upper limits, arrays of shape (..., S), as shares in −1..1.

    Raises
    ------
    UsageError
        If `confidence` is not between 0 and 1.
    """
    return lower_limit(flips, confidence), upper_limit(flips, confidence)


def exact_loss_test(lost: IntArray, won: IntArray) -> npt.NDArray[np.float64]:
    """Return the p-value of McNemar's exact test per class, against the candidate being worse.

    ``p = P(X ≥ lost)``, X binomial on ``lost + won`` with one half (McNemar 1947, Psychometrika 12,
    153–157, conditional form). One-sided, because the gate asks whether a class got worse; a class
    that got better has a p-value near one. A class without flips has p = 1.

    Parameters
    ----------
    lost, won : arrays of shape (C,).
    """
    binom = _optional.require("scipy.stats", extra="verify", purpose="test each class").binom
    p_values: npt.NDArray[np.float64] = binom.sf(np.asarray(lost) - 1, lost + won, 0.5)
    return p_values


def benjamini_hochberg(p_values: FloatArray) -> npt.NDArray[np.float64]:
    """Return q-values: ``q_(i) = min over j ≥ i of p_(j) m / j`` for the sorted p-values.

    Calling every class with ``q < 0.05`` worse keeps the expected share of false calls under 5 %
    (Benjamini and Hochberg 1995, JRSS B 57, 289–300).

    Parameters
    ----------
    p_values : array of shape (m,).
    """
    order = np.argsort(p_values, kind="stable")
    ranks = np.arange(1, len(order) + 1)
    scaled = np.asarray(p_values, dtype=np.float64)[order] * len(order) / ranks
    q_values = np.empty(len(order), dtype=np.float64)
    q_values[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q_values
