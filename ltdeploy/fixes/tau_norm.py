"""τ-normalisation: shrink the rows of the head that grew with the number of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import numpy as np

from ..errors import FixError, did_you_mean
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_number
from .columns import foreground_columns, on_foreground
from .grids import STRENGTHS

__all__ = ["BiasPolicy", "TauNorm"]

BiasPolicy = Literal["scale", "drop", "keep"]

_INSTEAD_BY_ACTIVATION = {
    "softmax": "Use --fix norcal:gamma=0.6 instead",
    "seesaw": "Leave it out, the seesaw loss balances already",
}


@final
@dataclass(frozen=True)
class TauNorm(Fix):
    """Divide each class's weight row by its norm to the power τ.

    ``s_c = (‖w_c‖ / g)^−τ`` with g the geometric mean of the norms, so that ``Π s_c = 1`` and the
    softmax keeps its temperature; then ``w'_c = s_c w_c``. At τ = 0 nothing changes, at τ = 1 all
    rows have the norm g.

    Kang et al. 2020, *Decoupling representation and classifier for long-tailed recognition*,
    arXiv 1910.09217, eq. 3, which has no g: without it τ also changes the confidence.

    Parameters
    ----------
    tau : τ ≥ 0.
    bias : what happens to a bias b. ``scale``: ``b' = s·b``, so that the whole logit is scaled and
        τ = 0 is the identity. ``drop``: ``b' = 0``, as the paper's code does, at τ = 0 too.
        ``keep``: ``b' = b``, as in Zhang et al. 2021 (*Bag of tricks*, AAAI).

    Notes
    -----
    As a map of the logits ``z = w·x + b``: A = diag(s) and c = 0, −s·b, or b − s·b.

    On a softmax detector it does harm and is refused unless forced: in BAGS's table (Li et al.
    2020, arXiv 2006.10408) the AP on LVIS falls from 20.98 to 11.01. The background is in the same
    softmax, and its row's norm stands out from the classes' (their figure 1). Forced, the norms are
    those of the classes alone and the background stays as it is.
    """

    tau: float
    bias: BiasPolicy = "scale"

    method: ClassVar[str] = "tau_norm"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"head"})
    tunable: ClassVar[str | None] = "tau"
    grid: ClassVar[tuple[float, ...]] = STRENGTHS

    def __post_init__(self) -> None:
        require_number(self.method, "tau", self.tau, low=0, inclusive=True, option="--tau 0.7")
        policies = get_args(BiasPolicy)
        if self.bias not in policies:
            raise FixError(
                f"tau_norm: the bias policy {self.bias!r} is unknown; expected one of "
                f"{', '.join(policies)}.{did_you_mean(str(self.bias), policies)}"
            )

    def _map(self, context: FixContext) -> AffineMap:
        assert context.head is not None
        head = context.head
        if head.kind == "cosine":
            raise FixError(
                "tau_norm does nothing on a cosine head: its rows already have norm one. Use "
                "logit adjustment instead: --logit-adjust 1.0."
            )
        if not head.foldable:
            raise FixError(
                "tau_norm needs a head whose rows make the logits on their own; this model's "
                "logits pass through more than its last linear map. Use --logit-adjust 1.0 instead."
            )
        columns = foreground_columns(head)
        if len(columns) < head.classes and not context.force:
            raise FixError(
                "tau_norm is harmful on detectors with a background row: it halved the AP of a "
                "softmax detector on LVIS, 20.98 to 11.01 (Li et al. 2020, arXiv 2006.10408). "
                + _INSTEAD_BY_ACTIVATION.get(head.activation, "Use --fix odds:gamma=0.6 instead")
                + ", or use --force to apply it all the same."
            )
        norms = head.norms()[columns]
        if not norms.all():
            zero = np.flatnonzero(norms == 0)[:10].tolist()
            raise FixError(
                f"tau_norm is undefined: the head's rows for the labels {zero} are all zero, which "
                "no training leaves behind; check the checkpoint with 'ltdeploy inspect'."
            )
        log_norms = np.log(norms)
        scale = np.exp(-self.tau * (log_norms - log_norms.mean()))
        bias = np.zeros_like(scale) if head.bias is None else head.bias[columns]
        shift = {"scale": np.zeros_like(scale), "drop": -scale * bias, "keep": bias - scale * bias}
        return on_foreground(head, shift[self.bias], scale)

    def freedom(self, context: FixContext) -> int:
        """Return 1: τ."""
        return 1
