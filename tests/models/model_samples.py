"""Real networks with drawn weights, so that a load which moves or loses any of them shows."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 7
COUNTS = [500, 200, 90, 40, 20, 8, 3]


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight and statistic of `module` its own value; heads get biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim <= 1:
                value.add_(0.1 * noise)
    return module.eval()


def logits_of(module: nn.Module, size: int = 32) -> torch.Tensor:
    """Return the logits of three fixed images."""
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return module(images)
