"""mmdetection's settings: each is followed or refused by name; what scores its losses have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_detectors import RGB_MEAN, RGB_STD, Made, canvas_of, computed, drawn

from ltdeploy.canvas import Canvas
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.errors import CheckpointError
from ltdeploy.models.detectors.architectures import Kind
from ltdeploy.models.detectors.detector import Detector, load_detector
from ltdeploy.models.detectors.mmdetection_config import (
    Resized,
    model_config,
    pipeline_of,
    resized_by,
)
from ltdeploy.models.detectors.mmdetection_scores import activation_of
from ltdeploy.models.detectors.mmdetection_settings import keep_rule_of, require_known
from ltdeploy.postprocess import KeepRule, ScoreRule

COMMON = """
    _scope_='mmdet',
    backbone=dict(
        depth=50, frozen_stages=1, init_cfg=dict(checkpoint='x', type='Pretrained'),
        norm_cfg=dict(requires_grad=True, type='torch.nn.BatchNorm2d'), norm_eval=True,
        num_stages=4, out_indices=(0, 1, 2, 3), style='pytorch',
        type='mmdet.models.backbones.resnet.ResNet'),
    data_preprocessor=dict(
        bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], pad_mask=True, pad_size_divisor=32,
        std=[58.395, 57.12, 57.375], type='DetDataPreprocessor'),
"""
HEAD = """dict(
    bbox_coder=dict(
        target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[{stds}], type='DeltaXYWHBBoxCoder'),
    fc_out_channels=32, in_channels=16, loss_bbox=dict(loss_weight=1.0, type='L1Loss'),
    loss_cls=dict(loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False), num_classes=3,
    reg_class_agnostic={agnostic}, roi_feat_size=7, type='Shared2FCBBoxHead')"""
ONE = HEAD.format(stds="0.1, 0.1, 0.2, 0.2", agnostic=False)
STAGES = ",".join(
    HEAD.format(stds=f"{a}, {a}, {b}, {b}", agnostic=True)
    for a, b in ((0.1, 0.2), (0.05, 0.1), (1 / 30, 1 / 15))
)
RCNN = """model = dict({common}
    neck=dict(in_channels=[256, 512, 1024, 2048], num_outs=5, out_channels=16, type='FPN'),
    roi_head=dict(
        bbox_head={heads},
        bbox_roi_extractor=dict(
            featmap_strides=[4, 8, 16, 32], out_channels=16,
            roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign'),
            type='SingleRoIExtractor'),
        mask_head=dict(type='FCNMaskHead'), {stages}),
    rpn_head=dict(
        anchor_generator=dict(
            ratios=[0.5, 1.0, 2.0], scales=[8], strides=[4, 8, 16, 32, 64],
            type='AnchorGenerator'),
        bbox_coder=dict(
            target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0],
            type='DeltaXYWHBBoxCoder'),
        feat_channels=16, in_channels=16, loss_bbox=dict(type='L1Loss'),
        loss_cls=dict(loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=True),
        type='RPNHead'),
    test_cfg=dict(
        rcnn=dict(
            mask_thr_binary=0.5, max_per_img=100, nms=dict(iou_threshold=0.5, type='nms'),
            score_thr=0.05),
        rpn=dict(
            max_per_img=1000, min_bbox_size=0, nms=dict(iou_threshold=0.7, type='nms'),
            nms_pre=1000)),
    train_cfg=dict(rcnn=dict(debug=False)), type='{type}')
"""
TEXTS: dict[Kind, str] = {
    "rcnn": RCNN.format(common=COMMON, heads=ONE, stages="type='StandardRoIHead'", type="MaskRCNN"),
    "cascade_rcnn": RCNN.format(
        common=COMMON, heads=f"[{STAGES}]", type="CascadeRCNN",
        stages="num_stages=3, stage_loss_weights=[1, 0.5, 0.25], type='CascadeRoIHead'",
    ),
    "retinanet": f"""model = dict({COMMON}
    bbox_head=dict(
        anchor_generator=dict(
            octave_base_scale=4, ratios=[0.5, 1.0, 2.0], scales_per_octave=3,
            strides=[8, 16, 32, 64, 128], type='AnchorGenerator'),
        bbox_coder=dict(
            target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0],
            type='DeltaXYWHBBoxCoder'),
        feat_channels=16, in_channels=16, loss_bbox=dict(type='L1Loss'),
        loss_cls=dict(alpha=0.25, gamma=2.0, type='FocalLoss', use_sigmoid=True), num_classes=3,
        stacked_convs=4, type='RetinaHead'),
    neck=dict(
        add_extra_convs='on_input', in_channels=[256, 512, 1024, 2048], num_outs=5,
        out_channels=16, start_level=1, type='FPN'),
    test_cfg=dict(
        max_per_img=100, min_bbox_size=0, nms=dict(iou_threshold=0.5, type='nms'), nms_pre=1000,
        score_thr=0.05),
    type='RetinaNet')
