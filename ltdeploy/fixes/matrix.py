"""A full matrix and a shift, fitted by likelihood on validation images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from ..errors import FixError
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_number, require_softmax
from .grids import RIDGES
from .likelihood import Sample, curve, labelled, minimise, residual, row_blocks
from .logit_map import LogitMap
from .maps import LogSoftmax, compose
from .temperature import best_inverse

__all__ = ["Dirichlet", "MatrixScaling", "fit_matrix"]

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_MOST_CLASSES = 1000
_BLOCK_NUMBERS = 1 << 24  # float32 of all classes' preconditioners: 64 MiB, and as much inverted
_STALE_AFTER = 12  # products with the Hessian that one Newton step may take with old ones


@final
@dataclass(frozen=True)
class MatrixScaling(Fix):
    """Mix the logits by a matrix and shift them: ``z' = A z + c``.

    Minimises ``mean_i w_i NLL_i + l2 / C · (‖A − I‖² + ‖c‖²)``; see :func:`fit_matrix`.

    Guo et al. 2017, *On calibration of modern neural networks*, arXiv 1706.04599, §4.2, with the
    off-diagonal and intercept regularisation (ODIR) of Kull et al. 2019, *Beyond temperature
    scaling*, arXiv 1910.12656, §3.2, in two points changed. The diagonal is drawn to 1, where ODIR
    leaves it free: else separable images have no optimum. And off-diagonal numbers are summed over
    a class's row before the mean over classes (λ = (C − 1) l2 and μ = l2 in the paper's
    terms), so that one ``l2`` means the same for ten classes as for hundreds.

    Parameters
    ----------
    l2 : strength of the ridge toward the identity, above 0.
    """

    l2: float = 1.0

    method: ClassVar[str] = "matrix"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"validation"})
    tunable: ClassVar[str | None] = "l2"
    grid: ClassVar[tuple[float, ...]] = RIDGES
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_ridge(self.method, self.l2)

    def _map(self, context: FixContext) -> AffineMap:
        require_softmax(context, self.method)
        assert context.logits is not None
        assert context.labels is not None
        return fit_matrix(context.logits, context.labels, context.weights, self.l2)

    def freedom(self, context: FixContext) -> int:
        """Return C² + C: A and c."""
        return context.class_count() * (context.class_count() + 1)


@final
@dataclass(frozen=True)
class Dirichlet(Fix):
    """Mix the log-probabilities by a matrix and shift them: ``z' = A log softmax(z) + c``.

    Minimises what :class:`MatrixScaling` does, on log-probabilities instead of logits.

    Kull et al. 2019, *Beyond temperature scaling: obtaining well-calibrated multiclass
    probabilities with Dirichlet calibration*, arXiv 1910.12656, §3.1 (linear parametrisation).

    Parameters
    ----------
    l2 : strength of the ridge toward the identity, above 0.

    Notes
    -----
    Unlike :class:`MatrixScaling` it gives the same probabilities whatever an image adds to all of
    its logits; in return the log-softmax remains as a node of its own.
    """

    l2: float = 1.0

    method: ClassVar[str] = "dirichlet"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"validation"})
    tunable: ClassVar[str | None] = "l2"
    grid: ClassVar[tuple[float, ...]] = RIDGES
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_ridge(self.method, self.l2)

    def _map(self, context: FixContext) -> LogitMap:
        require_softmax(context, self.method)
        assert context.logits is not None
        assert context.labels is not None
        labelled(self.method, context.logits, context.labels, context.weights)
        inner = LogSoftmax(context.logits.shape[1])
        logs = inner.apply(context.logits)
        return compose(
            inner, fit_matrix(logs, context.labels, context.weights, self.l2, method=self.method)
        )

    def freedom(self, context: FixContext) -> int:
        """Return C² + C: A and c."""
        return context.class_count() * (context.class_count() + 1)


def fit_matrix(
    logits: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    weights: npt.ArrayLike | None,
    l2: float,
    start: AffineMap | None = None,
    *,
    method: str = MatrixScaling.method,
) -> AffineMap:
    """Return the A and c that minimise ``mean_i w_i NLL_i(A z + c) + l2 / C (‖A − I‖² + ‖c‖²)``.

    Only classes with images take part, and the likelihood is that of a label given that it is one
    of theirs. A class without images keeps to itself: A has the others' mean diagonal in its place,
    zeros in its row and column, and c is 0 there.

    Parameters
    ----------
    logits : array of shape (N, C), or what takes their place.
    labels : array of shape (N,).
    weights : array of shape (N,), not negative; None counts all images alike.
    l2 : strength of the ridge, above 0.
    start : where to begin, for example the map fitted with a neighbouring ``l2``. The objective is
        strictly convex: it changes the time that is taken, not the result.
    method : name of the fix, for errors.

    Raises
    ------
    FixError
        Above 1,000 classes (A would have more numbers than validation images can tell), for data
        that :func:`~ltdeploy.fixes.likelihood.labelled` refuses, and where the optimiser does not
        converge.
    """
    sample = labelled(method, logits, labels, weights)
    if sample.classes > _MOST_CLASSES:
        raise FixError(
            f"{method} learns a matrix of {sample.classes} × {sample.classes} numbers; it is meant "
            f"for at most {_MOST_CLASSES} classes. Use vector or bias_corrected_temperature."
        )
    seen = sample.of_seen()
    objective = _Full(seen, l2)
    if start is None:
        deviation = (best_inverse(seen) - 1) * np.eye(seen.classes, seen.classes + 1)
    else:
        inside = np.ix_(sample.seen, sample.seen)
        deviation = np.column_stack([start.matrix()[inside], start.shift[sample.seen]])
        deviation -= np.eye(seen.classes, seen.classes + 1)
    found = objective.deviation(minimise(method, objective, objective.flat(deviation)))
    full = np.eye(sample.classes) * (1 + np.diagonal(found).mean())
    full[np.ix_(sample.seen, sample.seen)] = np.eye(seen.classes) + found[:, :-1]
    shift = np.zeros(sample.classes)
    shift[sample.seen] = found[:, -1]
    return AffineMap(full, shift)


def _require_ridge(method: str, l2: float) -> None:
    require_number(method, "l2", l2, low=0, inclusive=False, option=f"{method}:l2=1")


class _Full:
    """Ridge and mean NLL of ``z + D (z, 1)`` as an objective of the deviation D.

    D is held in the principal axes of (z, 1): axes without any spread drop out (a head of 64
    features gives 100 logits of rank 64, and the ridge keeps D at zero there), and the others come
    in order of spread, which the preconditioner uses.
    """

    def __init__(self, sample: Sample, l2: float) -> None:
        images, classes = sample.logits.shape
        self._sample = sample
        self._weights = sample.weights.astype(np.float32)
        self._probabilities = np.empty((images, classes), dtype=np.float32)
        self._ridge = 2 * l2 / classes

        inputs = np.ones((images, classes + 1))
        inputs[:, :-1] = sample.logits
        spread, axes = np.linalg.eigh(inputs.T @ (inputs * sample.weights[:, None]))
        kept = spread > 1e-13 * spread[-1]
        self._spread, self._axes = spread[kept][::-1], axes[:, kept][:, ::-1]
        self._inputs = inputs @ self._axes
        self._narrow = self._inputs.astype(np.float32)

        self._dense = min(len(self._spread), int(np.sqrt(_BLOCK_NUMBERS / classes)))
        self._products = 0
        self._inverses: Float32 | None = None
        self._rest: Float64 = np.empty(0)

    def flat(self, deviation: Float64) -> Float64:
        """Return D of shape (C, C + 1) in the axes, with what all rows have in common taken off.

        What all rows share changes no probability, so the ridge keeps it at zero.
        """
        turned = deviation @ self._axes
        result: Float64 = (turned - turned.mean(axis=0)).ravel()
        return result

    def deviation(self, theta: Float64) -> Float64:
        """Return D, array of shape (C, C + 1)."""
        deviation: Float64 = self._rows(theta) @ self._axes.T
        return deviation

    def evaluate(self, theta: Float64) -> tuple[float, Float64]:
        """Return value and gradient; see :class:`~ltdeploy.fixes.likelihood.Objective`."""
        sample, turned = self._sample, self._rows(theta)
        value, gradient = 0.0, self._ridge * turned
        for rows in row_blocks(*sample.logits.shape):
            block = self._inputs[rows] @ turned.T
            block += sample.logits[rows]
            value += residual(
                block, sample.labels[rows], sample.weights[rows], self._probabilities[rows]
            )
            gradient += block.T @ self._inputs[rows]
        if self._products > _STALE_AFTER:
            self._inverses = None
        self._products = 0
        return value + 0.5 * self._ridge * float(theta @ theta), gradient.ravel()

    def product(self, direction: Float64) -> Float64:
        """Return the Hessian times a direction."""
        sample, turned = self._sample, self._rows(direction).astype(np.float32)
        self._products += 1
        total = self._ridge * self._rows(direction)
        for rows in row_blocks(*sample.logits.shape):
            change = self._narrow[rows] @ turned.T
            curve(change, self._probabilities[rows], self._weights[rows])
            total += change.T @ self._narrow[rows]
        flat: Float64 = total.ravel()
        return flat

    def precondition(self, gradient: Float64) -> Float64:
        """Solve with each class's own block of the Hessian, dense in the axes of most spread."""
        if self._inverses is None:
            self._invert_blocks()
            assert self._inverses is not None
        rows, dense = self._rows(gradient), self._dense
        solved = np.empty_like(rows)
        leading = rows[:, :dense, None].astype(np.float32)
        solved[:, :dense] = (self._inverses @ leading)[:, :, 0]
        solved[:, dense:] = rows[:, dense:] / self._rest
        result: Float64 = (solved - solved.mean(axis=0)).ravel()
        return result

    def _invert_blocks(self) -> None:
        dense, classes = self._dense, self._sample.classes
        blocks = np.empty((classes, dense, dense), dtype=np.float32)
        masses = np.empty(classes)
        leading = np.ascontiguousarray(self._narrow[:, :dense])
        for label in range(classes):
            column = self._probabilities[:, label]
            mass = column * (1 - column) * self._weights
            masses[label] = mass.sum()
            # Most images say next to nothing about a class; a preconditioner may leave them out.
            some = np.flatnonzero(mass > 1e-3 * self._weights)
            scaled = leading[some] * np.sqrt(mass[some, None])
            blocks[label] = scaled.T @ scaled
        diagonal = np.arange(dense)
        blocks[:, diagonal, diagonal] += self._ridge
        # Axes differ in spread by more than single precision can invert: to unit diagonals first.
        roots = np.sqrt(blocks[:, diagonal, diagonal])
        blocks /= roots[:, :, None]
        blocks /= roots[:, None, :]
        blocks[:, diagonal, diagonal] += 1e-6
        self._inverses = np.linalg.inv(blocks)
        self._inverses /= roots[:, :, None]
        self._inverses /= roots[:, None, :]
        self._rest = masses[:, None] * self._spread[dense:] + self._ridge

    def _rows(self, flat: Float64) -> Float64:
        return flat.reshape(self._sample.classes, -1)
