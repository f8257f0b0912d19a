"""detectron2's settings: each is followed, or refused by name, or said to be passed over."""

from __future__ import annotations

import copy
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from published_detectors import Made, drawn

from ltdeploy.canvas import Canvas
from ltdeploy.errors import CheckpointError
from ltdeploy.models.detectors.architectures import Kind
from ltdeploy.models.detectors.detector import Detector, load_detector
from ltdeploy.models.detectors.detectron2_layout import read_config
from ltdeploy.models.detectors.detectron2_settings import keep_rule_of, require_known
from ltdeploy.models.detectors.foreign_settings import require_followed
from ltdeploy.postprocess import KeepRule

LEVELS = ["p2", "p3", "p4", "p5", "p6", "p7"]
# As cfg.dump() writes a Faster R-CNN's: tuples as lists.
USUAL: dict[str, Any] = {
    "INPUT": {"FORMAT": "BGR", "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333},
    "TEST": {"DETECTIONS_PER_IMAGE": 100, "AUG": {"ENABLED": False}},
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "MASK_ON": False,
        "LOAD_PROPOSALS": False,
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 2},
        "RESNETS": {
            "NORM": "FrozenBN",
            "RES5_DILATION": 1,
            "DEFORM_ON_PER_STAGE": [False] * 4,
            "STRIDE_IN_1X1": True,
        },
        "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"], "NORM": "", "FUSE_TYPE": "sum"},
        "ANCHOR_GENERATOR": {
            "NAME": "DefaultAnchorGenerator",
            "SIZES": [[32], [64], [128], [256], [512]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
            "OFFSET": 0.0,
        },
        "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
        "RPN": {
            "HEAD_NAME": "StandardRPNHead",
            "IN_FEATURES": LEVELS[:5],
            "CONV_DIMS": [-1],
            "BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
            "NMS_THRESH": 0.7,
            "PRE_NMS_TOPK_TEST": 1000,
            "POST_NMS_TOPK_TEST": 1000,
        },
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "IN_FEATURES": LEVELS[:4],
            "SCORE_THRESH_TEST": 0.05,
            "NMS_THRESH_TEST": 0.5,
        },
        "ROI_BOX_HEAD": {
            "NAME": "FastRCNNConvFCHead",
            "NUM_CONV": 0,
            "NUM_FC": 2,
            "POOLER_RESOLUTION": 7,
            "POOLER_TYPE": "ROIAlignV2",
            "POOLER_SAMPLING_RATIO": 0,
            "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
            "USE_SIGMOID_CE": False,
            "USE_FED_LOSS": True,
        },
        "PIXEL_MEAN": [103.53, 116.28, 123.675],
        "PIXEL_STD": [1.0, 1.0, 1.0],
    },
}


def usual_but(path: str = "", value: Any = None) -> dict[str, Any]:
    config = copy.deepcopy(USUAL)
    if path:
        *inside, last = path.split(".")
        reduce(lambda held, key: held.setdefault(key, {}), inside, config)[last] = value
    return config


def load(
    folder: Path, config: dict[str, Any], family: str = "rcnn", canvas: Canvas | None = None
) -> Detector:
    path = folder / "model_final.pth"
    torch.save({"model": drawn(Made("detectron2", family)).weights}, path)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return load_detector(path, canvas=canvas)


def test_the_usual_settings_are_followed() -> None:
    require_known(USUAL, "rcnn", "x")
    require_known({}, "rcnn", "x")
    cascade = usual_but("MODEL.ROI_HEADS.NAME", "CascadeROIHeads")
    require_known(cascade, "cascade_rcnn", "x")


@pytest.mark.parametrize(
    ("path", "value", "computed"),
    [
        ("INPUT.FORMAT", "L", "'BGR' or 'RGB'"),
        ("MODEL.META_ARCHITECTURE", "ProposalNetwork", "'GeneralizedRCNN'"),
        ("MODEL.BACKBONE.NAME", "build_p67_resnet_fpn_backbone", "'build_resnet_fpn_backbone'"),
        ("MODEL.RESNETS.NORM", "GN", "'FrozenBN' or 'BN'"),
        ("MODEL.RESNETS.RES5_DILATION", 2, "1"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True], "False"),
        ("MODEL.FPN.NORM", "GN", "''"),
        ("MODEL.FPN.FUSE_TYPE", "avg", "'sum'"),
        ("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "'res2'"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "'DefaultAnchorGenerator'"),
        ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 4, "0"),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", [10.0, 10.0, 5.0, 5.0], r"\(1, 1, 1, 1\)"),
        ("MODEL.RPN.IN_FEATURES", LEVELS[1:5], "'p2'"),
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "'StandardROIHeads'"),
        ("MODEL.ROI_HEADS.IN_FEATURES", LEVELS[1:4], "'p2'"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "'ROIAlignV2' or 'ROIAlign'"),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14, "7"),
        ("MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE", True, "False"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(path: str, value: Any, computed: str) -> None:
    with pytest.raises(CheckpointError, match=rf"x has {path} = .*; computed here is .*{computed}"):
        require_known(usual_but(path, value), "rcnn", "x")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("MODEL.RETINANET.IN_FEATURES", LEVELS[2:]),
        ("MODEL.RETINANET.NORM", "GN"),
        ("MODEL.RETINANET.NUM_CONVS", 2),
        ("MODEL.FPN.FUSE_TYPE", "avg"),
    ],
)
def test_settings_of_one_stage_are_its_own(path: str, value: Any) -> None:
    plain: dict[str, Any] = {"MODEL": {"META_ARCHITECTURE": "RetinaNet", "FPN": {}}}
    # What two-stage detectors read matters to no RetinaNet.
    plain["MODEL"]["ROI_HEADS"] = {"NAME": "Res5ROIHeads"}
    require_known(plain, "retinanet", "x")
    *inside, last = path.split(".")
    reduce(lambda held, key: held.setdefault(key, {}), inside, plain)[last] = value
    with pytest.raises(CheckpointError, match=path):
        require_known(plain, "retinanet", "x")


