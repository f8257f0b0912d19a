"""Small random detectors of every family with weights that tell boxes apart, and their export."""

from __future__ import annotations

import fcntl
import itertools
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torchvision.models import detection, resnet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ltdeploy.export.detection.static_cascade import StaticCascade
from ltdeploy.export.detection.static_one_stage import StaticFcos, StaticRetinaNet
from ltdeploy.export.detection.static_queries import StaticDetr, StaticQueries
from ltdeploy.export.detection.static_rcnn import StaticRcnn
from ltdeploy.export.to_onnx import drop_checks
from ltdeploy.models.detectors.cascade import CascadeHeads, cascade_stages
from ltdeploy.models.detectors.reference_one_stage import fcos_outputs, retinanet_outputs
from ltdeploy.models.detectors.reference_queries import query_outputs
from ltdeploy.models.detectors.reference_rcnn import rcnn_outputs

__all__ = [
    "CLASSES",
    "DETECTORS",
    "QUERY_DETECTORS",
    "SAMPLES",
    "SIZE",
    "exported",
    "images",
    "static",
]

CLASSES = 4
SIZE = (64, 96)
TOP_K = 20
# torchvision's own resizing and normalisation, switched off.
_AS_IT_IS: dict[str, Any] = {
    "min_size": SIZE[0],
    "max_size": SIZE[1],
    "image_mean": [0.0] * 3,
    "image_std": [1.0] * 3,
}


