"""torchvision's R-CNNs with fixed sizes: the same weights, and a fixed number of proposals.

torchvision's own code indexes with what it finds (NonZero), proposes a different number of boxes
for each photograph and pools each feature level apart; neither ``torch.export`` nor TensorRT takes
that. Here each level proposes its best boxes, suppressed ones give way to later ones, what is
missing is padded with boxes without area, and all boxes are pooled from one table of all levels.
Networks of detectron2 and mmdetection, which are built like torchvision's, sample a box as finely
as its size asks for; theirs is pooled by ``RoiAlign`` nodes, one for each level.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ltdeploy.errors import ExportError
from ltdeploy.models.detectors.detectron2_parts import HalfPixelPool, LogitProposals

from .static_boxes import clip_boxes, decode_boxes, pick
from .static_roi_align import LevelTable, level_by_level, static_roi_align
from .static_suppression import cluster_nms

__all__ = ["StaticRcnn", "pool_levels"]

_SMALLEST_AREA_PX = 1e-12  # padding has no area, and log2 of it is not finite
_RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_NO_SCORE = -2e30  # below every score and logit


class StaticRcnn(nn.Module):
    """A Faster R-CNN of torchvision as one graph.

    Parameters
    ----------
    module : ``torchvision.models.detection.FasterRCNN`` in evaluation mode.
    height_px, width_px : the canvas.

    Raises
    ------
    ExportError
        If the pooling samples each box as finely as its size asks for.
    """

    anchors_px: Tensor

    def __init__(self, module: Any, height_px: int, width_px: int) -> None:
        super().__init__()
        self.backbone = module.backbone
        self.rpn_head = module.rpn.head
        self.size = (height_px, width_px)
        rpn = module.rpn
        self.before_nms, self.after_nms = rpn.pre_nms_top_n(), rpn.post_nms_top_n()
        self.iou, self.least_score = rpn.nms_thresh, rpn.score_thresh
        self.ranks_logits = isinstance(rpn, LogitProposals)
        self.smallest_box_px = rpn.min_size
        self.largest_log_scale = rpn.box_coder.bbox_xform_clip
        self.least_log_scale = getattr(rpn.box_coder, "least_log_scale", None)
        self.pool = module.roi_heads.box_roi_pool
        self._take_heads(module.roi_heads)
        if self.pool.sampling_ratio < 1 and not isinstance(self.pool, HalfPixelPool):
            raise ExportError(
                f"This R-CNN's pooling has the sampling ratio {self.pool.sampling_ratio}: as many "
                "samples as a box's size asks for, which no graph of fixed size has. Expected 1 or "
                "more; train it with torchvision's usual 2."
            )
        anchors, self.table = self._measure(module)
        self.register_buffer("anchors_px", anchors, persistent=False)

    def _take_heads(self, roi: Any) -> None:
        """Keep the parts of torchvision's heads that classify proposals and improve their boxes."""
        self.box_head, self.box_predictor = roi.box_head, roi.box_predictor
        self.weights = roi.box_coder.weights

    def _measure(self, module: Any) -> tuple[Tensor, LevelTable]:
        """Run once to learn the anchors, and the sizes and scales of the levels that are pooled."""
        from torchvision.models.detection.image_list import ImageList

        with torch.no_grad():
            images = torch.zeros((1, 3, *self.size))
            features = self.backbone(images)
            (anchors,) = module.rpn.anchor_generator(
                ImageList(images, [self.size]), list(features.values())
            )
            for pool in (self.pool, getattr(module.roi_heads, "mask_roi_pool", None)):
                if pool is not None and pool.scales is None:  # it learns them when it first runs
                    pool(features, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [self.size])
        pooled = [features[name] for name in features if name in self.pool.featmap_names]
        sizes = tuple((int(level.shape[2]), int(level.shape[3])) for level in pooled)
        return anchors, LevelTable(sizes, tuple(self.pool.scales))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (N, P, F, 4) or (N, P, 4) in pixels of the canvas and logits (N, P, C).

        Parameters
        ----------
        images : array of shape (N, 3, H, W), float32, normalised.
        """
        features = self.backbone(images)
        proposals = self._propose(list(features.values()))
        levels = [f for name, f in features.items() if name in self.pool.featmap_names]
        return self._detect(levels, proposals)

    def _detect(self, levels: list[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes and logits of proposals (N, P, 4)."""
        pooled = self._pool(levels, proposals)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        count = proposals.shape[1]
        logits = logits.reshape(-1, count, logits.shape[-1])
        rows = deltas.shape[-1] // 4
        deltas = deltas.reshape(-1, count, rows, 4)
        if rows == logits.shape[-1]:
            deltas = deltas[:, :, 1:]  # torchvision has boxes of the background
        boxes = self._decode(deltas, proposals[:, :, None, :], self.weights)
        boxes = clip_boxes(boxes, *self.size)
        return (boxes[:, :, 0] if rows == 1 else boxes), logits

    def _decode(self, deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
        return decode_boxes(deltas, boxes, weights, self.largest_log_scale, self.least_log_scale)

    def _propose(self, features: list[Tensor]) -> Tensor:
        objectness, deltas = self.rpn_head(features)
        start, chosen = 0, []
        for scores, delta in zip(objectness, deltas, strict=True):
            _, per_cell, height, width = scores.shape
            count = per_cell * height * width
            scores = scores.permute(0, 2, 3, 1).reshape(-1, count)
            delta = delta.reshape(-1, per_cell, 4, height, width)
            delta = delta.permute(0, 3, 4, 1, 2).reshape(-1, count, 4)
            anchors = self.anchors_px[start : start + count]
            start += count
            scores, places = scores.topk(min(self.before_nms, count), dim=1)
            boxes = self._decode(pick(delta, places), anchors[places], _RPN_WEIGHTS)
            boxes = clip_boxes(boxes, *self.size)
            scores = scores if self.ranks_logits else scores.sigmoid()
            sides = boxes[..., 2:] - boxes[..., :2]
            usable = (sides.amin(dim=-1) >= self.smallest_box_px) & (scores >= self.least_score)
            keep = cluster_nms(boxes, usable.to(boxes.dtype), self.iou)
            if self.ranks_logits:
                scores = torch.where(keep > 0, scores, _NO_SCORE)
            else:
                scores = scores * keep + keep - 1
            chosen.append((boxes * keep[..., None], scores))
        boxes = torch.cat([level[0] for level in chosen], dim=1)
        scores = torch.cat([level[1] for level in chosen], dim=1)
        _, best = scores.topk(min(self.after_nms, scores.shape[1]), dim=1)
        return pick(boxes, best)

    def _pool(self, features: list[Tensor], boxes: Tensor) -> Tensor:
        return pool_levels(self.pool, self.table, features, boxes)


def pool_levels(pool: Any, table: LevelTable, features: list[Tensor], boxes: Tensor) -> Tensor:
    """Pool boxes (N, P, 4) each from the level of its size, to (N·P, C, height, width).

    Parameters
    ----------
    pool : torchvision's ``MultiScaleRoIAlign`` that has run once, or one of half pixels.
    """
    if isinstance(pool, HalfPixelPool):
        return level_by_level(features, boxes, pool)
    mapper = pool.map_levels
    side = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1).clamp(min=_SMALLEST_AREA_PX).sqrt()
    level = torch.floor(mapper.lvl0 + torch.log2(side / mapper.s0) + mapper.eps)
    level = (level.clamp(mapper.k_min, mapper.k_max) - mapper.k_min).to(torch.int64)
    return static_roi_align(features, boxes, level, table, pool.output_size, pool.sampling_ratio)
