"""Temperature: one factor on all logits, so that confidence matches accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..errors import FixError
from ..models.head import Activation
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_number, zeros
from .likelihood import Sample, labelled, row_blocks, sample_of
from .logit_map import LogitMap

__all__ = ["Temperature", "TemperatureFit", "best_inverse", "find_temperature", "fit_temperature"]

_MOST_UNITS = 1e4  # the highest t: logits that differ by a unit then differ by 1e-4
_LEAST_UNITS = 1e-6  # the lowest t, which only ties between the best classes ever lead to
_STEPS = 200
_LEAP = 16.0  # a step changes β by no more than this factor
_EXACT = 1e-4  # the last Newton step; what is left then is of the order of its square
_NARROW_FROM = 1 << 24  # float32 logits are computed with as they are from this many numbers on

_ALL_RIGHT = "the model is right on every image, so the best t is at the edge, 0"
_SAYS_NOTHING = (
    "the logits say nothing of the labels, so the best t is at the edge, infinity; check that the "
    "labels belong to these images"
)
_INSTEAD = {
    _ALL_RIGHT: "it is set as if the model were wrong on one image more",
    _SAYS_NOTHING: "it is set so high that all classes are almost equally likely",
}

Float64 = npt.NDArray[np.float64]


@final
@dataclass(frozen=True)
class Temperature(Fix):
    """Divide all logits by t: ``z' = z / t``. No decision changes, only the confidence.

    Guo et al. 2017, *On calibration of modern neural networks*, arXiv 1706.04599, §4.2. On a
    sigmoid head ``p = σ(z / t)``, with the same t for all classes.

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


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature, and what is to be said of it where the images leave it open.

    Attributes
    ----------
    t : the temperature.
    note : why the likelihood alone does not set t, or an empty text.
    """

    t: float
    note: str = ""


def fit_temperature(
    logits: FloatArray,
    labels: IntArray,
    weights: npt.ArrayLike | None = None,
    activation: Activation = "softmax",
) -> float:
    """Return the t that minimises the weighted mean negative log-likelihood of ``softmax(z / t)``.

    Under ``sigmoid`` the likelihood is that of C yes-or-no answers per image, ``σ(z / t)``.

    Parameters
    ----------
    logits : array of shape (N, C); read in blocks of rows and never copied as a whole.
    labels : array of shape (N,).
    weights : array of shape (N,), not negative; None counts all images alike.
    activation : what turns logits into probabilities.

    Raises
    ------
    FixError
        If the minimum lies at the edge, t = 0 or t = ∞: the model is right on every image, or the
        labels do not fit the logits. Also for data that
        :func:`~ltdeploy.fixes.likelihood.labelled` refuses.
    """
    scores = _Scores(labelled("temperature", logits, labels, weights), activation)
    t, edge = _fit(scores)
    if edge:
        raise FixError(f"No temperature fits the validation images: {edge}.")
    return t


def find_temperature(
    context: FixContext, fitted: LogitMap | None = None, start: float | None = None
) -> TemperatureFit:
    """Return the temperature for a context's images behind a map, at the edges as well.

    As :func:`fit_temperature` under the activation of the context's head. Images of weight 0 are
    not looked at, so that parts of the images need no copies. Where the minimum is no number, t
    is the nearest one that is honest, and a note says so; units are the median lead of an image's
    best class over the next (for sigmoid heads with its distance from 0), so that t scales with
    the logits whatever they are:

    - t → ∞, the logits say nothing of the labels: 10,000 units, where all classes are as good as
      alike.
    - t → 0, the model is right on every image: t is fitted as if one more image had come, on
      which it is wrong by one unit (as Laplace's rule of succession has it for shares).

    Parameters
    ----------
    context : holds logits (N, C), labels, and what else the map needs.
    fitted : map to apply to the logits first; done block by block.
    start : a temperature near the one sought, which saves steps and does not change the result.

    Raises
    ------
    FixError
        For data that :func:`~ltdeploy.fixes.likelihood.labelled` refuses, and mapped logits that
        are not finite.
    """
    activation = "softmax" if context.head is None else context.head.activation
    if fitted is not None and fitted.is_identity:
        fitted = None
    sample = sample_of("temperature", context)
    t, edge = _fit(_Scores(sample, activation, fitted, context.features), start)
    return TemperatureFit(t, f"temperature: {edge}; {_INSTEAD[edge]}" if edge else "")


def best_inverse(sample: Sample) -> float:
    """Return the β in 1e-16 … 100 that about minimises the mean NLL of ``softmax(β z)``.

    A place to begin at for fixes that scale the logits, to a relative 1e-4 or so.

    Raises
    ------
    FixError
        If the steps do not become small.
    """
    return _minimum(_Scores(sample, "softmax").derivatives, (1e-16, 100.0), 1.0, 1e-2)


@dataclass(frozen=True, eq=False)
class _Scores:
    """The logits behind a map of the images that count, some rows at a time."""

    sample: Sample
    activation: Activation
    fitted: LogitMap | None = None
    features: FloatArray | None = None

    def blocks(self) -> Iterator[tuple[FloatArray, IntArray, Float64]]:
        """Yield logits of some images, to be overwritten, with their labels and weights."""
        logits = self.sample.logits
        counted = np.flatnonzero(self.sample.weights)
        # Rounding errors of single precision cancel over so many numbers: t keeps six digits.
        narrow = logits.dtype == np.float32 and logits.size >= _NARROW_FROM
        for rows in row_blocks(len(counted), self.sample.classes):
            own = counted[rows]
            block: FloatArray = logits[own]
            block = block if narrow else block.astype(np.float64, copy=False)
            if self.fitted is not None:
                features = None if self.features is None else self.features[own]
                block = self.fitted.apply(block, features)
            yield block, self.sample.labels[own], self.sample.weights[own]

    def unit(self) -> tuple[float, bool]:
        """Return the unit of :func:`find_temperature`, and whether every answer is right."""
        widest, right = 0.0, True
        units: list[Float64] = []
        for block, labels, weights in self.blocks():
            rows = np.arange(len(block))
            best = block.argmax(axis=1)
            top = block[rows, best].astype(np.float64)
            widest += float(weights @ (top - block.min(axis=1)))
            right &= bool((best == labels).all())
            block[rows, best] = -np.inf
            second = block.max(axis=1).astype(np.float64)
            unit = top - second
            if self.activation == "sigmoid":
                unit = np.abs(top) + unit
                right &= bool((top >= 0).all() and (second <= 0).all())
            right &= bool((unit > 0).all())  # a tie is no answer
            units.append(unit)
        if not np.isfinite(widest):
            raise FixError(
                "temperature: the logits are not finite behind the fix; its parameters are too "
                "extreme for these images."
            )
        together = np.concatenate(units)
        middle = float(np.median(together[together > 0])) if together.any() else 0.0
        return middle or widest or 1.0, right  # ties of the best classes; of all of them

    def derivatives(self, beta: float) -> tuple[float, float]:
        """Return the first and second derivative of the mean NLL in the factor β."""
        look = _softmax_moments if self.activation == "softmax" else _sigmoid_moments
        slope = curvature = 0.0
        for block, labels, weights in self.blocks():
            first, second = look(block, labels, beta)
            slope += float(weights @ first)
            curvature += float(weights @ second)
        return slope, curvature


def _softmax_moments(
    block: FloatArray, labels: IntArray, beta: float
) -> tuple[FloatArray, FloatArray]:
    """Return ``E_p[z] − z_y`` and ``Var_p[z]`` per image, arrays of shape (N,)."""
    block -= block.max(axis=1, keepdims=True)
    mass = block * block.dtype.type(beta)
    np.exp(mass, out=mass)
    total = mass.sum(axis=1)
    mean = np.vecdot(mass, block) / total
    of_label = block[np.arange(len(block)), labels]
    mass *= block
    return mean - of_label, np.vecdot(mass, block) / total - mean**2


def _sigmoid_moments(
    block: FloatArray, labels: IntArray, beta: float
) -> tuple[FloatArray, FloatArray]:
    """Return ``Σ_k p_k z_k − z_y`` and ``Σ_k p_k (1 − p_k) z_k²`` per image."""
    of_label = block[np.arange(len(block)), labels]
    small = np.exp(-np.abs(block) * block.dtype.type(beta))
    probability = np.where(block >= 0, 1, small) / (1 + small)
    slope = np.vecdot(probability, block) - of_label
    block *= block
    return slope, np.vecdot(small / (1 + small) ** 2, block)


def _fit(scores: _Scores, start: float | None = None) -> tuple[float, str]:
    """Return the temperature, and at which edge the likelihood alone would have it, or nothing."""
    unit, all_right = scores.unit()
    images = np.count_nonzero(scores.sample.weights)

    def derivatives(beta: float) -> tuple[float, float]:
        slope, curvature = scores.derivatives(beta)
        if all_right:
            doubt = float(1 / (1 + np.exp(-beta * unit)))
            slope += unit * doubt / images
            curvature += unit**2 * doubt * (1 - doubt) / images
        return slope, curvature

    bounds = 1 / (_MOST_UNITS * unit), 1 / (_LEAST_UNITS * unit)
    begin = 1 / unit if start is None else float(np.clip(1 / start, *bounds))
    beta = _minimum(derivatives, bounds, begin, _EXACT)
    edge = ""
    if beta == bounds[0]:
        edge = _SAYS_NOTHING
    elif all_right or beta == bounds[1]:  # the latter is wrong by a millionth of a unit at most
        edge = _ALL_RIGHT
    return 1 / beta, edge


def _minimum(
    derivatives: Callable[[float], tuple[float, float]],
    bounds: tuple[float, float],
    start: float,
    tolerance: float,
) -> float:
    """Return the β within bounds at which a convex function is smallest.

    Newton's steps, and bisection of log β where one leaves the interval that is known to hold the
    minimum.

    Parameters
    ----------
    derivatives : first and second derivative at β.
    bounds : of β; where the minimum lies at or beyond one of them, that is returned.
    tolerance : relative size of the last step; the error is of the order of its square.

    Raises
    ------
    FixError
        If the steps do not become that small.
    """
    least, greatest = bounds
    low, high = 0.0, np.inf
    beta = start
    for step in range(1, _STEPS + 1):
        slope, curvature = derivatives(beta)
        # No slope at all is a model that is right everywhere: a larger β does not harm it.
        low, high = (low, beta) if slope > 0 else (beta, high)
        if high <= least or low >= greatest:
            return beta
        newton = beta - slope / curvature if curvature > 0 else -np.inf if slope > 0 else np.inf
        if abs(newton - beta) <= tolerance * beta and least < newton < greatest:
            return float(newton)
        following = np.clip(np.clip(newton, beta / _LEAP, beta * _LEAP), least, greatest)
        # Where the NLL falls exponentially Newton only creeps: now and then halve the interval.
        if not low < following < high or step % 8 == 0:
            following = np.sqrt(max(low, least) * min(high, greatest))
        beta = float(following)
    raise FixError(
        f"temperature: the optimiser did not converge after {_STEPS} steps (gradient {slope:.3g}); "
        "check that labels and logits belong together."
    )
