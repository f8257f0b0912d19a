"""BBN's two-branch networks: one trunk, two copies of its last block, one head on both features."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .cosine_head import CosineHead

__all__ = ["BbnNetwork"]


class BbnNetwork(nn.Module):
    """Concatenate the features of the conventional and the re-balancing branch, then classify.

    Zhou et al. 2020, arXiv 1912.02413, §3: at inference both branches weigh the same, so the
    network is an ordinary one whose head sees 2·D features.

    Parameters
    ----------
    trunk : a ResNet with ``conv1``, ``bn1`` and stages ``layer1`` …; the last block of the last
        stage becomes the two branches.
    classes : number of classes.
    head : ``"linear"``, or ``"cosine"`` for BBN's FCNorm.
    scale : factor of a cosine head.
    """

    def __init__(
        self,
        trunk: nn.Module,
        classes: int,
        head: Literal["linear", "cosine"] = "linear",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        parts = dict(trunk.named_children())
        self.stages = [name for name in parts if name.startswith("layer")]
        for name in ("conv1", "bn1", "maxpool", *self.stages):
            if name in parts:
                self.add_module(name, parts[name])
        *before, last = parts[self.stages[-1]].children()
        self.add_module(self.stages[-1], nn.Sequential(*before))
        self.cb_block: nn.Module = last
        self.rb_block: nn.Module = copy.deepcopy(last)
        widths = [m.num_features for m in last.modules() if isinstance(m, nn.BatchNorm2d)]
        features = 2 * widths[-1]
        self.classifier: nn.Module = (
            CosineHead(features, classes, scale)
            if head == "cosine"
            else nn.Linear(features, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (N, C) for normalised images of shape (N, 3, H, W)."""
        x = functional.relu(self.get_submodule("bn1")(self.get_submodule("conv1")(images)))
        if hasattr(self, "maxpool"):
            x = self.get_submodule("maxpool")(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        both = torch.cat((self.cb_block(x), self.rb_block(x)), dim=1)
        pooled = torch.flatten(functional.adaptive_avg_pool2d(both, 1), 1)
        logits: Tensor = self.classifier(pooled)
        return logits
