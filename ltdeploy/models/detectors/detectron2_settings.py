"""What of detectron2's ``config.yaml`` is followed beyond what the weights show.

``cfg.dump()`` writes every setting there is, those of other architectures and of projects too;
checked are those that a detector of this kind reads when it finds. Sources:
``detectron2/config/defaults.py``, ``modeling/backbone/fpn.py`` and ``resnet.py``,
``modeling/proposal_generator/rpn.py``, ``modeling/roi_heads/roi_heads.py`` and ``fast_rcnn.py``,
``modeling/meta_arch/retinanet.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...postprocess import KeepRule
from .foreign_settings import Followed, kept_otherwise, require_followed, share

if TYPE_CHECKING:
    from .architectures import Kind

__all__ = ["keep_rule_of", "require_known"]

_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN")  # the same once trained
_FOUR = ("res2", "res3", "res4", "res5")
_LEVELS = ("p2", "p3", "p4", "p5", "p6", "p7")
_TRUNK: Followed = {
    "NORM": _NORMS,
    "RES5_DILATION": (1,),
    "DEFORM_ON_PER_STAGE": ((False,) * 4,),
}


def _pyramid(levels: tuple[str, ...]) -> Followed:
    return {"IN_FEATURES": (levels,), "NORM": ("",), "FUSE_TYPE": ("sum",)}


def _two_stage(heads: str) -> Followed:
    return {
        "META_ARCHITECTURE": ("GeneralizedRCNN",),
        "LOAD_PROPOSALS": (False,),
        "BACKBONE": {"NAME": ("build_resnet_fpn_backbone",)},
        "RESNETS": _TRUNK,
        "FPN": _pyramid(_FOUR),
        "ANCHOR_GENERATOR": {"NAME": ("DefaultAnchorGenerator",)},
        "PROPOSAL_GENERATOR": {"NAME": ("RPN",), "MIN_SIZE": (0,)},
        "RPN": {
            "HEAD_NAME": ("StandardRPNHead",),
            "IN_FEATURES": (_LEVELS[:5],),
            "CONV_DIMS": ((-1,),),
            "BBOX_REG_WEIGHTS": ((1, 1, 1, 1),),
        },
        "ROI_HEADS": {"NAME": (heads,), "IN_FEATURES": (_LEVELS[:4],)},
        "ROI_BOX_HEAD": {
            "NAME": ("FastRCNNConvFCHead",),
            "NUM_CONV": (0,),
            "NUM_FC": (2,),
            "POOLER_RESOLUTION": (7,),
            "POOLER_TYPE": ("ROIAlignV2", "ROIAlign"),
            "MULT_PROPOSAL_SCORE": (False,),  # of CenterNet2 and what is built on it
        },
    }


_ONE_STAGE: Followed = {
    "META_ARCHITECTURE": ("RetinaNet",),
    "BACKBONE": {"NAME": ("build_retinanet_resnet_fpn_backbone",)},
    "RESNETS": _TRUNK,
    "FPN": _pyramid(_FOUR[1:]),
    "ANCHOR_GENERATOR": {"NAME": ("DefaultAnchorGenerator",)},
    "RETINANET": {"IN_FEATURES": (_LEVELS[1:],), "NUM_CONVS": (4,), "NORM": ("",)},
}
_OF_KIND: dict[str, Followed] = {
    "rcnn": _two_stage("StandardROIHeads"),
    "cascade_rcnn": _two_stage("CascadeROIHeads"),
    "retinanet": _ONE_STAGE,
}


def require_known(config: Mapping[str, Any], kind: Kind, where: str) -> None:
    """Raise if a setting that the weights do not show has a value that is not computed here.

    Raises
    ------
    CheckpointError
        With its name, its value and what is computed.
    """
    followed: Followed = {"INPUT": {"FORMAT": ("BGR", "RGB")}, "MODEL": _OF_KIND[kind]}
    require_followed(config, followed, where, whole=False)


def keep_rule_of(config: Mapping[str, Any], kind: Kind, notes: list[str]) -> KeepRule:
    """Return which detections are kept: the config's suppression, LVIS's threshold and number."""
    section = "RETINANET" if kind == "retinanet" else "ROI_HEADS"
    told, test = config.get("MODEL", {}).get(section, {}), config.get("TEST", {})
    names = (f"MODEL.{section}.SCORE_THRESH_TEST", "TEST.DETECTIONS_PER_IMAGE")
    notes += kept_otherwise(told.get("SCORE_THRESH_TEST"), test.get("DETECTIONS_PER_IMAGE"), names)
    if test.get("AUG", {}).get("ENABLED"):
        notes.append(
            "Its config evaluates each photograph at several sizes (TEST.AUG); here each is seen "
            "once, on its canvas."
        )
    iou = told.get("NMS_THRESH_TEST", KeepRule().iou)
    return KeepRule(iou=share(iou, f"MODEL.{section}.NMS_THRESH_TEST"))
