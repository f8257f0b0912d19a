"""The detectors of detectron2 and mmdetection, built from torchvision's layers and own parts.

Their layers are torchvision's but for the stride of a bottleneck, which networks that came from
Caffe have in the first convolution (1×1) and others in the second (3×3). Everything else that
differs is in :mod:`ltdeploy.models.detectors.detectron2_parts`; what a file says of it, a recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torchvision.models import detection, resnet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ...errors import CheckpointError
from ...postprocess import KeepRule
from .cascade import CascadeHeads, MeanOf
from .class_rows import CLASS_ROWS, ClassRows
from .detectron2_parts import (
    AnchorShapes,
    FixedAnchors,
    HalfPixelPool,
    LogitProposals,
    NormedPredictor,
    PlainP6P7,
    TwoSidedBoxCoder,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ...postprocess import Activation
    from .architectures import Kind

__all__ = [
    "CASCADE_WEIGHTS",
    "ONES",
    "PLAIN_WEIGHTS",
    "Pixels",
    "Recipe",
    "Trunk",
    "Weights",
    "build",
    "trunk_of",
]

Weights = tuple[float, float, float, float]
ONES: Weights = (1.0, 1.0, 1.0, 1.0)
PLAIN_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
CASCADE_WEIGHTS: tuple[Weights, ...] = tuple(
    (10.0 * stage, 10.0 * stage, 5.0 * stage, 5.0 * stage) for stage in (1, 2, 3)
)
_DEPTHS: dict[tuple[int, ...], int] = {
    (2, 2, 2, 2): 18, (3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152,
}  # fmt: skip
# What torchvision's classes want for training, which is not done here.
_MATCHING = (0.5, 0.5, 512, 0.25)
_KEEPING = (0.05, 0.5, 100)


@dataclass(frozen=True)
class Trunk:
    """A residual network.

    Parameters
    ----------
    blocks : of each stage.
    bottleneck : whether blocks have three convolutions.
    groups, group_width : of the middle ones; (1, 64) is a ResNet, others are ResNeXts.
    """

    blocks: tuple[int, ...]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64

    @property
    def name(self) -> str:
        """``"resnet50"``, ``"resnext101_32x8d"``."""
        depth = _DEPTHS.get(self.blocks, sum(self.blocks) * 3 + 2)
        if not self.bottleneck:
            depth = sum(self.blocks) * 2 + 2
        if self.groups == 1:
            return f"resnet{depth}"
        return f"resnext{depth}_{self.groups}x{self.group_width}d"


@dataclass(frozen=True)
class Pixels:
    """How pixels are normalised, in 0…255 and the order of channels that the network sees."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool


@dataclass(frozen=True)
class Recipe:
    """What a detector is made of and how it computes.

    Parameters
    ----------
    library : whose it is.
    kind : how its parts fit together.
    trunk : the network below the pyramid.
    columns : C, of the class layer; of a RetinaNet the classes F.
    box_rows : boxes of a proposal: F, or 1 for all classes alike.
    activation : of the class layer's outputs.
    stride_in_1x1 : of the blocks that halve the resolution.
    pixels : how photographs are normalised.
    anchors : of its levels.
    anchor_cells : as the file holds them, where it does.
    pool : settings of the pooling, as of :class:`HalfPixelPool`.
    box_weights : what deltas were multiplied with, stage by stage.
    two_sided : whether the logarithms of sides are bounded from below.
    before_nms, after_nms : numbers of proposals, of each level and of all; of a RetinaNet the first
        is the number of pairs of anchor and class that are looked at in each level.
    proposal_iou : from which proposals suppress each other.
    mean_of : what a cascade averages.
    channels, width : of the pyramid and of the box head.
    coarse_from : channels of what the level of stride 64 is made from; None where it is pooled.
    coarse_relu : whether a ReLU is between the levels of stride 64 and 128.
    temperature : of a class layer on normalised features; None for a plain one.
    keep : which of what it finds is kept.
    scaled_px : lengths that photographs' shorter and longer sides are scaled to, the longer at
        most; None where nobody tells.
    squashed_px : height and width that photographs are scaled to whatever their aspect, or None.
    """

    library: Literal["detectron2", "mmdetection"]
    kind: Kind
    trunk: Trunk
    columns: int
    box_rows: int
    stride_in_1x1: bool
    pixels: Pixels
    anchors: AnchorShapes
    pool: Mapping[str, Any]
    activation: Activation = "softmax"
    anchor_cells: tuple[Tensor, ...] | None = None
    box_weights: tuple[Weights, ...] = (PLAIN_WEIGHTS,)
    two_sided: bool = False
    before_nms: int = 1000
    after_nms: int = 1000
    proposal_iou: float = 0.7
    mean_of: MeanOf = "logits"
    channels: int = 256
    width: int = 1024
    coarse_from: int | None = None
    coarse_relu: bool = True
    temperature: float | None = None
    keep: KeepRule = field(default_factory=KeepRule)
    scaled_px: tuple[int, int] | None = None
    squashed_px: tuple[int, int] | None = None

    @property
    def arch(self) -> str:
        """``"detectron2:faster_rcnn_resnet50_fpn"``."""
        family = {"rcnn": "fasterrcnn"}.get(self.kind, self.kind)
        return f"{self.library}:{family}_{self.trunk.name}_fpn"

    @property
    def class_rows(self) -> ClassRows:
        """Where its classes are."""
        rows = CLASS_ROWS[self.kind]
        if self.kind == "retinanet":
            return rows
        return replace(
            rows,
            background=None if self.activation == "seesaw" else "last",
            activation=self.activation,
            own_boxes=self.box_rows > 1,
            linear=self.mean_of == "logits",
        )


