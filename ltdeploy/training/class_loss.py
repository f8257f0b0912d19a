"""The seam for class losses of R-CNNs: torchvision's heads, with another loss of the classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss

from ..models.detectors.cascade import CascadeHeads

__all__ = ["ClassLoss", "using_class_loss"]

# (logits (R, F + 1), labels (R,) with the background 0 and class c at c + 1) -> scalar
ClassLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@contextlib.contextmanager
def using_class_loss(
    module: nn.Module, class_loss: ClassLoss, proposals: int | None = None
) -> Iterator[None]:
    """Train torchvision's R-CNN with ``class_loss`` inside the block; afterwards all is as it was.

    Parameters
    ----------
    module : ``torchvision.models.detection.FasterRCNN`` or ``MaskRCNN``, also with the heads of a
        cascade, each of whose stages takes the loss.
    class_loss : from logits (R, F + 1) and labels (R,), 0 the background, to a scalar.
    proposals : how many per image it is computed from; None leaves torchvision's number.

    Notes
    -----
    A loss that is a module stands below ``roi_heads.class_loss`` meanwhile: it goes where the
    network goes, its parameters learn, and its state is resumed. The checkpoint does not hold it.
    """
    holder: Any = module
    own = holder.roi_heads
    swapped: nn.Module
    if isinstance(own, CascadeHeads):
        swapped = CascadeHeads(own.stages, class_loss, proposals)
    else:
        swapped = _HeadsWithLoss(own, class_loss, proposals)
    holder.roi_heads = swapped.train(own.training)
    try:
        yield
    finally:
        holder.roi_heads = own.train(holder.training)


class _HeadsWithLoss(RoIHeads):  # type: ignore[misc]  # torchvision has no types
    """torchvision's box and mask heads in training, with the same layers under the same names."""

    def __init__(self, heads: Any, class_loss: ClassLoss, proposals: int | None) -> None:
        super().__init__(
            heads.box_roi_pool,
            heads.box_head,
            heads.box_predictor,
            heads.proposal_matcher.high_threshold,
            heads.proposal_matcher.low_threshold,
            proposals or heads.fg_bg_sampler.batch_size_per_image,
            heads.fg_bg_sampler.positive_fraction,
            heads.box_coder.weights,
            heads.score_thresh,
            heads.nms_thresh,
            heads.detections_per_img,
            heads.mask_roi_pool,
            heads.mask_head,
            heads.mask_predictor,
        )
        self.class_loss = class_loss

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return no detections, and the losses by torchvision's names."""
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        logits, offsets = self.box_predictor(self.box_head(pooled))
        _, box_loss = fastrcnn_loss(logits, offsets, labels, deltas)
        class_loss = self.class_loss(logits, torch.cat(labels))
        losses = {"loss_classifier": class_loss, "loss_box_reg": box_loss}
        if targets is not None and self.has_mask():
            found = [label > 0 for label in labels]  # the background has no mask
            boxes = [one[which] for one, which in zip(proposals, found, strict=True)]
            pooled = self.mask_roi_pool(features, boxes, image_shapes)
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(self.mask_head(pooled)),
                boxes,
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [one[which] for one, which in zip(matched, found, strict=True)],
            )
        return [], losses
