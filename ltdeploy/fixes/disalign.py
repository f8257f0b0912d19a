"""DisAlign: per-class scale and shift, blended in by a gate that looks at the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..models.head import Head
from .base import Evidence, Fix, FixContext, require_number
from .maps import Blend
from .nearest_class_mean import TrainingData, training_data
from .retraining import Objective, cross_entropy, minimise, row_blocks

__all__ = ["DisAlign", "head_logits"]

Float64 = npt.NDArray[np.float64]

_GRADIENT = 1e-4  # 1e-5 costs half as much time again and moves accuracies by < 0.05 points
_RIDGE = 0.01  # per class, relative to a loss in which a class has the weight 1 on average


class _Units(NamedTuple):
    """Centre and spread of features and spread of logits, images weighted as in the loss."""

    centre: Float64
    features: float
    logits: float


@final
@dataclass(frozen=True)
class DisAlign(Fix):
    """Blend each logit with a scaled and shifted copy: ``z' = σ(x) (α ⊙ z + β) + (1 − σ(x)) z``.

    The gate ``σ(x) = sigmoid(v·x + u)`` decides per image how much is aligned; α, β, v and u
    minimise the cross-entropy of training images, each weighted by its class with
    ``w_c ∝ (1/r_c)^ρ``, r the training prior: the distribution that the logits are aligned to.

    Zhang et al. 2021, *Distribution alignment: a unified framework for long-tail visual
    recognition*, arXiv 2103.16370: adaptive calibration function and generalised re-weighting,
    §3.3, eq. 6–9.

    Parameters
    ----------
    rho : ρ ≥ 0. At 0 every image counts alike and the training prior is kept, at 1 every class
        counts alike, above 1 small classes count for more. The authors' library defaults to 1,
        their ImageNet-LT configuration says 1.2.

    Notes
    -----
    Where the sources differ: the authors train α, β, v and u by 10 epochs of SGD from
    α = 1, β = 0 and a random v, with a weight decay that draws α towards 0. Here L-BFGS starts
    from α = 1, β = 0, v = 0, u = 0 and a small ridge draws towards that point, which is the
    identity: nothing is random, and what the images do not tell stays as it was.
    The paper's Σ over images of w is read as a sum over classes of ``n_c w_c`` times the class's
    mean loss, so that a part of the training images will do.

    In the ridge β counts in units of the logits' spread within an image, and v in units of the
    features' spread. The gate starts at ½; the loss is not convex, so another start may end in
    another optimum.
    """

    rho: float = 1.0

    method: ClassVar[str] = "disalign"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"head", "counts", "training"})
    tunable: ClassVar[str | None] = "rho"
    grid: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0, 1.2, 1.5)

    def __post_init__(self) -> None:
        require_number(self.method, "rho", self.rho, low=0, inclusive=True, option="disalign:rho=1")

    def _map(self, context: FixContext) -> Blend:
        assert context.head is not None
        assert context.classes is not None
        data = training_data(context, self.method)
        counts = np.array(context.classes.counts, dtype=np.float64)
        # With ``force`` a class may have images although its count is 0.
        weights = _image_weights(data, np.where(counts > 0, counts, data.images), self.rho)

        units = _units(context.head, data, weights)
        loss = _aligned_loss(context.head, data, weights, units)
        classes, size = context.head.classes, data.features.shape[1]
        start = np.concatenate([np.ones(classes), np.zeros(classes + size + 1)])
        found = minimise(self.method, loss, start, "try a rho nearer to 1", gradient=_GRADIENT)
        alpha, beta, gate, offset = _parts(found, classes)
        gate = gate / units.features
        return Blend(alpha, beta * units.logits, gate, offset - float(gate @ units.centre))

    def freedom(self, context: FixContext) -> int:
        """Return 2C + D + 1: α, β, v and u."""
        assert context.train_features is not None
        return 2 * context.class_count() + int(context.train_features.shape[1]) + 1


def head_logits(head: Head, features: FloatArray) -> Float64:
    """Return the logits of a head for features of shape (N, D), array of shape (N, C), float64.

    ``linear``: ``W x + b``; ``cosine``: ``scale · (W/‖W‖)(x/‖x‖)``, a zero vector staying zero.
    """
    inputs = np.asarray(features, dtype=np.float64)
    weight = head.weight
    if head.kind == "cosine":
        inputs = inputs / np.maximum(np.linalg.norm(inputs, axis=1, keepdims=True), 1e-12)
        weight = head.scale * weight / np.maximum(head.norms()[:, None], 1e-12)
    logits: Float64 = inputs @ weight.T
    return logits if head.bias is None else logits + head.bias


def _image_weights(data: TrainingData, counts: Float64, rho: float) -> Float64:
    """Return the weight of each row: n_c^(1 − ρ) in all for class c, 1 on average over c."""
    log_class = (1.0 - rho) * np.log(counts[data.seen])
    log_row = np.zeros(len(counts))
    log_row[data.seen] = log_class - log_class.max() - np.log(data.images[data.seen])
    weights = np.exp(log_row[data.labels])
    scaled: Float64 = weights * (len(data.seen) / weights.sum())
    return scaled


def _parts(flat: Float64, classes: int) -> tuple[Float64, Float64, Float64, float]:
    return flat[:classes], flat[classes : 2 * classes], flat[2 * classes : -1], float(flat[-1])


def _units(head: Head, data: TrainingData, weights: Float64) -> _Units:
    blocks = row_blocks(len(data.features), head.classes)
    share = weights / weights.sum()
    centre = np.zeros(data.features.shape[1])
    for rows in blocks:
        centre += share[rows] @ data.features[rows]
    features, logits = 0.0, 0.0
    for rows in blocks:
        features += share[rows] @ np.square(data.features[rows] - centre).sum(axis=1)
        logits += share[rows] @ head_logits(head, data.features[rows]).var(axis=1)
    # Where nothing spreads there is nothing to learn, and any unit will do.
    return _Units(centre, float(np.sqrt(features)) or 1.0, float(np.sqrt(logits)) or 1.0)


def _aligned_loss(head: Head, data: TrainingData, weights: Float64, units: _Units) -> Objective:
    """Return the weighted cross-entropy and ridge of (α | β | v | u), flattened; see DisAlign.

    v and u look at features less the centre, in units of their spread; β counts in units of the
    logits' spread.
    """
    classes = head.classes
    blocks = row_blocks(len(data.features), classes)

    def loss(flat: Float64) -> tuple[float, Float64]:
        alpha, beta, gate, offset = _parts(flat, classes)
        away = flat.copy()
        away[:classes] -= 1.0
        ridge = np.full(len(flat), _RIDGE)
        ridge[2 * classes :] *= classes  # the gate is one for all classes
        total = 0.5 * float(ridge @ np.square(away))
        gradient = ridge * away
        slope_alpha, slope_beta, slope_gate, _ = _parts(gradient, classes)
        for rows in blocks:
            inputs = (data.features[rows] - units.centre) / units.features
            logits = head_logits(head, data.features[rows])
            share = 0.5 * (1.0 + np.tanh(0.5 * (inputs @ gate + offset)))
            moved = logits * (alpha - 1.0) + units.logits * beta
            blended = logits + share[:, None] * moved
            part, slope = cross_entropy(blended, data.labels[rows], weights[rows])
            total += part
            along = np.einsum("ic,ic->i", slope, moved) * share * (1.0 - share)
            slope_gate += along @ inputs
            gradient[-1] += along.sum()
            slope_alpha += np.einsum("i,ic,ic->c", share, slope, logits)
            slope_beta += units.logits * (share @ slope)
        return total, gradient

    return loss
