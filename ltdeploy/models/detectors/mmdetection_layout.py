"""mmdetection 3's checkpoints: keys by torchvision's names, and what file and config tell.

The file holds its config beside the weights (:mod:`.mmdetection_config`); without one the defaults
of ``configs/_base_/models`` are taken and said. Sources: ``models/necks/fpn.py``,
``models/roi_heads/roi_extractors/single_level_roi_extractor.py``,
``models/task_modules/coders/delta_xywh_bbox_coder.py``, ``models/dense_heads/rpn_head.py``,
``models/roi_heads/bbox_heads/bbox_head.py``, ``models/losses/seesaw_loss.py``, ``eqlv2_loss.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from .detectron2_network import (
    ONES,
    PLAIN_WEIGHTS,
    Pixels,
    Recipe,
    Trunk,
    Weights,
    trunk_of,
)
from .detectron2_parts import AnchorShapes
from .mmdetection_config import stages_of, within
from .mmdetection_scores import activation_of
from .mmdetection_settings import keep_rule_of, overlap_of, require_known

if TYPE_CHECKING:
    from torch import Tensor

    from ...postprocess import Activation
    from .architectures import Kind

__all__ = ["recipe_of", "renamed"]

# Masks, the counters of losses, counters of batches, the normalisation's buffers.
_LEFT_OUT = re.compile(
    r"roi_head\.mask_head\.|.+\.loss_cls\.|.+\.num_batches_tracked$|data_preprocessor\."
)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^backbone\.", "backbone.body."),
        (r"^neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
        (r"^neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
        (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
        (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
        (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
        (r"^roi_head\.bbox_head\.(\d)\.", r"roi_heads.stages.\1."),
        (r"^roi_head\.bbox_head\.", "roi_heads."),
        (r"^(roi_heads\..*)shared_fcs\.0\.", r"\1box_head.fc6."),
        (r"^(roi_heads\..*)shared_fcs\.1\.", r"\1box_head.fc7."),
        (r"^(roi_heads\..*)fc_cls\.", r"\1box_predictor.cls_score."),
        (r"^(roi_heads\..*)fc_reg\.", r"\1box_predictor.bbox_pred."),
        (r"^bbox_head\.cls_convs\.(\d+)\.conv\.", r"head.classification_head.conv.\1.0."),
        (r"^bbox_head\.reg_convs\.(\d+)\.conv\.", r"head.regression_head.conv.\1.0."),
        (r"^bbox_head\.retina_cls\.", "head.classification_head.cls_logits."),
        (r"^bbox_head\.retina_reg\.", "head.regression_head.bbox_reg."),
    )
)
_EPS = 1e-6  # SingleRoIExtractor.map_roi_levels
_PYTORCH = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), bgr=False)
_CAFFE2 = Pixels((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), bgr=True)
_RCNN_STRIDES, _RETINA_STRIDES = (4, 8, 16, 32, 64), (8, 16, 32, 64, 128)
_TEMPERATURE = 20.0  # NormedLinear
# One by the deviations that mmdetection's cascades have, which are rounded.
_CASCADE_WEIGHTS: tuple[Weights, ...] = tuple(
    (1 / centre, 1 / centre, 1 / side, 1 / side)
    for centre, side in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return torchvision's name of each key; those that are not used have none."""
    retina = any(key.startswith("bbox_head.") for key in tensors)
    names = {}
    for key in tensors:
        if _LEFT_OUT.match(key):
            continue
        name = key
        for pattern, made in _RULES:
            name = pattern.sub(made, name)
        if retina:  # behind the three levels of the trunk two coarser ones
            name = re.sub(r"^(backbone\.fpn\.)layer_blocks\.3\.0\.", r"\1extra_blocks.p6.", name)
            name = re.sub(r"^(backbone\.fpn\.)layer_blocks\.4\.0\.", r"\1extra_blocks.p7.", name)
        names[key] = name
    return names