def test_the_file_that_is_refused_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_final.*config\.yaml has MODEL\.FPN\.FUSE"):
        load(tmp_path, usual_but("MODEL.FPN.FUSE_TYPE", "avg"))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128]], "SIZES"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512, 700]], "SIZES"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0, 2.0, 3.0]] * 4 + [[0.5, 1.0, 2.0]], "ASP"),
        ("MODEL.RPN.NMS_THRESH", 7, "NMS_THRESH"),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", -1, "PRE_NMS_TOPK_TEST"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.5, "NMS_THRESH_TEST"),
        ("INPUT.MIN_SIZE_TEST", 2000, "MIN_SIZE_TEST"),
        ("MODEL.FPN", 5, "MODEL.FPN is 5"),
    ],
)
def test_values_that_cannot_be_used_are_named(
    tmp_path: Path, path: str, value: Any, named: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.yaml has settings.*{named}"):
        load(tmp_path, usual_but(path, value))


@pytest.mark.parametrize(
    ("kind", "section"), [("rcnn", "ROI_HEADS"), ("cascade_rcnn", "ROI_HEADS"),
                          ("retinanet", "RETINANET")],
)  # fmt: skip
def test_detections_are_kept_as_the_config_says(kind: Kind, section: str) -> None:
    notes: list[str] = []
    told: dict[str, Any] = {"SCORE_THRESH_TEST": 1e-4, "NMS_THRESH_TEST": 0.6}
    config: dict[str, Any] = {
        "MODEL": {section: told}, "TEST": {"DETECTIONS_PER_IMAGE": 300},
    }  # fmt: skip
    assert keep_rule_of(config, kind, notes) == KeepRule(iou=0.6)
    assert notes == []  # as LVIS is evaluated
    told["SCORE_THRESH_TEST"], config["TEST"]["DETECTIONS_PER_IMAGE"] = 0.05, 100
    assert keep_rule_of(config, kind, notes) == KeepRule(iou=0.6)
    assert f"0.05 (MODEL.{section}.SCORE_THRESH_TEST) and 100" in notes[0]
    config["TEST"]["AUG"] = {"ENABLED": True}
    keep_rule_of(config, kind, notes)
    assert "TEST.AUG" in notes[-1]
    assert keep_rule_of({}, kind, []) == KeepRule()


def test_the_detector_keeps_and_scales_so(tmp_path: Path) -> None:
    config = usual_but("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.35)
    config["INPUT"] |= {"MIN_SIZE_TEST": 600, "MAX_SIZE_TEST": 1000}
    config["MODEL"]["ANCHOR_GENERATOR"]["OFFSET"] = 0.5
    model = load(tmp_path, config)
    assert model.keep_rule == KeepRule(iou=0.35)
    assert (model.canvas.height_px, model.canvas.width_px) == (608, 800)
    assert any("shorter side of 600" in note for note in model.source.notes)
    assert any("SCORE_THRESH_TEST" in note for note in model.source.notes)
    module: Any = model.module
    assert module.rpn.anchor_generator.shapes.offset == 0.5
    other = load(tmp_path, usual_but())
    assert (other.canvas.height_px, other.canvas.width_px) == (800, 1088)
    assert other.source.settings != model.source.settings
    given = load(tmp_path, config, canvas=Canvas(64, 96))
    assert (given.canvas.height_px, given.canvas.width_px) == (64, 96)


@pytest.mark.parametrize(("told", "kept"), [(200, 1000), (5000, 5000)])
def test_a_retinanet_looks_at_as_many_anchors(tmp_path: Path, told: int, kept: int) -> None:
    config = {"MODEL": {"RETINANET": {"TOPK_CANDIDATES_TEST": told, "NMS_THRESH_TEST": 0.4}}}
    model = load(tmp_path, config, "retinanet", Canvas(64, 96))
    module: Any = model.module
    assert module.topk_candidates == kept
    assert model.keep_rule.iou == 0.4


def test_only_whole_tables_refuse_what_they_lack() -> None:
    require_followed({"a": {"b": 1}}, {"a": {}}, "x", whole=False)
    with pytest.raises(CheckpointError, match=r"x has a\.b = 1, which is not known here"):
        require_followed({"a": {"b": 1}}, {"a": {}}, "x", whole=True)
    require_followed({"a": [1, [2.0]], "b": None}, {"a": ((1, (2,)),), "b": (5,)}, "x", whole=True)
    with pytest.raises(CheckpointError, match=r"a\.1\.b = 2; computed here is 1"):
        require_followed({"a": [{"b": 1}, {"b": 2}]}, {"a": {"b": (1,)}}, "x", whole=True)


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "config.yaml").write_text("\n".join([*lines, "MODEL: {FPN: {NORM: *a8}}"]))
    with pytest.raises(CheckpointError, match="81 aliases, expected at most"):
        read_config(tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text("a: &a [1]\nMODEL: {FPN: {NORM: *a}}")
    assert read_config(tmp_path / "model.pth")["MODEL"] == {"FPN": {"NORM": [1]}}
    (tmp_path / "config.yaml").write_text("MODEL: {}\n#" + "x" * (1 << 20))
    with pytest.raises(CheckpointError, match="characters"):
        read_config(tmp_path / "model.pth")
