"""Cascade R-CNNs with fixed sizes: three times the heads of an R-CNN, on the same proposals' rows.

A row stays a row through all stages: one whose box leaves the canvas, or that was padding from the
start, has no area and stays without, and is nobody's detection in the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ltdeploy.fixes import AffineMap
from ltdeploy.models.detectors.cascade import mean_logits

from .static_boxes import clip_boxes
from .static_rcnn import StaticRcnn

__all__ = ["FixedLogits", "StaticCascade"]


class FixedLogits(nn.Module):
    """A detector's graph with a fix behind its logits, where no layer can take it.

    Parameters
    ----------
    module : gives boxes and logits.
    fix : ``A z + c``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, module: nn.Module, fix: AffineMap) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("scale", torch.from_numpy(fix.scale).float(), persistent=False)
        self.register_buffer("shift", torch.from_numpy(fix.shift).float(), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes, and logits with the fix."""
        boxes, logits = self.module(images)
        if self.scale.ndim == 1:
            return boxes, logits * self.scale + self.shift
        return boxes, logits @ self.scale.T + self.shift


class StaticCascade(StaticRcnn):
    """A Cascade R-CNN (Cai and Vasconcelos 2018, arXiv 1712.00726) as one graph.

    Parameters
    ----------
    module : torchvision's detector with :class:`ltdeploy.models.detectors.cascade.CascadeHeads`,
        in evaluation mode.
    height_px, width_px : the canvas.
    """

    def _take_heads(self, roi: Any) -> None:
        self.box_heads = nn.ModuleList(stage.box_head for stage in roi.stages)
        self.box_predictors = nn.ModuleList(stage.box_predictor for stage in roi.stages)
        self.box_weights = [stage.box_coder.weights for stage in roi.stages]
        self.mean_of = roi.mean_of

    def _detect(self, levels: list[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (N, P, 4), and logits (N, P, C), the mean of the stages'."""
        count, boxes = proposals.shape[1], proposals
        parts = []
        stages = zip(self.box_heads, self.box_predictors, self.box_weights, strict=True)
        for head, predictor, weights in stages:
            logits, deltas = predictor(head(self._pool(levels, boxes)))
            parts.append(logits.reshape(-1, count, logits.shape[-1]))
            deltas = deltas.reshape(-1, count, 4)
            boxes = clip_boxes(self._decode(deltas, boxes, weights), *self.size)
        if self.mean_of != "logits":
            return boxes, mean_logits(parts, self.mean_of)
        return boxes, sum(parts[1:], start=parts[0]) / len(parts)