""",
}  # fmt: skip
FAMILIES: dict[Kind, str] = {"rcnn": "rcnn", "cascade_rcnn": "cascade", "retinanet": "retinanet"}


def made_of(family: str = "rcnn", **options: Any) -> Made:
    usual: dict[str, Any] = {"stride_in_1x1": False, "mean": RGB_MEAN, "std": RGB_STD, "bgr": False}
    return drawn(Made("mmdetection", family, **(usual | options)))


def load(folder: Path, made: Made, cfg: str | None) -> Detector:
    path = folder / "epoch_12.pth"
    meta = {"mmengine_version": "0.10.3"} | ({} if cfg is None else {"cfg": cfg})
    torch.save({"meta": meta, "state_dict": made.weights}, path)
    return load_detector(path, canvas=Canvas(64, 96))


def changed(kind: Kind, path: str, value: Any) -> dict[str, Any]:
    """Return a usual config with one setting more or other; in lists, of the last entry."""
    config = model_config(TEXTS[kind])
    *inside, last = path.split(".")
    held: Any = config
    for key in inside:
        held = held.setdefault(key, {})
        held = held[-1] if isinstance(held, list) else held
    held[last] = value
    return config


@pytest.mark.parametrize("kind", TEXTS)
def test_the_usual_settings_are_followed(tmp_path: Path, kind: Kind) -> None:
    made = made_of(FAMILIES[kind])
    model = load(tmp_path, made, TEXTS[kind])
    canvas = canvas_of()
    raw = DetectorReference(model).run({"images": canvas[None]})
    with torch.no_grad():
        wanted = computed(made, canvas)
    assert raw["logits"][0] == pytest.approx(wanted["logits"].numpy(), abs=1e-3)
    assert np.abs(raw["boxes"][0] - wanted["boxes"].numpy()).max() < 0.03
    assert model.keep_rule == KeepRule()
    assert any("0.05 (test_cfg" in note and "100 det" in note for note in model.source.notes)


@pytest.mark.parametrize(
    ("path", "value", "computed_here"),
    [
        ("type", "FastRCNN", "'FasterRCNN' or"),
        ("backbone.type", "ResNetV1d", "'ResNet' or"),
        ("backbone.dilations", (1, 1, 1, 2), r"\(1, 1, 1, 1\)"),
        ("backbone.strides", (1, 2, 2, 1), r"\(1, 2, 2, 2\)"),
        ("backbone.norm_cfg.type", "GN", "'BN' or"),
        ("backbone.norm_cfg.eps", 1e-3, "1e-05"),
        ("backbone.avg_down", True, "False"),
        ("backbone.dcn", {"type": "DCNv2"}, "none"),
        ("backbone.plugins", [{"cfg": 1}], "none"),
        ("data_preprocessor.pad_value", 114, "0"),
        ("neck.num_outs", 4, "5"),
        ("neck.upsample_cfg.mode", "bilinear", "'nearest'"),
        ("neck.add_extra_convs", "on_output", "False"),
        ("rpn_head.bbox_coder.target_stds", [0.1, 0.1, 0.2, 0.2], r"\(1, 1, 1, 1\)"),
        ("rpn_head.bbox_coder.clip_border", False, "True"),
        ("rpn_head.anchor_generator.centers", [(0, 0)], "none"),
        ("rpn_head.anchor_generator.base_sizes", [8], "none"),
        ("rpn_head.loss_cls.use_sigmoid", False, "True"),
        ("roi_head.shared_head", {"type": "ResLayer"}, "none"),
        ("roi_head.bbox_head.type", "DoubleConvFCBBoxHead", "'Shared2FCBBoxHead' or"),
        ("roi_head.bbox_head.num_cls_fcs", 1, "0"),
        ("roi_head.bbox_head.reg_predictor_cfg.type", "NormedLinear", "'Linear'"),
        ("roi_head.bbox_head.cls_predictor_cfg.power", 0.5, "1"),
        ("roi_head.bbox_head.bbox_coder.target_means", [0.1, 0, 0, 0], r"\(0, 0, 0, 0\)"),
        ("roi_head.bbox_head.bbox_coder.add_ctr_clamp", True, "False"),
        ("roi_head.bbox_roi_extractor.featmap_strides", [8, 16, 32], r"\(4, 8, 16, 32\)"),
        ("roi_head.bbox_roi_extractor.roi_layer.type", "RoIPool", "'RoIAlign'"),
        ("roi_head.bbox_roi_extractor.roi_layer.pool_mode", "max", "'avg'"),
        ("test_cfg.rpn.min_bbox_size", 4, "0 or -1"),
        ("test_cfg.rpn.nms.type", "soft_nms", "'nms'"),
        ("test_cfg.rcnn.nms.type", "nms_match", "'nms' or 'soft_nms'"),
    ],
)
@pytest.mark.parametrize("kind", ["rcnn", "cascade_rcnn"])
def test_what_is_not_computed_is_refused_by_name(
    kind: Kind, path: str, value: Any, computed_here: str
) -> None:
    named = path.replace("bbox_head", r"bbox_head(\.2)?")  # each stage is looked at
    with pytest.raises(CheckpointError, match=f"{named} = .*; computed here is {computed_here}"):
        require_known(changed(kind, path, value), kind, "x")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("bbox_head.type", "RetinaSepBNHead"),
        ("bbox_head.loss_cls", {"type": "FocalLoss"}),
        ("bbox_head.bbox_coder.type", "TBLRBBoxCoder"),
        ("neck.start_level", 0),
        ("neck.add_extra_convs", "on_lateral"),
        ("test_cfg.min_bbox_size", 2),
    ],
)
def test_settings_of_one_stage_are_its_own(path: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=path):
        require_known(changed("retinanet", path, value), "retinanet", "x")


@pytest.mark.parametrize(
    "path", ["surprise", "neck.surprise", "test_cfg.rcnn.nms.surprise", "rpn_head.surprise"]
)
def test_a_setting_that_is_not_known_is_refused(path: str) -> None:
    with pytest.raises(CheckpointError, match=f"{path} = 7, which is not known here"):
        require_known(changed("rcnn", path, 7), "rcnn", "x")


@pytest.mark.parametrize(
    ("cfg", "named"),
    [
        ("test_cfg=dict(rpn=dict(nms_pre=-1, max_per_img=1000))", "nms_pre is -1"),
        ("test_cfg=dict(rpn=dict(nms=dict(iou_threshold=7)))", "nms.iou_threshold is 7"),
        ("test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms', sigma=0.5)))", "'linear'"),
        ("test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms', sigma=0, method='gaussian')))", "sig"),
        (
            "roi_head=dict(bbox_head=[dict(cls_predictor_cfg=dict(type='NormedLinear')), dict()])",
            "class layers differ",
        ),
        ("data_preprocessor=dict(bgr_to_rgb=True)", "data_preprocessor has mean"),
        ("rpn_head=dict(anchor_generator=dict(strides=[8, 16]))", "strides has 2 levels"),
        ("roi_head=dict(bbox_roi_extractor=[dict(finest_scale=56), dict(finest_scale=28)])", "own"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_used_are_named(tmp_path: Path, cfg: str, named: str) -> None:
    with pytest.raises(CheckpointError, match=rf"has settings that cannot be used.*{named}"):
        load(tmp_path, made_of(), f"model = dict({cfg})")


def test_a_value_that_is_not_plain_is_not_taken_for_another() -> None:
    config = model_config("model = dict(neck=dict(num_outs=round(5)))")
    with pytest.raises(CheckpointError, match=r"neck\.num_outs = what is no plain value"):
        require_known(config, "rcnn", "x")


@pytest.mark.parametrize("kind", ["rcnn", "retinanet"])
def test_detections_are_kept_as_the_config_says(kind: Kind) -> None:
    def rule(nms: dict[str, Any], **more: Any) -> tuple[KeepRule, list[str]]:
        notes: list[str] = []
        told = {"score_thr": 1e-4, "max_per_img": 300, "nms": nms} | more
        config = {"test_cfg": told if kind == "retinanet" else {"rcnn": told}}
        require_known(config, kind, "x")
        return keep_rule_of(config, kind, notes), notes

    assert rule({"type": "nms", "iou_threshold": 0.6}) == (KeepRule(iou=0.6), [])
    assert rule({"type": "nms", "iou_thr": 0.4}) == (KeepRule(iou=0.4), [])
    agnostic = rule({"type": "nms", "iou_threshold": 0.6, "class_agnostic": True})[0]
    assert agnostic == KeepRule(iou=0.6, class_agnostic=True)
    soft = rule({"type": "soft_nms", "method": "gaussian", "sigma": 0.3, "iou_threshold": 0.5})[0]
    assert soft == KeepRule(suppression="soft", sigma=0.3)
    assert "0.3 (test_cfg" in rule({}, score_thr=0.3)[1][0]
    assert keep_rule_of({}, kind, []) == KeepRule()


def test_each_stage_has_its_own_deviations(tmp_path: Path) -> None:
    without: Any = load(tmp_path, made_of("cascade"), None).module
    third = without.roi_heads.stages[2].box_coder.weights
    assert third == pytest.approx((1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067))
    # A coder without deviations has ones, a stage without a coder the head's own default.
    coder = "bbox_coder=dict(type='DeltaXYWHBBoxCoder'"
    stages = f"[dict(), dict({coder})), dict({coder}, target_stds=[0.5, 0.5, 0.25, 0.25]))]"
    text = f"model = dict(roi_head=dict(bbox_head={stages}))"
    told: Any = load(tmp_path, made_of("cascade"), text).module
    weights = [stage.box_coder.weights for stage in told.roi_heads.stages]
    assert weights == [(10, 10, 5, 5), (1, 1, 1, 1), (2, 2, 4, 4)]


def test_anchors_may_stand_in_the_other_order(tmp_path: Path) -> None:
    text = "model = dict(rpn_head=dict(anchor_generator=dict({})))"
    modules: list[Any] = [
        load(tmp_path, made_of(), text.format(one)).module
        for one in ("scales=[8]", "scales=[8], scale_major=False, center_offset=0.5")
    ]
    shapes = [module.rpn.anchor_generator.shapes for module in modules]
    assert [one.size_major for one in shapes] == [False, True]
    assert [one.offset for one in shapes] == [0.0, 0.5]


def test_both_ways_to_turn_the_channels_are_read(tmp_path: Path) -> None:
    text = "model = dict(data_preprocessor=dict(mean=[1, 2, 3], std=[4, 5, 6], {}=True))"
    for key in ("bgr_to_rgb", "rgb_to_bgr"):
        canvas = load(tmp_path, made_of(), text.format(key)).canvas
        assert canvas.mean == pytest.approx((1 / 255, 2 / 255, 3 / 255))


RESIZE = "dict(scale=({0}, {1}), keep_ratio={2}, type='{3}')"


def pipelines(width: int, height: int, keep: bool, name: str = "Resize") -> str:
    step = RESIZE.format(width, height, keep, name)
    load_step = "dict(backend_args=None, type='LoadImageFromFile')"
    return f"test_dataloader = dict(dataset=dict(pipeline=[{load_step}, {step}]))"


def test_the_pipeline_that_runs_tells_the_size() -> None:
    def told(text: str) -> Resized | None:
        notes: list[str] = []
        found = resized_by(pipeline_of(text), notes)
        assert notes == []
        return found

    leftover = f"test_pipeline = [{RESIZE.format(1333, 800, True, 'Resize')}]"
    assert told(leftover) == Resized(1333, 800, True)
    # The name alone is what another pipeline was made from.
    assert told(f"{pipelines(256, 512, False)}\n{leftover}") == Resized(256, 512, False)
    wrapped = "test_dataloader = dict(dataset=dict(dataset=dict(pipeline=[{}])))"
    wrapped = wrapped.format(RESIZE.format(640, 640, True, "mmdet.datasets.transforms.Resize"))
    assert told(wrapped) == Resized(640, 640, True)
    assert told("") is None
    with pytest.raises(ValueError, match="scale is"):
        told(pipelines(0, 800, True))


def test_steps_of_the_pipeline_that_are_not_done_are_said() -> None:
    notes: list[str] = []
    assert resized_by(pipeline_of(pipelines(1333, 800, True, "RandomResize")), notes) is None
    assert notes == ["Its test pipeline has steps that are not done here: RandomResize."]


@pytest.mark.parametrize(
    ("sizes", "canvas", "fit", "said"),
    [
        ((1333, 800, True), (800, 1088), "top_left", "shorter side of 800"),
        ((640, 480, True), (480, 640), "top_left", "shorter side of 480"),
        ((512, 256, False), (256, 512), "squash", "256×512 pixels whatever their aspect"),
    ],
)
def test_the_canvas_is_the_pipelines(
    tmp_path: Path, sizes: tuple[int, int, bool], canvas: tuple[int, int], fit: str, said: str
) -> None:
    made = made_of()
    path = tmp_path / "epoch_12.pth"
    torch.save({"meta": {"cfg": pipelines(*sizes)}, "state_dict": made.weights}, path)
    model = load_detector(path)
    assert (model.canvas.height_px, model.canvas.width_px) == canvas
    assert model.canvas.fit == fit
    assert any(said in note for note in model.source.notes)


def scored(loss: str, keys: tuple[str, ...] = (), columns: int = 4, rows: int = 3) -> Any:
    notes: list[str] = []
    text = f"model = dict(roi_head=dict(bbox_head=dict(loss_cls=dict({loss}))))"
    config = model_config(text) if loss else {}
    return activation_of(keys, config, columns, rows, notes, "x"), notes


@pytest.mark.parametrize(
    ("loss", "activation", "said"),
    [
        ("type='CrossEntropyLoss', use_sigmoid=False", "softmax", None),
        ("type='CrossEntropyLoss', use_sigmoid=True", "softmax", "has learnt by sigmoids"),
        ("type='FocalLoss', use_sigmoid=True", "softmax", "has learnt by sigmoids"),
        ("type='CrossEntropyCustomLoss', num_classes=3", "softmax", None),
        ("type='EQLV2Loss', test_with_obj=True", "softmax", "has learnt by sigmoids"),
        ("type='mmdet.models.losses.eqlv2_loss.EQLV2Loss'", "softmax", "EQLV2Loss"),
        ("type='EQLv2'", "eqlv2", "authors' code"),
        ("type='EQLv2', test_with_obj=True", "eqlv2", "authors' code"),
        ("type='EQLv2', test_with_obj=False", "sigmoid", "test_with_obj=False"),
        ("type='BalancedSoftmaxLoss'", "softmax", "Warning: its loss BalancedSoftmaxLoss"),
    ],
)
def test_scores_are_those_of_the_loss(loss: str, activation: str, said: str | None) -> None:
    found, notes = scored(loss)
    assert found == activation
    assert (said is None) == (notes == [])
    assert said is None or said in notes[0]


def test_seesaw_and_counters_tell_without_a_config() -> None:
    assert scored("type='SeesawLoss'", columns=5)[0] == "seesaw"
    assert scored("", ("roi_head.bbox_head.loss_cls.cum_samples",), 5, 1)[0] == "seesaw"
    assert scored("", columns=5)[0] == "seesaw"
    assert scored("", ("roi_head.bbox_head.loss_cls.pos_grad",))[0] == "eqlv2"
    assert scored("")[0] == "softmax"


@pytest.mark.parametrize(
    ("loss", "columns", "named"),
    [
        ("type='EQL', use_sigmoid=True", 4, "EQL with use_sigmoid=True"),
        ("type='CrossEntropyCustomLoss', use_sigmoid=True", 4, "CrossEntropyCustomLoss"),
        ("type='GroupSoftmax'", 9, "9 columns and its proposals boxes of 3 classes"),
    ],
)
def test_scores_that_are_not_known_are_refused(loss: str, columns: int, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        scored(loss, columns=columns)


def test_stages_that_learnt_otherwise_are_refused() -> None:
    losses = "dict(loss_cls=dict(type='SeesawLoss')), dict(loss_cls=dict(type='CrossEntropyLoss'))"
    config = model_config(f"model = dict(roi_head=dict(bbox_head=[{losses}]))")
    with pytest.raises(CheckpointError, match="whose loss_cls differ"):
        activation_of((), config, 5, 1, [], "x")


def test_sigmoids_alone_leave_the_background_out(tmp_path: Path) -> None:
    loss = "loss_cls=dict(type='EQLv2', test_with_obj=False)"
    model = load(tmp_path, made_of(), f"model = dict(roi_head=dict(bbox_head=dict({loss})))")
    assert model.score_rule == ScoreRule("sigmoid", background=3)
    logits = np.array([[1.0, -2.0, 0.5, 2.0]], dtype=np.float32)
    assert model.score_rule.scores(logits) == pytest.approx(1 / (1 + np.exp(-logits[:, :3])))


def test_a_head_that_learnt_by_sigmoids_is_scored_as_mmdetection_scores_it(tmp_path: Path) -> None:
    loss = "loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True)"
    model = load(tmp_path, made_of(), f"model = dict(roi_head=dict(bbox_head=dict({loss})))")
    assert model.score_rule == ScoreRule("softmax", background=3)
    logits = np.array([[1.0, -2.0, 0.5, 2.0]], dtype=np.float32)
    wanted = torch.from_numpy(logits).softmax(dim=1)[:, :3].numpy()
    assert model.score_rule.scores(logits) == pytest.approx(wanted, abs=1e-6)


def test_no_suppression_at_all_is_not_taken_for_the_default() -> None:
    with pytest.raises(ValueError, match=r"nms is None, expected settings"):
        keep_rule_of({"test_cfg": {"rcnn": {"nms": None}}}, "rcnn", [])
