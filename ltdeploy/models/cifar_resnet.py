"""The CIFAR ResNets of He et al. 2015, §4.2: 6n + 2 layers on 32×32 images, option A shortcuts.

The names of the parameters are those of the widely used CIFAR training codes (``conv1``, ``bn1``,
``layer1.0.conv1`` …, ``linear``), so that their checkpoints load key by key.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .cosine_head import CosineHead

__all__ = ["CifarResNet"]


class _Block(nn.Module):
    """Two 3×3 convolutions with a shortcut that has no parameters (option A).

    Where the stage narrows, the shortcut takes every second pixel and pads the new channels with
    zeros, half of them in front.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.new_channels:
            before = self.new_channels // 2
            after = self.new_channels - before
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, before, after))
        return functional.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet-20/32/44/56/110 for 32×32 images (He et al. 2015, arXiv 1512.03385, §4.2).

    Parameters
    ----------
    depth : number of layers, 6n + 2.
    classes : number of classes.
    head : ``"linear"``, or ``"cosine"`` for the normalised head of LDAM (Cao et al. 2019,
        arXiv 1906.07413) and of BBN on CIFAR (Zhou et al. 2020, arXiv 1912.02413).
    scale : factor of a cosine head.
    """

    def __init__(
        self,
        depth: int,
        classes: int,
        head: Literal["linear", "cosine"] = "linear",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear: nn.Module = (
            CosineHead(64, classes, scale) if head == "cosine" else nn.Linear(64, classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = _Block(in_channels, channels, stride)
        return nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(blocks - 1)))

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features, shape (N, 64)."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (N, C) for normalised images of shape (N, 3, H, W)."""
        logits: Tensor = self.linear(self.features(images))
        return logits
