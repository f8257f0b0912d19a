"""All figures of one model on labelled images, each with its interval of 95 %."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray, log_softmax
from ..classes import ClassTable
from ..errors import DataError
from ..models.head import Activation
from .accuracy import average_accuracy, harmonic_mean, per_class_accuracy
from .calibration import BINS, bin_of
from .intervals import (
    Bootstrap,
    basic_interval,
    error_interval,
    harmonic_interval,
    wilson_interval,
)

__all__ = ["Figure", "Figures", "WorstClass", "figures_of"]

Float64 = npt.NDArray[np.float64]


class Rows(Protocol):
    """An array (N, C) that is read some rows at a time, and need not be there as a whole."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and C."""

    def __getitem__(self, rows: slice, /) -> FloatArray:
        """Return some rows."""


_BLOCK_ELEMENTS = 1 << 20


@final
@dataclass(frozen=True)
class Figure:
    """An estimate and the ends of its 95 % interval; percent, or nats for a likelihood."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return ``value``, ``low`` and ``high``."""
        return asdict(self)


@final
@dataclass(frozen=True)
class WorstClass:
    """The class with the lowest accuracy, the lowest label where several tie.

    The interval is that of one class on its own; that it is the lowest of many is partly chance.

    Parameters
    ----------
    accuracy : in percent.
    label : of the class.
    images : of the class.
    """

    accuracy: Figure
    label: int
    images: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the figure with ``label`` and ``images``."""
        return {**self.accuracy.to_dict(), "label": self.label, "images": self.images}


@final
@dataclass(frozen=True)
class Figures:
    """Figures of one model; None for a group without images.

    Parameters
    ----------
    overall : share of the images that are right, in percent.
    balanced : mean of the class accuracies, in percent.
    groups : mean of the class accuracies of each group, in percent.
    harmonic : harmonic mean of these; see :func:`.accuracy.harmonic_mean` for why of groups.
    worst : the class with the lowest accuracy.
    nll : mean negative log-likelihood, in nats.
    ece : expected calibration error of the top-1 class, in percent.
    classwise_ece : class-wise expected calibration error, in percent.
    group_ece : ``ece`` over the images whose true class is of each group, in percent: says for
        which classes the model is too sure of itself, which the average hides.
    """

    overall: Figure
    balanced: Figure
    groups: dict[str, Figure | None]
    harmonic: Figure
    worst: WorstClass
    nll: Figure
    ece: Figure
    classwise_ece: Figure
    group_ece: dict[str, Figure | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name, ready for JSON."""
        return {name: _plain(value) for name, value in vars(self).items()}


def _plain(value: Figure | WorstClass | dict[str, Figure | None]) -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: None if one is None else one.to_dict() for name, one in value.items()}
    return value.to_dict()


def figures_of(
    logits: FloatArray | Rows,
    labels: IntArray,
    table: ClassTable,
    bootstrap: Bootstrap,
    activation: Activation = "softmax",
) -> Figures:
    """Measure a model by its logits.

    Parameters
    ----------
    logits : array of shape (N, C), after any fix; read in blocks of rows.
    labels : array of shape (N,).
    table : the classes and their groups.
    bootstrap : replicates of these images, shared by the models that are compared.
    activation : what turns logits into probabilities; under ``sigmoid`` the likelihood is that of
        C yes-or-no answers per image.

    Raises
    ------
    DataError
        If shapes or labels do not belong together, or a logit is not a number.
    """
    labels = np.asarray(labels)
    if logits.shape != (len(labels), len(table)):
        raise DataError(
            f"The logits have the shape {logits.shape}; expected one row for each of the "
            f"{len(labels)} labels and one column for each of the {len(table)} classes."
        )
    if not np.array_equal(labels, bootstrap.labels):
        raise DataError("The bootstrap was drawn for other images; draw it for these labels.")
    images, _ = per_class_accuracy(labels, labels, len(table))
    seen = _look(logits, labels, bootstrap, activation)
    gaps = (seen.predicted == labels) - seen.confidence
    ece, group_ece = _top1_errors(gaps, bin_of(seen.confidence), bootstrap)
    nll = float(seen.losses.mean())
    drawn = bootstrap.multiplicities @ seen.losses.astype(np.float32) / len(labels)
    return Figures(
        **_accuracies(seen.predicted, images, bootstrap),
        nll=Figure(nll, *basic_interval(nll, drawn)),
        ece=ece,
        classwise_ece=_error(seen.classwise, seen.classwise_drawn),
        group_ece=group_ece,
    )


def _percent(share: float, low: float, high: float) -> Figure:
    return Figure(100.0 * share, 100.0 * low, 100.0 * high)


