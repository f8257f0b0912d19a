"""Temperature: one factor on all logits, so that confidence matches accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..errors import FixError
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_number, zeros
from .likelihood import Sample, labelled, row_blocks

__all__ = ["Temperature", "best_inverse", "fit_temperature"]

_LOWEST, _HIGHEST = 0.01, 100.0
_STEPS = 200


@final
@dataclass(frozen=True)
class Temperature(Fix):
    """Divide all logits by t: ``z' = z / t``. No decision changes, only the confidence.

    Guo et al. 2017, *On calibration of modern neural networks*, arXiv 1706.04599, §4.2.

    Parameters
    ----------
    t : temperature above 0; above 1 makes the model less sure.
    """

    t: float

    method: ClassVar[str] = "temperature"
    needs: ClassVar[frozenset[Evidence]] = frozenset()
    tunable: ClassVar[str | None] = "t"
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(
            self.method, "t", self.t, low=0, inclusive=False, option="--fix temperature:t=1.5"
        )

    def _map(self, context: FixContext) -> AffineMap:
        classes = context.class_count()
        return AffineMap(np.full(classes, 1.0 / self.t), zeros(classes))

    def freedom(self, context: FixContext) -> int:
        """Return 1: t."""
        return 1


def fit_temperature(
    logits: FloatArray, labels: IntArray, weights: npt.ArrayLike | None = None
) -> float:
    """Return the t that minimises the weighted mean negative log-likelihood of ``softmax(z / t)``.

    Parameters
    ----------
    logits : array of shape (N, C); read in blocks of rows and never copied as a whole.
    labels : array of shape (N,).
    weights : array of shape (N,), not negative; None counts all images alike.

    Raises
    ------
    FixError
        If the minimum lies at the edge of 0.01 … 100: the labels do not fit the logits, or the
        model is right on every image, and no temperature follows from that. Also for data that
        :func:`~ltdeploy.fixes.likelihood.labelled` refuses.
    """
    sample = labelled("temperature", logits, labels, weights)
    t = 1 / best_inverse(sample, 1e-7, 1 / _HIGHEST)
    if not _LOWEST < t < _HIGHEST:
        raise FixError(
            f"No temperature fits the validation images: the best t between {_LOWEST:g} and "
            f"{_HIGHEST:g} is {t:.3g}, at the edge. Check that the labels belong to these images; "
            "a model that is right on every one of them needs no temperature."
        )
    return t


def best_inverse(sample: Sample, tolerance: float = 1e-2, least: float = 1e-16) -> float:
    """Return the β in ``least`` … 100 that minimises the mean NLL of ``softmax(β z)``.

    The NLL is convex in β: Newton's steps, and bisection of log β where one leaves the interval
    that is known to hold the minimum.

    Parameters
    ----------
    tolerance : relative size of the last step; the error is of the order of its square.
    least : lower edge; where the minimum lies at or beyond an edge, that is returned.

    Raises
    ------
    FixError
        If the steps do not become that small.
    """
    greatest = 1 / _LOWEST
    low, high = least, greatest
    tried = set()
    beta = 1.0
    for step in range(1, _STEPS + 1):
        slope, curvature = _derivatives(sample, beta)
        tried.add(beta)
        # No slope at all is a model that is right everywhere: a larger β does not harm it.
        low, high = (low, beta) if slope > 0 else (beta, high)
        if low == greatest or high == least:
            return beta
        newton = beta - slope / curvature if curvature > 0 else np.nan
        # Where the NLL falls exponentially Newton only creeps: now and then halve the interval.
        if low < newton < high and step % 8:
            if abs(newton - beta) <= tolerance * beta:
                return float(newton)
            beta = float(newton)
        else:
            edge = low if slope > 0 else high
            beta = float(np.sqrt(low * high)) if edge in tried else edge
    raise FixError(
        f"temperature: the optimiser did not converge after {_STEPS} steps (gradient {slope:.3g}); "
        "check that labels and logits belong together."
    )


def _derivatives(sample: Sample, beta: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean NLL of ``softmax(β z)`` in β.

    ``E_p[z] − z_y`` and ``Var_p[z]``, averaged over images.
    """
    slope = curvature = 0.0
    for rows in row_blocks(*sample.logits.shape):
        block = sample.logits[rows].astype(np.float64)
        block -= block.max(axis=1, keepdims=True)
        of_label = block[np.arange(len(block)), sample.labels[rows]]
        mass = np.multiply(block, beta)
        np.exp(mass, out=mass)
        total = mass.sum(axis=1)
        mass *= block
        mean = mass.sum(axis=1) / total
        spread = np.vecdot(mass, block) / total - mean**2
        weights = sample.weights[rows]
        slope += float(weights @ (mean - of_label))
        curvature += float(weights @ spread)
    return slope, curvature
