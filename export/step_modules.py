"""The steps of a fix as PyTorch layers, for what cannot go into a head's weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ltdeploy.fixes import AffineMap
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import Blend, LogSoftmax, NewHead

__all__ = ["FixedHead", "FixedModel", "linear_like"]


class Affine(nn.Module):
    """``A z + c`` as explicit nodes, those that change nothing left out."""

    scale: Tensor
    shift: Tensor

    def __init__(self, step: AffineMap) -> None:
        super().__init__()
        self.register_buffer("scale", _float32(step.scale))
        self.register_buffer("shift", _float32(step.shift))
        self.is_diagonal = step.is_diagonal
        self.scales = not (step.is_diagonal and bool(np.all(step.scale == 1)))
        self.shifts = bool(step.shift.any())

    def forward(self, logits: Tensor) -> Tensor:
        """Return the mapped logits, shape (N, C)."""
        if not self.is_diagonal:
            return functional.linear(logits, self.scale, self.shift if self.shifts else None)
        if self.scales:
            logits = logits * self.scale
        return logits + self.shift if self.shifts else logits


class LogProbabilities(nn.Module):
    """``z − log Σ exp z``."""

    def forward(self, logits: Tensor) -> Tensor:
        """Return log-probabilities, shape (N, C)."""
        return functional.log_softmax(logits, dim=1)


class NormalisedLinear(nn.Module):
    """A new head on centred or normalised features, ``W (x − m)/‖x − m‖ + b``."""

    weight: Tensor
    bias: Tensor
    centre: Tensor | None

    def __init__(self, step: NewHead) -> None:
        super().__init__()
        self.register_buffer("weight", _float32(step.weight))
        self.register_buffer("bias", _float32(step.bias))
        self.register_buffer("centre", None if step.centre is None else _float32(step.centre))
        self.normalises = step.normalise

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of shape (N, C) for features of shape (N, D)."""
        if self.centre is not None:
            features = features - self.centre
        if self.normalises:
            norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
            features = features / norms.clamp(
                min=1e-12
            )  # functional.normalize takes two nodes more
        return functional.linear(features, self.weight, self.bias)


class Gated(nn.Module):
    """DisAlign's ``z + σ(v·x + u) (α ⊙ z + β − z)``, as ``z + g ((α − 1) ⊙ z + β)``."""

    change: Tensor
    shift: Tensor
    gate_weight: Tensor
    gate_bias: Tensor

    def __init__(self, step: Blend) -> None:
        super().__init__()
        self.register_buffer("change", _float32(step.scale - 1.0))
        self.register_buffer("shift", _float32(step.shift))
        self.register_buffer("gate_weight", _float32(step.gate_weight[None]))
        self.register_buffer("gate_bias", _float32(np.array([step.gate_bias])))

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """Return the blended logits, shape (N, C)."""
        gate = torch.sigmoid(functional.linear(features, self.gate_weight, self.gate_bias))
        return logits + gate * (logits * self.change + self.shift)


class FixedHead(nn.Module):
    """A head and the steps behind it that look at its features, in the head's place.

    Parameters
    ----------
    head : the layer; a 1×1 convolution keeps its (N, C, 1, 1).
    steps : the first may be a new head, which leaves nothing of the old one.
    """

    def __init__(self, head: nn.Module, steps: Sequence[LogitMap]) -> None:
        super().__init__()
        self.is_map = isinstance(head, nn.Conv2d)
        self.head: nn.Module = _flat(head)
        if isinstance(steps[0], NewHead):
            self.head, steps = NormalisedLinear(steps[0]), steps[1:]
        self.steps = nn.ModuleList([_layer(step) for step in steps])

    def forward(self, given: Tensor) -> Tensor:
        """Return the fixed logits, shape (N, C) or (N, C, 1, 1)."""
        features = given.flatten(1) if self.is_map else given
        logits: Tensor = self.head(features)
        for step in self.steps:
            logits = step(logits, features) if isinstance(step, Gated) else step(logits)
        return logits[:, :, None, None] if self.is_map else logits


class FixedModel(nn.Module):
    """A model and the steps behind it that look at nothing but its logits."""

    def __init__(self, model: nn.Module, steps: Sequence[LogitMap]) -> None:
        super().__init__()
        self.model = model
        self.steps = nn.Sequential(*(_layer(step) for step in steps))

    def forward(self, images: Tensor) -> Tensor:
        """Return the fixed logits, shape (N, C)."""
        logits: Tensor = self.steps(self.model(images))
        return logits


def linear_like(
    head: nn.Module, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64] | None
) -> nn.Module:
    """Return a layer in ``head``'s place with these weights, rounded once to float32.

    Parameters
    ----------
    head : a 1×1 convolution gives another one, anything else a linear layer.
    weight, bias : arrays of shape (C, D) and (C,), or None for no bias.
    """
    classes, features = weight.shape
    layer: nn.Linear | nn.Conv2d
    if isinstance(head, nn.Conv2d):
        layer = nn.Conv2d(features, classes, 1, bias=bias is not None)
        layer.weight.data = _float32(weight)[:, :, None, None]
    else:
        layer = nn.Linear(features, classes, bias=bias is not None)
        layer.weight.data = _float32(weight)
    if bias is not None:
        assert layer.bias is not None
        layer.bias.data = _float32(bias)
    return layer.eval()


def _flat(head: nn.Module) -> nn.Module:
    """Return a 1×1 convolution as the linear layer that it is on pooled features."""
    if not isinstance(head, nn.Conv2d):
        return head
    layer = nn.Linear(head.in_channels, head.out_channels, bias=head.bias is not None)
    layer.weight.data = head.weight.data.flatten(1)
    if head.bias is not None:
        layer.bias.data = head.bias.data
    return layer


def _layer(step: LogitMap) -> nn.Module:
    match step:
        case AffineMap():
            return Affine(step)
        case LogSoftmax():
            return LogProbabilities()
        case Blend():
            return Gated(step)
    raise AssertionError(f"{type(step).__name__} cannot stand behind other steps")


def _float32(array: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
