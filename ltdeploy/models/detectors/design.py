"""What torchvision's detectors are made of, by name: family, backbone and version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BACKBONES", "DESIGNS", "FAMILIES", "FAMILY_NOTES", "Design", "Family"]

Family = Literal["fasterrcnn", "maskrcnn", "cascade_rcnn", "retinanet", "fcos"]
FAMILIES: tuple[Family, ...] = ("fasterrcnn", "maskrcnn", "cascade_rcnn", "retinanet", "fcos")
# What whoever takes over a model should know, and manifests say.
FAMILY_NOTES: dict[str, tuple[str, ...]] = {
    "maskrcnn": ("It gives boxes and masks; bundles have masks if exported with --nms-in-graph.",),
    "cascade_rcnn": ("Its logits are the mean of three stages', each of which takes a fix.",),
}
_ONE_STAGE: tuple[Family, ...] = ("retinanet", "fcos")
# "v2": deeper heads and more normalisation (Li et al. 2021, arXiv 2111.11429; for RetinaNet Zhang
# et al. 2020, arXiv 1912.02424). torchvision has none of the other two.
_WITH_V2: tuple[Family, ...] = ("fasterrcnn", "maskrcnn", "retinanet")
_MOBILE = ("mobilenet_v3_large", "mobilenet_v3_small")
BACKBONES: tuple[str, ...] = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *_MOBILE,
)


@dataclass(frozen=True)
class Design:
    """A detector's parts.

    Parameters
    ----------
    family : how boxes are found.
    backbone : by torchvision's name.
    v2 : torchvision's second version of the heads.
    is_small : for small photographs: fewer proposals, ``320`` in the name.

    Examples
    --------
    >>> Design("retinanet", "resnext50_32x4d").name
    'retinanet_resnext50_32x4d_fpn'
    """

    family: Family
    backbone: str
    v2: bool = False
    is_small: bool = False

    @property
    def name(self) -> str:
        """The detector's name, without ``torchvision:``."""
        small, version = "_320" if self.is_small else "", "_v2" if self.v2 else ""
        return f"{self.family}_{self.backbone}{small}_fpn{version}"

    @property
    def is_one_stage(self) -> bool:
        """Whether there are no proposals."""
        return self.family in _ONE_STAGE

    @property
    def is_mobile(self) -> bool:
        """Whether the backbone is a MobileNet."""
        return self.backbone in _MOBILE


def _designs() -> list[Design]:
    every = [Design(family, backbone) for family in FAMILIES for backbone in BACKBONES]
    small = [
        Design(one.family, one.backbone, is_small=True)
        for one in every
        if one.is_mobile and not one.is_one_stage
    ]
    second = [
        Design(one.family, one.backbone, v2=True)
        for one in every
        if one.family in _WITH_V2 and not one.is_mobile
    ]
    # Weights do not tell whether a detector is for small photographs; the first that fits is taken.
    return [*small, *every, *second]


DESIGNS: dict[str, Design] = {design.name: design for design in _designs()}
