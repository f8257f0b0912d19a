"""Cascade R-CNN: torchvision's box heads three times, each on the boxes of the one before.

Cai and Vasconcelos 2018, arXiv 1712.00726. Stage t is trained on proposals that overlap an object
by more than u_t, on which the boxes of stage t - 1 have been improved.

Scores
------
The paper takes the ensemble of the stages' classifiers (table 2), and implementations differ in
what they average. Here it is the logits, each stage's on its own proposals, as in mmdetection 3
(``CascadeRoIHead._refine_roi``), whose published accuracies are of that::

    z = (z_1 + z_2 + z_3) / 3

detectron2 averages the probabilities instead (``CascadeROIHeads._forward_box``)::

    z = log((softmax(z_1) + softmax(z_2) + softmax(z_3)) / 3)

On logits an affine fix is exact: ``A z + c`` is the mean of ``A z_t + c``, so each stage's class
layer takes it and the graph has no more nodes than without. The logarithm of a mean of
probabilities no layer gives: a fix stays outside, behind it, as one put into the layers would be
another fix than the one that was fitted. What is trained here averages logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

__all__ = ["STAGES", "CascadeHeads", "MeanOf", "Stage", "cascade_stages", "mean_logits"]

MeanOf = Literal["logits", "probabilities", "sigmoids"]

_SIDE, _WIDTH = 7, 1024  # of torchvision's pooling and box heads
_PROPOSALS, _POSITIVE = 512, 0.25
_SCORE, _IOU, _DETECTIONS = 0.05, 0.5, 100  # torchvision's, of the detections it gives by itself


@dataclass(frozen=True)
class Stage:
    """What is particular to one stage.

    Parameters
    ----------
    iou : overlap from which a proposal shows the object.
    box_weights : what the four deltas are multiplied with, the better the boxes the more.
    loss_weight : of the stage's losses in their sum.
    """

    iou: float
    box_weights: tuple[float, float, float, float]
    loss_weight: float


# Overlaps: section 4.2. Deltas: what mmdetection and detectron2 have. Losses: mmdetection's.
STAGES = (
    Stage(0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    Stage(0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    Stage(0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)


def cascade_stages(channels: int, columns: int) -> nn.ModuleList:
    """Return untrained heads, one of torchvision's for each stage.

    Parameters
    ----------
    channels : of the feature pyramid.
    columns : C, the background at column 0 counted.
    """
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=_SIDE, sampling_ratio=2)
    made = nn.ModuleList()
    for stage in STAGES:
        predictor = FastRCNNPredictor(_WIDTH, columns)
        predictor.bbox_pred = nn.Linear(_WIDTH, 4)
        head = TwoMLPHead(channels * _SIDE**2, _WIDTH)
        matching = (stage.iou, stage.iou, _PROPOSALS, _POSITIVE, stage.box_weights)
        made.append(RoIHeads(pool, head, predictor, *matching, _SCORE, _IOU, _DETECTIONS))
    return made


class CascadeHeads(nn.Module):
    """The box heads of a Cascade R-CNN, in place of torchvision's ``RoIHeads``.

    Every stage has one box per proposal, whatever its class.

    Parameters
    ----------
    stages : torchvision's heads, first stage first; see :func:`cascade_stages`.
    class_loss : from logits (R, C) and labels (R,), 0 the background, to a scalar.
    proposals : how many per image and stage are learnt from; None is torchvision's number.
    mean_of : what is averaged over the stages.
    """

    def __init__(
        self,
        stages: nn.ModuleList,
        class_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        proposals: int | None = None,
        mean_of: MeanOf = "logits",
    ) -> None:
        super().__init__()
        self.stages = stages
        self.class_loss = class_loss
        self.proposals = proposals or _PROPOSALS
        self.mean_of = mean_of

    @property
    def box_roi_pool(self) -> Any:
        """The pooling that all stages share."""
        first: Any = self.stages[0]
        return first.box_roi_pool

    def refine(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all stages.

        Parameters
        ----------
        features : arrays of shape (N, channels, h, w), the pyramid.
        proposals : arrays of shape (P_n, 4), one per image.
        sizes : height and width of each image in pixels.

        Returns
        -------
        logits : array of shape (sum of P_n, C), the mean of the stages'.
        boxes : arrays of shape (P_n, 4), the last stage's, clipped.
        """
        parts = []
        for stage in self.stages:
            logits, deltas = _run(stage, features, proposals, sizes)
            proposals = _decoded(stage, deltas, proposals, sizes)
            parts.append(logits)
        return mean_logits(parts, self.mean_of), proposals

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections, or in training the losses of each stage, weighted."""
        if self.training:
            return [], self._losses(features, proposals, sizes, targets)
        last: Any = self.stages[-1]
        logits, boxes = self.refine(features, proposals, sizes)
        # The boxes are what they are: deltas of zero, the same for every class.
        still = logits.new_zeros(len(logits), 4 * logits.shape[1])
        found = last.postprocess_detections(logits, still, boxes, sizes)
        names = ("boxes", "scores", "labels")
        return [dict(zip(names, one, strict=True)) for one in zip(*found, strict=True)], {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None,
    ) -> dict[str, Tensor]:
        losses = {}
        for number, (told, module) in enumerate(zip(STAGES, self.stages, strict=True), start=1):
            stage: Any = module
            stage.fg_bg_sampler.batch_size_per_image = self.proposals
            # The objects themselves are added to what the stage before gave, and all are matched
            # and sampled anew, as torchvision's heads do it by themselves.
            proposals, _, labels, wanted = stage.select_training_samples(list(proposals), targets)
            logits, deltas = _run(stage, features, proposals, sizes)
            # torchvision looks for the row of a box's class; here there is one for all.
            is_object = [one.clamp(max=1) for one in labels]
            _, box_loss = fastrcnn_loss(logits, deltas.repeat(1, 2), is_object, wanted)
            class_loss = self.class_loss(logits, torch.cat(labels))
            losses[f"loss_classifier_{number}"] = told.loss_weight * class_loss
            losses[f"loss_box_reg_{number}"] = told.loss_weight * box_loss
            proposals = _decoded(stage, deltas.detach(), proposals, sizes)
        return losses


def mean_logits(parts: list[Tensor], mean_of: MeanOf) -> Tensor:
    """Return one array of logits (..., C) from each stage's.

    Of ``"probabilities"`` their softmax is the mean of the stages' softmaxes, of ``"sigmoids"``
    their sigmoid the mean of the stages' sigmoids.
    """
    if mean_of == "logits":
        return torch.stack(parts).mean(dim=0)
    if mean_of == "sigmoids":
        stages = torch.stack(parts)
        return logsigmoid(stages).logsumexp(dim=0) - logsigmoid(-stages).logsumexp(dim=0)
    shares = torch.stack([one.log_softmax(dim=-1) for one in parts])
    return shares.logsumexp(dim=0) - math.log(len(parts))


def _run(
    stage: Any,
    features: dict[str, Tensor],
    proposals: list[Tensor],
    sizes: list[tuple[int, int]],
) -> tuple[Tensor, Tensor]:
    pooled = stage.box_roi_pool(features, proposals, sizes)
    told: tuple[Tensor, Tensor] = stage.box_predictor(stage.box_head(pooled))
    return told


def _decoded(
    stage: Any, deltas: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]
) -> list[Tensor]:
    boxes = stage.box_coder.decode(deltas, proposals).reshape(-1, 4)
    parts = boxes.split([len(one) for one in proposals])
    return [clip_boxes_to_image(one, size) for one, size in zip(parts, sizes, strict=True)]
