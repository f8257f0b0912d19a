"""What of mmdetection 3's config is followed beyond what the weights show.

Its parts refuse options that they do not have, so the tables list all that those parts have whose
networks are built here; what is not listed is a part, or a version, that is not known. Sources:
``mmdet/models/backbones/resnet.py``, ``necks/fpn.py``, ``dense_heads/anchor_head.py``,
``rpn_head.py`` and ``retina_head.py``, ``roi_heads/standard_roi_head.py``, ``cascade_roi_head.py``
and ``bbox_heads/convfc_bbox_head.py``, ``task_modules/prior_generators/anchor_generator.py`` and
``coders/delta_xywh_bbox_coder.py``; mmcv's ``ops/nms.py`` and ``roi_align.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...postprocess import KeepRule
from .foreign_settings import ANY, Followed, kept_otherwise, require_followed, share
from .mmdetection_config import within

if TYPE_CHECKING:
    from .architectures import Kind

__all__ = ["keep_rule_of", "overlap_of", "require_known"]

_EVERYWHERE: Followed = {"type": ANY, "init_cfg": ANY, "train_cfg": ANY, "pretrained": ANY}
_NORM: Followed = {
    "type": ("BN", "BN2d", "SyncBN", "MMSyncBN", "BatchNorm2d", "SyncBatchNorm"),
    "eps": (1e-5,),
    "momentum": ANY,
    "requires_grad": ANY,
}
_BACKBONE: Followed = {
    **_EVERYWHERE,
    "type": ("ResNet", "ResNeXt"),
    **dict.fromkeys(
        ("depth", "in_channels", "base_channels", "stem_channels", "groups", "base_width"), ANY
    ),
    **dict.fromkeys(("frozen_stages", "norm_eval", "with_cp", "zero_init_residual"), ANY),
    "num_stages": (4,),
    "strides": ((1, 2, 2, 2),),
    "dilations": ((1, 1, 1, 1),),
    "out_indices": ((0, 1, 2, 3),),
    "style": ("pytorch", "caffe"),
    "deep_stem": (False,),
    "avg_down": (False,),
    "norm_cfg": _NORM,
    "conv_cfg": (),
    "dcn": (),
    "stage_with_dcn": ((False,) * 4,),
    "plugins": (),
}
_NECK: Followed = {
    **_EVERYWHERE,
    "type": ("FPN",),
    "in_channels": ANY,
    "out_channels": ANY,
    "num_outs": (5,),
    "end_level": (-1, 3),
    "relu_before_extra_convs": ANY,
    "no_norm_on_lateral": ANY,
    "norm_cfg": (),
    "conv_cfg": (),
    "act_cfg": (),
    "upsample_cfg": {"mode": ("nearest",)},
}
_CODER: Followed = {
    "type": ("DeltaXYWHBBoxCoder",),
    "target_means": ((0, 0, 0, 0),),
    "target_stds": ANY,
    "clip_border": (True,),
    "add_ctr_clamp": (False,),
    "ctr_clamp": ANY,
    "use_box_type": (False,),
}
_ANCHORS: Followed = {
    "type": ("AnchorGenerator",),
    **dict.fromkeys(("strides", "ratios", "scales", "octave_base_scale"), ANY),
    **dict.fromkeys(("scales_per_octave", "scale_major", "center_offset"), ANY),
    "base_sizes": (),
    "centers": (),
    "use_box_type": (False,),
}
# With a softmax there would be a column for the background.
_SIGMOIDS: Followed = {"type": ANY, "use_sigmoid": (True,)}
_DENSE: Followed = {
    **_EVERYWHERE,
    "num_classes": ANY,
    "in_channels": ANY,
    "feat_channels": ANY,
    "anchor_generator": _ANCHORS,
    "reg_decoded_bbox": ANY,  # its loss alone decodes otherwise
    "loss_bbox": ANY,
    "test_cfg": (),
}
_PROPOSING: Followed = {
    **_DENSE,
    "type": ("RPNHead",),
    "num_convs": (1,),
    # What a graph multiplies proposals' deltas with is fixed.
    "bbox_coder": {**_CODER, "target_stds": ((1, 1, 1, 1),)},
    "loss_cls": ANY,
}
_RETINA: Followed = {
    **_DENSE,
    "type": ("RetinaHead", "FreeAnchorRetinaHead", "PISARetinaHead"),  # losses alone differ
    "stacked_convs": ANY,
    "conv_cfg": (),
    "norm_cfg": (),
    "bbox_coder": _CODER,
    "loss_cls": ANY,
}
_BOX_HEAD: Followed = {
    **_EVERYWHERE,
    "type": ("Shared2FCBBoxHead", "ConvFCBBoxHead"),
    **dict.fromkeys(("in_channels", "num_classes", "fc_out_channels", "conv_out_channels"), ANY),
    **dict.fromkeys(("reg_class_agnostic", "reg_decoded_bbox", "loss_bbox"), ANY),
    "num_shared_convs": (0,),
    "num_shared_fcs": (2,),
    **dict.fromkeys(("num_cls_convs", "num_cls_fcs", "num_reg_convs", "num_reg_fcs"), (0,)),
    "with_avg_pool": (False,),
    "with_cls": (True,),
    "with_reg": (True,),
    "roi_feat_size": (7, (7, 7)),
    "conv_cfg": ANY,  # there are no convolutions
    "norm_cfg": ANY,
    "predict_box_type": ("hbox",),
    "bbox_coder": _CODER,
    "reg_predictor_cfg": {"type": ("Linear",)},
    "cls_predictor_cfg": {
        "type": ("Linear", "NormedLinear"),
        "tempearture": ANY,  # spelt so in mmdetection
        "power": (1,),
        "eps": (1e-6,),
    },
    "loss_cls": ANY,
}
_EXTRACTOR: Followed = {
    **_EVERYWHERE,
    "type": ("SingleRoIExtractor",),
    "out_channels": ANY,
    "featmap_strides": ((4, 8, 16, 32),),
    "finest_scale": ANY,
    "roi_layer": {
        "type": ("RoIAlign",),
        "output_size": (7, (7, 7)),
        "sampling_ratio": ANY,
        "pool_mode": ("avg",),
        "aligned": ANY,
        "use_torchvision": ANY,  # the same, by other code
    },
}
_HEADS: Followed = {
    **_EVERYWHERE,
    "type": ("StandardRoIHead", "CascadeRoIHead"),
    "num_stages": (3,),
    "stage_loss_weights": ANY,
    "bbox_roi_extractor": _EXTRACTOR,
    "bbox_head": _BOX_HEAD,
    "shared_head": (),
    "mask_head": ANY,
    "mask_roi_extractor": ANY,
    "test_cfg": (),
}
_OVERLAP: Followed = dict.fromkeys(("iou_threshold", "iou_thr", "split_thr"), ANY)
_PROPOSALS: Followed = {
    **dict.fromkeys(("nms_pre", "max_per_img", "nms_post"), ANY),  # the last was mmdetection 2's
    "min_bbox_size": (0, -1),
    "nms": {"type": ("nms",), "class_agnostic": (False,), **_OVERLAP},
}
_KEEPING: Followed = {
    "score_thr": ANY,
    "max_per_img": ANY,
    "nms": {
        "type": ("nms", "soft_nms"),
        **_OVERLAP,
        **dict.fromkeys(("class_agnostic", "sigma", "min_score", "method"), ANY),
    },
}
_PIXELS: Followed = {
    "type": ("DetDataPreprocessor",),
    **dict.fromkeys(("mean", "std", "bgr_to_rgb", "rgb_to_bgr", "batch_augments"), ANY),
    **dict.fromkeys(("pad_mask", "mask_pad_value", "pad_seg", "seg_pad_value"), ANY),
    **dict.fromkeys(("boxtype2tensor", "non_blocking"), ANY),
    "pad_value": (0,),
    "pad_size_divisor": ANY,  # a canvas has whole strides of 32
}
_MODEL: Followed = {
    **_EVERYWHERE,
    "data_preprocessor": _PIXELS,
    "backbone": _BACKBONE,
}
_TWO_STAGE: Followed = {
    **_MODEL,
    "type": ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "TwoStageDetector"),
    "neck": {**_NECK, "start_level": (0,), "add_extra_convs": (False,)},
    "rpn_head": _PROPOSING,
    "roi_head": _HEADS,
    "test_cfg": {"rpn": _PROPOSALS, "rcnn": {**_KEEPING, "mask_thr_binary": ANY}},
}
_ONE_STAGE: Followed = {
    **_MODEL,
    "type": ("RetinaNet", "SingleStageDetector"),
    "neck": {**_NECK, "start_level": (1,), "add_extra_convs": (True, "on_input", "on_output")},
    "bbox_head": _RETINA,
    "test_cfg": {**_KEEPING, "nms_pre": ANY, "min_bbox_size": (0, -1)},
}


def require_known(config: Mapping[str, Any], kind: Kind, where: str) -> None:
    """Raise if a setting has a value that is not computed here, or is none that is known.

    Parameters
    ----------
    config : ``model`` of a config, or empty.

    Raises
    ------
    CheckpointError
        With its name, its value and what is computed.
    """
    retina = kind == "retinanet"
    followed = _ONE_STAGE if retina else _TWO_STAGE
    require_followed(config, followed, f"{where}: its config", whole=True)
    # Without use_sigmoid the dense heads have a softmax, whatever the loss's own default.
    head = "bbox_head" if retina else "rpn_head"
    loss = within(config, head, "loss_cls")
    if loss is not None:
        told = {head: {"loss_cls": {"use_sigmoid": within(loss, "use_sigmoid") or False}}}
        require_followed(told, {head: {"loss_cls": _SIGMOIDS}}, f"{where}: its config", whole=True)


def keep_rule_of(config: Mapping[str, Any], kind: Kind, notes: list[str]) -> KeepRule:
    """Return which detections are kept: the config's suppression, LVIS's threshold and number.

    Raises
    ------
    ValueError
        If the suppression is none that is computed here.
    """
    path = ("test_cfg",) if kind == "retinanet" else ("test_cfg", "rcnn")
    told = within(config, *path) or {}
    name = ".".join(path)
    notes += kept_otherwise(
        within(told, "score_thr"),
        within(told, "max_per_img"),
        (f"{name}.score_thr", f"{name}.max_per_img"),
    )
    if "nms" in told and told["nms"] is None:
        raise ValueError(f"{name}.nms is None, expected settings: mmcv then suppresses nothing")
    nms = within(told, "nms") or {}
    agnostic = bool(within(nms, "class_agnostic"))
    if within(nms, "type") != "soft_nms":
        return KeepRule(iou=overlap_of(nms, KeepRule().iou), class_agnostic=agnostic)
    method = within(nms, "method") or "linear"
    if method != "gaussian":
        raise ValueError(
            f"{name}.nms.method of soft_nms is {method!r}, expected 'gaussian': no other lowering "
            "of scores is computed here"
        )
    sigma = within(nms, "sigma")
    sigma = 0.5 if sigma is None else float(sigma)
    if not 0 < sigma < float("inf"):
        raise ValueError(f"{name}.nms.sigma is {sigma!r}, expected a number above 0")
    return KeepRule(suppression="soft", sigma=sigma, class_agnostic=agnostic)


def overlap_of(nms: Mapping[str, Any], usual: float) -> float:
    """Return from which overlap on boxes suppress each other.

    Raises
    ------
    ValueError
        If it is not from 0 to 1.
    """
    for key in ("iou_threshold", "iou_thr"):
        if within(nms, key) is not None:
            return share(nms[key], f"nms.{key}")
    return usual
