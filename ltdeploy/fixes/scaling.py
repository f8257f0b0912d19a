"""One scale, one shift, or both per class, fitted by likelihood on validation images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_number, require_softmax
from .grids import RIDGES
from .likelihood import Sample, curve, minimise, residual, row_blocks, sample_of
from .temperature import best_inverse

__all__ = ["BiasCorrectedTemperature", "LearnableWeightScaling", "VectorScaling"]

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


@final
@dataclass(frozen=True)
class VectorScaling(Fix):
    """Scale and shift each class's logit: ``z' = a ⊙ z + c``.

    Minimises ``mean_i w_i NLL_i + l2 · mean_c ((a_c − 1)² + c_c²)`` over classes with validation
    images, by the likelihood of a label given that it is one of theirs. A class without images is
    given their mean scale and no shift (theirs have the mean 0).

    Guo et al. 2017, *On calibration of modern neural networks*, arXiv 1706.04599, §4.2, which has
    no ridge: without one, few images can drive scales to infinity.

    Parameters
    ----------
    l2 : strength of the ridge toward the identity, above 0.
    """

    l2: float = 0.01

    method: ClassVar[str] = "vector"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"validation"})
    tunable: ClassVar[str | None] = "l2"
    grid: ClassVar[tuple[float, ...]] = RIDGES
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_ridge(self.method, self.l2)

    def _map(self, context: FixContext) -> AffineMap:
        return _fit(self.method, context, self.l2, shared=False, shifted=True)

    def freedom(self, context: FixContext) -> int:
        """Return 2C: a and c."""
        return 2 * context.class_count()


@final
@dataclass(frozen=True)
class BiasCorrectedTemperature(Fix):
    """One temperature and a shift for each class: ``z' = z / t + c``.

    Minimises ``mean_i w_i NLL_i + l2 · ((1/t − 1)² + mean_c c_c²)`` over classes with validation
    images, by the likelihood of a label given that it is one of theirs. A class without images is
    not shifted (the others' shifts have the mean 0).

    Alexandari et al. 2020, *Maximum likelihood with bias-corrected calibration is hard to beat at
    label shift adaptation*, arXiv 1901.06852, §3.2, which has no ridge.

    Parameters
    ----------
    l2 : strength of the ridge toward the identity, above 0.
    """

    l2: float = 0.01

    method: ClassVar[str] = "bias_corrected_temperature"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"validation"})
    tunable: ClassVar[str | None] = "l2"
    grid: ClassVar[tuple[float, ...]] = RIDGES
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_ridge(self.method, self.l2)

    def _map(self, context: FixContext) -> AffineMap:
        return _fit(self.method, context, self.l2, shared=True, shifted=True)

    def freedom(self, context: FixContext) -> int:
        """Return C + 1: c and t."""
        return context.class_count() + 1


@final
@dataclass(frozen=True)
class LearnableWeightScaling(Fix):
    """Scale each class's logit: ``z' = s ⊙ z``.

    Minimises ``mean_i w_i NLL_i + l2 · mean_c (s_c − 1)²`` over classes with validation images, by
    the likelihood of a label given that it is one of theirs. A class without images is given their
    mean scale.

    Kang et al. 2020, *Decoupling representation and classifier for long-tailed recognition*,
    arXiv 1910.09217, §4.2 (LWS). The paper learns s by SGD on class-balanced batches of *training*
    images, on which a network is far surer than on new ones; here s is fitted on validation images
    (weighted by 1/n_c where every class should count alike), has a ridge, and so sets the
    confidence too. As in the paper's code the whole logit is scaled, its bias included.

    Parameters
    ----------
    l2 : strength of the ridge toward the identity, above 0.
    """

    l2: float = 0.01

    method: ClassVar[str] = "lws"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"validation"})
    tunable: ClassVar[str | None] = "l2"
    grid: ClassVar[tuple[float, ...]] = RIDGES
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_ridge(self.method, self.l2)

    def _map(self, context: FixContext) -> AffineMap:
        return _fit(self.method, context, self.l2, shared=False, shifted=False)

    def freedom(self, context: FixContext) -> int:
        """Return C: s."""
        return context.class_count()


def _require_ridge(method: str, l2: float) -> None:
    require_number(method, "l2", l2, low=0, inclusive=False, option=f"{method}:l2=0.01")


def _fit(method: str, context: FixContext, l2: float, *, shared: bool, shifted: bool) -> AffineMap:
    require_softmax(context, method)
    sample = sample_of(method, context)
    seen = sample.of_seen()
    objective = _Diagonal(seen, l2, shared=shared, shifted=shifted)
    # A model that is far too sure has no curvature to go by; its temperature is a fair start.
    start = np.zeros(len(objective.ridge))
    start[: objective.scales] = best_inverse(seen) - 1
    moved, shift_of_seen = objective.spread(minimise(method, objective, start))
    scale = np.full(sample.classes, 1 + moved.mean())
    shift = np.zeros(sample.classes)
    scale[sample.seen] = 1 + moved
    shift[sample.seen] = shift_of_seen
    return AffineMap(scale, shift)


class _Diagonal:
    """Ridge and mean NLL of ``(1 + d) ⊙ z + c`` as an objective of the deviations (d, c).

    Parameters
    ----------
    shared : one d for all classes.
    shifted : whether there is a c.

    Attributes
    ----------
    scales : number of d's, which stand first in the flat vector.
    ridge : twice the strength of the ridge on each deviation, flat array.
    """

    def __init__(self, sample: Sample, l2: float, *, shared: bool, shifted: bool) -> None:
        self._sample = sample
        self._shared, self._shifted = shared, shifted
        classes = sample.classes
        self.scales = 1 if shared else classes
        self.ridge = (
            2 * l2 / np.repeat([self.scales, classes], [self.scales, classes if shifted else 0])
        )
        self._weights = sample.weights.astype(np.float32)
        self._probabilities = np.empty(sample.logits.shape, dtype=np.float32)
        self._blocks: tuple[Float64, Float64, Float64] | None = None

    def spread(self, theta: Float64) -> tuple[Float64, Float64]:
        """Return d and c, arrays of shape (C,) each, of the flat vector."""
        classes = self._sample.classes
        shift = theta[self.scales :] if self._shifted else np.zeros(classes)
        return np.broadcast_to(theta[: self.scales], (classes,)), shift

    def gather(self, scale: Float64, shift: Float64) -> Float64:
        """Return the flat vector's gradient from those in d and c: the transpose of ``spread``."""
        parts = [scale.sum(keepdims=True) if self._shared else scale]
        return np.concatenate(parts + ([shift] if self._shifted else []))

    def evaluate(self, theta: Float64) -> tuple[float, Float64]:
        """Return value and gradient; see :class:`~ltdeploy.fixes.likelihood.Objective`."""
        sample = self._sample
        moved, shift = self.spread(theta)
        value = 0.0
        of_scale, of_shift = np.zeros(sample.classes), np.zeros(sample.classes)
        for rows in row_blocks(*sample.logits.shape):
            wide = sample.logits[rows].astype(np.float64)
            block = wide * (1 + moved)
            block += shift
            value += residual(
                block, sample.labels[rows], sample.weights[rows], self._probabilities[rows]
            )
            of_shift += block.sum(axis=0)
            block *= wide
            of_scale += block.sum(axis=0)
        self._blocks = None
        gradient = self.gather(of_scale, of_shift) + self.ridge * theta
        return value + 0.5 * float(self.ridge @ theta**2), gradient

    def product(self, direction: Float64) -> Float64:
        """Return the Hessian times a direction."""
        sample = self._sample
        moved, shift = (part.astype(np.float32) for part in self.spread(direction))
        of_scale, of_shift = np.zeros(sample.classes), np.zeros(sample.classes)
        for rows in row_blocks(*sample.logits.shape):
            narrow = sample.logits[rows].astype(np.float32, copy=False)
            change = narrow * moved
            change += shift
            curve(change, self._probabilities[rows], self._weights[rows])
            of_shift += change.sum(axis=0)
            change *= narrow
            of_scale += change.sum(axis=0)
        return self.gather(of_scale, of_shift) + self.ridge * direction

    def precondition(self, gradient: Float64) -> Float64:
        """Solve with each class's own block of the Hessian, or its diagonal where d is shared."""
        if self._blocks is None:
            self._blocks = self._class_blocks()
        of_scale, between, of_shift = self._blocks
        scale, shift = gradient[: self.scales], gradient[self.scales :]
        if not self._shifted:
            return scale / of_scale
        determinant = of_scale * of_shift - between**2
        solved = (of_scale * shift - between * scale) / determinant
        # A shift common to all classes changes no probability: the ridge alone keeps it at 0.
        solved -= solved.mean()
        return np.concatenate(
            [((of_shift * scale - between * shift) / determinant)[: self.scales], solved]
        )

    def _class_blocks(self) -> tuple[Float64, Float64, Float64]:
        """Return ∂²/∂d², ∂²/∂d∂c and ∂²/∂c², the first of shape (1,) where d is shared."""
        sample = self._sample
        of_scale, between, of_shift = np.zeros((3, sample.classes))
        common = 0.0
        for rows in row_blocks(*sample.logits.shape):
            narrow = sample.logits[rows].astype(np.float32, copy=False)
            mass = self._probabilities[rows]
            if self._shared:
                mean = np.vecdot(mass, narrow)
                centred = narrow - mean[:, None]
                common += float(self._weights[rows] @ np.vecdot(mass, centred**2))
            mass = mass * (1 - mass) * self._weights[rows, None]
            of_shift += mass.sum(axis=0)
            mass *= narrow
            between += mass.sum(axis=0)
            mass *= narrow
            of_scale += mass.sum(axis=0)
        ridge_of_scale, ridge_of_shift = self.ridge[0], self.ridge[-1]
        if self._shared:
            of_scale, between = np.array([common]), np.zeros(sample.classes)
        return of_scale + ridge_of_scale, between, of_shift + ridge_of_shift
