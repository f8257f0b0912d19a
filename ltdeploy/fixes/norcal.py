"""NorCal: divide a detector's class scores by class size and share them out anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from ..errors import FixError
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_number
from .columns import foreground_counts, on_foreground, require_detector, require_unbalanced
from .grids import POWERS

__all__ = ["NorCal", "effective_number", "log_sizes", "require_share"]

Float64 = npt.NDArray[np.float64]


@final
@dataclass(frozen=True)
class NorCal(Fix):
    """Divide the scores of a softmax detector by class size: ``z'_c = z_c − γ log E_c``.

    With E_c = n_c this is ``p'_c = (p_c / n_c^γ) / (Σ_k p_k / n_k^γ + p_bg)`` exactly: the
    background is not divided, and the scores are normalised over classes and background again. All
    classes therefore lose against the background, the many most. As a shift of logits nothing is
    exponentiated, so that no score overflows; the authors' code does so without taking the maximum
    off first.

    Pan et al. 2021, *On model calibration for long-tailed object detection and instance
    segmentation*, arXiv 2107.02170: the calibration of exponentials with renormalisation, which is
    the default of its code. n_c are training *images* per class there, as LVIS lists them; here
    they are the class table's counts, whatever these count. Zero counts are read as one.

    For seesaw heads (Wang et al. 2021, arXiv 2008.10032) the softmax is over the classes alone and
    the objectness stays; their training balances already, so that ``force`` is needed.

    Parameters
    ----------
    gamma : γ ≥ 0; 0 changes nothing. 0.6 is a good first guess on LVIS.
    beta : of the effective number ``E_c = (1 − β^n_c) / (1 − β)``, 0 ≤ β ≤ 1, whose limit at β = 1
        is n_c (Cui et al. 2019, arXiv 1901.05555, proposition 1). With γ = 1 and β < 1 this is the
        class-balanced variant of NorCal's code (method ``cb``).
    """

    gamma: float
    beta: float = 1.0

    method: ClassVar[str] = "norcal"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"counts"})
    tunable: ClassVar[str | None] = "gamma"
    grid: ClassVar[tuple[float, ...]] = POWERS
    of_detectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(
            self.method, "gamma", self.gamma, low=0, inclusive=True, option="norcal:gamma=0.6"
        )
        require_share(self.method, "beta", self.beta)

    @classmethod
    def takes_prior_off(cls, parameters: Mapping[str, object]) -> bool:
        """Whether γ and β are more than zero, or still to be chosen."""
        return parameters.get("gamma") != 0 and parameters.get("beta") != 0

    def _map(self, context: FixContext) -> AffineMap:
        assert context.classes is not None
        head = require_detector(context.head, self.method, instead="--logit-adjust 1.0")
        if str(head.activation) in ("sigmoid", "eqlv2"):
            raise FixError(
                "norcal normalises the scores over classes and background, and this head's are "
                f"independent of each other (its activation is {head.activation}); use "
                f"--fix odds:gamma={self.gamma:g} instead."
            )
        counts = foreground_counts(head, context.classes, self.method)
        if self.gamma and self.beta:
            require_unbalanced(self.method, context)
        return on_foreground(head, -self.gamma * log_sizes(counts, self.beta))

    def freedom(self, context: FixContext) -> int:
        """Return 1: γ."""
        return 1


def effective_number(counts: Float64, beta: float) -> Float64:
    """Return ``E_c = (1 − β^n_c) / (1 − β)``; n_c itself at β = 1, and 1 at β = 0.

    Cui et al. 2019, *Class-balanced loss based on effective number of samples*, arXiv 1901.05555,
    proposition 1.

    Parameters
    ----------
    counts : n, array of shape (F,), at least 1.
    beta : 0 ≤ β ≤ 1.

    Examples
    --------
    >>> effective_number(np.array([1.0, 2.0, 3.0]), 0.5).tolist()
    [1.0, 1.5, 1.75]
    """
    if beta == 1:
        return counts
    if beta == 0:
        return np.ones_like(counts)
    # 1 − β^n loses all digits where β is close to one; expm1 keeps them.
    effective: Float64 = -np.expm1(counts * np.log(beta)) / (1.0 - beta)
    return effective


def log_sizes(counts: Float64, beta: float) -> Float64:
    """Return log E_c, shape (F,)."""
    logs: Float64 = np.log(effective_number(counts, beta))
    return logs


def require_share(method: str, name: str, value: float) -> None:
    """Raise :class:`FixError` unless ``value`` is a number from 0 to 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 <= value <= 1):
        raise FixError(
            f"{method}: {name} is {value!r}; expected a number from 0 to 1, e.g. {name}=0.999, or "
            "1 (the default) to count every training image in full."
        )
