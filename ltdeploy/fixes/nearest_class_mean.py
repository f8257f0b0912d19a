"""Nearest class mean: no head is learnt, each class is where its training features lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..errors import FixError, did_you_mean
from .base import Evidence, Fix, FixContext, require_softmax
from .maps import NewHead

__all__ = ["NcmVariant", "NearestClassMean", "TrainingData", "training_data", "with_unseen"]

NcmVariant = Literal["plain", "l2", "centred_l2"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Features of training images that were found to fit the head and the class table.

    Attributes
    ----------
    features : array of shape (M, D), in the dtype they came in.
    labels : array of shape (M,), int64, each in 0 … C − 1.
    images : how many rows each class has, array of shape (C,).
    """

    features: FloatArray
    labels: IntArray
    images: IntArray

    @property
    def seen(self) -> IntArray:
        """Labels of the classes that have rows."""
        return np.flatnonzero(self.images)

    def by_class(self) -> list[IntArray]:
        """Return the row numbers of each seen class."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(order, np.cumsum(self.images[self.seen])[:-1])


@final
@dataclass(frozen=True)
class NearestClassMean(Fix):
    """Replace the head by the distance to each class's mean training feature.

    ``z'_c = −‖n(x) − μ_c‖² + ‖n(x)‖² = 2 μ_c·n(x) − ‖μ_c‖²``, so W = 2μ and b = −‖μ‖²; what is
    left out is equal for all classes. A mean does not grow with the number of its images, so the
    head and the tail start level.

    Kang et al. 2020, *Decoupling representation and classifier for long-tailed recognition*,
    arXiv 1910.09217, §4 (NCM). Centring: Wang et al. 2019, *SimpleShot*, arXiv 1911.04623, §2.

    Parameters
    ----------
    variant : what features and means go through first.
        ``plain``: nothing, n(x) = x. ``l2``: features are divided by their norms, averaged by
        class, and the means divided by theirs: the classes are then ranked by cosine.
        ``centred_l2``: the centre of all features is subtracted first (CL2N).

    Notes
    -----
    Where the sources differ: SimpleShot's centre is the mean over all training images, which on
    its balanced data is the mean of the class means; here it is the mean of the class means, which
    does not lean towards the head. SimpleShot leaves the means of normalised features at their
    lengths, which are shorter the more a class spreads, and so favours classes of many images;
    Kang et al. normalise them, and so does this.

    A class whose training count is 0 has no mean. Its logit is the average of the seen classes'
    logits: it never wins and nothing is infinite.

    The logits are distances, not log-probabilities: refit the temperature afterwards.
    """

    variant: NcmVariant = "plain"

    method: ClassVar[str] = "ncm"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"training"})

    def __post_init__(self) -> None:
        variants = get_args(NcmVariant)
        if self.variant not in variants:
            raise FixError(
                f"ncm: the variant {self.variant!r} is unknown; expected one of "
                f"{', '.join(variants)}.{did_you_mean(str(self.variant), variants)}"
            )

    def _map(self, context: FixContext) -> NewHead:
        data = training_data(context, self.method)
        groups = data.by_class()
        centre = None
        if self.variant == "centred_l2":
            centre = _means(data.features, groups, None, normalise=False).mean(axis=0)
        normalise = self.variant != "plain"
        means = _means(data.features, groups, centre, normalise=normalise)
        if normalise:
            means = _unit(means)
        weight, bias = with_unseen(2.0 * means, -np.square(means).sum(axis=1), data)
        return NewHead(weight, bias, centre, normalise)

    def freedom(self, context: FixContext) -> int:
        """Return C·D: the means."""
        assert context.train_features is not None
        return context.class_count() * int(context.train_features.shape[1])


def training_data(context: FixContext, method: str) -> TrainingData:
    """Return the context's training features, checked against its head and class table.

    A part of the training images will do, as long as each class of the table that has any is in it.

    Raises
    ------
    FixError
        If the head is no plain softmax classifier on these features; if shapes, labels or numbers
        are wrong; if a class has no features although its training count is not 0, or more of them
        than its count; if fewer than two classes are left.
    """
    assert context.train_features is not None
    assert context.train_labels is not None
    require_softmax(context, method)
    features, labels = context.train_features, np.asarray(context.train_labels)
    classes = context.class_count()
    _check_head(context, method)
    if features.ndim != 2 or labels.shape != (len(features),) or not len(features):
        raise FixError(
            f"{method} needs training features of shape (M, D) and labels of shape (M,), M at "
            f"least 1; got {features.shape} and {labels.shape}."
        )
    if context.head is not None and features.shape[1] != context.head.weight.shape[1]:
        raise FixError(
            f"{method}: the training features have {features.shape[1]} numbers per image and the "
            f"head takes {context.head.weight.shape[1]}; give what enters the head's last layer."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise FixError(
            f"{method}: training labels must be whole numbers from 0 to {classes - 1}; got "
            f"{labels.dtype} from {labels.min()} to {labels.max()}."
        )
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise FixError(
            f"{method}: the features of {len(broken)} training images are not finite, the first in "
            f"row {broken[0]}; leave these images out, or extract the features in float32."
        )
    whole = labels.astype(np.int64)
    data = TrainingData(features, whole, np.bincount(whole, minlength=classes))
    _check_counts(context, data, method)
    return data


def with_unseen(weight: Float64, bias: Float64, data: TrainingData) -> tuple[Float64, Float64]:
    """Return W (C, D) and b (C,) from the rows of the seen classes.

    An unseen class gets the mean row: its logit is the average of the others and so never the
    largest, whatever the image.
    """
    classes = len(data.images)
    full, shift = np.tile(weight.mean(axis=0), (classes, 1)), np.full(classes, bias.mean())
    full[data.seen], shift[data.seen] = weight, bias
    return full, shift


def _check_head(context: FixContext, method: str) -> None:
    head = context.head
    if head is None:
        return
    if not head.foldable:
        raise FixError(
            f"{method} needs a head whose rows are multiplied with the features alone; this "
            "model's logits pass through more than its last linear map. Use a fix of the logits "
            "instead: --logit-adjust 1.0."
        )
    if head.background is not None:
        raise FixError(
            f"{method} is made for classifiers; this head has a background row (label "
            f"{head.background}), which stands for no class of training images. Use a fix of the "
            "logits instead."
        )


def _check_counts(context: FixContext, data: TrainingData, method: str) -> None:
    classes = len(data.images)
    table = context.classes
    if table is not None and len(table) != classes:
        raise FixError(
            f"{method}: the class table has {len(table)} classes and the model {classes}; give the "
            "table this model was trained with."
        )
    names = [str(label) for label in range(classes)] if table is None else table.names
    # Without a table every class is expected to have images, and none can have too many.
    counts = np.full(classes, np.inf) if table is None else np.array(table.counts)
    absent = np.flatnonzero((data.images == 0) & (counts > 0))
    if len(absent):
        unseen = (
            "if they were never trained on, give training counts (--classes FILE) that say 0."
            if table is None
            else "if they were never trained on, let the class table say 0 for them."
        )
        raise FixError(
            f"{method}: there are no training features of {_listed(absent, names)}. Give at least "
            f"one training image of every class; {unseen}"
        )
    excess = np.flatnonzero(data.images > counts)
    if len(excess) and not context.force:
        first = int(excess[0])
        raise FixError(
            f"{method}: the class table contradicts the training data for "
            f"{_listed(excess, names)}: {names[first]!r} has a count of {int(counts[first])} and "
            f"features of {data.images[first]} images. Check that both have the same order of "
            "classes; add --force where images stand in the data more than once."
        )
    if len(data.seen) < 2:
        raise FixError(
            f"{method}: all training images are of {_listed(data.seen, names)}; at least two "
            "classes are needed to tell them apart."
        )


def _listed(labels: IntArray, names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(f"{names[label]!r} (label {label})" for label in labels[:5].tolist())
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return f"{len(labels)} {'class' if len(labels) == 1 else 'classes'}: {shown}{more}"


def _means(
    features: FloatArray, groups: list[IntArray], centre: Float64 | None, *, normalise: bool
) -> Float64:
    """Return the mean of each group of rows, centred and normalised row by row where asked for."""
    means = np.empty((len(groups), features.shape[1]))
    for row, members in enumerate(groups):
        inputs = np.asarray(features[members], dtype=np.float64)
        if centre is not None:
            inputs = inputs - centre
        means[row] = (_unit(inputs) if normalise else inputs).mean(axis=0)
    return means


def _unit(rows: Float64) -> Float64:
    # The same guard as in NewHead.prepared, so that fitting and applying see the same features.
    unit: Float64 = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
