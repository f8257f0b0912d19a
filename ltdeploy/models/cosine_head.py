"""The cosine head of LDAM and BBN: logits are scaled cosines between features and class rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CosineHead"]


class CosineHead(nn.Module):
    """Return ``z = s · (W/‖W‖)ᵀ (x/‖x‖)``, one column of W per class.

    The weight stands as (features, classes), the orientation in which LDAM's checkpoints hold it.
    The scale is a buffer that no checkpoint of others contains: there it lives in the loss, so
    their weights alone give bare cosines in −1…1, on which temperature and logit adjustment mean
    nothing.

    Parameters
    ----------
    features : length D of the input.
    classes : number of classes C.
    scale : the factor s; Cao et al. 2019, arXiv 1906.07413 use 30.
    """

    scale: Tensor

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__()
        weight = torch.empty(features, classes).uniform_(-1.0, 1.0)
        self.weight = nn.Parameter(functional.normalize(weight, dim=0))
        self.register_buffer("scale", torch.tensor(float(scale)), persistent=False)

    @property
    def in_features(self) -> int:
        """Length D of the input."""
        return int(self.weight.shape[0])

    @property
    def out_features(self) -> int:
        """Number of classes C."""
        return int(self.weight.shape[1])

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of shape (N, C) for features of shape (N, D)."""
        cosines = functional.normalize(features, dim=1) @ functional.normalize(self.weight, dim=0)
        return self.scale * cosines

    def extra_repr(self) -> str:
        """Return the sizes and the scale, for ``print(module)``."""
        return f"{self.in_features}, {self.out_features}, scale={float(self.scale):g}"
