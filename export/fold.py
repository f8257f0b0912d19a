"""Fold a fix into a PyTorch head, so that it costs nothing at inference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from ltdeploy.fixes import AffineMap

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ltdeploy.models.classifier import Classifier

__all__ = ["Folding", "folded"]

Folding = Literal["weights", "nodes", "none"]


@contextlib.contextmanager
def folded(model: Classifier, fix: AffineMap) -> Iterator[tuple[nn.Module, Folding]]:
    """Give the model with ``fix`` inside; afterwards its head is as it was.

    A linear head, or a 1×1 convolution that acts as one, takes ``W' = A W`` and ``b' = A b + c``,
    computed in float64 and rounded once to float32. Where the logits are made otherwise (a cosine
    head, two averaged heads) the map follows the model as one Mul and one Add, or one MatMul.

    Yields
    ------
    the module to export, and how the fix went in.
    """
    from torch import nn

    if fix.is_identity:
        yield model.module, "none"
        return
    head = model.module.get_submodule(model.head_path)
    linear = isinstance(head, nn.Linear) or (
        isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1)
    )
    if not (linear and model.head.foldable and model.head.kind == "linear"):
        yield nn.Sequential(model.module, _affine_module(fix)).eval(), "nodes"
        return
    model.module.set_submodule(model.head_path, _folded_head(head, fix))
    try:
        yield model.module, "weights"
    finally:
        model.module.set_submodule(model.head_path, head)


def _folded_head(head: nn.Module, fix: AffineMap) -> nn.Module:
    from torch import nn

    assert isinstance(head, nn.Linear | nn.Conv2d)
    weight = head.weight.detach().double().numpy()
    bias = None if head.bias is None else head.bias.detach().double().numpy()
    new_weight, new_bias = fix.fold(weight.reshape(fix.classes, -1), bias)
    out: nn.Linear | nn.Conv2d
    if isinstance(head, nn.Linear):
        out = nn.Linear(head.in_features, fix.classes, bias=new_bias is not None)
    else:
        out = nn.Conv2d(
            head.in_channels,
            fix.classes,
            1,
            stride=head.stride,  # type: ignore[arg-type]
            bias=new_bias is not None,
        )
    out.weight.data = _float32(new_weight.reshape(weight.shape))
    if new_bias is not None:
        assert out.bias is not None
        out.bias.data = _float32(new_bias)
    return out.eval()


def _float32(array: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _affine_module(fix: AffineMap) -> nn.Module:
    from torch import nn

    class Affine(nn.Module):
        """``A z + c`` as explicit nodes, those that change nothing left out."""

        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", _float32(fix.scale))
            self.register_buffer("shift", _float32(fix.shift))
            self.scales = not (fix.is_diagonal and bool(np.all(fix.scale == 1)))
            self.shifts = bool(fix.shift.any())

        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            if self.scales:
                logits = logits * self.scale if fix.is_diagonal else logits @ self.scale.T
            return logits + self.shift if self.shifts else logits

    return Affine()