class _Stages(nn.Module):
    """A backbone of four layers, strides 4, 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, 24, 32)
        for number, (few, many) in enumerate(itertools.pairwise(widths)):
            block = nn.Sequential(
                nn.Conv2d(few, many, 3, 2, 1, bias=False), nn.BatchNorm2d(many), nn.ReLU()
            )
            self.add_module(f"layer{number}", block)


def _pyramid(*, last: bool, channels: int = 32) -> nn.Module:
    stages = {"layer1": "0", "layer2": "1", "layer3": "2"}
    extra = LastLevelP6P7(channels, channels) if last else None
    return BackboneWithFPN(_Stages(), stages, [16, 24, 32], channels, extra_blocks=extra)


def _resnext_pyramid() -> nn.Module:
    """Return a ResNeXt of one block per stage, 8 groups of 4 channels, with its pyramid."""
    body = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=4)
    stages = {"layer1": "0", "layer2": "1", "layer3": "2"}
    return BackboneWithFPN(body, stages, [256, 512, 1024], 32)


def _retinanet() -> nn.Module:
    sizes = tuple((side, 1.26 * side) for side in (8, 16, 32, 64, 96))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return detection.RetinaNet(
        _pyramid(last=True), CLASSES, anchor_generator=anchors, topk_candidates=TOP_K, **_AS_IT_IS
    )


def _fcos() -> nn.Module:
    anchors = AnchorGenerator(((4,), (8,), (16,), (32,), (64,)), ((1.0,),) * 5)
    # Its group normalisation has 32 groups: one channel each would leave nothing in small levels.
    return detection.FCOS(
        _pyramid(last=True, channels=64),
        CLASSES,
        anchor_generator=anchors,
        topk_candidates=TOP_K,
        **_AS_IT_IS,
    )


def _rcnn(pyramid: nn.Module | None = None) -> nn.Module:
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4)
    return detection.FasterRCNN(
        pyramid or _pyramid(last=False),
        CLASSES + 1,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=TOP_K,
    )


def _rcnn_resnext() -> nn.Module:
    return _rcnn(_resnext_pyramid())


def _cascade() -> nn.Module:
    module = _rcnn()
    module.roi_heads = CascadeHeads(cascade_stages(32, CLASSES + 1))
    return module


_SMALL = {
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "decoder_layers": 2,
    "d_model": 32,
    "num_labels": CLASSES,
    "num_queries": TOP_K,
}
_PYRAMID = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 24, 32],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
}
_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


def _detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(**_STAGES, layer_type="basic", out_features=["stage4"])
    config = DetrConfig(backbone_config=backbone, encoder_layers=1, **_SMALL)
    return DetrForObjectDetection(config)


def _rt_detr_v2() -> nn.Module:
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    out = ["stage2", "stage3", "stage4"]
    backbone = RTDetrResNetConfig(**_STAGES, layer_type="basic", out_features=out)
    return RTDetrV2ForObjectDetection(
        RTDetrV2Config(backbone_config=backbone, **_PYRAMID, **_SMALL)
    )


def _d_fine() -> nn.Module:
    from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

    backbone = HGNetV2Config(
        **_STAGES,
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 24],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 24, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 3, 3],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = DFineConfig(
        backbone_config=backbone, hidden_size=32, decoder_n_points=[2, 2, 2], depth_mult=0.34,
        **_PYRAMID, **_SMALL,
    )  # fmt: skip
    return DFineForObjectDetection(config)


Reference = Callable[[Any, Tensor], dict[str, Tensor]]
# Builder, static graph, reference.
DETECTORS: dict[str, tuple[Callable[[], nn.Module], Any, Reference]] = {
    "retinanet": (_retinanet, StaticRetinaNet, retinanet_outputs),
    "fcos": (_fcos, StaticFcos, fcos_outputs),
    "rcnn": (_rcnn, StaticRcnn, rcnn_outputs),
    "cascade_rcnn": (_cascade, StaticCascade, rcnn_outputs),
    "detr": (_detr, StaticDetr, query_outputs),
    "rt_detr_v2": (_rt_detr_v2, StaticQueries, query_outputs),
    "d_fine": (_d_fine, StaticQueries, query_outputs),
}
# Beside one of each family: another kind of backbone.
SAMPLES = DETECTORS | {"rcnn_resnext": (_rcnn_resnext, StaticRcnn, rcnn_outputs)}
QUERY_DETECTORS = ("detr", "rt_detr_v2", "d_fine")


@cache
def detector(family: str) -> nn.Module:
    """Return an untrained detector whose boxes and scores differ from each other."""
    torch.manual_seed(7)
    module = SAMPLES[family][0]().eval().requires_grad_(False)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            # Freshly made heads have zeros or 0.01: scores would be ties, and boxes anchors.
            gain = 2.0 if isinstance(part, nn.Conv2d) else 1.0
            spread = 1.0 if "class_" in name else (gain / part.weight[0].numel()) ** 0.5
            if "rpn.head.cls_logits" in name:
                spread *= 0.3  # saturated sigmoids would be ties
            part.weight.normal_(0, spread)
            if part.bias is not None and part.bias.numel() > 1:
                part.bias.normal_(0, 0.2)
        elif isinstance(part, nn.Embedding):
            part.weight.normal_(0, 2.0)  # queries that look at different places
        elif hasattr(part, "running_mean"):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    for norm in norms:  # the statistics of images, or signals fade from layer to layer
        norm.train().momentum = 1.0
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)
    with torch.no_grad():
        SAMPLES[family][2](module, images(4, seed=100))
    for norm in norms:
        norm.eval()
        norm.running_var.clamp_(min=1e-3)
    return module


def static(family: str, module: nn.Module | None = None) -> nn.Module:
    """Return the graph of fixed sizes of a family's detector, or of a folded copy of it."""
    made: nn.Module = SAMPLES[family][1](module or detector(family), *SIZE)
    return made.eval()


def images(count: int, seed: int = 0) -> Tensor:
    """Return smooth random canvases, normalised, float32."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((count, 3, 8, 12), generator=generator)
    return nn.functional.interpolate(coarse, SIZE, mode="bicubic")


@cache
def exported(family: str) -> onnx.ModelProto:
    """Return the ONNX graph: normalised float32 images in, what the static module gives out.

    Tracing takes up to half a minute: the processes of a test run share the graphs.
    """
    folder = Path(os.environ["LTDEPLOY_TEST_GRAPHS"])  # set in conftest.py
    folder.mkdir(exist_ok=True)
    path = folder / f"{family}.onnx"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            onnx.save(_traced(family), path)
    return onnx.load(path)


def _traced(family: str) -> onnx.ModelProto:
    names = ["boxes", "logits", "quality"][: 3 if family == "fcos" else 2]
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            static(family),
            (images(2),),
            dynamic_shapes=({0: batch},),
            strict=family in QUERY_DETECTORS,
        )
        drop_checks(program)
        made: Any = torch.onnx.export(
            program, (), input_names=["images"], output_names=names, opset_version=20,
            dynamo=True, optimize=True, external_data=False, verbose=False,
        )  # fmt: skip
    return made.model_proto