def trunk_of(tensors: Mapping[str, Tensor], body: str = "backbone.body.") -> Trunk | None:
    """Return the residual network that weights by torchvision's names are of, or None.

    Raises
    ------
    CheckpointError
        If the blocks of a stage are not numbered 0, 1, 2, ….
    """
    pattern = re.compile(rf"{re.escape(body)}layer([1-4])\.([0-9]+)\.conv1\.weight")
    matches = [found for key in tensors if (found := pattern.fullmatch(key))]
    blocks = [sum(found[1] == stage for found in matches) for stage in "1234"]
    # As text: a number may have more digits than Python converts.
    numbers = [set(map(str, range(count))) for count in blocks]
    for found in matches:
        count = blocks[int(found[1]) - 1]
        if found[2] not in numbers[int(found[1]) - 1]:
            raise CheckpointError(
                f"The weights have {found[0]} (by torchvision's names) and {count} blocks in that "
                f"stage; expected the blocks 0 to {count - 1}. The file is damaged, or weights "
                "were left out of it."
            )
    if not all(blocks):
        return None
    middle, last = (tensors.get(f"{body}layer1.0.conv{at}.weight") for at in (2, 3))
    if middle is None or last is None:
        return Trunk(tuple(blocks), bottleneck=False)
    groups = middle.shape[0] // middle.shape[1]
    return Trunk(tuple(blocks), True, groups, 64 if groups == 1 else middle.shape[1])


def build(recipe: Recipe, height_px: int, width_px: int) -> nn.Module:
    """Build an untrained detector that computes as its own library does."""
    pyramid = _pyramid(recipe)
    module = _retinanet(recipe, pyramid) if recipe.kind == "retinanet" else _rcnn(recipe, pyramid)
    module.transform = detection.transform.GeneralizedRCNNTransform(
        height_px, width_px, [0.0] * 3, [1.0] * 3, size_divisible=1, _skip_resize=True
    )
    built: nn.Module = module
    return built


def _pyramid(recipe: Recipe) -> nn.Module:
    trunk = recipe.trunk
    block: Any = resnet.Bottleneck if trunk.bottleneck else resnet.BasicBlock
    body: Any = resnet.ResNet(
        block,
        list(trunk.blocks),
        groups=trunk.groups,
        width_per_group=trunk.group_width,
        norm_layer=FrozenBatchNorm2d,
    )
    if recipe.stride_in_1x1 and trunk.bottleneck:
        for stage in (body.layer2, body.layer3, body.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    widest = body.inplanes
    stages = (2, 3, 4) if recipe.kind == "retinanet" else (1, 2, 3, 4)
    extra: Any = LastLevelMaxPool()
    if recipe.coarse_from is not None:
        kind = LastLevelP6P7 if recipe.coarse_relu else PlainP6P7
        extra = kind(recipe.coarse_from, recipe.channels)
        extra.use_P5 = recipe.coarse_from != widest
    built: nn.Module = BackboneWithFPN(
        body,
        {f"layer{stage}": str(level) for level, stage in enumerate(stages)},
        [widest >> (4 - stage) for stage in stages],
        recipe.channels,
        extra_blocks=extra,
    )
    return built


def _coder(recipe: Recipe, weights: Weights) -> BoxCoder:
    return TwoSidedBoxCoder(weights) if recipe.two_sided else BoxCoder(weights)


def _heads(recipe: Recipe, pool: Any, weights: Weights) -> Any:
    normed = recipe.temperature is not None
    kind = NormedPredictor if normed else FastRCNNPredictor
    predictor: Any = kind(recipe.width, recipe.columns)
    predictor.bbox_pred = nn.Linear(recipe.width, 4 * recipe.box_rows)
    side = pool.output_size[0]
    head = TwoMLPHead(recipe.channels * side**2, recipe.width)
    made = RoIHeads(pool, head, predictor, *_MATCHING, weights, *_KEEPING)
    made.box_coder = _coder(recipe, weights)
    return made


def _rcnn(recipe: Recipe, pyramid: nn.Module) -> Any:
    # torchvision's class wants heads of its own, which are not used.
    module: Any = detection.FasterRCNN(
        pyramid, None, box_head=nn.Identity(), box_predictor=nn.Identity()
    )
    module.rpn = LogitProposals(
        FixedAnchors(recipe.anchors, recipe.anchor_cells),
        RPNHead(recipe.channels, recipe.anchors.per_cell),
        0.7,
        0.3,
        256,
        0.5,
        {"training": recipe.before_nms, "testing": recipe.before_nms},
        {"training": recipe.after_nms, "testing": recipe.after_nms},
        recipe.proposal_iou,
    )
    module.rpn.box_coder = _coder(recipe, ONES)
    pool = HalfPixelPool(**recipe.pool)
    stages: Sequence[Any] = [_heads(recipe, pool, one) for one in recipe.box_weights]
    if recipe.kind == "cascade_rcnn":
        module.roi_heads = CascadeHeads(nn.ModuleList(stages), mean_of=recipe.mean_of)
    else:
        module.roi_heads = stages[0]
    return module


def _retinanet(recipe: Recipe, pyramid: nn.Module) -> Any:
    anchors = recipe.anchors.per_cell
    head = RetinaNetHead(recipe.channels, anchors, recipe.columns)
    module: Any = detection.RetinaNet(pyramid, recipe.columns, head=head)
    module.anchor_generator = FixedAnchors(recipe.anchors, recipe.anchor_cells)
    module.box_coder = _coder(recipe, recipe.box_weights[0])
    # Of each level the graph keeps as many anchors, with all their classes: the best pairs' are
    # among them. It never keeps fewer than torchvision's.
    module.topk_candidates = max(module.topk_candidates, recipe.before_nms)
    return module