def recipe_of(
    tensors: Mapping[str, Tensor],
    named: Mapping[str, Tensor],
    config: Mapping[str, Any],
    where: str,
) -> tuple[Recipe, list[str]]:
    """Return what the detector is made of, and what was assumed.

    Parameters
    ----------
    tensors : under mmdetection's keys.
    named : under torchvision's.
    config : ``model`` of its config, or empty.

    Raises
    ------
    CheckpointError
        If the trunk, the class layer or an option is none that is known.
    """
    trunk = trunk_of(named)
    if trunk is None or "backbone.fpn.layer_blocks.0.0.weight" not in named:
        raise CheckpointError(
            f"{where} has mmdetection's keys and no residual network with a feature pyramid under "
            "'backbone' and 'neck'; expected ResNets and ResNeXts with an FPN."
        )
    kind, layer = _classes(named, where)
    require_known(config, kind, where)
    retina = kind == "retinanet"
    head = ("bbox_head",) if retina else ("roi_head", "bbox_head")
    anchors = _anchors(config, retina)
    columns = layer.shape[0] // (anchors.per_cell if retina else 1)
    rows = 1
    if not retina:
        boxes = layer_of(kind).replace("cls_score", "bbox_pred")
        rows = named[boxes].shape[0] // 4 if boxes in named else 1
        if kind == "cascade_rcnn" and rows > 1:
            raise CheckpointError(
                f"{where}: roi_head.bbox_head.0.fc_reg.weight is {tuple(named[boxes].shape)}, with "
                "boxes of its own for each class (reg_class_agnostic=False); expected 4 rows in a "
                "Cascade R-CNN. Export it to ONNX with its own library and give the .onnx with "
                "--outputs."
            )
    notes: list[str] = []
    activation: Activation = "sigmoid" if retina else "softmax"
    if not retina:
        activation = activation_of(tensors, config, columns, rows, notes, where)
    coarse = named.get("backbone.fpn.extra_blocks.p6.weight")
    before, after, overlap = _proposals(config, retina)
    fc = named.get(layer_of(kind))
    recipe = Recipe(
        library="mmdetection",
        kind=kind,
        trunk=trunk,
        columns=columns,
        box_rows=rows,
        activation=activation,
        stride_in_1x1=within(config, "backbone", "style") == "caffe",
        pixels=_pixels(config, trunk, notes),
        anchors=anchors,
        pool=_pool(config),
        box_weights=_weights(config, head, kind),
        two_sided=True,
        before_nms=before,
        after_nms=after,
        proposal_iou=overlap,
        keep=keep_rule_of(config, kind, notes),
        channels=named["backbone.fpn.layer_blocks.0.0.weight"].shape[0],
        width=1024 if retina or fc is None else fc.shape[1],
        coarse_from=None if coarse is None else coarse.shape[1],
        coarse_relu=bool(within(config, "neck", "relu_before_extra_convs")),
        temperature=None if retina else _temperature(config, activation, notes),
    )
    if not config:
        notes.append(
            "The file holds no config of mmdetection; assumed are its defaults: the stride of "
            "bottlenecks in the 3×3 convolution, its usual anchors, 1,000 proposals."
        )
    return recipe, notes


def layer_of(kind: Kind) -> str:
    """Return torchvision's name of the (first) class layer's weight."""
    return {
        "retinanet": "head.classification_head.cls_logits.weight",
        "cascade_rcnn": "roi_heads.stages.0.box_predictor.cls_score.weight",
    }.get(kind, "roi_heads.box_predictor.cls_score.weight")


def _classes(named: Mapping[str, Tensor], where: str) -> tuple[Kind, Tensor]:
    kinds: tuple[Kind, ...] = ("retinanet", "rcnn", "cascade_rcnn")
    for kind in kinds:
        if layer_of(kind) in named:
            return kind, named[layer_of(kind)]
    raise CheckpointError(
        f"{where} has mmdetection's keys and no class layer that is known: "
        "roi_head.bbox_head.fc_cls, roi_head.bbox_head.0.fc_cls or bbox_head.retina_cls. Known are "
        "Faster, Mask and Cascade R-CNN and RetinaNet."
    )


def _temperature(
    config: Mapping[str, Any], activation: Activation, notes: list[str]
) -> float | None:
    """Return the factor of a class layer on normalised features, None for a plain one."""
    told = [_stage_temperature(stage) for stage in stages_of(config)]
    if any(one != told[0] for one in told):
        raise ValueError("roi_head.bbox_head has stages whose class layers differ in kind")
    if not config and activation == "seesaw":
        notes.append(
            "Assumed as mmdetection's seesaw configs have it: a class layer on normalised features "
            "with the temperature 20 (NormedLinear)."
        )
        return _TEMPERATURE
    return told[0] if told else None


def _stage_temperature(stage: Mapping[str, Any]) -> float | None:
    if not str(within(stage, "cls_predictor_cfg", "type")).endswith("NormedLinear"):
        return None
    told = within(stage, "cls_predictor_cfg", "tempearture")  # spelt so in mmdetection
    return _TEMPERATURE if told is None else float(told)


