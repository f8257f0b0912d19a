"""Ensembles of classifiers, each with its own classes: experts for the tail beside a full model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray, log_softmax
from ..classes import ClassTable
from ..errors import FixError
from .affine import AffineMap
from .base import FixContext
from .multipliers import GroupBoost

__all__ = ["Ensemble", "Member", "combine", "fit_ensemble"]

Float64 = npt.NDArray[np.float64]

_TOLERANCE = 1e-10
_MOST_ITERATIONS = 10_000
_MOST_OF_AN_EXPERT = 1.0 - 1e-6  # the full members keep a say, so that weights stay finite


@dataclass(frozen=True, eq=False)
class Member:
    """One classifier's logits of the same N images as the others'.

    Parameters
    ----------
    logits : array of shape (N, C_m), calibrated (temperature) if the members' confidence differs.
    classes : label in the main class table of each of its columns, array of shape (C_m,); a member
        that knows all classes is *full*, any other is an *expert*.
    """

    logits: FloatArray
    classes: IntArray

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or self.classes.shape != self.logits.shape[1:]:
            raise FixError(
                f"An ensemble's member has logits of shape {self.logits.shape} and a class map of "
                f"shape {self.classes.shape}; expected (N, C) and (C,)."
            )
        negative = bool((self.classes < 0).any())
        if negative or len(np.unique(self.classes)) < len(self.classes):
            raise FixError(
                "An ensemble's member maps its columns to "
                + ("a negative label" if negative else "the same label twice")
                + f": {self.classes[:10].tolist()}; expected each label of the main class table at "
                "most once."
            )
        if not np.isfinite(self.logits).all():
            row = int(np.flatnonzero(~np.isfinite(self.logits).all(axis=1))[0])
            raise FixError(f"An ensemble's member has logits of image {row} that are not finite.")


@dataclass(frozen=True, eq=False)
class Ensemble:
    """A fitted ensemble.

    Attributes
    ----------
    weights : one per member, those of the full members adding up to one; an expert's is relative
        to them on its own classes, at most 10⁶, where it alone is listened to.
    boost : what is added to the combined log-probabilities: one number per frequency group.
    """

    weights: tuple[float, ...]
    boost: AffineMap

    def apply(self, members: Sequence[Member]) -> Float64:
        """Return the combined and boosted logits, shape (N, C); for members in the same order."""
        return np.asarray(self.boost.apply(combine(members, self.weights)), dtype=np.float64)


def combine(members: Sequence[Member], weights: Sequence[float] | Float64) -> Float64:
    """Return the log-probabilities of an ensemble, shape (N, C), as logits for any fix to follow.

    ``p(c) = Σ_m w_m p_m(c) / Σ_m w_m`` over the members m that know c. A full member's p_m is its
    softmax. An expert for the classes S speaks about P(c | S) only, so that its softmax is scaled
    by the mass that the full members together give S: each class is judged by those who know it,
    S keeps its mass, classes outside S stay as they are, and the probabilities sum to one. The
    plain sum over members (Hansen & Salamon 1990, *Neural network ensembles*, IEEE PAMI 12) would
    punish every class that only some of them know.

    Parameters
    ----------
    members : at least one full member; experts' classes are the same as another's or disjoint.
    weights : one per member, not negative, with at least one full member above zero.

    Raises
    ------
    FixError
        If members or weights do not belong together.
    """
    layout = _layout(members)
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (len(members),) or not (np.isfinite(shares) & (shares >= 0)).all():
        raise FixError(
            f"The ensemble has {len(members)} members and the weights {tuple(weights)}; expected "
            "one finite weight per member, not negative."
        )
    total = float(shares[layout.full].sum())
    if not total > 0:
        raise FixError(
            "All members that know every class have the weight 0; expected one above it, since "
            "they say how likely an expert's classes are."
        )
    speaking = _log_probabilities(members)
    whole = [np.log(shares[m] / total) + speaking[m] for m in layout.full if shares[m]]
    combined: Float64 = np.logaddexp.reduce(whole, axis=0)
    for known, experts in layout.experts:
        heard = [m for m in experts if shares[m]]
        inside = combined[:, known]
        mass = np.logaddexp.reduce(inside, axis=1, keepdims=True)
        terms = [np.log(total) + inside]
        terms += [np.log(shares[m]) + mass + speaking[m] for m in heard]
        weight = np.log(total + shares[heard].sum())
        combined[:, known] = np.logaddexp.reduce(terms, axis=0) - weight
    return combined


def fit_ensemble(
    members: Sequence[Member],
    labels: IntArray,
    *,
    classes: ClassTable | None = None,
    weights: Float64 | None = None,
) -> Ensemble:
    """Fit the members' weights on validation images, then one boost per frequency group.

    The weights maximise the (weighted) likelihood of the labels, by EM: the combination is a
    mixture in which first a full member and then, inside an expert's classes, it or the expert
    speaks (Jordan & Jacobs 1994, *Hierarchical mixtures of experts*, Neural Computation 6, with
    constant gates). No iteration lowers the likelihood.

    Parameters
    ----------
    members : as in :func:`combine`, of validation images.
    labels : in the main class table, array of shape (N,).
    classes : main class table, whose groups are boosted (:class:`GroupBoost`); None: no boost.
    weights : of images in the likelihood, array of shape (N,); ``1 / n_c`` makes every class count
        alike.

    Raises
    ------
    FixError
        If the members do not belong together, labels are out of range, an expert has no image of
        its classes to be judged by, or EM does not converge.
    """
    layout = _layout(members)
    images, size = members[layout.full[0]].logits.shape
    if labels.shape != (images,) or labels.min() < 0 or labels.max() >= size:
        raise FixError(
            f"The ensemble's members have {images} images of {size} classes and the labels "
            f"{labels.shape[0]} entries; expected one label from 0 to {size - 1} per image."
        )
    if classes is not None and len(classes) != size:
        raise FixError(
            f"The ensemble's members know {size} classes and the class table has {len(classes)}; "
            "expected the same classes in the same order."
        )
    found = _fit_weights(members, layout, labels, weights)
    boost = AffineMap.identity(size)
    if classes is not None:
        context = FixContext(classes=classes, logits=combine(members, found), labels=labels)
        fitted = GroupBoost().fit(context)
        assert isinstance(fitted, AffineMap)
        boost = fitted
    return Ensemble(tuple(found.tolist()), boost)


@dataclass(frozen=True, eq=False)
class _Layout:
    """Who knows what: full members, and each expert class set with its experts (by index)."""

    full: list[int]
    experts: list[tuple[IntArray, list[int]]]


def _layout(members: Sequence[Member]) -> _Layout:
    if not members:
        raise FixError("An ensemble needs at least one member; got none.")
    sizes = {len(member.logits) for member in members}
    if len(sizes) > 1:
        raise FixError(
            f"The ensemble's members have {sorted(sizes)} images; expected the same images in the "
            "same order for each."
        )
    size = 1 + max(int(member.classes.max()) for member in members)
    full = [m for m, member in enumerate(members) if len(member.classes) == size]
    if not full:
        best = max(members, key=lambda member: len(member.classes))
        lacking = np.setdiff1d(np.arange(size), best.classes)
        raise FixError(
            "An ensemble needs one member that knows every class, to say how likely an expert's "
            f"classes are; the broadest lacks the labels {lacking[:10].tolist()}."
        )
    experts: dict[tuple[int, ...], list[int]] = {}
    for m, member in enumerate(members):
        if m not in full:
            experts.setdefault(tuple(np.sort(member.classes).tolist()), []).append(m)
    seen: dict[int, int] = {}
    for known, indices in experts.items():
        for label in known:
            if label in seen:
                raise FixError(
                    f"The experts {seen[label]} and {indices[0]} of the ensemble both know the "
                    f"class label {label}, but not the same classes; expected sets that are equal "
                    "or disjoint. Drop that class from one of them."
                )
            seen[label] = indices[0]
    return _Layout(full, [(np.array(known), who) for known, who in experts.items()])


def _log_probabilities(members: Sequence[Member]) -> list[Float64]:
    """Return each member's log-probabilities (N, C_m), columns in the order of the main table."""
    return [
        np.asarray(log_softmax(np.asarray(m.logits, np.float64)), np.float64)[
            :, np.argsort(m.classes)
        ]
        for m in members
    ]


