"""LogN: give every class's logits the same mean and spread; no training counts are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..errors import FixError
from .affine import AffineMap
from .base import Evidence, Fix, FixContext
from .columns import foreground_columns, on_foreground, require_detector, require_unbalanced
from .likelihood import row_blocks

__all__ = ["LogN"]

Float64 = npt.NDArray[np.float64]

_LEAST_SPREAD = 1e-6  # of the logits' own size: below it a column is constant but for rounding


@final
@dataclass(frozen=True)
class LogN(Fix):
    """Normalise each class's logits over candidate boxes: ``z'_c = (z_c − μ_c + β) / σ_c``.

    μ_c and σ_c are mean and standard deviation of the class's logits over all candidate boxes, most
    of which show background: a class with many images has a higher and wider logit there, so the
    bias is read off the model itself. ``β = min_c μ_c`` over the classes. The background column
    is left as it is: its μ is taken as 0, its σ as 1 and its β as 0.

    Zhao, Teng & Wang 2022, *Logit normalization for long-tail object detection*, arXiv 2203.17020
    (IJCV 2024). β and the background are as in the authors' code (``LogitNormHead``). Two
    differences: they keep running statistics of the proposals of one more training epoch, we take
    plain ones over the images that are given; and they use variance with Bessel's correction,
    which makes no difference over thousands of boxes.

    Notes
    -----
    The logits are those of candidate boxes, one row per proposal, query or anchor, of labelled or
    unlabelled images; rows that only pad a batch must be left out. No label is looked at.
    """

    method: ClassVar[str] = "logn"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"logits"})
    of_detectors: ClassVar[bool] = True

    @classmethod
    def takes_prior_off(cls, parameters: Mapping[str, object]) -> bool:
        """Return True: what the statistics hold is the training prior."""
        return True

    def _map(self, context: FixContext) -> AffineMap:
        instead = "--logit-adjust 1.0, or --tau 0.7 where no counts are known"
        head = require_detector(context.head, self.method, instead=instead)
        require_unbalanced(self.method, context)
        logits = context.target_logits if context.logits is None else context.logits
        assert logits is not None
        if logits.ndim != 2 or logits.shape[1] != head.classes or len(logits) < 2:
            raise FixError(
                f"logn was given logits of shape {logits.shape}; expected (boxes, {head.classes}) "
                "with at least two boxes: all candidate boxes of some images, one row each."
            )
        mean, spread = _statistics(logits, foreground_columns(head))
        return on_foreground(head, (mean.min() - mean) / spread, 1.0 / spread)

    def freedom(self, context: FixContext) -> int:
        """Return 2F: a mean and a spread per class."""
        if context.head is None:
            return 2 * context.class_count()
        return 2 * len(foreground_columns(context.head))


def _statistics(logits: FloatArray, columns: IntArray) -> tuple[Float64, Float64]:
    """Return mean and standard deviation of some columns, each of shape (F,), in float64.

    Logits are read in blocks, twice: those of 300 boxes of every validation image of LVIS are
    larger than memory in float64.
    """
    boxes = len(logits)
    total = np.zeros(len(columns))
    with np.errstate(invalid="ignore"):  # infinities are looked for below
        for rows in row_blocks(*logits.shape):
            total += logits[rows][:, columns].sum(axis=0, dtype=np.float64)
    mean = total / boxes
    if not np.isfinite(mean).all():
        bad = np.flatnonzero(~np.isfinite(mean))[:10].tolist()
        raise FixError(
            f"logn: the logits of the class labels {bad} hold NaN or infinity; the model is broken "
            "for some of the images, or rows that only pad a batch were given too."
        )
    squares = np.zeros(len(columns))
    for rows in row_blocks(*logits.shape):
        squares += ((logits[rows][:, columns] - mean) ** 2).sum(axis=0)
    spread = np.sqrt(squares / boxes)
    still = np.flatnonzero(spread <= _LEAST_SPREAD * np.abs(mean))
    if still.size:
        raise FixError(
            f"logn: the logits of the class labels {still[:10].tolist()} are the same for all "
            f"{boxes} boxes, so that they cannot be normalised; give more images, and check that "
            "the head's weights were loaded."
        )
    return mean, spread
