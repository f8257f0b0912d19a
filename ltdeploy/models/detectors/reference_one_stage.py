"""What torchvision's RetinaNet and FCOS compute before they choose: every anchor, no top-k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fcos_outputs", "retinanet_outputs"]


def retinanet_outputs(module: Any, images: Tensor) -> dict[str, Tensor]:
    """Return a RetinaNet's boxes and logits, from torchvision's own anchors and decoding.

    Parameters
    ----------
    module : ``torchvision.models.detection.RetinaNet`` in evaluation mode.
    images : array of shape (N, 3, H, W), float32, normalised.

    Returns
    -------
    dict
        ``boxes`` (N, all anchors, 4), xyxy in pixels of the canvas, and ``logits``
        (N, all anchors, F).
    """
    import torch

    told, anchors = _heads(module, images)
    decoded = [
        module.box_coder.decode_single(deltas, anchors) for deltas in told["bbox_regression"]
    ]
    return {"boxes": _clipped(torch.stack(decoded), images), "logits": told["cls_logits"]}


def fcos_outputs(module: Any, images: Tensor) -> dict[str, Tensor]:
    """Return an FCOS's boxes, logits and centre-ness, from torchvision's own anchors and decoding.

    Parameters
    ----------
    module : ``torchvision.models.detection.FCOS`` in evaluation mode.
    images : array of shape (N, 3, H, W), float32, normalised.

    Returns
    -------
    dict
        ``boxes`` (N, all anchors, 4), xyxy in pixels of the canvas, ``logits`` (N, all anchors, F)
        and ``quality`` (N, all anchors), the centre-ness's logits.
    """
    import torch

    told, anchors = _heads(module, images)
    decoded = [module.box_coder.decode(one, anchors) for one in told["bbox_regression"]]
    return {
        "boxes": _clipped(torch.stack(decoded), images),
        "logits": told["cls_logits"],
        "quality": told["bbox_ctrness"].squeeze(2),
    }


def _heads(module: Any, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    from torch import Tensor
    from torchvision.models.detection.image_list import ImageList

    size = (int(images.shape[-2]), int(images.shape[-1]))
    features = module.backbone(images)
    levels = [features] if isinstance(features, Tensor) else list(features.values())
    anchors = module.anchor_generator(ImageList(images[:1], [size]), levels)
    return module.head(levels), anchors[0]


def _clipped(boxes: Tensor, images: Tensor) -> Tensor:
    from torchvision.ops import clip_boxes_to_image

    size = (int(images.shape[-2]), int(images.shape[-1]))
    clipped: Tensor = clip_boxes_to_image(boxes, size)
    return clipped
