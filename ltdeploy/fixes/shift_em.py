"""The prior of unlabelled images by expectation maximisation, smoothed as far as they ask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, softmax
from ..errors import FixError
from .target_prior import checked_logits

__all__ = ["estimate_prior_em", "floored"]

Float64 = npt.NDArray[np.float64]

# EM's smoothing is chosen among these; the last and strongest moves the prior a sixth of the way.
_SMOOTHINGS = np.array([0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0])
_FOLDS = 5
# Held-out likelihood knows how few target images there are, but not that the probabilities are
# wrong too: hence more caution than the usual one standard error where every class moves.
_SMOOTHING_ERRORS, _TILT_ERRORS = 2.0, 1.0
_TILTS = np.linspace(-2.0, 2.0, 33)
_FEWEST_TO_TILT = 30  # of fewer images a standard error says little
_MOST_ITERATIONS = 10_000


def estimate_prior_em(
    logits: FloatArray,
    source_prior: Float64,
    *,
    training_prior: Float64 | None = None,
    smoothing: float | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = _MOST_ITERATIONS,
) -> Float64:
    """Return the prior under which unlabelled images are most likely, by EM.

    ``π_c ← Σ_i π_c L_ic / Σ_k π_k L_ik`` with ``L_ic = p_ic / source_c`` never lowers the
    likelihood (Saerens, Latinne & Decaestecker 2002, Neural Computation 14, eq. 2.9; MLLS in
    Alexandari et al. 2020, arXiv 1901.06852). A weak model's maximum is far too sharp, so a centre
    m is mixed in as ``smoothing · N`` images that were already counted: a Dirichlet prior with
    ``α_c − 1 = smoothing · N · m_c``, whose posterior's mode is returned.

    The centre is the source prior or, given the training prior, ``m_c ∝ source_c · training_c^λ``:
    more head or more tail than the source in one number that all images tell together, an
    exponential tilt. Of λ = −2 … 2 the one nearest 0 is taken whose likelihood is within a standard
    error of the best (one number needs no held-out images). For fewer than 30 images λ is 0.

    Parameters
    ----------
    logits : array of shape (N, C), or log-probabilities: what is added to a row does not matter.
    source_prior : the prior that they speak under, array of shape (C,), above 0.
    training_prior : the shares in training, array of shape (C,), above 0, or None.
    smoothing : None chooses among 0.02 … 5 the strongest whose likelihood on held-out images (5
        folds, no labels) is within two standard errors of the best. 0 is the plain EM.
    tolerance : stop when an iteration moves less than this share of the images.
    max_iterations : before giving up.

    Raises
    ------
    FixError
        If a prior or the logits are unusable, or EM does not converge.
    """
    source = _checked_prior(source_prior, len(source_prior), "source")
    log_likelihoods = checked_logits(logits, len(source), "target") - np.log(source)
    likelihoods = np.exp(log_likelihoods - log_likelihoods.max(axis=1, keepdims=True))
    centre = source
    if training_prior is not None and len(likelihoods) >= _FEWEST_TO_TILT:
        centre = _tilted(
            likelihoods, source, _checked_prior(training_prior, len(source), "training")
        )
    if smoothing is None:
        smoothing = _held_out_smoothing(likelihoods, centre, max_iterations)
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise FixError(f"label_shift: smoothing is {smoothing:g}; expected a number at least 0.")
    inside = np.ones((len(likelihoods), 1))
    found = _em(likelihoods, inside, centre, np.array([smoothing]), tolerance, max_iterations)
    return floored(found[:, 0], len(likelihoods))


def _checked_prior(prior: Float64, classes: int, what: str) -> Float64:
    if prior.shape != (classes,):
        raise FixError(f"label_shift: the {what} prior is not one share for each of {classes}.")
    bad = np.flatnonzero(~(np.isfinite(prior) & (prior > 0)))[:10].tolist()
    if bad:
        raise FixError(f"label_shift: the {what} prior is not above 0 for the labels {bad}.")
    return np.asarray(prior / prior.sum(), dtype=np.float64)


def _em(
    likelihoods: Float64,
    inside: Float64,
    centre: Float64,
    smoothings: Float64,
    tolerance: float,
    max_iterations: int,
) -> Float64:
    """Return the priors (C, S) of S problems side by side, which have the images ``inside``."""
    counted = smoothings * inside.sum(axis=0) * centre[:, None]
    priors = np.repeat(centre[:, None], len(smoothings), axis=1)
    for _ in range(max_iterations):
        before = priors
        shares = priors * (likelihoods.T @ (inside / (likelihoods @ priors))) + counted
        priors = np.asarray(shares / shares.sum(axis=0), dtype=np.float64)
        if np.abs(priors - before).sum(axis=0).max() < tolerance:
            return priors
    raise FixError(
        f"label_shift: EM did not converge in {max_iterations:,} iterations. Calibrate the model "
        "first (bias_corrected_temperature), or use label_shift:estimator=rlls."
    )


def _alike(scores: Float64, standard_errors: float) -> npt.NDArray[np.int64]:
    """Return which columns of log-likelihoods (N, S) cannot be told from the best one."""
    behind = scores[:, [scores.sum(axis=0).argmax()]] - scores
    allowed = standard_errors * behind.std(axis=0) * np.sqrt(len(scores)) + 1e-12
    return np.asarray(np.flatnonzero(behind.sum(axis=0) <= allowed), dtype=np.int64)


def _tilted(likelihoods: Float64, source: Float64, training: Float64) -> Float64:
    centres = softmax(np.log(source) + _TILTS[:, None] * np.log(training)).T
    alike = _alike(np.log(likelihoods @ centres), _TILT_ERRORS)
    return np.asarray(centres[:, alike[np.abs(_TILTS[alike]).argmin()]], dtype=np.float64)


def _held_out_smoothing(likelihoods: Float64, centre: Float64, max_iterations: int) -> float:
    images, folds = len(likelihoods), min(_FOLDS, len(likelihoods))
    if folds < 2:
        return float(_SMOOTHINGS[-1])
    fold = np.random.default_rng(0).permutation(images) % folds
    # All folds and strengths at once: two matrix products per iteration.
    inside = np.repeat(fold[:, None] != np.arange(folds), len(_SMOOTHINGS), axis=1).astype(float)
    priors = _em(likelihoods, inside, centre, np.tile(_SMOOTHINGS, folds), 1e-4, max_iterations)
    scores = np.log(likelihoods @ priors).reshape(images, folds, -1)
    alike = _alike(scores[np.arange(images), fold], _SMOOTHING_ERRORS)
    return float(_SMOOTHINGS[alike[-1]])


def floored(prior: Float64, images: int) -> Float64:
    """Return the prior with shares of at least half an image: not met is not impossible."""
    floored = np.maximum(prior, 0.5 / images)
    return np.asarray(floored / floored.sum(), dtype=np.float64)
