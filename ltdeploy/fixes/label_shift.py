"""Label shift: estimate from unlabelled images how often each class occurs where a model is used.

Every estimator assumes that only the class shares change, not what a class looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np
import numpy.typing as npt

from .. import _optional
from ..arrays import FloatArray, IntArray, softmax
from ..errors import FixError, did_you_mean
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_softmax
from .shift_em import estimate_prior_em, floored
from .target_prior import checked_logits, fit_intercepts, label_shares, log_training_prior

__all__ = [
    "LabelShift",
    "ShiftEstimator",
    "ShiftSource",
    "estimate_weights_bbse",
    "estimate_weights_rlls",
]

Float64 = npt.NDArray[np.float64]
ShiftEstimator = Literal["em", "bbse", "rlls"]
ShiftSource = Literal["training", "validation"]

# RLLS: share of the theory's regularisation and its confidence, as in the authors' code.
_RLLS_SHARE, _RLLS_DELTA = 0.01, 0.05


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
    Where the training counts are known, ``em`` also asks how far the shares moved along them.
    It needs calibrated probabilities (Alexandari et al. 2020, arXiv 1901.06852): let it follow
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
        classes = context.class_count()
        target = checked_logits(context.target_logits, classes, "target")
        if self.source == "validation":
            logits, labels = self._validation(context)
            intercepts = fit_intercepts(logits, labels, context.weights)
            log_source = np.log(label_shares(labels, classes, context.weights))
        elif context.classes is None:
            raise FixError(
                "label_shift:source=training needs training counts (--classes FILE, or "
                "'counts' in the .npz); source=validation does without."
            )
        else:
            intercepts = np.zeros(classes)
            log_source = log_training_prior(context, self.method)
        target = target + intercepts
        if self.estimator == "em":
            table = context.classes
            training = table.prior() if table is not None and len(table) == classes else None
            prior = estimate_prior_em(target, np.exp(log_source), training_prior=training)
        else:
            logits, labels = self._validation(context)
            estimate = {"bbse": estimate_weights_bbse, "rlls": estimate_weights_rlls}
            moved = estimate[self.estimator](logits + intercepts, labels, target, context.weights)
            prior = label_shares(labels, classes, context.weights) * moved
        return intercepts, log_source, prior

    def _validation(self, context: FixContext) -> tuple[Float64, IntArray]:
        if context.logits is None or context.labels is None:
            raise FixError(
                f"label_shift:estimator={self.estimator},source={self.source} needs labelled "
                "validation images (--val DATA, or 'logits' and 'labels' in the .npz); "
                "label_shift:estimator=em,source=training does without."
            )
        return checked_logits(context.logits, context.class_count(), "validation"), context.labels

    @property
    def learns_from_validation(self) -> bool:
        """Whether validation images tell the source prior or the confusion matrix."""
        return self.source == "validation" or self.estimator != "em"

    @classmethod
    def takes_prior_off(cls, parameters: Mapping[str, object]) -> bool:
        """Whether the training counts are the source."""
        return parameters.get("source") == "training"

    def freedom(self, context: FixContext) -> int:
        """Return C − 1 shares, and as many intercepts where validation images tell the source."""
        return (context.class_count() - 1) * (2 if self.source == "validation" else 1)


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
    known = softmax(checked_logits(logits, len(shares), "validation")[order])
    mass = np.add.reduceat(image[order], starts)
    confusion = (np.add.reduceat(known * image[order, None], starts, axis=0) / mass[:, None]).T
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
    return floored(np.linalg.solve(confusion, target), len(target_logits)) / shares


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
    classes, expected = len(shares), joint.sum(axis=1)
    gap = softmax(checked_logits(target_logits, classes, "target")).mean(axis=0) - expected
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
        wanted = np.concatenate([expected + gap, np.full(classes, root)])
        try:
            found, _ = optimize.nnls(np.vstack([joint, root * np.eye(classes)]), wanted)
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
    return floored(found * shares, len(target_logits)) / shares
