"""Temperature: one factor on all logits, so that confidence matches accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from .. import _optional
from ..arrays import FloatArray, IntArray, log_softmax
from ..errors import FixError
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_number, zeros

__all__ = ["Temperature", "fit_temperature"]

_LOG_T_RANGE = (np.log(0.01), np.log(100.0))


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
    needs: ClassVar[frozenset[Evidence]] = frozenset({"head"})

    def __post_init__(self) -> None:
        require_number(
            self.method, "t", self.t, low=0, inclusive=False, option="--fix temperature:t=1.5"
        )

    def _map(self, context: FixContext) -> AffineMap:
        assert context.head is not None
        classes = context.head.classes
        return AffineMap(np.full(classes, 1.0 / self.t), zeros(classes))


def fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """Return the t that minimises the mean negative log-likelihood of ``softmax(z / t)``.

    Parameters
    ----------
    logits : array of shape (N, C).
    labels : array of shape (N,).

    Raises
    ------
    FixError
        If the minimum lies at the edge of 0.01 … 100: the labels do not fit the logits, or the
        model is right on every image, and no temperature follows from that.
    """
    optimize: Any = _optional.require("scipy.optimize", extra="verify", purpose="fit a temperature")
    wide = np.asarray(logits, dtype=np.float64)
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        return -float(log_softmax(wide / np.exp(log_t))[rows, labels].mean())

    found = optimize.minimize_scalar(
        loss, bounds=_LOG_T_RANGE, method="bounded", options={"xatol": 1e-8}
    )
    low, high = _LOG_T_RANGE
    if not found.success or found.fun >= min(loss(low), loss(high)):
        raise FixError(
            f"No temperature fits the validation images: the best t between 0.01 and 100 is "
            f"{np.exp(found.x):.3g}, at the edge. Check that the labels belong to these images; a "
            "model that is right on every one of them needs no temperature."
        )
    return float(np.exp(found.x))