def _accuracies(predicted: IntArray, images: IntArray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the accuracies among the fields of `Figures`."""
    labels, table, strata = bootstrap.labels, bootstrap.table, bootstrap.strata
    right = predicted == labels
    pairs = list(zip(strata.rows, strata.weights, strict=True))
    shares = np.array([weights @ right[rows] for rows, weights in pairs])
    squares = np.array([weights @ weights for _, weights in pairs])
    low, high = wilson_interval(shares, 1.0 / squares)
    groups: dict[str, Figure | None] = dict.fromkeys(table.rule.names)
    for name, *ends in zip(strata.names, shares, low, high, strict=True):
        groups[name] = _percent(*(float(end) for end in ends))

    parts = strata.classes / strata.classes.sum()
    _, correct = per_class_accuracy(labels, predicted, len(table))
    worst = average_accuracy(images, correct, np.arange(len(table))).worst
    assert worst is not None
    return {
        "overall": _wilson(float(right.mean()), len(labels)),
        "balanced": _wilson(float(parts @ shares), 1.0 / float(parts**2 @ squares)),
        "groups": groups,
        "harmonic": _percent(
            float(harmonic_mean(shares)),
            *harmonic_interval(shares, low, high),
        ),
        "worst": WorstClass(
            _wilson(float(correct[worst] / images[worst]), int(images[worst])),
            worst,
            int(images[worst]),
        ),
    }


def _wilson(share: float, images: float) -> Figure:
    low, high = wilson_interval(share, images)
    return _percent(share, float(low), float(high))


def _error(value: float, drawn: Float64) -> Figure:
    return _percent(value, *error_interval(value, drawn))


def _top1_errors(
    gaps: Float64, place: IntArray, bootstrap: Bootstrap
) -> tuple[Figure, dict[str, Figure | None]]:
    """Return the calibration error of all images and of each group.

    Parameters
    ----------
    gaps : right or not, less the confidence, array of shape (N,).
    place : bins, array of shape (N,).
    """
    groups: dict[str, Figure | None] = dict.fromkeys(bootstrap.table.rule.names)
    total, total_drawn = np.zeros(BINS), np.zeros((bootstrap.replicates, BINS))
    for name, rows in zip(bootstrap.strata.names, bootstrap.strata.rows, strict=True):
        cells = np.zeros((len(rows), BINS), dtype=np.float32)
        cells[np.arange(len(rows)), place[rows]] = gaps[rows]
        sums = np.bincount(place[rows], weights=gaps[rows], minlength=BINS)
        drawn = (bootstrap.multiplicities[:, rows] @ cells).astype(np.float64)
        groups[name] = _error(
            float(np.abs(sums).sum() / len(rows)), np.abs(drawn).sum(axis=1) / len(rows)
        )
        total += sums
        total_drawn += drawn
    images = len(gaps)
    overall = _error(float(np.abs(total).sum() / images), np.abs(total_drawn).sum(axis=1) / images)
    return overall, groups


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one look at the logits gives: per image, and class-wise with its replicates."""

    predicted: IntArray
    confidence: Float64
    losses: Float64
    classwise: float
    classwise_drawn: Float64


def _look(
    logits: FloatArray | Rows,
    labels: IntArray,
    bootstrap: Bootstrap,
    activation: Activation = "softmax",
) -> _Seen:
    """Go over the logits once, some rows at a time.

    Class-wise errors sum the gaps ``1[y = k] − p_k`` per class and bin. All but a few
    probabilities of a row are in the first bin: that one is summed as a product of matrices, the
    others as a list of entries.
    """
    images, classes = logits.shape
    predicted, confidence = np.empty(images, dtype=np.int64), np.empty(images)
    losses = np.empty(images)
    first = np.zeros(classes)
    first_drawn = np.zeros((bootstrap.replicates, classes), dtype=np.float32)
    entries: list[tuple[IntArray, IntArray, Float64]] = []
    step = max(1, _BLOCK_ELEMENTS // classes)
    for start in range(0, images, step):
        own = slice(start, min(start + step, images))
        rows = np.arange(own.stop - start)
        block = np.asarray(logits[own], dtype=np.float64)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise DataError(
                f"The logits of image {start + int(finite.argmin())} are not all finite numbers; "
                "leave the image out, or check the model's precision."
            )
        sigmoid = activation == "sigmoid"
        log_p = -np.logaddexp(0.0, -block) if sigmoid else log_softmax(block)
        losses[own] = -log_p[rows, labels[own]]
        if sigmoid:  # log(1 − p) = log p − z
            losses[own] -= (log_p - block).sum(axis=1) - (log_p - block)[rows, labels[own]]
        predicted[own] = block.argmax(axis=1)
        gaps = -np.exp(log_p)
        confidence[own] = -gaps[rows, predicted[own]]
        place = bin_of(-gaps)
        gaps[rows, labels[own]] += 1.0
        row, label = np.nonzero(place)
        entries.append((row + start, label * BINS + place[row, label], gaps[row, label]))
        gaps[row, label] = 0.0
        first += gaps.sum(axis=0)
        first_drawn += bootstrap.multiplicities[:, own] @ gaps.astype(np.float32)
    image_of, cell, gap = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    sums = np.abs(first).sum() + np.abs(np.bincount(cell, weights=gap)).sum()
    drawn = np.abs(first_drawn).sum(axis=1, dtype=np.float64)
    drawn += _drawn_cells(image_of, cell, gap.astype(np.float32), bootstrap)
    size = images * classes
    return _Seen(predicted, confidence, losses, float(sums / size), drawn / size)


def _drawn_cells(
    image: IntArray, cell: IntArray, gap: npt.NDArray[np.float32], bootstrap: Bootstrap
) -> Float64:
    """Return ``Σ_cell |Σ gap|`` in each replicate, shape (B,)."""
    order = np.argsort(cell, kind="stable")
    image, gap = image[order], gap[order]
    starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
    total = np.zeros(bootstrap.replicates)
    step = max(1, _BLOCK_ELEMENTS // max(len(gap), 1))
    for start in range(0, bootstrap.replicates if len(gap) else 0, step):
        weighted = bootstrap.multiplicities[start : start + step, image] * gap
        sums = np.add.reduceat(weighted, starts, axis=1)
        total[start : start + step] = np.abs(sums).sum(axis=1, dtype=np.float64)
    return total
