"""mmdetection 3's checkpoints: what is read of them, and that they compute what it does."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_detectors import (
    BGR_MEAN,
    HEIGHT,
    RGB_MEAN,
    RGB_STD,
    WIDTH,
    Made,
    canvas_of,
    computed,
    drawn,
)

from ltdeploy.canvas import Canvas
from ltdeploy.classes import ClassTable
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.errors import CheckpointError
from ltdeploy.export.detection.detector_export import export_detector, static_module
from ltdeploy.fixes.spec import parse_spec
from ltdeploy.models.detectors.detector import Detector, load_detector
from ltdeploy.models.detectors.mmdetection_config import model_config, within
from ltdeploy.models.detectors.mmdetection_layout import renamed
from ltdeploy.models.options import LoadOptions
from ltdeploy.postprocess import ScoreRule

CANVAS = Canvas(HEIGHT, WIDTH)
TABLE = ClassTable(("a", "b", "c"), (1000, 50, 5))
FAMILIES = ("rcnn", "cascade", "retinanet")


def made_of(family: str = "rcnn", **options: Any) -> Made:
    usual = {"stride_in_1x1": False, "mean": RGB_MEAN, "std": RGB_STD, "bgr": False}
    return drawn(Made("mmdetection", family, **(usual | options)))


def write(folder: Path, made: Made, cfg: str | None = None, **more: Any) -> Path:
    path = folder / "epoch_12.pth"
    meta: dict[str, Any] = {"epoch": 12, "mmengine_version": "0.10.3"}
    meta["dataset_meta"] = {"classes": ("c", "a", "b"), "palette": [(1, 2, 3)]}
    if cfg is not None:
        meta["cfg"] = cfg
    torch.save({"meta": meta, "state_dict": made.weights, **more}, path)
    return path


def config_of(family: str) -> str | None:
    """Return what a file must say of a drawn cascade: the rounded deviations are the default."""
    if family != "cascade":
        return None
    coder = "bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[{0}, {0}, {1}, {1}])"
    stages = [coder.format(0.1 / stage, 0.2 / stage) for stage in (1, 2, 3)]
    return f"model = dict(roi_head=dict(bbox_head=[{', '.join(f'dict({one})' for one in stages)}]))"


def load(path: Path, table: ClassTable | None = TABLE) -> Detector:
    return load_detector(path, options=LoadOptions(classes=table), canvas=CANVAS)


def compare(model: Detector, made: Made) -> None:
    canvas = canvas_of()
    with torch.no_grad():
        wanted = computed(made, canvas)
    raw = DetectorReference(model).run({"images": canvas[None]})
    found = {name: torch.from_numpy(values[0]) for name, values in raw.items()}
    assert len(found["boxes"]) > 100
    torch.testing.assert_close(found["logits"], wanted["logits"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=0.02, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_mmdetection_computes(tmp_path: Path, family: str) -> None:
    made = made_of(family)
    model = load(write(tmp_path, made, config_of(family)))
    compare(model, made)
    assert model.arch.startswith("mmdetection:")
    assert model.head.background == (None if family == "retinanet" else 3)


def test_the_class_table_takes_the_files_order(tmp_path: Path) -> None:
    model = load(write(tmp_path, made_of()))
    assert model.require_complete().names == ("c", "a", "b")
    assert model.require_complete().counts == (5, 1000, 50)
    other = load(write(tmp_path, made_of()), ClassTable(("x", "y", "z"), (3, 2, 1)))
    assert other.require_complete().names == ("x", "y", "z")
    assert any("Warning: the file names other classes" in note for note in other.source.notes)


CAFFE = """
default_scope = 'mmdet'
model = dict(
    backbone=dict(depth=50, style='caffe', type='ResNet'),
    data_preprocessor=dict(
        bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0],
        type='DetDataPreprocessor'),
    neck=dict(num_outs=5, type='FPN'),
    roi_head=dict(bbox_head=dict(
        bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2], type='DeltaXYWHBBoxCoder'))),
    rpn_head=dict(anchor_generator=dict(
        ratios=[0.5, 1.0, 2.0], scales=[8], strides=[4, 8, 16, 32, 64], type='AnchorGenerator')),
    test_cfg=dict(rpn=dict(
        max_per_img=1000, nms=dict(iou_threshold=0.7, type='nms'), nms_pre=1000)),
    type='FasterRCNN')
