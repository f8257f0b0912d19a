"""Fit by likelihood: the checks, the softmax and the one optimiser that such fixes share.

The optimiser is Newton's method with conjugate gradients inside (Nocedal & Wright 2006, *Numerical
optimization*, §7.1). Objectives here are convex and have a ridge, so there is one minimum and no
start leads elsewhere. Limited-memory quasi-Newton methods need some twenty times as many passes:
the logits of a long-tailed model are badly conditioned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..errors import FixError
from .base import FixContext

__all__ = [
    "Objective",
    "Sample",
    "curve",
    "labelled",
    "minimise",
    "residual",
    "row_blocks",
    "sample_of",
]

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_BLOCK_NUMBERS = 1 << 16  # half a MiB of float64: a block and its neighbours stay in the cache
_LARGEST_LOGIT = 1e15  # above, squares summed over images leave float32
_NEWTON_STEPS = 100
_CG_STEPS = 400
_DECREMENT = 1e-10  # relative to 1 + value; the step that predicts it is taken and leaves far less


@dataclass(frozen=True, eq=False)
class Sample:
    """Checked logits with their labels.

    Attributes
    ----------
    logits : array of shape (N, C), as given, not copied.
    labels : array of shape (N,), int64.
    weights : array of shape (N,), float64, with the sum 1.
    seen : labels with an image whose weight is above 0, rising, array of shape (S,).
    """

    logits: FloatArray
    labels: IntArray
    weights: Float64
    seen: IntArray

    @property
    def classes(self) -> int:
        """Number of classes C, those without images included."""
        return int(self.logits.shape[1])

    def of_seen(self) -> Sample:
        """Return the logits of the seen classes alone, labelled 0 … S−1.

        Their softmax is the probability of a label *given* that it is a seen one. Images say
        nothing else: fitted to them, the softmax over all classes would push those without an
        image to minus infinity.
        """
        if len(self.seen) == self.classes:
            return self
        counted = self.weights > 0
        rows = slice(None) if counted.all() else counted
        labels = np.searchsorted(self.seen, self.labels[rows])
        return Sample(
            self.logits[rows][:, self.seen],
            labels,
            self.weights[rows],
            np.arange(len(self.seen)),
        )


def labelled(
    method: str, logits: FloatArray, labels: IntArray, weights: npt.ArrayLike | None = None
) -> Sample:
    """Check validation logits, labels and weights.

    Parameters
    ----------
    method : name of the fix, for the error.
    logits : array of shape (N, C).
    labels : array of shape (N,), integers from 0 to C − 1.
    weights : array of shape (N,), not negative; None counts all images alike.

    Raises
    ------
    FixError
        For shapes that do not belong together, numbers that are not finite, labels that are no
        class, weights below 0, and where fewer than two images or two classes count.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise FixError(
            f"{method}: the logits have shape {logits.shape} and the labels {labels.shape}; "
            "expected (N, C) and (N,), one label per image."
        )
    images, classes = logits.shape
    if labels.dtype.kind not in "iu":
        raise FixError(f"{method}: the labels are {labels.dtype}; expected whole numbers.")
    mass = np.ones(images) if weights is None else np.asarray(weights, dtype=np.float64)
    if mass.shape != (images,):
        raise FixError(
            f"{method}: the weights have shape {mass.shape}; expected ({images},), one per image."
        )
    if not (np.isfinite(mass).all() and (mass >= 0).all()):
        worst = int(np.flatnonzero(~(np.isfinite(mass) & (mass >= 0)))[0])
        raise FixError(
            f"{method}: image {worst} has the weight {mass[worst]}; expected finite numbers of at "
            "least 0."
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise FixError(
            f"{method}: image {outside[0]} has the label {labels[outside[0]]}; the logits are of "
            f"{classes} classes, so labels go from 0 to {classes - 1}. Check the class order."
        )
    seen = np.unique(labels[mass > 0]).astype(np.int64)
    if len(seen) < 2:
        raise FixError(
            f"{method}: the validation data has {np.count_nonzero(mass)} images of {len(seen)} "
            "classes; fitting by likelihood needs at least two images of two classes."
        )
    # The extremes are NaN where any number is, and cost no mask of the logits' size.
    if not (logits.max() <= _LARGEST_LOGIT and logits.min() >= -_LARGEST_LOGIT):
        for rows in row_blocks(images, classes):
            for row, column in np.argwhere(~(np.abs(logits[rows]) <= _LARGEST_LOGIT))[:1]:
                raise FixError(
                    f"{method}: image {rows.start + row} has the logit {logits[rows][row, column]} "
                    f"for the class label {column}; expected numbers within ±{_LARGEST_LOGIT:g}. "
                    "Check the model's precision (fp16 overflows) and its input."
                )
    return Sample(logits, labels.astype(np.int64, copy=False), mass / mass.sum(), seen)


def sample_of(method: str, context: FixContext) -> Sample:
    """Return the context's validation images, checked as in :func:`labelled`."""
    assert context.logits is not None
    assert context.labels is not None
    return labelled(method, context.logits, context.labels, context.weights)


def row_blocks(images: int, classes: int) -> Iterator[slice]:
    """Yield slices of rows, in order, of about half a MiB of float64 logits each."""
    rows = max(1, _BLOCK_NUMBERS // classes)
    for start in range(0, images, rows):
        yield slice(start, min(start + rows, images))


def residual(
    logits: Float64, labels: IntArray, weights: Float64, probabilities: Float32 | None = None
) -> float:
    """Turn logits into the gradient of the weighted NLL with respect to them, in place.

    ``r_i = w_i (softmax(z_i) − y_i)``; the row's maximum goes off first, so nothing overflows.

    Parameters
    ----------
    logits : array of shape (N, C), overwritten with r.
    labels, weights : arrays of shape (N,).
    probabilities : array of shape (N, C), overwritten with the softmax.

    Returns
    -------
    ``Σ_i w_i · NLL_i``.
    """
    rows = np.arange(len(labels))
    logits -= logits.max(axis=1, keepdims=True)
    of_label = logits[rows, labels]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1)
    logits /= total[:, None]
    if probabilities is not None:
        probabilities[...] = logits
    logits *= weights[:, None]
    logits[rows, labels] -= weights
    return float(weights @ (np.log(total) - of_label))


def curve(change: Float32, probabilities: Float32, weights: Float32) -> None:
    """Multiply a change of the logits by the NLL's second derivative in them, in place.

    ``h_i = w_i (diag(p_i) − p_i p_iᵀ) d_i``. All arrays of shape (N, C) but the weights, (N,).
    """
    change -= np.vecdot(probabilities, change)[:, None]
    change *= probabilities
    change *= weights[:, None]


class Objective(Protocol):
    """A convex function of a flat vector, and its curvature at the point last evaluated."""

    def evaluate(self, theta: Float64) -> tuple[float, Float64]:
        """Return value and gradient, and make ``theta`` the point of the other two methods."""

    def product(self, direction: Float64) -> Float64:
        """Return the Hessian times a direction; single precision is enough."""

    def precondition(self, gradient: Float64) -> Float64:
        """Return an approximate inverse of the Hessian times a gradient."""


def minimise(method: str, objective: Objective, start: Float64) -> Float64:
    """Return the vector at which a convex objective is smallest.

    Parameters
    ----------
    method : name of the fix, for the error.
    start : where to begin, flat array.

    Raises
    ------
    FixError
        If the minimum is not reached: nothing half-way is ever returned.
    """
    theta = start
    value, gradient = objective.evaluate(theta)
    for iteration in range(1, _NEWTON_STEPS + 1):  # noqa: B007, the error names it
        step = _newton_step(objective, gradient)
        slope = float(gradient @ step)
        scale = 1.0
        while scale > 1e-10:
            tried, tried_gradient = objective.evaluate(theta + scale * step)
            # Round-off hides a decrease this small; the negated test also refuses NaN.
            if tried <= value + 1e-4 * scale * slope + 1e-14 * (1 + abs(value)):
                break
            scale /= 2
        else:
            break
        theta = theta + scale * step
        value, gradient = tried, tried_gradient
        if scale == 1 and -slope <= _DECREMENT * (1 + abs(value)):
            return theta
    raise FixError(
        f"{method}: the optimiser did not converge after {iteration} Newton steps (gradient "
        f"norm {np.linalg.norm(gradient):.3g}). Use a larger l2, or check that labels and logits "
        "belong together."
    )


def _newton_step(objective: Objective, gradient: Float64) -> Float64:
    """Solve ``H s = −g`` by preconditioned conjugate gradients, more exactly near the minimum."""
    step = np.zeros_like(gradient)
    rest = -gradient
    direction = towards = objective.precondition(rest)
    first = left = float(rest @ towards)
    if not first > 0:  # at the minimum, or round-off in the preconditioner: steepest descent
        return rest
    tolerance = min(0.1, first**0.25) ** 2 * first
    for _ in range(_CG_STEPS):
        bent = objective.product(direction)
        curvature = float(direction @ bent)
        if not curvature > 0:  # round-off of single precision: what is solved so far must do
            break
        step += left / curvature * direction
        rest = rest - left / curvature * bent
        towards = objective.precondition(rest)
        before, left = left, float(rest @ towards)
        if left <= tolerance:
            break
        direction = towards + left / before * direction
    return step if step.any() else objective.precondition(-gradient)
