"""Platt scaling: a slope and a shift for each class of a sigmoid head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..errors import FixError
from .affine import AffineMap
from .base import Evidence, Fix, FixContext
from .likelihood import row_blocks, sample_of

__all__ = ["Platt"]

Float64 = npt.NDArray[np.float64]

_STEPS = 100
_DECREMENT = 1e-10  # of a class's summed cross-entropy; the step that predicts it is taken


@final
@dataclass(frozen=True)
class Platt(Fix):
    """Fit a logistic curve to each class against the rest: ``z'_c = a_c z_c + b_c``.

    Minimises for each class the cross-entropy of ``sigmoid(a_c z_c + b_c)`` with the smoothed
    targets (N₊ + 1) / (N₊ + 2) for its images and 1 / (N₋ + 2) for all others. Weights are scaled
    to the mean 1 and counted in N₊ and N₋. A class without images is
    given the a and b of one
    curve fitted to all pairs of image and class.

    Platt 1999, *Probabilistic outputs for support vector machines*, §2.2, by Newton's method as in
    Lin, Lin and Weng 2007, *A note on Platt's probabilistic outputs for support vector machines*
    (Machine Learning 68), §3.
    """

    method: ClassVar[str] = "platt"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"validation"})
    calibrates: ClassVar[bool] = True

    def _map(self, context: FixContext) -> AffineMap:
        activation = "softmax" if context.head is None else context.head.activation
        if activation != "sigmoid":
            raise FixError(
                f"platt is defined for sigmoid heads, whose scores are independent; this head's "
                f"activation is {activation} (of arrays, their 'activation' says it). Use "
                "temperature or vector instead."
            )
        sample = sample_of(self.method, context)
        weights = sample.weights * np.count_nonzero(sample.weights)
        images, classes = sample.logits.shape
        positive = np.zeros((images, classes), dtype=bool)
        positive[np.arange(images), sample.labels] = True
        slope, shift = _fit_curves(sample.logits, positive, weights)
        if len(sample.seen) < classes:
            absent = np.setdiff1d(np.arange(classes), sample.seen)
            pairs = sample.logits.reshape(-1, 1), positive.reshape(-1, 1)
            slope[absent], shift[absent] = _fit_curves(*pairs, np.repeat(weights, classes))
        return AffineMap(slope, shift)

    def freedom(self, context: FixContext) -> int:
        """Return 2C: a and b."""
        return 2 * context.class_count()


def _fit_curves(
    logits: FloatArray, positive: npt.NDArray[np.bool_], weights: Float64
) -> tuple[Float64, Float64]:
    """Return slope and shift of the logistic curve of each of K columns, all fitted at once.

    Parameters
    ----------
    logits, positive : arrays of shape (N, K).
    weights : array of shape (N,).
    """
    mass = weights @ positive
    high, low = (mass + 1) / (mass + 2), 1 / (weights.sum() - mass + 2)
    # Standardised columns keep the 2 × 2 systems well conditioned, whatever the logits' offset.
    centre = logits.mean(axis=0, dtype=np.float64)
    spread = np.maximum(logits.std(axis=0, dtype=np.float64), np.finfo(np.float64).tiny)
    spread[spread < 1e-12 * np.abs(centre)] = 1.0

    def evaluate(theta: Float64) -> tuple[Float64, Float64, Float64]:
        value, gradient = np.zeros(len(mass)), np.zeros((len(mass), 2))
        hessian = np.zeros((len(mass), 2, 2))
        for rows in row_blocks(*logits.shape):
            inputs = (logits[rows] - centre) / spread
            target = np.where(positive[rows], high, low)
            parts = _derivatives(theta, inputs, target, weights[rows])
            for total, part in zip((value, gradient, hessian), parts, strict=True):
                total += part
        return value, gradient, hessian

    theta = np.stack([np.zeros_like(mass), np.log((mass + 1) / (weights.sum() - mass + 1))], axis=1)
    value, gradient, hessian = evaluate(theta)
    for _ in range(_STEPS):
        # A column of one number has no slope to find; a trace of ridge leaves it at 0.
        hessian[:, [0, 1], [0, 1]] *= 1 + 1e-12
        hessian[:, 0, 0] += 1e-12
        step = -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        predicted = np.vecdot(gradient, step)
        if (-predicted <= _DECREMENT).all():
            theta = theta + step
            return theta[:, 0] / spread, theta[:, 1] - theta[:, 0] * centre / spread
        scale = np.ones_like(value)
        while True:
            tried = evaluate(theta + scale[:, None] * step)
            worse = ~(tried[0] <= value + 1e-4 * scale * predicted + 1e-12 * (1 + np.abs(value)))
            if not worse.any() or scale.min() < 1e-10:
                break
            scale[worse] /= 2
        if worse.any():
            break
        theta = theta + scale[:, None] * step
        value, gradient, hessian = tried
    raise FixError(
        f"platt: the optimiser did not converge after {_STEPS} Newton steps at most (gradient norm "
        f"{np.linalg.norm(gradient):.3g}) for the class labels "
        f"{np.flatnonzero(-predicted > _DECREMENT)[:10].tolist()}; check that labels and logits "
        "belong together."
    )


def _derivatives(
    theta: Float64, inputs: Float64, target: Float64, weights: Float64
) -> tuple[Float64, Float64, Float64]:
    """Return the summed cross-entropy (K,), its gradients (K, 2) and Hessians (K, 2, 2)."""
    score = theta[:, 0] * inputs + theta[:, 1]
    small = np.exp(-np.abs(score))  # never above 1, as Lin, Lin and Weng have it
    value = weights @ (np.log(1 + small) + np.maximum(score, 0) - target * score)
    probability = np.where(score >= 0, 1.0, small) / (1 + small)
    rest, curvature = probability - target, probability * (1 - probability)
    bent = curvature * inputs
    between = weights @ bent
    gradient = np.stack([weights @ (rest * inputs), weights @ rest], axis=1)
    hessian = np.array([[weights @ (bent * inputs), between], [between, weights @ curvature]])
    return value, gradient, np.moveaxis(hessian, 2, 0)
