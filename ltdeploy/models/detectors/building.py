"""torchvision's detectors on any of its backbones, put together from its parts.

torchvision has ready-made functions for ResNet-50 and MobileNetV3-Large alone. What they do is done
here for every backbone; for their own names the networks are theirs, layer for layer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torchvision.models import detection, resnet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, mobilenet_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from .cascade import CascadeHeads, cascade_stages
from .design import Design

__all__ = ["build_body", "build_torchvision"]

_CHANNELS = 256  # of the pyramid, in all of torchvision's detectors
_ANCHORS = 3  # per cell and size, by aspect ratio
_RETINANET_ANCHORS = 9
_MOBILENET_LAYERS = 6
# What torchvision published of these was trained with ε = 0, and so is what goes on from there.
_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


def build_torchvision(design: Design, foreground: int, *, frozen: bool = False) -> nn.Module:
    """Build an untrained detector.

    Parameters
    ----------
    design : what it is made of.
    foreground : number of classes F, the background not counted.
    frozen : whether the backbone's normalisations are constants, as torchvision has them where the
        training started from published weights.
    """
    build = {"retinanet": _retinanet, "fcos": _fcos}.get(design.family, _rcnn)
    module = build(design, foreground, _pyramid(design, frozen=frozen))
    if frozen and design.name in _WITHOUT_EPSILON:
        for layer in module.modules():
            if isinstance(layer, FrozenBatchNorm2d):
                layer.eps = 0.0
    return module


def build_body(backbone: str) -> nn.Module:
    """Build what a detector has below its ``backbone.body``: a backbone with its pyramid."""
    return _pyramid(Design("fasterrcnn", backbone), frozen=False)


def _pyramid(design: Design, *, frozen: bool) -> nn.Module:
    """Return the backbone with a feature pyramid (Lin et al. 2017, arXiv 1612.03144).

    One-stage detectors leave out the level of stride 4, which would have most of the anchors, and
    have two coarser ones (Lin et al. 2017, arXiv 1708.02002, section 4).
    """
    # In "v2" nothing is frozen, even where the training starts from published weights.
    norm: Any = FrozenBatchNorm2d if frozen and not design.v2 else nn.BatchNorm2d
    built: nn.Module
    if design.is_mobile:
        built = mobilenet_backbone(
            backbone_name=design.backbone,
            weights=None,
            fpn=True,
            norm_layer=norm,
            trainable_layers=_MOBILENET_LAYERS,
            # The stages of stride 8, 16 and 32; R-CNNs take torchvision's choice, the last two.
            returned_layers=[2, 3, 5] if design.is_one_stage else None,
            extra_blocks=LastLevelP6P7(_CHANNELS, _CHANNELS) if design.is_one_stage else None,
        )
        return built
    body = getattr(resnet, design.backbone)(weights=None, norm_layer=norm)
    widest = body.inplanes
    extra: ExtraFPNBlock | None = None
    if design.is_one_stage:
        extra = LastLevelP6P7(widest if design.v2 else _CHANNELS, _CHANNELS)
    stages = (2, 3, 4) if design.is_one_stage else (1, 2, 3, 4)
    built = BackboneWithFPN(
        body,
        {f"layer{stage}": str(level) for level, stage in enumerate(stages)},
        [widest >> (4 - stage) for stage in stages],
        _CHANNELS,
        extra_blocks=extra,
        norm_layer=nn.BatchNorm2d if design.v2 and not design.is_one_stage else None,
    )
    return built


def _rcnn(design: Design, foreground: int, pyramid: nn.Module) -> nn.Module:
    options: dict[str, Any] = {}
    if design.is_mobile:
        sizes = ((32, 64, 128, 256, 512),) * 3
        options["rpn_anchor_generator"] = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
        options["rpn_score_thresh"] = 0.05
    if design.is_small:
        options |= {"rpn_pre_nms_top_n_test": 150, "rpn_post_nms_top_n_test": 150}
    if design.v2:
        four = [_CHANNELS] * 4
        options["rpn_head"] = RPNHead(_CHANNELS, _ANCHORS, conv_depth=2)
        options["box_head"] = FastRCNNConvFCHead(
            (_CHANNELS, 7, 7), four, [1024], norm_layer=nn.BatchNorm2d
        )
        if design.family == "maskrcnn":
            options["mask_head"] = MaskRCNNHeads(_CHANNELS, four, 1, norm_layer=nn.BatchNorm2d)
    if design.family == "cascade_rcnn":
        # torchvision's class wants heads of one stage, which are not used.
        options |= {"box_head": nn.Identity(), "box_predictor": nn.Identity()}
        module = detection.FasterRCNN(pyramid, None, **options)
        module.roi_heads = CascadeHeads(cascade_stages(_CHANNELS, foreground + 1))
    else:
        kind = detection.MaskRCNN if design.family == "maskrcnn" else detection.FasterRCNN
        module = kind(pyramid, foreground + 1, **options)
    built: nn.Module = module
    return built


def _retinanet(design: Design, foreground: int, pyramid: nn.Module) -> nn.Module:
    options: dict[str, Any] = {}
    if design.v2:
        norm = partial(nn.GroupNorm, 32)
        head = RetinaNetHead(_CHANNELS, _RETINANET_ANCHORS, foreground, norm_layer=norm)
        head.regression_head._loss_type = "giou"
        options["head"] = head
    built: nn.Module = detection.RetinaNet(pyramid, foreground, **options)
    return built


def _fcos(design: Design, foreground: int, pyramid: nn.Module) -> nn.Module:
    built: nn.Module = detection.FCOS(pyramid, foreground)
    return built
