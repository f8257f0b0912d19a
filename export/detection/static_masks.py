"""Mask R-CNN's mask branch on the boxes that were kept, with fixed sizes (arXiv 1703.06870)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .kept_detections import KeptDetections
from .static_rcnn import StaticRcnn, pool_levels

__all__ = ["KeptMasks", "StaticMaskRcnn", "level_names"]


def level_names(static: StaticRcnn) -> list[str]:
    """Return what a graph calls the feature levels that masks are pooled from."""
    return [f"level_{at}" for at in range(len(static.table.sizes))]


class StaticMaskRcnn(StaticRcnn):
    """A Mask R-CNN of torchvision whose graph gives the feature levels, too."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return boxes, logits as :class:`StaticRcnn` does, and each level (N, C, h, w)."""
        features = self.backbone(images)
        proposals = self._propose(list(features.values()))
        levels = [f for name, f in features.items() if name in self.pool.featmap_names]
        return (*self._detect(levels, proposals), *levels)


class KeptMasks(nn.Module):
    """Raw outputs and feature levels to the detections kept and their masks.

    Parameters
    ----------
    kept : what suppresses.
    module : ``torchvision.models.detection.MaskRCNN`` in evaluation mode.
    table : where the levels stand, of the graph that gives them.

    Returns
    -------
    ``boxes``, ``scores`` and ``labels`` as of ``kept``, and ``masks`` (N, K, S, S): probabilities
    over each box, of its own class.
    """

    def __init__(self, kept: KeptDetections, module: Any, static: StaticRcnn) -> None:
        super().__init__()
        roi = module.roi_heads
        self.kept, self.pool, self.table = kept, roi.mask_roi_pool, static.table
        self.head = roi.mask_head
        self.before_classes = nn.Sequential(*list(roi.mask_predictor)[:-1])
        last = roi.mask_predictor[-1]
        # One row per class, background first; or one for all.
        self.register_buffer("weight", last.weight.detach()[:, :, 0, 0].clone())
        self.register_buffer("bias", last.bias.detach().clone())

    weight: Tensor
    bias: Tensor

    def forward(self, boxes: Tensor, logits: Tensor, *levels: Tensor) -> tuple[Tensor, ...]:
        """Return what is kept of raw outputs and the masks of that."""
        own, scores, labels = self.kept(boxes, logits)
        pooled = pool_levels(self.pool, self.table, list(levels), own)
        features = self.before_classes(self.head(pooled))
        side = features.shape[-1]
        # Each box needs its own class's map alone: those of 1,203 classes would be gigabytes.
        rows = (labels + 1).clamp(min=0).flatten()
        if self.weight.shape[0] == 1:
            rows = torch.zeros_like(rows)
        own_map = torch.matmul(self.weight[rows][:, None, :], features.flatten(2))
        masks = (own_map[:, 0] + self.bias[rows][:, None]).sigmoid()
        found = (scores > 0)[:, :, None, None]
        masks = masks.reshape(-1, own.shape[1], side, side) * found
        return own, scores, labels, masks