def _pixels(config: Mapping[str, Any], trunk: Trunk, notes: list[str]) -> Pixels:
    told = within(config, "data_preprocessor")
    if told is not None:
        mean, std = (tuple(float(v) for v in within(told, key) or ()) for key in ("mean", "std"))
        if not len(mean) == len(std) == 3:
            raise ValueError(
                f"data_preprocessor has mean {mean} and std {std}, expected three numbers each"
            )
        # Images are read as B, G, R; both settings turn the channels round.
        turned = any(within(told, key) for key in ("bgr_to_rgb", "rgb_to_bgr"))
        return Pixels(mean, std, bgr=not turned)
    usual = _CAFFE2 if (trunk.groups, trunk.group_width) == (32, 8) else _PYTORCH
    notes.append(
        f"Assumed as mmdetection's configs for {trunk.name} have it: channels "
        f"{'B, G, R' if usual.bgr else 'R, G, B'} with mean {', '.join(map(str, usual.mean))} and "
        f"std {', '.join(map(str, usual.std))}."
    )
    return usual


def _weights(config: Mapping[str, Any], head: tuple[str, ...], kind: Kind) -> tuple[Weights, ...]:
    """Return, stage by stage, what deltas were multiplied with: one by the config's deviations."""
    held: Any = config
    for key in head:
        held = held.get(key) if isinstance(held, Mapping) else None
    if held is None:
        return {"retinanet": (ONES,), "cascade_rcnn": _CASCADE_WEIGHTS}.get(kind, (PLAIN_WEIGHTS,))
    usual = ONES if kind == "retinanet" else PLAIN_WEIGHTS
    stages = held if isinstance(held, list) else [held] * (3 if kind == "cascade_rcnn" else 1)
    return tuple(_stage_weights(stage, usual) for stage in stages)


def _stage_weights(stage: Mapping[str, Any], usual: Weights) -> Weights:
    coder = within(stage, "bbox_coder")
    if coder is None:
        return usual
    deviations = within(coder, "target_stds")
    if deviations is None:
        return ONES  # the coder's own default
    first, second, third, fourth = (1.0 / float(value) for value in deviations)
    return first, second, third, fourth


def _proposals(config: Mapping[str, Any], retina: bool) -> tuple[int, int, float]:
    """Return how many of each level and of all are kept, and from which overlap not.

    Of a RetinaNet the first is the number of pairs of anchor and class that a level may find.
    """
    told = within(config, "test_cfg") if retina else within(config, "test_cfg", "rpn")
    told = told or {}
    before, after = within(told, "nms_pre"), within(told, "max_per_img")
    before, after = (1000 if one is None else int(one) for one in (before, after))
    if before < 1 or after < 1:
        raise ValueError(
            f"nms_pre is {before} and max_per_img {after}, expected at least 1: graphs have fixed "
            "numbers of boxes"
        )
    return before, after, 0.7 if retina else overlap_of(within(told, "nms") or {}, 0.7)


def _pool(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the pooling, which all stages share."""
    head = within(config, "roi_head") or {}
    told = head.get("bbox_roi_extractor")
    stages = told if isinstance(told, list) else [told]
    pools = [_stage_pool(stage or {}) for stage in stages]
    if any(pool != pools[0] for pool in pools):
        raise ValueError("roi_head.bbox_roi_extractor has stages that pool each in its own way")
    return pools[0]


def _stage_pool(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "eps": _EPS,
        "finest_px": float(within(told, "finest_scale") or 56),
        "sampling_ratio": int(within(told, "roi_layer", "sampling_ratio") or 0),
        "aligned": within(told, "roi_layer", "aligned") is not False,
    }


def _side(stride: Any) -> int:
    """Return a stride, which may stand there for both axes."""
    both = stride if isinstance(stride, tuple | list) else (stride, stride)
    if len(both) != 2 or both[0] != both[1]:
        raise ValueError(
            f"anchor_generator.strides has {stride!r}, expected the same for both axes"
        )
    return int(both[0])


def _anchors(config: Mapping[str, Any], retina: bool) -> AnchorShapes:
    told = within(config, "bbox_head" if retina else "rpn_head", "anchor_generator") or {}
    usual = _RETINA_STRIDES if retina else _RCNN_STRIDES
    strides = tuple(_side(one) for one in within(told, "strides") or usual)
    if len(strides) != len(usual):
        raise ValueError(
            f"anchor_generator.strides has {len(strides)} levels, expected {len(usual)}"
        )
    octave, scales = within(told, "octave_base_scale"), within(told, "scales")
    if octave is None and scales is None and retina:
        octave = 4
    if octave is not None:
        per = within(told, "scales_per_octave") or 3
        scales = tuple(octave * 2 ** (part / per) for part in range(per))
    return AnchorShapes(
        tuple(tuple(float(stride * scale) for scale in scales or (8,)) for stride in strides),
        tuple(float(ratio) for ratio in within(told, "ratios") or (0.5, 1.0, 2.0)),
        strides,
        size_major=within(told, "scale_major") is False,
        offset=float(within(told, "center_offset") or 0.0),
    )
