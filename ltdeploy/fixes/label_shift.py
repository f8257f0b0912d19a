"""Label shift: estimate from unlabelled images how often each class occurs where a model is used.

Every estimator assumes that only the class shares change, not what a class looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np
import numpy.typing as npt

from .. import _optional
from ..arrays import FloatArray, IntArray, softmax
from ..errors import FixError, did_you_mean
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_softmax
from .target_prior import checked_logits, fit_intercepts, label_shares, log_training_prior

__all__ = [
    "LabelShift",
    "ShiftEstimator",
    "ShiftSource",
    "estimate_prior_em",
    "estimate_weights_bbse",
    "estimate_weights_rlls",
]

Float64 = npt.NDArray[np.float64]
ShiftEstimator = Literal["em", "bbse", "rlls"]
ShiftSource = Literal["training", "validation"]

# EM's smoothing is chosen among these; the last and strongest still moves the prior half the way.
_SMOOTHINGS = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0])
_FOLDS = 5
# Held-out likelihood knows how few target images there are, but not that the probabilities are
# wrong too: hence more caution than the usual one standard error.
_STANDARD_ERRORS = 3.0
# RLLS: share of the theory's regularisation and its confidence, as in the authors' code.
_RLLS_SHARE, _RLLS_DELTA = 0.01, 0.05
_MOST_ITERATIONS = 10_000


@final
@dataclass(frozen=True)
class LabelShift(Fix):
    """Estimate the prior π* of unlabelled target images, then ``z' = z + log π* − log π``.

    Parameters
    ----------
    estimator : ``em`` maximises the likelihood of the target images
        (:func:`estimate_prior_em`); ``bbse`` inverts the confusion matrix of the validation images
        (:func:`estimate_weights_bbse`); ``rlls`` inverts it with regularisation
        (:func:`estimate_weights_rlls`).
    source : which prior π the logits speak under. ``training``: the training counts.
        ``validation``: whatever it is, measured on labelled validation images by fitting one
        intercept per class (:func:`fit_intercepts`); for any model, also after other fixes.

    Notes
    -----
    ``em`` needs calibrated probabilities (Alexandari et al. 2020, arXiv 1901.06852): let it follow
    bias_corrected_temperature fitted on validation images, with ``source="validation"``. Raw
    probabilities are too sure, and the prior that ``source="training"`` finds is then too sharp.
    """

    estimator: ShiftEstimator = "em"
    source: ShiftSource = "validation"

    method: ClassVar[str] = "label_shift"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"target"})

    def __post_init__(self) -> None:
        for name, value, known in (
            ("estimator", self.estimator, get_args(ShiftEstimator)),
            ("source", self.source, get_args(ShiftSource)),
        ):
            if value not in known:
                raise FixError(
                    f"label_shift: the {name} {value!r} is unknown; expected one of "
                    f"{', '.join(known)}.{did_you_mean(str(value), known)}"
                )

    def _map(self, context: FixContext) -> AffineMap:
        intercepts, log_source, prior = self._estimate(context)
        return AffineMap(np.ones(len(prior)), intercepts + np.log(prior) - log_source)

    def target_prior(self, context: FixContext) -> Float64:
        """Return the estimated prior of the target images, array of shape (C,), summing to one.

        Raises
        ------
        FixError
            As :meth:`Fix.fit`.
        """
        self.require_evidence(context)
        prior = self._estimate(context)[2]
        return np.asarray(prior / prior.sum(), dtype=np.float64)

    def _estimate(self, context: FixContext) -> tuple[Float64, Float64, Float64]:
        """Return intercepts that tell the source prior, its logarithm, and the target prior."""
        require_softmax(context, self.method)
        assert context.target_logits is not None
        target = checked_logits(context.target_logits, context.class_count(), "target")
        logits, labels = context.logits, context.labels
        shares = None
        if self.source == "validation" or self.estimator != "em":
            if logits is None or labels is None:
                raise FixError(
                    f"label_shift:estimator={self.estimator},source={self.source} needs labelled "
                    "validation images (--val DATA, or 'logits' and 'labels' in the .npz); "
                    "label_shift:estimator=em,source=training does without."
                )
            logits = checked_logits(logits, target.shape[1], "validation")
            shares = label_shares(labels, target.shape[1], context.weights)
        if self.source == "training":
            if context.classes is None:
                raise FixError(
                    "label_shift:source=training needs training counts (--classes FILE, or "
                    "'counts' in the .npz); source=validation does without."
                )
            intercepts = np.zeros(target.shape[1])
            log_source = log_training_prior(context, self.method)
        else:
            assert logits is not None
            assert labels is not None
            assert shares is not None
            intercepts = fit_intercepts(logits, labels, context.weights)
            log_source = np.log(shares)
        target = target + intercepts
        if self.estimator == "em":
            prior = estimate_prior_em(target, np.exp(log_source))
        else:
            assert logits is not None
            assert labels is not None
            assert shares is not None
            estimate = {"bbse": estimate_weights_bbse, "rlls": estimate_weights_rlls}
            known = (logits + intercepts, labels)
            prior = shares * estimate[self.estimator](*known, target, context.weights)
        return intercepts, log_source, prior

    @property
    def learns_from_validation(self) -> bool:
        """Whether validation images tell the source prior or the confusion matrix."""
        return self.source == "validation" or self.estimator != "em"

    def freedom(self, context: FixContext) -> int:
        """Return C − 1 shares, and as many intercepts where validation images tell the source."""
        return (context.class_count() - 1) * (2 if self.source == "validation" else 1)


def estimate_prior_em(
    logits: FloatArray,
    source_prior: Float64,
    *,
    smoothing: float | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = _MOST_ITERATIONS,
) -> Float64:
    """Return the prior under which unlabelled images are most likely, by EM.

    ``π_c ← Σ_i π_c L_ic / Σ_k π_k L_ik`` with ``L_ic = p_ic / source_c`` never lowers the
    likelihood (Saerens, Latinne & Decaestecker 2002, Neural Computation 14, eq. 2.9; MLLS in
    Alexandari et al. 2020, arXiv 1901.06852). A weak model's maximum is far too sharp, so the
    source prior is mixed in as ``smoothing · N`` images that were already counted: a Dirichlet
    prior with ``α_c − 1 = smoothing · N · source_c``, whose posterior's mode is returned.

    Parameters
    ----------
    logits : array of shape (N, C), or log-probabilities: what is added to a row does not matter.
    source_prior : the prior that they speak under, array of shape (C,), above 0.
    smoothing : None chooses among 0.02 … 1 the strongest whose likelihood on held-out images (5
        folds, no labels) is within three standard errors of the best. 0 is the plain EM.
    tolerance : stop when an iteration moves less than this share of the images.
    max_iterations : before giving up.

    Raises
    ------
    FixError
        If the prior or the logits are unusable, or EM does not converge.
    """
    source = np.asarray(source_prior, dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(source) & (source > 0)))
    if bad.size:
        raise FixError(
            f"label_shift: the source prior is not above 0 for the labels {bad[:10].tolist()}."
        )
    source = source / source.sum()
    log_likelihoods = checked_logits(logits, len(source), "target") - np.log(source)
    likelihoods = np.exp(log_likelihoods - log_likelihoods.max(axis=1, keepdims=True))
    if smoothing is None:
        smoothing = _held_out_smoothing(likelihoods, source)
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise FixError(f"label_shift: smoothing is {smoothing:g}; expected a number at least 0.")
    prior = source[:, None]
    counted = smoothing * len(likelihoods) * prior
    inside = np.ones((len(likelihoods), 1))
    for _ in range(max_iterations):
        before, prior = prior, _em_step(likelihoods, prior, inside, counted)
        if np.abs(prior - before).sum() < tolerance:
            return _floored(prior[:, 0], len(likelihoods))
    raise FixError(
        f"label_shift: EM did not converge in {max_iterations:,} iterations. Calibrate the model "
        "first (bias_corrected_temperature), or use label_shift:estimator=rlls."
    )


def _em_step(likelihoods: Float64, priors: Float64, inside: Float64, counted: Float64) -> Float64:
    """Return the next priors (C, S) of S problems side by side.

    ``inside`` (N, S) says which images a problem has, ``counted`` (C, S) what it starts with.
    """
    shares = priors * (likelihoods.T @ (inside / (likelihoods @ priors))) + counted
    result: Float64 = shares / shares.sum(axis=0)
    return result


def _held_out_smoothing(likelihoods: Float64, source: Float64) -> float:
    images, strengths = len(likelihoods), len(_SMOOTHINGS)
    folds = min(_FOLDS, images)
    if folds < 2:
        return float(_SMOOTHINGS[-1])
    fold = np.random.default_rng(0).permutation(images) % folds
    # All folds and strengths at once: two matrix products per iteration.
    inside = np.repeat(fold[:, None] != np.arange(folds), strengths, axis=1).astype(np.float64)
    counted = np.tile(_SMOOTHINGS, folds) * inside.sum(axis=0) * source[:, None]
    priors = np.repeat(source[:, None], folds * strengths, axis=1)
    for _ in range(_MOST_ITERATIONS):
        before, priors = priors, _em_step(likelihoods, priors, inside, counted)
        if np.abs(priors - before).sum(axis=0).max() < 1e-4:  # enough to rank them
            break
    scores = np.log(likelihoods @ priors).reshape(images, folds, strengths)
    held_out = scores[np.arange(images), fold]
    behind = held_out[:, [held_out.sum(axis=0).argmax()]] - held_out
    error = behind.std(axis=0) * np.sqrt(images)
    alike = behind.sum(axis=0) <= _STANDARD_ERRORS * error + 1e-12
    return float(_SMOOTHINGS[np.flatnonzero(alike)[-1]])


def _floored(prior: Float64, images: int) -> Float64:
    """Return the prior with shares of at least half an image: not met is not impossible."""
    floored: Float64 = np.maximum(prior, 0.5 / images)
    floored /= floored.sum()
    return floored


def _confusion(
    logits: FloatArray, labels: IntArray, weights: Float64 | None
) -> tuple[Float64, Float64, Float64]:
    """Return mean probabilities given the label (C, C), shares (C,), images per class (C,).

    Column c is the mean of ``softmax(z)`` over the images of class c; weighted classes count the
    images that would say as much without weights.
    """
    shares = label_shares(labels, logits.shape[1], weights)
    image = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(len(shares)))
    probabilities = (
        softmax(checked_logits(logits, len(shares), "validation")[order]) * image[order, None]
    )
    mass = np.add.reduceat(image[order], starts)
    confusion = (np.add.reduceat(probabilities, starts, axis=0) / mass[:, None]).T
    return confusion, shares, mass**2 / np.add.reduceat(image[order] ** 2, starts)


def estimate_weights_bbse(
    logits: FloatArray, labels: IntArray, target_logits: FloatArray, weights: Float64 | None = None
) -> Float64:
    """Return ``w_c = π*_c / ν_c`` by inverting the confusion matrix (black-box shift estimation).

    ``M (ν ⊙ w) = q`` with M the mean probabilities given the label on validation images, ν the
    labels' shares and q the mean probabilities of the target images. Negative shares are cut off.

    Lipton, Wang & Smola 2018, arXiv 1802.03916, algorithm 1, with probabilities in place of hard
    decisions, as in Alexandari et al. 2020, arXiv 1901.06852, which lose less of what a weak model
    knows.

    Parameters
    ----------
    logits, labels : of validation images, arrays of shape (N, C) and (N,).
    target_logits : array of shape (T, C).
    weights : of validation images, array of shape (N,).

    Raises
    ------
    FixError
        If M's smallest singular value is within M's own sampling error, so that M cannot be told
        from a singular matrix; or a class has no validation image.
    """
    confusion, shares, images = _confusion(logits, labels, weights)
    singular = np.linalg.svd(confusion, compute_uv=False)
    variance = confusion * (1.0 - confusion) / images
    error = np.sqrt(variance.sum(axis=0).max()) + np.sqrt(variance.sum(axis=1).max())
    if not singular[-1] > error:
        condition = singular[0] / max(singular[-1], np.finfo(np.float64).tiny)
        never = np.setdiff1d(np.arange(len(shares)), logits.argmax(axis=1))
        named = f"; the labels {never[:10].tolist()} are never predicted" if never.size else ""
        raise FixError(
            f"label_shift: the confusion matrix of the {len(labels)} validation images is too "
            f"close to a singular one to be inverted (condition number {condition:.3g}, smallest "
            f"singular value {singular[-1]:.2g} with a sampling error of {error:.2g}{named}). Use "
            "label_shift:estimator=rlls or em, or more validation images."
        )
    target = softmax(checked_logits(target_logits, len(shares), "target")).mean(axis=0)
    return _floored(np.linalg.solve(confusion, target), len(target_logits)) / shares


def estimate_weights_rlls(
    logits: FloatArray, labels: IntArray, target_logits: FloatArray, weights: Float64 | None = None
) -> Float64:
    """Return ``w = 1 + θ``, θ the minimum of ``‖M_ν θ − b‖ + Δ ‖θ‖`` over θ ≥ −1.

    ``M_ν = M diag(ν)`` and ``b = q − M ν`` with M, ν, q as in :func:`estimate_weights_bbse`;
    ``Δ = 0.01 · 3 (2 log(2C/0.05) / 3N + √(2 log(2C/0.05) / N))`` is what the authors' code uses.

    Azizzadenesheli et al. 2019, *Regularized learning for domain adaptation under label shifts*,
    arXiv 1903.09734, algorithm 1. Needs SciPy; meant for up to some thousand classes.

    Raises
    ------
    FixError
        If the solver does not converge, or a class has no validation image.
    """
    optimize: Any = _optional.require(
        "scipy.optimize", extra="verify", purpose="estimate a label shift by rlls"
    )
    confusion, shares, _ = _confusion(logits, labels, weights)
    joint = confusion * shares
    gap = softmax(checked_logits(target_logits, len(shares), "target")).mean(axis=0) - joint.sum(
        axis=1
    )
    classes = len(shares)
    spread = np.log(2 * classes / _RLLS_DELTA) / len(labels)
    delta = _RLLS_SHARE * 3 * (2 * spread / 3 + np.sqrt(2 * spread))
    if np.linalg.norm(joint.T @ gap) <= delta * np.linalg.norm(gap):
        return np.ones(classes)  # θ = 0 is the minimum: no shift to be seen

    # The minimum solves a ridge problem too, whose strength λ has λ ‖θ‖ = Δ ‖residual‖; the ratio
    # rises with λ, because the two norms trade off along a convex curve.
    size = np.linalg.norm(joint, 2) ** 2
    low, high = np.log(1e-14 * size), np.log(1e2 * size)
    found = np.ones(classes)
    for _ in range(50):
        middle = (low + high) / 2
        root = np.exp(middle / 2)
        try:
            found, _ = optimize.nnls(
                np.vstack([joint, root * np.eye(classes)]),
                np.concatenate([joint.sum(axis=1) + gap, np.full(classes, root)]),
            )
        except RuntimeError as problem:
            raise FixError(
                f"label_shift: rlls did not converge ({problem}); use label_shift:estimator=em."
            ) from problem
        theta = found - 1.0
        residual = np.linalg.norm(joint @ theta - gap)
        if np.exp(middle) * np.linalg.norm(theta) < delta * residual:
            low = middle
        else:
            high = middle
    return _floored(found * shares, len(target_logits)) / shares
