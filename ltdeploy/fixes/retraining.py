"""Classifier retraining: learn the head again as if every class had the same number of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt

from .. import _optional
from ..arrays import IntArray
from ..errors import FixError
from .base import Evidence, Fix, FixContext, require_number
from .maps import NewHead
from .nearest_class_mean import TrainingData, training_data, with_unseen

__all__ = ["ClassifierRetraining", "cross_entropy", "minimise", "retrained_heads", "row_blocks"]

Float64 = npt.NDArray[np.float64]
Objective = Callable[[Float64], tuple[float, Float64]]

_BLOCK_LOGITS = 1 << 17  # 1 MiB of float64 logits at a time: they stay in the processor's cache
_GRADIENT = 1e-5
_ITERATIONS = 3000


@final
@dataclass(frozen=True)
class ClassifierRetraining(Fix):
    """Replace the head by one trained on class-balanced features, the backbone frozen (cRT).

    Minimises the mean over the K classes of ``(1/n_c) Σ_{i∈c} −log softmax(W x̃_i + b)_c
    + ½ l2 ‖w_c‖²`` with x̃ the features, centred and divided by one number so that their
    class-balanced mean square norm is 1. Centre and number are then folded into W and b.

    Kang et al. 2020, *Decoupling representation and classifier for long-tailed recognition*,
    arXiv 1910.09217, §4 (cRT).

    Parameters
    ----------
    l2 : weight of the penalty on W, above 0; b is free. Large values leave little more than the
        class means, small ones fit the few images of a small class by heart. As features are
        scaled and classes averaged, a value means the same for every model and number of classes.

    Notes
    -----
    Kang et al. re-initialise the head and run 10 epochs of SGD with class-balanced sampling, with
    new augmentations each time. This minimises the expectation of that sampler's loss over the
    features once extracted, exactly: no randomness, no learning rate, no early stop; the penalty
    takes their place.

    A class whose training count is 0 has nothing to learn from; without a penalty on b its
    likelihood alone would send b to −∞, and the old head's row is on another scale. Its logit is
    the average of the seen classes' logits, so that it never wins.

    On a cosine head features are normalised first, as the network was trained.

    Time grows with M·C·D per step. All of it is float64, in blocks of rows.
    """

    l2: float = 0.01

    method: ClassVar[str] = "crt"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"training"})
    tunable: ClassVar[str | None] = "l2"
    grid: ClassVar[tuple[float, ...]] = (0.1, 0.03, 0.01, 0.003, 0.001)

    def __post_init__(self) -> None:
        require_number(self.method, "l2", self.l2, low=0, inclusive=False, option="crt:l2=0.01")

    def _map(self, context: FixContext) -> NewHead:
        return retrained_heads(context, (self.l2,))[0]

    def freedom(self, context: FixContext) -> int:
        """Return C·(D + 1): the head."""
        assert context.train_features is not None
        return context.class_count() * (int(context.train_features.shape[1]) + 1)


def retrained_heads(context: FixContext, l2s: tuple[float, ...]) -> list[NewHead]:
    """Return the retrained head for each penalty; each fit starts where the one before it ended.

    Give the penalties from the largest to the smallest: the next one is then near.

    Parameters
    ----------
    context : must hold training features and labels.
    l2s : see :class:`ClassifierRetraining`.

    Raises
    ------
    FixError
        If the training data cannot be used, or an optimum is not reached.
    """
    method = ClassifierRetraining.method
    data = training_data(context, method)
    normalise = context.head is not None and context.head.kind == "cosine"
    inputs = np.asarray(data.features, dtype=np.float64)
    if normalise:
        inputs = inputs / np.maximum(np.linalg.norm(inputs, axis=1, keepdims=True), 1e-12)

    balanced = (1.0 / np.maximum(data.images, 1))[data.labels]
    centre = balanced @ inputs / len(data.seen)
    inputs = inputs - centre
    spread = float(np.sqrt(balanced @ np.square(inputs).sum(axis=1) / len(data.seen)))
    if spread <= 1e-12 * float(np.linalg.norm(centre)):
        raise FixError(
            f"{method}: all training features are the same; no head can tell them apart."
        )
    inputs /= spread

    heads = []
    classes, features = len(data.seen), inputs.shape[1]
    solution = np.zeros(classes * (features + 1))
    for l2 in l2s:
        solution = minimise(
            method,
            _balanced_loss(inputs, data, balanced, l2),
            solution,
            f"try a larger penalty than l2={l2:g}",
            gradient=_GRADIENT,
        )
        rows = solution.reshape(classes, features + 1)
        weight = rows[:, :-1] / spread
        heads.append(
            NewHead(*with_unseen(weight, rows[:, -1] - weight @ centre, data), normalise=normalise)
        )
    return heads


def _balanced_loss(inputs: Float64, data: TrainingData, weights: Float64, l2: float) -> Objective:
    """Return K times the loss of the seen classes' head (W | b), flattened from (K, D + 1)."""
    labels = np.searchsorted(data.seen, data.labels)
    shape = (len(data.seen), inputs.shape[1] + 1)
    blocks = row_blocks(len(inputs), shape[0])

    def loss(flat: Float64) -> tuple[float, Float64]:
        head = flat.reshape(shape)
        weight = head[:, :-1]
        total = 0.5 * l2 * float(np.vdot(weight, weight))
        gradient = np.zeros(shape)
        gradient[:, :-1] = l2 * weight
        for rows in blocks:
            logits = inputs[rows] @ weight.T + head[:, -1]
            part, slope = cross_entropy(logits, labels[rows], weights[rows])
            total += part
            gradient[:, :-1] += slope.T @ inputs[rows]
            gradient[:, -1] += slope.sum(axis=0)
        return total, gradient.ravel()

    return loss


def row_blocks(rows: int, classes: int) -> list[slice]:
    """Return slices that cover ``rows`` images, so few at a time that their logits are small."""
    size = max(256, _BLOCK_LOGITS // classes)
    return [slice(start, start + size) for start in range(0, rows, size)]


def cross_entropy(logits: Float64, labels: IntArray, weights: Float64) -> tuple[float, Float64]:
    """Return ``Σ_i w_i (log Σ exp z_i − z_i,y)`` and its gradient with respect to the logits.

    Parameters
    ----------
    logits : array of shape (N, C), overwritten by the gradient.
    labels, weights : arrays of shape (N,).
    """
    images = np.arange(len(labels))
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[images, labels]
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1)
    total = float(weights @ (np.log(sums) - own))
    logits *= (weights / sums)[:, None]
    logits[images, labels] -= weights
    return total, logits


def minimise(
    method: str, objective: Objective, start: Float64, advice: str, *, gradient: float
) -> Float64:
    """Return where L-BFGS finds the minimum of an objective that gives value and slope.

    It is found when no entry of the slope is above ``gradient`` or float64 gives no more progress.

    Raises
    ------
    FixError
        If it does not converge; ``advice`` says what to do.
    """
    optimize: Any = _optional.require("scipy.optimize", extra="verify", purpose=f"fit {method}")
    found = optimize.minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": _ITERATIONS,
            "maxfun": 2 * _ITERATIONS,
            "gtol": gradient,
            "ftol": 1e-14,
            "maxcor": 20,
        },
    )
    if not found.success or not np.isfinite(found.x).all():
        raise FixError(
            f"{method} did not converge: after {found.nit} steps the largest entry of the gradient "
            f"is {np.abs(found.jac).max():.3g}, expected at most {gradient:g} ({found.message}); "
            f"{advice}."
        )
    solution: Float64 = found.x
    return solution
