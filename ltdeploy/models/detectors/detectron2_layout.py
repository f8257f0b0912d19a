"""detectron2's checkpoints: keys by torchvision's names, and what a file and its config tell.

``model_final.pth`` (``{"model": …}``) and the model zoo's ``.pkl`` hold weights alone. How pixels
are normalised and where bottlenecks have their stride is in the ``config.yaml`` that detectron2
writes beside the checkpoint; without one its defaults are taken and said. Sources:
``detectron2/config/defaults.py``, ``configs/Base-RCNN-FPN.yaml``, ``configs/Base-RetinaNet.yaml``,
``modeling/anchor_generator.py``, ``modeling/poolers.py``, ``modeling/roi_heads/fast_rcnn.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._optional import require
from ...errors import CheckpointError
from ..head import Activation
from .cascade import MeanOf
from .detectron2_network import CASCADE_WEIGHTS, PLAIN_WEIGHTS, Pixels, Recipe, Trunk, trunk_of
from .detectron2_parts import AnchorShapes
from .detectron2_settings import keep_rule_of, require_known
from .foreign_settings import share

if TYPE_CHECKING:
    from torch import Tensor

    from .architectures import Kind

__all__ = ["CONFIG_FILE", "read_config", "recipe_of", "renamed"]

CONFIG_FILE = "config.yaml"
_LARGEST_CONFIG, _MOST_ALIASES = 1 << 20, 16
# Masks and keypoints, buffers of old versions, counters of batches.
_LEFT_OUT = re.compile(
    r"roi_heads\.(mask|keypoint)_head\.|pixel_(mean|std)$|(.+\.)?anchor_generator\.|"
    r".+\.num_batches_tracked$"
)
_CAFFE_MEAN, _CAFFE_STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
# modeling/poolers.py: sys.float_info[8], so that boxes without area have a level.
_EPS = sys.float_info.epsilon
_OCTAVES = tuple(2 ** (third / 3) for third in range(3))
_ONE_STAGE = AnchorShapes(
    tuple(tuple(size * octave for octave in _OCTAVES) for size in (32, 64, 128, 256, 512)),
    strides_px=(8, 16, 32, 64, 128),
)
_TWO_STAGE = AnchorShapes(((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)))


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return torchvision's name of each key; those that are not used have none."""
    first = 3 if "head.cls_score.weight" in tensors else 2  # the pyramid's finest level
    return {key: _body(_pyramid(_head(key), first)) for key in tensors if not _LEFT_OUT.match(key)}


def read_config(path: Path) -> dict[str, Any]:
    """Return the ``config.yaml`` beside a checkpoint, read as plain values; empty without one.

    Raises
    ------
    CheckpointError
        If it is no YAML of plain values.
    """
    beside = path.parent / CONFIG_FILE
    if not beside.is_file():
        return {}
    yaml = require("yaml", extra="torch", purpose="read detectron2's config.yaml")
    try:
        with beside.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_CONFIG + 1)
        # A few hundred bytes of aliases of aliases would fill the machine's memory.
        aliases = sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        if len(text) > _LARGEST_CONFIG or aliases > _MOST_ALIASES:
            raise ValueError(
                f"it has {len(text):,} characters and {aliases} aliases, expected at most "
                f"{_LARGEST_CONFIG:,} and {_MOST_ALIASES}"
            )
        held = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError) as error:
        raise CheckpointError(
            f"{beside}, beside the checkpoint, is not plain YAML: {error}. detectron2 writes it "
            "with cfg.dump(); put that one there, or none."
        ) from error
    return held if isinstance(held, dict) and isinstance(held.get("MODEL"), dict) else {}


