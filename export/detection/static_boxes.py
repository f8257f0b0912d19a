"""Boxes in a traced graph: decoding, clipping and picking, without axes that depend on the data."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["clip_boxes", "decode_boxes", "pick"]


def decode_boxes(
    deltas: Tensor,
    anchors: Tensor,
    weights: tuple[float, ...],
    largest_log_scale: float,
    least_log_scale: float | None = None,
) -> Tensor:
    """Apply box deltas (Ren et al. 2015, arXiv 1506.01497, eq. 2).

    Parameters
    ----------
    deltas : array of shape (..., 4): shift of the centre in sides, logarithms of the sides' ratios.
    anchors : array of a shape that broadcasts with it, xyxy.
    weights : what the four deltas were multiplied with in training.
    largest_log_scale, least_log_scale : bounds on the logarithms.
    """
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + 0.5 * sides
    wx, wy, ww, wh = weights
    dx, dy, dw, dh = deltas.unbind(dim=-1)
    centre = torch.stack([dx / wx, dy / wy], dim=-1) * sides + centres
    scale = torch.stack([dw / ww, dh / wh], dim=-1)
    scale = scale.clamp(min=least_log_scale, max=largest_log_scale).exp()
    half = 0.5 * scale * sides
    return torch.cat([centre - half, centre + half], dim=-1)


def clip_boxes(boxes: Tensor, height_px: int, width_px: int) -> Tensor:
    """Clip xyxy boxes of shape (..., 4) to the canvas."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    x1, x2 = (x.clamp(0, width_px) for x in (x1, x2))
    y1, y2 = (y.clamp(0, height_px) for y in (y1, y2))
    return torch.stack([x1, y1, x2, y2], dim=-1)


def pick(values: Tensor, places: Tensor) -> Tensor:
    """Return rows of each image, shapes (N, S, D) and (N, P) to (N, P, D)."""
    return torch.gather(values, 1, places[:, :, None].expand(-1, -1, values.shape[2]))
