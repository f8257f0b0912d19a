"""Logit adjustment: subtract the log-prior of training from the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..errors import FixError
from .affine import AffineMap
from .base import (
    Evidence,
    Fix,
    FixContext,
    require_number,
    require_softmax,
    require_uncorrected,
)
from .columns import foreground_counts, on_foreground
from .grids import STRENGTHS

__all__ = ["LogitAdjustment"]


@final
@dataclass(frozen=True)
class LogitAdjustment(Fix):
    """Subtract τ times the log training prior: ``z'_c = z_c − τ log π_c``.

    At τ = 1 this is the Bayes-optimal classifier for balanced error when the model estimates
    P(y|x) under the training prior π. Classes without training images are counted as one image.

    On a detector π is over the foreground classes, and the background's logit stays: every class
    gains against it, the few most. :class:`~ltdeploy.fixes.NorCal` is the same but for this level:
    there every class loses against the background.

    Menon et al. 2021, *Long-tail learning via logit adjustment*, arXiv 2007.07314, eq. 9.

    Parameters
    ----------
    tau : τ ≥ 0.
    """

    tau: float

    method: ClassVar[str] = "logit_adjustment"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"counts"})
    tunable: ClassVar[str | None] = "tau"
    grid: ClassVar[tuple[float, ...]] = STRENGTHS

    def __post_init__(self) -> None:
        require_number(
            self.method, "tau", self.tau, low=0, inclusive=True, option="--logit-adjust 1.0"
        )

    @classmethod
    def takes_prior_off(cls, parameters: Mapping[str, object]) -> bool:
        """Whether τ is more than zero, or still to be chosen."""
        return parameters.get("tau") != 0

    def _map(self, context: FixContext) -> AffineMap:
        assert context.classes is not None
        require_softmax(context, self.method)
        outputs = context.class_count()
        if self.tau:
            require_uncorrected(self.method, context.trained_with, force=context.force)
        shift = -self.tau * np.log(context.classes.prior())
        if context.head is not None and context.head.background is not None:
            foreground_counts(context.head, context.classes, self.method)
            return on_foreground(context.head, shift)
        if len(context.classes) != outputs:
            raise FixError(
                f"logit_adjustment needs one training count per row of the head; the head has "
                f"{outputs} rows and the class table {len(context.classes)} classes."
            )
        return AffineMap(np.ones(outputs), shift)

    def freedom(self, context: FixContext) -> int:
        """Return 1: τ."""
        return 1