def _fit_weights(
    members: Sequence[Member], layout: _Layout, labels: IntArray, weights: Float64 | None
) -> Float64:
    image = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    image = image / image.sum()
    speaking = _log_probabilities(members)
    rows = np.arange(len(labels))
    # own[i, m]: what full member m gives the label of image i. For the images of an expert's
    # classes, said[i, m, e] = mass that m gives the set × what expert e gives the label.
    own = np.stack([speaking[m][rows, labels] for m in layout.full], axis=1)
    parts = []
    for known, who in layout.experts:
        inside = np.flatnonzero(np.isin(labels, known))
        if not image[inside].sum() > 0:
            raise FixError(
                f"The ensemble's expert {who[0]} cannot be weighted: no validation image shows one "
                f"of its classes (labels {known[:10].tolist()}). Give some, or leave it out."
            )
        column = np.searchsorted(known, labels[inside])
        mass = [np.logaddexp.reduce(speaking[m][inside][:, known], axis=1) for m in layout.full]
        told = np.stack([speaking[e][inside, column] for e in who], axis=1)
        parts.append((inside, np.stack(mass, axis=1)[:, :, None] + told[:, None, :]))
    gates = np.full(len(layout.full), 1.0 / len(layout.full))
    trust = [np.full(said.shape[2], 1.0 / (1 + said.shape[2])) for _, said in parts]
    last = -np.inf
    for _ in range(_MOST_ITERATIONS):
        joint = own + np.log(gates)
        shares = []
        for (inside, said), parted in zip(parts, trust, strict=True):
            plain = joint[inside] + np.log1p(-parted.sum())
            expert = said + np.log(gates)[:, None] + np.log(parted)
            joint[inside] = np.logaddexp(plain, np.logaddexp.reduce(expert, axis=2))
            top = np.logaddexp.reduce(joint[inside], axis=1)
            shares.append(np.exp(np.logaddexp.reduce(expert, axis=1) - top[:, None]))
        likelihood = np.logaddexp.reduce(joint, axis=1)
        score = float(image @ likelihood)
        if score - last < _TOLERANCE:
            return _as_weights(len(members), layout, gates, trust)
        last = score
        gates = np.maximum(image @ np.exp(joint - likelihood[:, None]), 1e-300)
        gates /= gates.sum()
        for index, (inside, _) in enumerate(parts):
            parted = image[inside] @ shares[index] / image[inside].sum()
            limit = min(1.0, _MOST_OF_AN_EXPERT / max(parted.sum(), 1e-300))
            trust[index] = np.maximum(parted * limit, 1e-300)
    raise FixError(
        f"The ensemble's weights did not converge in {_MOST_ITERATIONS:,} iterations; calibrate "
        "the members (temperature) first."
    )


def _as_weights(size: int, layout: _Layout, gates: Float64, trust: list[Float64]) -> Float64:
    """Return w with Σ w = 1 over full members, from gates and the experts' shares of their sets."""
    weights = np.zeros(size)
    weights[layout.full] = gates
    for (_, who), parted in zip(layout.experts, trust, strict=True):
        weights[who] = parted / (1.0 - parted.sum())
    return weights
