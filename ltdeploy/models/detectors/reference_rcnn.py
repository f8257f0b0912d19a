"""What torchvision's own code computes before it thresholds and suppresses: the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["rcnn_outputs"]


def rcnn_outputs(module: Any, images: Tensor) -> dict[str, Tensor]:
    """Return a Faster R-CNN's boxes and logits, from torchvision's own proposals and pooling.

    Parameters
    ----------
    module : ``torchvision.models.detection.FasterRCNN`` in evaluation mode.
    images : array of shape (N, 3, H, W), float32, normalised.

    Returns
    -------
    dict
        ``boxes`` (N, P, F, 4), xyxy in pixels of the canvas, and ``logits`` (N, P, F + 1); P is the
        largest number of proposals in the batch, others are padded with boxes without area.
    """
    import torch
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops import clip_boxes_to_image

    size = (int(images.shape[-2]), int(images.shape[-1]))
    listed = ImageList(images, [size] * len(images))
    features = module.backbone(images)
    proposals, _ = module.rpn(listed, features)
    roi = module.roi_heads
    pooled = roi.box_roi_pool(features, proposals, listed.image_sizes)
    logits, deltas = roi.box_predictor(roi.box_head(pooled))
    boxes = clip_boxes_to_image(roi.box_coder.decode(deltas, proposals)[:, 1:], size)
    counts = [len(one) for one in proposals]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "boxes": pad(list(boxes.split(counts)), batch_first=True),
        "logits": pad(list(logits.split(counts)), batch_first=True),
    }
