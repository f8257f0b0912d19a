"""Repeat factor sampling: images of rare classes come more often in an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..arrays import FloatArray, IntArray
from ..errors import UsageError

__all__ = ["LVIS_THRESHOLD", "check_threshold", "epoch_order", "parse_sampler", "repeat_factors"]

LVIS_THRESHOLD = 0.001
_NAME = "repeat_factor"


def repeat_factors(
    labels: Sequence[IntArray], classes: int, threshold: float = LVIS_THRESHOLD
) -> FloatArray:
    """Return how often each image is to come in an epoch.

    ``r_c = max(1, √(t / f_c))`` with ``f_c`` the share of images that hold class c, and
    ``r_i = max_{c in i} r_c`` (Gupta et al. 2019, arXiv 1908.03195v2, appendix B.2). An image
    without a box comes once.

    Parameters
    ----------
    labels : of each image, those of its boxes, in 0..classes - 1; repeated ones count once.
    threshold : t; classes in a smaller share of the images come more often. 0.001 is LVIS's.

    Returns
    -------
    array of shape (N,), float64, each 1 or more.

    Raises
    ------
    UsageError
        For a threshold that is not above 0 and at most 1.

    Examples
    --------
    >>> repeat_factors([np.array([0]), np.array([0]), np.array([0]), np.array([0, 1])], 2, 1.0)
    array([1., 1., 1., 2.])
    """
    check_threshold(threshold)
    held = [np.unique(one) for one in labels]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *held]), minlength=classes)
    # A class in no image is in nobody's maximum, whatever stands here.
    shares = np.maximum(counts, 1) / max(1, len(held))
    of_class = np.maximum(1.0, np.sqrt(threshold / shares))
    return np.array([of_class[one].max(initial=1.0) for one in held], dtype=np.float64)


def epoch_order(factors: FloatArray, random: np.random.Generator) -> IntArray:
    """Return the images of one epoch, shuffled, each ``⌊r_i⌋`` times and once more by chance.

    The chance is the fraction of ``r_i``, so that the expected number is ``r_i``.

    Parameters
    ----------
    factors : array of shape (N,), as :func:`repeat_factors` gives it.

    Returns
    -------
    array of shape (M,), int64: positions of images.
    """
    whole = np.floor(factors)
    times = whole + (random.random(len(factors)) < factors - whole)
    return random.permutation(np.repeat(np.arange(len(factors)), times.astype(np.int64)))


def check_threshold(threshold: float) -> None:
    """Raise unless a repeat factor can be computed with it.

    Raises
    ------
    UsageError
        For a threshold that is not above 0 and at most 1.
    """
    if not (math.isfinite(threshold) and 0 < threshold <= 1):
        raise UsageError(
            f"The threshold t of {_NAME} is {threshold}; expected a share of the images above 0 "
            f"and at most 1, like {LVIS_THRESHOLD}."
        )


def parse_sampler(text: str) -> float:
    """Read ``repeat_factor[:t=0.001]`` and return its threshold.

    Raises
    ------
    UsageError
        For another sampler, or a threshold that cannot be used.

    Examples
    --------
    >>> parse_sampler("repeat_factor"), parse_sampler("repeat_factor:t=0.01")
    (0.001, 0.01)
    """
    name, colon, told = text.partition(":")
    key, _, value = told.partition("=")
    try:
        threshold = float(value) if colon else LVIS_THRESHOLD
    except ValueError:
        threshold = math.nan
    if name != _NAME or (colon and key != "t") or math.isnan(threshold):
        raise UsageError(
            f"The sampler is {text!r}; expected {_NAME} or {_NAME}:t=SHARE, like "
            f"{_NAME}:t={LVIS_THRESHOLD}."
        )
    check_threshold(threshold)
    return threshold
