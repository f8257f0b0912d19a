"""torchvision's RetinaNet and FCOS with fixed sizes: of each level its best anchors.

torchvision keeps of each level the best pairs of anchor and class, as many as pass a threshold
(NonZero). Here each level gives its ``topk_candidates`` best *anchors*, judged by their best class,
with all their classes. The anchors of torchvision's best pairs are among them: where k pairs are at
least as good as an anchor's best one, at most k anchors are. Thresholds and suppression follow
outside the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .static_boxes import clip_boxes, decode_boxes, pick

if TYPE_CHECKING:
    from torchvision.models.detection import FCOS, RetinaNet

__all__ = ["StaticFcos", "StaticRetinaNet"]


class _StaticOneStage(nn.Module):
    """What both have in common."""

    anchors_px: Tensor

    def __init__(self, module: Any, height_px: int, width_px: int) -> None:
        from torchvision.models.detection.image_list import ImageList

        super().__init__()
        self.backbone, self.head = module.backbone, module.head
        self.size = (height_px, width_px)
        with torch.no_grad():
            images = torch.zeros((1, 3, *self.size))
            features = self.features(images)
            (anchors,) = module.anchor_generator(ImageList(images, [self.size]), features)
        self.register_buffer("anchors_px", anchors, persistent=False)
        per_cell = module.anchor_generator.num_anchors_per_location()
        self.counts = [
            int(level.shape[2] * level.shape[3]) * cell
            for level, cell in zip(features, per_cell, strict=True)
        ]
        self.kept = [min(module.topk_candidates, count) for count in self.counts]

    @property
    def rows(self) -> int:
        """P, the number of boxes of each image."""
        return sum(self.kept)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's levels."""
        features = self.backbone(images)
        return [features] if isinstance(features, Tensor) else list(features.values())

    def best(self, scores: Tensor) -> Tensor:
        """Return the places of each level's best anchors, (N, all anchors) to (N, P)."""
        first, places = 0, []
        for level, kept in zip(torch.split(scores, self.counts, dim=1), self.kept, strict=True):
            places.append(level.topk(kept, dim=1).indices + first)
            first += level.shape[1]
        return torch.cat(places, dim=1)


class StaticRetinaNet(_StaticOneStage):
    """RetinaNet (Lin et al. 2017, arXiv 1708.02002) as one graph.

    Parameters
    ----------
    module : in evaluation mode.
    height_px, width_px : the canvas.
    """

    def __init__(self, module: RetinaNet, height_px: int, width_px: int) -> None:
        super().__init__(module, height_px, width_px)
        coder: Any = module.box_coder
        self.weights, self.largest_log_scale = coder.weights, coder.bbox_xform_clip
        self.least_log_scale = getattr(coder, "least_log_scale", None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (N, P, 4) in pixels of the canvas and logits (N, P, C).

        Parameters
        ----------
        images : array of shape (N, 3, H, W), float32, normalised.
        """
        told = self.head(self.features(images))
        logits, deltas = told["cls_logits"], told["bbox_regression"]
        places = self.best(logits.amax(dim=2))
        anchors = self.anchors_px[places]
        bounds = self.largest_log_scale, self.least_log_scale
        boxes = decode_boxes(pick(deltas, places), anchors, self.weights, *bounds)
        return clip_boxes(boxes, *self.size), pick(logits, places)


class StaticFcos(_StaticOneStage):
    """FCOS (Tian et al. 2019, arXiv 1904.01355) as one graph.

    Parameters
    ----------
    module : in evaluation mode.
    height_px, width_px : the canvas.
    """

    def __init__(self, module: FCOS, height_px: int, width_px: int) -> None:
        super().__init__(module, height_px, width_px)
        self.in_sides = module.box_coder.normalize_by_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, P, 4), logits (N, P, C) and the centre-ness's logits (N, P).

        Parameters
        ----------
        images : array of shape (N, 3, H, W), float32, normalised.
        """
        told = self.head(self.features(images))
        logits, quality = told["cls_logits"], told["bbox_ctrness"]
        # torchvision's order: the square root of this product changes none.
        places = self.best(logits.amax(dim=2).sigmoid() * quality.squeeze(2).sigmoid())
        boxes = self._decode(pick(told["bbox_regression"], places), self.anchors_px[places])
        picked = (pick(logits, places), pick(quality, places).squeeze(2))
        return clip_boxes(boxes, *self.size), *picked

    def _decode(self, distances: Tensor, anchors: Tensor) -> Tensor:
        """Go from the anchor's centre by the distances to the four sides (eq. 1)."""
        centres = 0.5 * (anchors[..., :2] + anchors[..., 2:])
        if self.in_sides:
            sides = anchors[..., 2:] - anchors[..., :2]
            distances = distances * torch.cat([sides, sides], dim=-1)
        return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)
