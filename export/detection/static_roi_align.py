"""RoIAlign over several feature levels with fixed sizes: each box reads its own level only.

``RoiAlign`` pools one level, so a graph without data-dependent axes would pool every box from every
level and keep one; and it is a plugin in TensorRT, absent from TensorRT-RTX. Bilinear samples are
weighted sums of four cells each: here the levels' cells stand in one table, their rows are looked
up (Gather) and summed (MatMul). The values are torchvision's.

That takes a fixed number of samples. Where a box's size decides how many there are, ``RoiAlign`` it
is, whose output has a fixed size all the same: every level pools every box, those of other levels
as one small box that costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import embedding

if TYPE_CHECKING:
    from ltdeploy.models.detectors.detectron2_parts import HalfPixelPool

__all__ = ["LevelTable", "level_by_level", "static_roi_align"]

_SMALL_BOX_PX = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class LevelTable:
    """The feature levels that boxes are pooled from.

    Parameters
    ----------
    sizes : height and width of each level in cells.
    scales : cells per pixel of each level.
    """

    sizes: tuple[tuple[int, int], ...]
    scales: tuple[float, ...]

    @property
    def offsets(self) -> list[int]:
        """Number of cells before each level, and of all at the end."""
        offsets = [0]
        for height, width in self.sizes:
            offsets.append(offsets[-1] + height * width)
        return offsets


def static_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    table: LevelTable,
    output_size: tuple[int, int],
    samples: int,
) -> Tensor:
    """Pool boxes (He et al. 2017, arXiv 1703.06870, section 3), as ``torchvision.ops.roi_align``.

    Parameters
    ----------
    features : arrays of shape (N, C, height, width), one per level of ``table``.
    boxes : array of shape (N, P, 4), xyxy in pixels.
    level : array of shape (N, P), int64: which level each box is pooled from.
    samples : samples per bin and axis, 1 or more.

    Returns
    -------
    array of shape (N·P, C, *output_size).
    """
    n, count, _ = boxes.shape
    rows = torch.cat([f.permute(0, 2, 3, 1).flatten(1, 2) for f in features], dim=1)
    cells, channels = rows.shape[1], rows.shape[2]
    heights, widths = (boxes.new_tensor(side)[level] for side in zip(*table.sizes, strict=True))
    first = boxes.new_tensor(table.offsets[:-1], dtype=torch.int64)[level]
    first = first + torch.arange(n, device=boxes.device)[:, None] * cells
    scaled = boxes * boxes.new_tensor(table.scales)[level][:, :, None]

    y = _axis(scaled[..., 1], scaled[..., 3], heights, output_size[0], samples)
    x = _axis(scaled[..., 0], scaled[..., 2], widths, output_size[1], samples)
    rows, width = rows.reshape(-1, channels), widths.to(torch.int64)
    pooled: Tensor | None = None
    for y_cell, y_weight in y:
        start = first[:, :, None, None] + y_cell * width[:, :, None, None]
        for x_cell, x_weight in x:
            # (N, P, bins y, samples y, 1, 1) with (N, P, 1, 1, bins x, samples x)
            cell = start[..., None, None] + x_cell[:, :, None, None]
            weight = y_weight[..., None, None] * x_weight[:, :, None, None]
            cell, weight = (v.transpose(3, 4).reshape(-1, samples**2) for v in (cell, weight))
            part = torch.matmul(weight[:, None, :], embedding(cell, rows))
            pooled = part if pooled is None else pooled + part
    assert pooled is not None
    bins = output_size[0] * output_size[1]
    pooled = pooled.reshape(n * count, bins, channels).transpose(1, 2)
    return pooled.reshape(-1, channels, *output_size)


def level_by_level(features: Sequence[Tensor], boxes: Tensor, pool: HalfPixelPool) -> Tensor:
    """Pool boxes (N, P, 4) as ``pool`` does, each from one of the feature levels.

    Returns
    -------
    array of shape (N·P, C, *output_size); of boxes without area zeros, as no sample is in them.
    """
    n, count, _ = boxes.shape
    number = torch.arange(n, device=boxes.device, dtype=boxes.dtype)
    number = number[:, None].expand(-1, count).reshape(-1, 1)
    flat = boxes.reshape(-1, 4)
    has_area = (flat[:, 2:] - flat[:, :2]).amin(dim=1) > 0
    level = pool.levels(flat)
    pooled: Tensor | None = None
    for at, feature in enumerate(features):
        # Not a box without area: engines do not agree on the mean of no samples.
        own = ((level == at) & has_area)[:, None]
        rois = torch.cat([number, torch.where(own, flat, boxes.new_tensor(_SMALL_BOX_PX))], dim=1)
        part = pool.pool(at, feature, rois)
        part = torch.where(own[:, :, None, None], part, torch.zeros_like(part))
        pooled = part if pooled is None else pooled + part
    assert pooled is not None
    return pooled


def _axis(
    low: Tensor, high: Tensor, cells: Tensor, bins: int, samples: int
) -> list[tuple[Tensor, Tensor]]:
    """Return cell and weight, each (N, P, bins, samples), of each sample's lower and upper tap."""
    side = (high - low).clamp(min=1.0) / bins
    steps = (torch.arange(bins * samples, device=low.device) + 0.5) / samples
    at = low[..., None] + side[..., None] * steps
    last = (cells - 1)[..., None]
    # Beyond the last cell's far edge there is nothing; up to it, the last cell's value.
    inside = (at <= cells[..., None]).to(low.dtype) / samples
    at = torch.minimum(at.clamp(min=0.0), last)
    below = at.floor()
    share = at - below
    taps = ((below, 1.0 - share), (torch.minimum(below + 1.0, last), share))
    shape = (*low.shape, bins, samples)
    return [((c.to(torch.int64)).reshape(shape), (w * inside).reshape(shape)) for c, w in taps]
