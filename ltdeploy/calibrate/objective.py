"""What a fix is chosen for: the aim, and what each candidate reaches of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..classes import ClassTable
from ..errors import UsageError, did_you_mean
from ..fixes import FixContext
from ..metrics import harmonic_mean

__all__ = [
    "NORMAL",
    "Aim",
    "Objective",
    "Strata",
    "best_value",
    "likelihood_weights",
    "strata_of",
]

Objective = Literal["balanced", "few", "harmonic", "overall"]
NORMAL = 1.959964  # standard errors on either side of a 95 % interval


@dataclass(frozen=True, eq=False)
class Aim:
    """What to maximise, and what must not be paid for it.

    Parameters
    ----------
    objective : ``balanced``: accuracy averaged over classes. ``few``: over the classes of the
        rarest group. ``harmonic``: harmonic mean of the groups' accuracies. ``overall``: share of
        images, weighted to the target prior where one is given.
    target_prior : how often each class will be seen in use, array of shape (C,), summing to one;
        None stands for equally often, with ``overall`` for as often as in the validation data.
    max_head_loss : points of accuracy that the most frequent group may lose; None for any.
    estimated : whether the target prior was estimated from unlabelled images, and not declared.

    Raises
    ------
    UsageError
        For an unknown objective, a prior that is none, or a loss that is not a number of at least
        0.
    """

    objective: Objective = "balanced"
    target_prior: npt.NDArray[np.float64] | None = None
    max_head_loss: float | None = None
    estimated: bool = False

    @property
    def prior_name(self) -> str:
        """The prior that the model is to be used under, in a word."""
        if self.target_prior is not None:
            return "estimated" if self.estimated else "given"
        return "validation" if self.objective == "overall" else "uniform"

    def __post_init__(self) -> None:
        known = get_args(Objective)
        if self.objective not in known:
            raise UsageError(
                f"The objective {self.objective!r} is unknown; expected one of {', '.join(known)}."
                f"{did_you_mean(str(self.objective), known)}"
            )
        prior = self.target_prior
        if prior is not None and not (
            prior.ndim == 1 and (prior >= 0).all() and abs(prior.sum() - 1.0) < 1e-6
        ):
            raise UsageError(
                f"The target prior has the shape {prior.shape} and the sum {prior.sum():g}; "
                "expected one share of at least 0 per class, summing to one."
            )
        if self.max_head_loss is not None and not 0 <= self.max_head_loss < np.inf:
            raise UsageError(
                f"The head loss allowed is {self.max_head_loss}; expected points of accuracy, 0 or "
                "more."
            )


@dataclass(frozen=True, eq=False)
class Strata:
    """Image weights whose products with correctness are accuracies.

    Parameters
    ----------
    overall, balanced : arrays of shape (N,), summing to one.
    groups : the same per group that has images, in the table's order.
    """

    overall: npt.NDArray[np.float64]
    balanced: npt.NDArray[np.float64]
    groups: dict[str, npt.NDArray[np.float64]]

    def values(
        self, correct: npt.NDArray[np.bool_], objective: Objective
    ) -> npt.NDArray[np.float64]:
        """Return the objective in percent per column of ``correct`` (N, V)."""
        whole = np.ones((1, len(self.overall)))
        found: npt.NDArray[np.float64] = self.replicates(correct, objective, whole)[0]
        return found

    def replicates(
        self,
        correct: npt.NDArray[np.bool_],
        objective: Objective,
        multiplicities: npt.NDArray[np.floating],
    ) -> npt.NDArray[np.float64]:
        """Return the objective in percent in each bootstrap sample, array of shape (B, V).

        Parameters
        ----------
        multiplicities : how often each image stands in each sample, array of shape (B, N).
        """
        if objective == "harmonic":
            groups = [_shares(weights, correct, multiplicities) for weights in self.groups.values()]
            return 100.0 * harmonic_mean(np.stack(groups))
        weights = {"overall": self.overall, "balanced": self.balanced, "few": self.rarest}
        return 100.0 * _shares(weights[objective], correct, multiplicities)

    def one_image(self, objective: Objective, correct: npt.NDArray[np.bool_]) -> float:
        """Return what one image of middling weight is worth, in points of the objective.

        Of the harmonic mean, one more image in every group: where a group is near zero, one image
        of it is worth far more than its weight. ``correct``, of shape (N, V), says where the groups
        stand; the column where an image is worth most counts.
        """
        if objective == "harmonic":
            groups = np.stack([weights @ correct for weights in self.groups.values()])
            moves = []
            for place, weights in enumerate(self.groups.values()):
                more = groups.copy()
                more[place] = np.minimum(more[place] + weights[weights > 0].mean(), 1.0)
                moves.append(harmonic_mean(more) - harmonic_mean(groups))
            return 100.0 * float(np.sqrt((np.stack(moves) ** 2).sum(axis=0)).max())
        weights = {"overall": self.overall, "few": self.rarest}.get(objective, self.balanced)
        own = weights[weights > 0]
        return 100.0 * float(np.sqrt((own**2).mean()))

    @property
    def rarest(self) -> npt.NDArray[np.float64]:
        """Weights of the rarest group that has images."""
        return list(self.groups.values())[-1]

    @property
    def head(self) -> npt.NDArray[np.float64]:
        """Weights of the most frequent group that has images."""
        return next(iter(self.groups.values()))


def _shares(
    weights: npt.NDArray[np.float64],
    correct: npt.NDArray[np.bool_],
    multiplicities: npt.NDArray[np.floating],
) -> npt.NDArray[np.float64]:
    own = weights > 0
    drawn = multiplicities[:, own] * weights[own]
    total = np.maximum(drawn.sum(axis=1, keepdims=True), 1e-300)
    shares: npt.NDArray[np.float64] = drawn @ correct[own] / total
    return shares


def strata_of(labels: IntArray, table: ClassTable, aim: Aim) -> Strata:
    """Return the weights of images with these labels, shape (N,).

    Where the target prior gives their classes no share (as it may happen in a part of the images),
    all of them count alike overall.
    """
    counts = np.bincount(labels, minlength=len(table))
    share = 1.0 / np.maximum(counts, 1)[labels]
    groups = np.array(table.groups)[labels]

    def normalised(weights: FloatArray) -> npt.NDArray[np.float64]:
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    overall = np.ones(len(labels))
    if aim.objective == "overall" and aim.target_prior is not None:
        weighted = share * aim.target_prior[labels]
        overall = weighted if weighted.any() else overall
    return Strata(
        overall=normalised(overall),
        balanced=normalised(share),
        groups={
            name: normalised(share * (groups == name))
            for name in table.rule.names
            if (groups == name).any()
        },
    )


def likelihood_weights(context: FixContext, aim: Aim) -> npt.NDArray[np.float64]:
    """Return how much each validation image counts in likelihoods, shape (N,), of mean one.

    As if classes came as often as the target prior says: equally often, unless told otherwise. The
    fitted probabilities then hold under that prior, and not under the make-up of the validation
    data.
    """
    assert context.labels is not None
    labels = context.labels
    if aim.objective == "overall" and aim.target_prior is None:
        return np.ones(len(labels))
    weights = 1.0 / np.bincount(labels)[labels]
    if aim.target_prior is not None:
        weights = weights * aim.target_prior[labels]
    total = weights.sum()
    if not total:
        return np.ones(len(labels))
    scaled: npt.NDArray[np.float64] = weights * (len(labels) / total)
    return scaled


def best_value(
    correct: npt.NDArray[np.bool_], unfixed: npt.NDArray[np.bool_], strata: Strata, aim: Aim
) -> int:
    """Return the column of ``correct`` (N, V) that reaches most without costing the head too much.

    Ties go to the milder value, which stands first; where no value is sure to cost the most
    frequent group no more than is allowed, the mildest one is returned.
    """
    reached = strata.values(correct, aim.objective)
    if aim.max_head_loss is not None:
        allowed = _head_change_low(correct, unfixed, strata) >= -aim.max_head_loss - 1e-9
        if not allowed.any():
            return 0
        reached = np.where(allowed, reached, -np.inf)
    return int(reached.argmax())


def _head_change_low(
    correct: npt.NDArray[np.bool_], unfixed: npt.NDArray[np.bool_], strata: Strata
) -> npt.NDArray[np.float64]:
    """Return the lower end of the 95 % interval of each column's change of the head, in points.

    As that of the comparison of methods, with the error of a weighted mean in the bootstrap's
    place, which there are too many values for.
    """
    weights = strata.head[:, None]
    change = correct.astype(np.float64) - unfixed[:, None]
    mean = (weights * change).sum(axis=0)
    variance = (weights**2 * (change - mean) ** 2).sum(axis=0)
    own = strata.head[strata.head > 0]
    one_image = (own**2).mean()
    low = mean - NORMAL * np.sqrt(variance + one_image)
    found: npt.NDArray[np.float64] = 100.0 * np.where((change != 0).any(axis=0), low, 0.0)
    return found
