"""Multipliers of probabilities, one per class or one per frequency group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..classes import ClassTable
from ..errors import FixError
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_numbers, require_softmax

__all__ = ["GroupBoost", "ScoreMultiplier", "fit_group_boosts"]

Float64 = npt.NDArray[np.float64]
Right = Callable[[Float64], npt.NDArray[np.bool_]]  # boosts (G,) -> whether each image is right

# Log-boosts tried: a group's probabilities are multiplied by 1/400 … 400.
_BOOSTS = np.round(np.linspace(-6.0, 6.0, 121), 1)
_SHRINKAGE = np.linspace(0.0, 1.0, 21)
_MOST_ROUNDS = 50


@final
@dataclass(frozen=True)
class ScoreMultiplier(Fix):
    """Multiply each class's probability by its own factor: ``p'_c ∝ m_c p_c``, ``c = log m``.

    For a softmax head the probabilities are divided by their sum again. For a sigmoid head the same
    shift multiplies each class's odds p/(1 − p) by m_c, so that scores stay below one: this is the
    one form of per-class re-scoring that folds into the head.

    The rescaling of Saerens, Latinne & Decaestecker 2002, Neural Computation 14, eq. 2.4, with
    factors of one's own choice, e.g. what an error on a class costs (Elkan 2001, *The foundations
    of cost-sensitive learning*, IJCAI, §3).

    Parameters
    ----------
    factors : m, one per class in label order, above 0; all 1 changes nothing.
    """

    factors: tuple[float, ...]

    method: ClassVar[str] = "score_multiplier"
    needs: ClassVar[frozenset[Evidence]] = frozenset()

    def __post_init__(self) -> None:
        factors = require_numbers(self.method, "factors", self.factors)
        bad = np.flatnonzero(~(np.isfinite(factors) & (factors > 0)))
        if bad.size or not factors.size:
            what = (
                f"class label {bad[0]} is {factors[bad[0]]:g}" if bad.size else "no class is given"
            )
            raise FixError(
                f"score_multiplier: the factor of {what}; expected one finite number above 0 per "
                "class, e.g. 1 for a class to be left alone."
            )

    def _map(self, context: FixContext) -> AffineMap:
        classes = context.class_count()
        if len(self.factors) != classes:
            raise FixError(
                f"score_multiplier has {len(self.factors)} factors and the model {classes} "
                "classes; give one factor per class, in label order."
            )
        return AffineMap(np.ones(classes), np.log(np.array(self.factors, dtype=np.float64)))

    def freedom(self, context: FixContext) -> int:
        """Return 0: the factors are given, not learnt."""
        return 0


@final
@dataclass(frozen=True)
class GroupBoost(Fix):
    """Multiply the probabilities of each frequency group by one factor: ``c_k = β_g(k)``.

    The group with most training images is the anchor, β = 0. The others' β maximise the accuracy
    on validation images, averaged over classes unless they are weighted otherwise
    (:func:`fit_group_boosts`), and are then drawn
    back towards 0 as far as one standard error allows: a group's many classes share one number,
    so three images per class are enough to learn from, but not to learn the last image's whim.

    A coarse logit adjustment (Menon et al. 2021, arXiv 2007.07314, eq. 9): one learnt number per
    group in place of −τ log π per class.
    """

    method: ClassVar[str] = "group_boost"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"counts", "validation"})

    def _map(self, context: FixContext) -> AffineMap:
        assert context.classes is not None
        assert context.logits is not None
        assert context.labels is not None
        require_softmax(context, self.method)
        classes = context.logits.shape[1]
        if len(context.classes) != classes:
            raise FixError(
                f"group_boost needs one training count per class; the model has {classes} classes "
                f"and the class table {len(context.classes)}."
            )
        groups, count = _anchored(context.classes)
        boosts = fit_group_boosts(context.logits, context.labels, groups, count, context.weights)
        return AffineMap(np.ones(classes), boosts[groups])

    def freedom(self, context: FixContext) -> int:
        """Return the number of groups that have classes, less the anchor."""
        assert context.classes is not None
        return _anchored(context.classes)[1] - 1


def _anchored(table: ClassTable) -> tuple[IntArray, int]:
    """Return a group number per class (C,), 0 for the group with most images, and how many."""
    names = [name for name in table.rule.names if table.members(name).size]
    images = {name: sum(table.counts[c] for c in table.members(name)) for name in names}
    names.sort(key=lambda name: -images[name])  # stable: ties keep the rule's order
    return np.array([names.index(group) for group in table.groups], dtype=np.int64), len(names)


def fit_group_boosts(
    logits: FloatArray,
    labels: IntArray,
    groups: IntArray,
    count: int,
    weights: Float64 | None = None,
) -> Float64:
    """Return β, shape (G,), that lifts weighted accuracy most; β of group 0 is 0.

    Coordinate search over −6, −5.9, … 6: each group in turn takes its best value, ties going to
    the smallest, until none moves. Within a group the order of classes never changes, so that per
    image the best logit of each group is all that is needed: O(N·G) per value. Then β is shrunk
    to the smallest ``t β``, t = 0, 0.05, … 1, whose accuracy is within one (paired) standard
    error of the best: ``t = 0`` where the validation images show no gain.

    Parameters
    ----------
    logits : validation logits, array of shape (N, C).
    labels : array of shape (N,).
    groups : group number of each class, array of shape (C,), from 0 to ``count`` − 1.
    count : number of groups G.
    weights : of the images, array of shape (N,); None makes every class weigh the same.

    Raises
    ------
    FixError
        If there are no images, a label is out of range, or the search does not settle.
    """
    if not len(labels) or labels.min() < 0 or labels.max() >= len(groups):
        raise FixError(
            f"group_boost: expected validation images with labels from 0 to {len(groups) - 1}; got "
            f"{len(labels)} images"
            + (f" with labels from {labels.min()} to {labels.max()}." if len(labels) else ".")
        )
    # Per image: the best logit of each group, and whether the label is best in its own.
    best = np.stack([logits[:, groups == g].max(axis=1) for g in range(count)], axis=1)
    own = groups[labels]
    rows = np.arange(len(labels))
    leading = logits[rows, labels] >= best[rows, own]
    best = np.asarray(best, dtype=np.float64)
    worth = 1.0 / np.bincount(labels)[labels] if weights is None else weights
    if not worth.sum() > 0:
        raise FixError("group_boost: no validation image has a weight above 0.")
    worth = worth / worth.sum()

    def right(boosts: Float64) -> npt.NDArray[np.bool_]:
        result: npt.NDArray[np.bool_] = leading & ((best + boosts).argmax(axis=1) == own)
        return result

    smallest_first = _BOOSTS[np.argsort(np.abs(_BOOSTS), kind="stable")]
    boosts = np.zeros(count)
    top = float(worth @ right(boosts))
    for _ in range(_MOST_ROUNDS):
        moved = False
        for group in range(1, count):
            trials = np.tile(boosts, (len(smallest_first), 1))
            trials[:, group] = smallest_first
            scores = np.array([worth @ right(trial) for trial in trials])
            if scores.max() > top + 1e-12:
                top, boosts, moved = float(scores.max()), trials[scores.argmax()], True
        if not moved:
            return _shrunk(boosts, right, worth)
    raise FixError(
        f"group_boost: the coordinate search did not settle in {_MOST_ROUNDS} rounds; use fewer "
        "groups."
    )


def _shrunk(boosts: Float64, right: Right, worth: Float64) -> Float64:
    """Return the smallest ``t β`` that is within one paired standard error of the best of them."""
    decided = np.stack([right(share * boosts) for share in _SHRINKAGE], axis=1)
    scores = worth @ decided
    behind = decided[:, [scores.argmax()]].astype(np.float64) - decided
    lost = worth @ behind
    error = np.sqrt(((worth[:, None] * (behind - lost)) ** 2).sum(axis=0))
    shrunk: Float64 = _SHRINKAGE[np.flatnonzero(lost <= error + 1e-12)[0]] * boosts
    return shrunk