def recipe_of(
    tensors: Mapping[str, Tensor],
    named: Mapping[str, Tensor],
    config: Mapping[str, Any],
    where: str,
) -> tuple[Recipe, list[str]]:
    """Return what the detector is made of, and what was assumed.

    Parameters
    ----------
    tensors : under detectron2's keys.
    named : under torchvision's.
    config : from :func:`read_config`.

    Raises
    ------
    CheckpointError
        If the trunk, the class layer or an option is none that is known.
    """
    trunk = trunk_of(named)
    if trunk is None:
        raise CheckpointError(
            f"{where} has detectron2's keys and no residual network with four stages under "
            "'backbone.bottom_up'; expected ResNets and ResNeXts with a feature pyramid."
        )
    told = config.get("MODEL", {})
    notes: list[str] = []
    kind, classes = _classes(tensors, where)
    require_known(config, kind, f"{where}: its {CONFIG_FILE}")
    box = told.get("ROI_BOX_HEAD", {})
    retina = kind == "retinanet"
    anchors = _anchors(told, _ONE_STAGE if retina else _TWO_STAGE)
    cells = _cells(tensors)
    columns = classes.shape[0]
    rows = 1
    weights: Any = told.get("RETINANET", {}).get("BBOX_REG_WEIGHTS", (1.0,) * 4)
    if retina:
        columns //= anchors.per_cell if cells is None else len(cells[0])
        weights = (weights,)
    elif kind == "cascade_rcnn":
        cascade = told.get("ROI_BOX_CASCADE_HEAD", {})
        weights = cascade.get("BBOX_REG_WEIGHTS", CASCADE_WEIGHTS)
    else:
        weights = (box.get("BBOX_REG_WEIGHTS", PLAIN_WEIGHTS),)
        rows = named["roi_heads.box_predictor.bbox_pred.weight"].shape[0] // 4
    pooling = box.get("POOLER_TYPE", "ROIAlignV2")
    before, after = _proposals(told, retina)
    coarse = named.get("backbone.fpn.extra_blocks.p6.weight")
    fc = named.get(
        "roi_heads.box_head.fc6.weight", named.get("roi_heads.stages.0.box_head.fc6.weight")
    )
    activation: Activation = "sigmoid" if retina or box.get("USE_SIGMOID_CE") else "softmax"
    mean_of: MeanOf = "logits"
    if kind == "cascade_rcnn":
        mean_of = "sigmoids" if activation == "sigmoid" else "probabilities"
    recipe = Recipe(
        library="detectron2",
        kind=kind,
        trunk=trunk,
        columns=columns,
        box_rows=rows,
        activation=activation,
        stride_in_1x1=_stride(told, trunk, notes),
        pixels=_pixels(tensors, config, trunk, notes),
        anchors=anchors,
        anchor_cells=cells,
        pool={
            "eps": _EPS,
            "sampling_ratio": int(box.get("POOLER_SAMPLING_RATIO", 0)),
            "aligned": pooling == "ROIAlignV2",
        },
        box_weights=tuple(_four(one) for one in weights),
        before_nms=before,
        after_nms=after,
        proposal_iou=share(told.get("RPN", {}).get("NMS_THRESH", 0.7), "MODEL.RPN.NMS_THRESH"),
        mean_of=mean_of,
        channels=named["backbone.fpn.layer_blocks.0.0.weight"].shape[0],
        width=1024 if fc is None else fc.shape[0],
        coarse_from=None if coarse is None else coarse.shape[1],
        keep=keep_rule_of(config, kind, notes),
        scaled_px=_scaled(config.get("INPUT", {}), notes),
    )
    if not told:
        notes.append(
            f"There is no {CONFIG_FILE} of detectron2 beside the file; put it there if the model "
            "was not trained with the defaults."
        )
    return recipe, notes


def _classes(tensors: Mapping[str, Tensor], where: str) -> tuple[Kind, Tensor]:
    """Return the kind, and the weight of its (first) class layer."""
    places: tuple[tuple[str, Kind], ...] = (
        ("head.cls_score.weight", "retinanet"),
        ("roi_heads.box_predictor.cls_score.weight", "rcnn"),
        ("roi_heads.box_predictor.0.cls_score.weight", "cascade_rcnn"),
    )
    for key, kind in places:
        if key in tensors:
            return kind, tensors[key]
    raise CheckpointError(
        f"{where} has detectron2's keys and no class layer; looked for "
        f"{', '.join(key for key, _ in places)}. Known are Faster, Mask and Cascade R-CNN and "
        "RetinaNet; a backbone alone finds nothing."
    )


def _stride(told: Mapping[str, Any], trunk: Trunk, notes: list[str]) -> bool:
    """Return whether bottlenecks have their stride in the 1×1 convolution."""
    stride = told.get("RESNETS", {}).get("STRIDE_IN_1X1")
    if stride is not None or not trunk.bottleneck:
        return bool(stride)
    first = trunk.groups == 1
    notes.append(
        f"Assumed as detectron2's configs for {trunk.name} have it: the stride of bottlenecks in "
        f"the {'first, 1×1,' if first else 'second, 3×3,'} convolution (STRIDE_IN_1X1)."
    )
    return first


def _pixels(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], trunk: Trunk, notes: list[str]
) -> Pixels:
    """Return the normalisation of the file, the config or, said in a note, the defaults."""
    told = config.get("MODEL", {})
    bgr = config.get("INPUT", {}).get("FORMAT", "BGR") == "BGR"
    mean, std = told.get("PIXEL_MEAN"), told.get("PIXEL_STD")
    if "pixel_mean" in tensors and "pixel_std" in tensors:
        mean, std = (tensors[key].flatten().tolist() for key in ("pixel_mean", "pixel_std"))
    if mean is None or std is None:
        mean = _CAFFE_MEAN
        std = (1.0, 1.0, 1.0) if trunk.groups == 1 else _CAFFE_STD
        notes.append(
            f"Assumed as detectron2's configs for {trunk.name} have it: channels B, G, R with mean "
            f"{', '.join(map(str, mean))} and std {', '.join(map(str, std))}."
        )
    return Pixels(_three(mean), _three(std), bgr)


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _four(values: Any) -> tuple[float, float, float, float]:
    first, second, third, fourth = (float(value) for value in values)
    return first, second, third, fourth


