"""Odds by class size: what NorCal is to softmax detectors, for sigmoid ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from ..errors import FixError
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_number
from .columns import foreground_counts, on_foreground, require_detector, require_unbalanced
from .grids import POWERS
from .norcal import log_sizes, require_share

__all__ = ["Odds"]


@final
@dataclass(frozen=True)
class Odds(Fix):
    """Multiply each class's odds by a power of its size: ``p'/(1 − p') = m_c · p/(1 − p)``.

    ``m_c = (E_c / g)^−γ`` with g the geometric mean of the E_c, so that ``Π m_c = 1`` and scores
    keep their level: few-shot classes gain, the many lose, and nothing is lost to a background,
    which sigmoid heads do not have. As a map of the logits: ``z'_c = z_c − γ (log E_c − mean log
    E)``. Where the sigmoid is the whole score, no detection overtakes another of its class: what
    changes is which classes are kept among the best K of a photograph, and what passes a threshold.

    Odds rather than scores are multiplied, because this alone folds into the head and keeps scores
    below one (Elkan 2001, *The foundations of cost-sensitive learning*, IJCAI, theorem 2). The
    sizes are NorCal's: Pan et al. 2021, arXiv 2107.02170.

    EQLv2 heads (Tan et al. 2021, arXiv 2012.08548) multiply the class sigmoid by an objectness,
    which stays as it is.

    Parameters
    ----------
    gamma : γ ≥ 0; 0 changes nothing.
    beta : of the effective number of images, as in :class:`~ltdeploy.fixes.NorCal`.
    """

    gamma: float
    beta: float = 1.0

    method: ClassVar[str] = "odds"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"counts"})
    tunable: ClassVar[str | None] = "gamma"
    grid: ClassVar[tuple[float, ...]] = POWERS
    of_detectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(
            self.method, "gamma", self.gamma, low=0, inclusive=True, option="odds:gamma=0.5"
        )
        require_share(self.method, "beta", self.beta)

    @classmethod
    def takes_prior_off(cls, parameters: Mapping[str, object]) -> bool:
        """Whether γ and β are more than zero, or still to be chosen."""
        return parameters.get("gamma") != 0 and parameters.get("beta") != 0

    def _map(self, context: FixContext) -> AffineMap:
        assert context.classes is not None
        head = require_detector(context.head, self.method, instead="--logit-adjust 1.0")
        if str(head.activation) in ("softmax", "seesaw"):
            raise FixError(
                "odds is for heads whose classes have independent scores, and this one's share one "
                f"softmax (its activation is {head.activation}); use --fix "
                f"norcal:gamma={self.gamma:g} instead."
            )
        counts = foreground_counts(head, context.classes, self.method)
        if self.gamma and self.beta:
            require_unbalanced(self.method, context)
        sizes = log_sizes(counts, self.beta)
        return on_foreground(head, -self.gamma * (sizes - sizes.mean()))

    def freedom(self, context: FixContext) -> int:
        """Return 1: γ."""
        return 1