"""


def test_the_config_in_the_file_is_read(tmp_path: Path) -> None:
    made = made_of(stride_in_1x1=True, mean=BGR_MEAN, std=(1.0, 1.0, 1.0), bgr=True)
    model = load(write(tmp_path, made, CAFFE))
    compare(model, made)
    assert not any("ssumed" in note for note in model.source.notes if "canvas" not in note)
    with pytest.raises(AssertionError):
        compare(load(write(tmp_path, made)), made)


@pytest.mark.parametrize(
    "text",
    ["model = build()", "model = [", "model = 3", "model = {[1]: 2}", "model = " + "[" * 5000],
)
def test_a_config_is_never_run(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"epoch_12\.pth.*the config"):
        load(write(tmp_path, made_of(), text))


def test_one_value_that_is_not_plain_does_not_hide_the_others() -> None:
    config = model_config("model = dict(type='A', x=float('inf'), y={[1]: 2}, z=open('x'))")
    assert within(config, "type") == "A"
    with pytest.raises(ValueError, match="x, of x, is not a plain value"):
        within(config, "x")
    assert model_config("") == model_config("x = dict(a=1)") == {}


@pytest.mark.parametrize(
    "cfg",
    [
        "model = dict(test_cfg=dict(rpn=dict(nms_pre='abc')))",
        "model = dict(test_cfg=dict(rpn=dict(nms_pre=round(7))))",
        "model = dict(rpn_head=dict(anchor_generator=dict(strides=[(4, 8)])))",
        "model = dict(rpn_head=dict(anchor_generator=5))",
        "model = dict(roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0]))))",
        "model = dict(data_preprocessor=dict(mean=5, std=5))",
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, cfg: str) -> None:
    with pytest.raises(CheckpointError, match=r"epoch_12\.pth has settings that cannot be used"):
        load(write(tmp_path, made_of(), cfg))


def test_strides_may_stand_there_for_both_axes(tmp_path: Path) -> None:
    pairs = "strides=[(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]"
    made = made_of()
    cfg = f"model = dict(rpn_head=dict(anchor_generator=dict({pairs})))"
    compare(load(write(tmp_path, made, cfg)), made)


def test_boxes_of_each_class_in_a_cascade_are_refused(tmp_path: Path) -> None:
    made = made_of("cascade")
    for stage in range(3):
        for part in ("weight", "bias"):
            key = f"roi_head.bbox_head.{stage}.fc_reg.{part}"
            made.weights[key] = torch.cat([made.weights[key]] * 3)
    with pytest.raises(CheckpointError, match=r"bbox_head\.0\.fc_reg\.weight is \(12, "):
        load(write(tmp_path, made))


@pytest.mark.parametrize(
    ("cfg", "named"),
    [
        ("model = dict(backbone=dict(type='SwinTransformer'))", r"backbone\.type"),
        ("model = dict(roi_head=dict(type='HybridTaskCascadeRoIHead'))", r"roi_head\.type"),
        ("model = dict(backbone=dict(dcn=dict(type='DCNv2')))", r"backbone\.dcn"),
    ],
)
def test_what_computes_otherwise_is_refused(tmp_path: Path, cfg: str, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load(write(tmp_path, made_of(), cfg))


@pytest.mark.parametrize("agnostic", [False, True])
def test_a_seesaw_head_is_recognised(tmp_path: Path, agnostic: bool) -> None:
    made = made_of(columns=5, agnostic=agnostic, temperature=20.0)
    made.weights["roi_head.bbox_head.loss_cls.cum_samples"] = torch.zeros(4)
    model = load(write(tmp_path, made))
    compare(model, made)
    assert model.score_rule == ScoreRule("seesaw")
    assert len(model.require_complete()) == 3
    assert any("NormedLinear" in note for note in model.source.notes)
    plain = "model = dict(roi_head=dict(bbox_head=dict(loss_cls=dict(type='SeesawLoss'))))"
    made.temperature = None
    compare(load(write(tmp_path, made, plain)), made)


def test_an_eqlv2_head_is_recognised(tmp_path: Path) -> None:
    made = made_of()
    for name in ("pos_grad", "neg_grad", "pos_neg"):
        made.weights[f"roi_head.bbox_head.loss_cls.{name}"] = torch.zeros(3)
    model = load(write(tmp_path, made))
    assert model.score_rule == ScoreRule("eqlv2", background=3)


def test_the_log_of_a_training_is_passed_over(tmp_path: Path) -> None:
    library = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.max_length = 10
            self._log_history = np.arange(3.0)

        def mean(self) -> float:
            return float(self._log_history.mean())

        def __getstate__(self) -> dict[str, Any]:
            return self.__dict__ | {"statistics_methods": {"mean": HistoryBuffer.mean}}

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = library.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__ = library.__name__
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    library.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    names = ("mmengine", "mmengine.logging", library.__name__)
    sys.modules.update(dict.fromkeys(names, library))
    try:
        log = {"log_scalars": {"train/loss": HistoryBuffer()}}
        path = write(tmp_path, made_of(), message_hub=log)
    finally:
        for name in names:
            del sys.modules[name]
    with zipfile.ZipFile(path) as archive:
        assert b"getattr" in archive.read("epoch_12/data.pkl")
    assert load(path).arch.startswith("mmdetection:fasterrcnn")


def test_no_other_attribute_is_given(tmp_path: Path) -> None:
    class Asks:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, ("text", "upper")

    with pytest.raises(CheckpointError, match="no log of mmengine"):
        load(write(tmp_path, made_of(), more=Asks()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_of_fixed_sizes_gives_the_same(tmp_path: Path, family: str) -> None:
    model = load(write(tmp_path, made_of(family)))
    canvas = canvas_of()
    reference = DetectorReference(model).run({"images": canvas[None]})
    static = static_module(model.module, model.architecture.kind, model.canvas)
    pre = model.canvas.as_preprocessing()
    pixels = torch.from_numpy(canvas / 255.0).permute(2, 0, 1)
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in (pre.mean, pre.std))
    with torch.no_grad():
        boxes, logits = (one[0].numpy() for one in static(((pixels - mean) / std).float()[None]))
    # Every row of the reference is a row of the graph, whose others are padding.
    wanted, where = reference["logits"][0], []
    for row in wanted[:: max(1, len(wanted) // 50)]:
        where.append(int(np.abs(logits - row).sum(axis=1).argmin()))
        assert logits[where[-1]] == pytest.approx(row, abs=2e-3)
    sampled = reference["boxes"][0][:: max(1, len(wanted) // 50)]
    assert boxes[where] == pytest.approx(sampled, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [4, 5])
def test_it_is_exported_with_its_fix(tmp_path: Path, columns: int) -> None:
    proposals = "model = dict(test_cfg=dict(rpn=dict(nms_pre=40, max_per_img=40)))"
    model = load(write(tmp_path, made_of(columns=columns), proposals))
    # A seesaw head corrects for the counts already: the fix has to be insisted on.
    fix = [parse_spec("norcal:gamma=0.5")]
    done = export_detector(model, fix, tmp_path / "m.ltd", force=columns == 5)
    assert done.checks.score_difference <= 1e-4
    assert done.bundle.manifest.head.activation == ("softmax" if columns == 4 else "seesaw")
    assert done.bundle.manifest.fix.folded == "weights"


def test_counters_and_masks_are_left_out() -> None:
    keys = (
        "backbone.bn1.num_batches_tracked", "roi_head.mask_head.convs.0.conv.weight",
        "roi_head.bbox_head.0.loss_cls.cum_samples", "roi_head.bbox_head.2.fc_reg.bias",
    )  # fmt: skip
    names = renamed(dict.fromkeys(keys, torch.zeros(1)))
    assert list(names.values()) == ["roi_heads.stages.2.box_predictor.bbox_pred.bias"]