def _proposals(told: Mapping[str, Any], retina: bool) -> tuple[int, int]:
    """Return how many proposals of each level and of all are kept.

    Of a RetinaNet the first is the number of pairs of anchor and class that a level may find.
    """
    section = told.get("RETINANET" if retina else "RPN", {})
    key = "TOPK_CANDIDATES_TEST" if retina else "PRE_NMS_TOPK_TEST"
    before, after = int(section.get(key, 1000)), int(section.get("POST_NMS_TOPK_TEST", 1000))
    if before < 1 or after < 1:
        raise ValueError(f"{key} is {before} and POST_NMS_TOPK_TEST {after}, expected at least 1")
    return before, after


def _scaled(told: Mapping[str, Any], notes: list[str]) -> tuple[int, int] | None:
    """Return the lengths that photographs' shorter and longer sides are scaled to."""
    shorter, longer = told.get("MIN_SIZE_TEST"), told.get("MAX_SIZE_TEST", 1333)
    if shorter is None:
        return None
    if int(shorter) == 0:
        notes.append("Its config leaves photographs at their own size (INPUT.MIN_SIZE_TEST is 0).")
        return None
    if not 0 < int(shorter) <= int(longer):
        raise ValueError(f"INPUT.MIN_SIZE_TEST is {shorter} and MAX_SIZE_TEST {longer}")
    return int(shorter), int(longer)


def _anchors(told: Mapping[str, Any], usual: AnchorShapes) -> AnchorShapes:
    held = told.get("ANCHOR_GENERATOR", {})
    levels = len(usual.strides_px)
    sizes = [tuple(float(size) for size in level) for level in held.get("SIZES", usual.sizes_px)]
    sizes *= levels if len(sizes) == 1 else 1
    ratios = [tuple(map(float, one)) for one in held.get("ASPECT_RATIOS", [usual.ratios])]
    if len(sizes) != levels or len({len(level) for level in sizes}) != 1:
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.SIZES is {held.get('SIZES')}, expected as many sizes for each "
            f"of {levels} levels"
        )
    if len(ratios) not in (1, levels) or len(set(ratios)) != 1:
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS is {held.get('ASPECT_RATIOS')}, expected the "
            "same for all levels"
        )
    return AnchorShapes(
        tuple(sizes), ratios[0], usual.strides_px, offset=float(held.get("OFFSET", 0.0))
    )


def _cells(tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...] | None:
    """Return the anchors of a cell, level by level, which old versions kept in the file."""
    found = {
        int(key.rpartition(".")[2]): value.float()
        for key, value in tensors.items()
        if re.match(r"(.+\.)?anchor_generator\.cell_anchors\.\d+$", key)
    }
    return tuple(found[level] for level in sorted(found)) or None


def _body(key: str) -> str:
    """Rename the trunk's layers: ``res2.0.conv1.norm`` to ``layer1.0.bn1``."""
    if not key.startswith("backbone.bottom_up."):
        return key
    key = re.sub(r"^backbone\.bottom_up\.(stem\.)?", "backbone.body.", key)
    key = re.sub(r"\.res(\d)\.", lambda one: f".layer{int(one[1]) - 1}.", key)
    key = re.sub(r"\.conv(\d)\.norm\.", r".bn\1.", key)
    return key.replace(".shortcut.norm.", ".downsample.1.").replace(".shortcut.", ".downsample.0.")


def _pyramid(key: str, first: int) -> str:
    key = re.sub(r"^backbone\.top_block\.", "backbone.fpn.extra_blocks.", key)
    for theirs, ours in (("lateral", "inner"), ("output", "layer")):
        found = re.match(rf"backbone\.fpn_{theirs}(\d)\.(.+)", key)
        if found:
            return f"backbone.fpn.{ours}_blocks.{int(found[1]) - first}.0.{found[2]}"
    return key


def _head(key: str) -> str:
    for pattern, name in (
        (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
        (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
        (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
        (r"^roi_heads\.(box_head|box_predictor)\.(\d)\.", r"roi_heads.stages.\2.\1."),
        (r"(\.box_head\.)fc1\.", r"\1fc6."),
        (r"(\.box_head\.)fc2\.", r"\1fc7."),
        (r"^head\.cls_score\.", "head.classification_head.cls_logits."),
        (r"^head\.bbox_pred\.", "head.regression_head.bbox_reg."),
    ):
        key = re.sub(pattern, name, key)
    # Each convolution is followed by a ReLU that counts.
    for theirs, ours in (("cls_subnet", "classification"), ("bbox_subnet", "regression")):
        found = re.match(rf"head\.{theirs}\.(\d+)\.(.+)", key)
        if found:
            return f"head.{ours}_head.conv.{int(found[1]) // 2}.0.{found[2]}"
    return key
