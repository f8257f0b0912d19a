"""What transformers' DETR, RT-DETR v2 and D-FINE compute: a box and logits for each query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["canvas_boxes", "query_outputs"]


def canvas_boxes(boxes: Tensor, height_px: int, width_px: int) -> Tensor:
    """Return boxes (…, 4) of centre and sides in shares of the canvas as xyxy in its pixels."""
    import torch

    centres, sides = boxes[..., :2], boxes[..., 2:]
    corners = torch.cat([centres - 0.5 * sides, centres + 0.5 * sides], dim=-1)
    return corners * corners.new_tensor([width_px, height_px, width_px, height_px])


def query_outputs(module: Any, images: Tensor) -> dict[str, Tensor]:
    """Return the boxes and logits of all queries.

    Parameters
    ----------
    module : ``DetrForObjectDetection``, ``RTDetrV2ForObjectDetection`` or
        ``DFineForObjectDetection`` of transformers, in evaluation mode.
    images : array of shape (N, 3, H, W), float32, normalised; the whole canvas counts as image.

    Returns
    -------
    dict
        ``boxes`` (N, Q, 4), xyxy in pixels of the canvas, and ``logits`` (N, Q, C).
    """
    told = module(pixel_values=images)
    height_px, width_px = int(images.shape[-2]), int(images.shape[-1])
    return {"boxes": canvas_boxes(told.pred_boxes, height_px, width_px), "logits": told.logits}
