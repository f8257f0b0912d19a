"""What detectron2 and mmdetection compute otherwise than torchvision, as parts of its networks.

Both anchor, pool and propose alike, and torchvision does not:

- anchors are not rounded to whole pixels, and a level's stride is a power of two even where its
  cells reach beyond the canvas (detectron2's ``DefaultAnchorGenerator``, mmdetection's
  ``AnchorGenerator``; torchvision divides the canvas by the cells and cuts the fraction off);
- boxes are pooled at half-pixel positions, with as many samples as their size asks for
  (``ROIAlignV2`` with sampling ratio 0, mmcv's ``RoIAlign``);
- a box of any area may be proposed, and ranks are those of the logits, which saturate later than
  probabilities (``find_top_rpn_proposals``; mmdetection ranks probabilities, whose ties it leaves
  open).

mmdetection alone has class layers on normalised features (``NormedLinear``), bounds the logarithms
of a box's sides from below too (``delta2bbox``), and has no ReLU between the two coarsest levels of
a one-stage pyramid (``FPN.relu_before_extra_convs``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import roi_align
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

__all__ = [
    "AnchorShapes",
    "FixedAnchors",
    "HalfPixelPool",
    "LogitProposals",
    "NormedPredictor",
    "PlainP6P7",
    "TwoSidedBoxCoder",
]

_ANY_AREA_PX = 1e-30
_ANY_LOGIT = -1e30


@dataclass(frozen=True)
class AnchorShapes:
    """Anchors of a pyramid.

    Parameters
    ----------
    sizes_px : of each level, the square roots of areas.
    ratios : height by width.
    strides_px : of each level.
    size_major : whether all ratios of the first size come before those of the second, as in
        detectron2; else all sizes of the first ratio, as in mmdetection and torchvision.
    offset : where in its cell an anchor has its centre, in shares of the stride.
    """

    sizes_px: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    strides_px: tuple[int, ...] = (4, 8, 16, 32, 64)
    size_major: bool = True
    offset: float = 0.0

    @property
    def per_cell(self) -> int:
        """Number of anchors of a cell."""
        return len(self.sizes_px[0]) * len(self.ratios)

    def cells(self) -> list[Tensor]:
        """Return each level's anchors around the origin, shape (anchors, 4), xyxy."""
        return [self._cell(sizes) for sizes in self.sizes_px]

    def _cell(self, sizes: Sequence[float]) -> Tensor:
        size, ratio = (torch.tensor(v, dtype=torch.float64) for v in (sizes, self.ratios))
        first, second = (size[:, None], ratio) if self.size_major else (size, ratio[:, None])
        width = (first / second.sqrt()).reshape(-1)
        height = (first * second.sqrt()).reshape(-1)
        return (torch.stack([-width, -height, width, height], dim=1) / 2).float()


