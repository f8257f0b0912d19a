"""Whose detector a state dict is of, and which of torchvision's, by its keys and shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal

from .design import BACKBONES, DESIGNS, Family

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Library", "is_frozen", "likely_designs", "other_library"]

Library = Literal["detectron2", "mmdetection"]
# Keys that one library has and no other.
_LIBRARIES: tuple[tuple[Library, tuple[str, ...]], ...] = (
    ("detectron2", ("backbone.bottom_up.", "proposal_generator.", "head.cls_subnet.")),
    (
        "mmdetection",
        ("neck.lateral_convs.", "roi_head.bbox_head.", "bbox_head.retina_cls.", "rpn_head.rpn_"),
    ),
)
_BODY = "backbone.body."
# What a family has and those below it lack.
_SIGNS: tuple[tuple[str, Family], ...] = (
    ("roi_heads.stages.", "cascade_rcnn"),
    ("roi_heads.mask_", "maskrcnn"),
    ("roi_heads.", "fasterrcnn"),
    ("rpn.", "fasterrcnn"),
    ("head.regression_head.bbox_ctrness.", "fcos"),
    ("head.", "retinanet"),
)


def other_library(keys: Collection[str]) -> Library | None:
    """Return whose names weights have, if not torchvision's."""
    for library, signs in _LIBRARIES:
        if any(key.startswith(signs) for key in keys):
            return library
    return None


def likely_designs(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the few names that a state dict can be of, or the nearest ones.

    All of a family and a backbone, which is the one with most of the file's layers: building every
    detector that there is would take half a minute.
    """
    family = _family(tensors)
    weights = {(key, tuple(one.shape)) for key, one in tensors.items() if _is_layer(key, one.ndim)}
    # Where several have them all, the one that has the least besides.
    layers = {one: _layers(one) for one in BACKBONES}
    backbone = max(layers, key=lambda one: 2 * len(layers[one] & weights) - len(layers[one]))
    return [
        name
        for name, design in DESIGNS.items()
        if (design.family, design.backbone) == (family, backbone)
    ]


def is_frozen(tensors: Collection[str]) -> bool:
    """Whether the backbone's normalisations are torchvision's constants, which count no batches."""
    body = [key for key in tensors if key.startswith(_BODY)]
    counts = any(key.endswith(".num_batches_tracked") for key in body)
    return not counts and any(key.endswith(".running_var") for key in body)


def _family(keys: Collection[str]) -> Family:
    found = (family for sign, family in _SIGNS if any(key.startswith(sign) for key in keys))
    return next(found, "fasterrcnn")


def _is_layer(key: str, axes: int) -> bool:
    return key.startswith(_BODY) and key.endswith(".weight") and axes == 4


@cache
def _layers(backbone: str) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of a backbone's convolutions, as they stand in a detector."""
    import torch

    from .building import build_body

    with torch.device("meta"):
        held = build_body(backbone).state_dict()
    names = ((f"backbone.{key}", value) for key, value in held.items())
    return frozenset((key, tuple(one.shape)) for key, one in names if _is_layer(key, one.ndim))
