"""The head: the last linear map of a network and what surrounds it, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError

__all__ = ["Activation", "Head", "HeadKind"]

HeadKind = Literal["linear", "cosine"]
Activation = Literal["softmax", "sigmoid", "seesaw", "eqlv2"]


@dataclass(frozen=True, eq=False)
class Head:
    """Weights and meaning of the classification head.

    ``linear``: ``z = W x + b``. ``cosine``: ``z = scale · (W/‖W‖) (x/‖x‖)`` row by row, no bias.

    Parameters
    ----------
    kind : ``"linear"`` or ``"cosine"``.
    weight : array of shape (C, D), float64, one row per class whatever the file's orientation.
    bias : array of shape (C,), float64, or None.
    scale : factor of a cosine head (LDAM's s, Cao et al. 2019, arXiv 1906.07413); 1 for linear.
    background : index of the background class of a detector, None for a classifier.
    activation : what turns logits into scores.
    foldable : False where the logits pass through more than this map (two averaged heads, a ReLU
        after a 1×1 convolution): a fix is then appended as explicit nodes instead of folded.
    """

    kind: HeadKind
    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64] | None = None
    scale: float = 1.0
    background: int | None = None
    activation: Activation = "softmax"
    foldable: bool = True

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise CheckpointError(
                f"The head's weight has shape {self.weight.shape}; expected (classes, features)."
            )
        if self.bias is not None and self.bias.shape != (self.weight.shape[0],):
            raise CheckpointError(
                f"The head's bias has shape {self.bias.shape}; expected ({self.weight.shape[0]},)."
            )

    @property
    def classes(self) -> int:
        """Number of rows, the background of a detector included."""
        return int(self.weight.shape[0])

    def norms(self) -> npt.NDArray[np.float64]:
        """Return the Euclidean norm of each class's row, shape (C,)."""
        norms: npt.NDArray[np.float64] = np.linalg.norm(self.weight, axis=1)
        return norms