class FixedAnchors(nn.Module):
    """Anchors whose strides are given, in place of torchvision's ``AnchorGenerator``.

    Parameters
    ----------
    shapes : what they are.
    cells : the anchors of a cell of each level, where the file holds them.
    """

    def __init__(self, shapes: AnchorShapes, cells: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.shapes = shapes
        self.cells = shapes.cells() if cells is None else list(cells)

    def num_anchors_per_location(self) -> list[int]:
        """Return the number of anchors of a cell, for each level."""
        return [len(cell) for cell in self.cells]

    def forward(self, images: Any, features: list[Tensor]) -> list[Tensor]:
        """Return all anchors, level by level and cell by cell, once for each image."""
        placed = []
        for level, cell, stride in zip(features, self.cells, self.shapes.strides_px, strict=True):
            y, x = (
                (torch.arange(side, dtype=torch.float32) + self.shapes.offset) * stride
                for side in level.shape[-2:]
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            corner = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            placed.append((corner + cell).reshape(-1, 4))
        return [torch.cat(placed)] * len(images.image_sizes)


class HalfPixelPool(nn.Module):
    """RoIAlign at half-pixel positions, each box from one level of the pyramid.

    A box of area A is pooled from level ``floor(log2(√A / finest_px + eps))``, counted from the
    finest (Lin et al. 2017, arXiv 1612.03144, eq. 1).

    Parameters
    ----------
    finest_px : from twice this side on, a box is not pooled from the finest level.
    eps : detectron2 has float64's smallest step, mmdetection 1e-6.
    sampling_ratio : samples per bin and axis; 0: as many as a bin has cells, rounded up.
    aligned : False has the positions of old networks, half a cell away.
    """

    # What torchvision's pooling is asked for, too.
    featmap_names = ("0", "1", "2", "3")
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    output_size = (7, 7)

    def __init__(
        self,
        eps: float,
        finest_px: float = 56.0,
        sampling_ratio: int = 0,
        *,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.eps, self.finest_px = eps, finest_px
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def levels(self, boxes: Tensor) -> Tensor:
        """Return which level each box is pooled from, shape (..., 4) to (...), int64."""
        side = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1).sqrt()
        level = torch.log2(side / self.finest_px + self.eps).floor()
        return level.clamp(0, len(self.scales) - 1).to(torch.int64)

    def pool(self, level: int, feature: Tensor, rois: Tensor) -> Tensor:
        """Pool boxes (R, 5), the image's number before each, from one level."""
        pooled: Tensor = roi_align(
            feature, rois, self.output_size, self.scales[level], self.sampling_ratio, self.aligned
        )
        return pooled

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Return what torchvision's ``MultiScaleRoIAlign`` returns, (R, channels, 7, 7)."""
        maps = [features[name] for name in self.featmap_names]
        every = torch.cat(boxes)
        number = torch.cat([one.new_full((len(one), 1), at) for at, one in enumerate(boxes)])
        rois, chosen = torch.cat([number, every], dim=1), self.levels(every)
        pooled = every.new_zeros((len(every), maps[0].shape[1], *self.output_size))
        for level, feature in enumerate(maps):
            own = chosen == level
            pooled[own] = self.pool(level, feature, rois[own])
        return pooled


class LogitProposals(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's region proposals, ranked by logits, of any area."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.min_size, self.score_thresh = _ANY_AREA_PX, _ANY_LOGIT

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return each image's best boxes and their logits; levels do not suppress each other."""
        from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

        logits = objectness.detach().reshape(len(proposals), -1)
        level = torch.cat(
            [torch.full((count,), at) for at, count in enumerate(num_anchors_per_level)]
        )
        best = self._get_top_n_idx(logits, num_anchors_per_level)
        found: list[Tensor] = []
        ranks: list[Tensor] = []
        for boxes, scores, places, size in zip(proposals, logits, best, image_shapes, strict=True):
            clipped, ranked, of_level = (
                clip_boxes_to_image(boxes[places], size),
                scores[places],
                level[places],
            )
            large = remove_small_boxes(clipped, self.min_size)
            clipped, ranked, of_level = clipped[large], ranked[large], of_level[large]
            kept = batched_nms(clipped, ranked, of_level, self.nms_thresh)[: self.post_nms_top_n()]
            found.append(clipped[kept])
            ranks.append(ranked[kept])
        return found, ranks


class TwoSidedBoxCoder(BoxCoder):  # type: ignore[misc]
    """torchvision's box coder, with the logarithms of the sides' ratios bounded on both sides."""

    @property
    def least_log_scale(self) -> float:
        """The lower bound."""
        return -float(self.bbox_xform_clip)

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes, shape (R, 4·k), from deltas of that shape and boxes (R, 4)."""
        codes = rel_codes.reshape(len(rel_codes), -1, 4)
        least = codes.new_tensor(self.weights[2:]) * self.least_log_scale
        sides = torch.maximum(codes[..., 2:], least)
        bounded = torch.cat([codes[..., :2], sides], dim=-1).reshape(rel_codes.shape)
        decoded: Tensor = super().decode_single(bounded, boxes)
        return decoded


class NormedPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """torchvision's predictor, whose class layer sees features of length one.

    mmdetection's ``NormedLinear`` divides its rows by their lengths too; that is done once, when
    the weights are loaded, so that what is left is linear and takes a fix.
    """

    eps = 1e-6

    @classmethod
    def rows(cls, weight: Tensor, temperature: float) -> Tensor:
        """Return the class layer's rows, divided by their lengths, times the temperature."""
        rows: Tensor = weight * (temperature / (weight.norm(dim=1, keepdim=True) + cls.eps))
        return rows

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, C) and deltas (R, 4·rows) of features (R, D)."""
        length = x.square().sum(dim=1, keepdim=True).sqrt()
        logits: Tensor = self.cls_score(x / (length + self.eps))
        deltas: Tensor = self.bbox_pred(x)
        return logits, deltas


class PlainP6P7(LastLevelP6P7):  # type: ignore[misc]
    """The two coarsest levels of a one-stage pyramid, without a ReLU between them."""

    def forward(
        self, p: list[Tensor], c: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Return the levels with two more."""
        coarse = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, coarse, self.p7(coarse)], [*names, "p6", "p7"]
