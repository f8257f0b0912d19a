"""What torchvision's own code computes before it thresholds and suppresses: the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["rcnn_masks", "rcnn_outputs"]

_BOXES_AT_ONCE = 32


def rcnn_outputs(module: Any, images: Tensor) -> dict[str, Tensor]:
    """Return an R-CNN's boxes and logits, from torchvision's own proposals and pooling.

    Parameters
    ----------
    module : ``torchvision.models.detection.FasterRCNN`` in evaluation mode, or one whose heads are
        a cascade.
    images : array of shape (N, 3, H, W), float32, normalised.

    Returns
    -------
    dict
        ``boxes`` (N, P, F, 4), or (N, P, 4) where all classes have the same, as in a cascade, xyxy
        in pixels of the canvas, and ``logits`` (N, P, C); P is the largest number of proposals in
        the batch, others are padded with boxes without area.
    """
    import torch
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops import clip_boxes_to_image

    from .cascade import CascadeHeads

    size = (int(images.shape[-2]), int(images.shape[-1]))
    listed = ImageList(images, [size] * len(images))
    features = module.backbone(images)
    proposals, _ = module.rpn(listed, features)
    counts = [len(one) for one in proposals]
    roi = module.roi_heads
    if isinstance(roi, CascadeHeads):
        logits, boxes = roi.refine(features, proposals, listed.image_sizes)
    else:
        pooled = roi.box_roi_pool(features, proposals, listed.image_sizes)
        logits, deltas = roi.box_predictor(roi.box_head(pooled))
        # The coder gives another shape where there is not one proposal.
        rows = deltas.shape[1] // 4
        decoded = roi.box_coder.decode(deltas, proposals).reshape(len(logits), rows, 4)
        if rows == logits.shape[1]:
            decoded = decoded[:, 1:]  # torchvision has boxes of the background
        elif rows == 1:
            decoded = decoded[:, 0]  # of all classes alike
        boxes = clip_boxes_to_image(decoded, size).split(counts)
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "boxes": pad(list(boxes), batch_first=True),
        "logits": pad(list(torch.split(logits, counts)), batch_first=True),
    }


def rcnn_masks(
    module: Any, images: Tensor, boxes: list[Tensor], labels: list[Tensor]
) -> list[Tensor]:
    """Return a Mask R-CNN's masks of given boxes, from torchvision's own pooling and branch.

    Parameters
    ----------
    module : ``torchvision.models.detection.MaskRCNN`` in evaluation mode.
    images : array of shape (N, 3, H, W), float32, normalised.
    boxes : per image an array of shape (K, 4), xyxy in pixels of the canvas.
    labels : per image an array of shape (K,), int64, over the foreground classes.

    Returns
    -------
    per image an array of shape (K, S, S): probabilities over each box, of its own class.
    """
    import torch

    size = (int(images.shape[-2]), int(images.shape[-1]))
    roi = module.roi_heads
    pooled = roi.mask_roi_pool(module.backbone(images), boxes, [size] * len(images))
    rows = torch.cat(labels) + 1  # the background is torchvision's first
    own = []
    # The maps of 1,203 classes of a hundred boxes are a gigabyte.
    parts = (torch.split(values, _BOXES_AT_ONCE) for values in (pooled, rows))
    for part, wanted in zip(*parts, strict=True):
        maps = roi.mask_predictor(roi.mask_head(part))
        place = wanted if maps.shape[1] > 1 else torch.zeros_like(wanted)
        own.append(maps[torch.arange(len(maps)), place].sigmoid())
    return list(torch.split(torch.cat(own), [len(one) for one in boxes]))
