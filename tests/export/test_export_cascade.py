"""Cascade and Mask R-CNN, from a checkpoint to a bundle: what is folded, and what is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from box_samples import CANVAS, NAMES, write_boxes
from detector_samples import SIZE, detector, images, static

from ltdeploy.boxes import Detections
from ltdeploy.canvas import load_on_canvas
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_boxes
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.export.detection.detector_checks import _box_among, detections_of
from ltdeploy.export.detection.detector_export import export_detector, static_module
from ltdeploy.fixes import FixSpec
from ltdeploy.images import normalise
from ltdeploy.models.detectors.architectures import build_detector
from ltdeploy.models.detectors.class_rows import fold_into
from ltdeploy.models.detectors.detector import Detector, load_detector
from ltdeploy.models.options import LoadOptions

TABLE = ClassTable(NAMES, (300, 150, 8))


@pytest.fixture(scope="module")
def folder(module_folder: Path) -> Path:
    return module_folder


@pytest.fixture(scope="module")
def boxes(folder: Path) -> Path:
    return write_boxes(folder)


def load(folder: Path, family: str) -> Detector:
    """Return a detector whose random weights find boxes of all classes, from its weights alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        arch = f"torchvision:{family}_mobilenet_v3_small_320_fpn"
        module: Any = build_detector(arch, len(NAMES), CANVAS)
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
            elif name.endswith("box_predictor.cls_score"):
                torch.nn.init.normal_(layer.weight, std=2.0)
            elif name.endswith("box_predictor.bbox_pred"):
                torch.nn.init.normal_(layer.weight, std=0.5)
        torch.nn.init.normal_(module.rpn.head.cls_logits.weight, std=0.2)
        torch.nn.init.normal_(module.rpn.head.bbox_pred.weight, std=0.02)
    path = folder / f"{family}.pth"
    torch.save(module.state_dict(), path)
    loaded = load_detector(path, options=LoadOptions(classes=TABLE), canvas=CANVAS)
    assert loaded.arch == arch
    return loaded


@pytest.mark.slow
def test_a_cascade_is_exported_with_its_fix_in_three_layers(folder: Path, boxes: Path) -> None:
    model, data = load(folder, "cascade_rcnn"), open_boxes(str(boxes))
    fixes = [FixSpec("norcal", {"gamma": 0.4})]
    done = export_detector(model, fixes, folder / "c.ltd", images=data)
    assert done.checks.detections > 20
    assert done.checks.score_difference <= 1e-5
    assert done.checks.box_difference_px <= 0.01
    manifest = json.loads((folder / "c.ltd" / "manifest.json").read_text())
    assert manifest["fix"]["folded"] == "weights"
    assert any("mean of three stages" in note for note in manifest["source"]["notes"])
    held = onnx.load(folder / "c.ltd" / "model.onnx").graph
    assert [output.name for output in held.output] == ["boxes", "logits"]
    kinds = {node.op_type for node in held.node}
    assert not kinds & {"NonZero", "Loop", "If", "NonMaxSuppression", "RoiAlign"}


def both(model: Detector, boxes: Path, graph: Any) -> tuple[list[Detections], list[Detections]]:
    """Return what the reference finds on two photographs, and every row of a graph."""
    data = open_boxes(str(boxes))
    canvases = np.stack([load_on_canvas(data.source(at), CANVAS)[0] for at in (0, 4)])
    raw = DetectorReference(model).run({"images": canvases})
    pixels = torch.from_numpy(normalise(canvases, CANVAS.as_preprocessing()))
    with torch.no_grad():
        rows, logits = graph(pixels)
    every = replace(model.keep_rule, suppression="none", top_k=10**6)
    outputs = {"boxes": rows.numpy(), "logits": logits.numpy()}
    return (
        detections_of(raw, model.score_rule, model.keep_rule, CANVAS),
        detections_of(outputs, model.score_rule, every, CANVAS),
    )


@pytest.mark.parametrize("family", ["maskrcnn", "cascade_rcnn"])
def test_the_graph_has_what_the_reference_finds(folder: Path, boxes: Path, family: str) -> None:
    model = load(folder, family)
    graph = static_module(model.module, model.architecture.kind, CANVAS)
    expected, rows = both(model, boxes, graph)
    assert min(len(one) for one in expected) > 20
    assert _box_among(expected, rows, 1e-4) <= 0.01
    assert not any("mask" in name for name in graph.state_dict())


def test_a_cascade_with_the_boxes_of_another_stage_is_noticed(folder: Path, boxes: Path) -> None:
    model = load(folder, "cascade_rcnn")
    graph: Any = static_module(model.module, model.architecture.kind, CANVAS)
    graph.box_weights[2] = graph.box_weights[1]
    assert _box_among(*both(model, boxes, graph), 1e-4) > 0.1


@torch.no_grad()
def test_one_stage_left_unfixed_is_another_detector() -> None:
    module: Any = detector("cascade_rcnn")
    scale, shift = np.array([1.0, 0.7, 1.2, 0.9, 1.1]), np.array([0.0, 1.0, -1.0, 0.5, 2.0])
    folded: Any = fold_into(module, "cascade_rcnn", scale, shift)
    plain, fixed = (static("cascade_rcnn", one)(images(1))[1] for one in (module, folded))
    wanted = plain * torch.from_numpy(scale).float() + torch.from_numpy(shift).float()
    torch.testing.assert_close(fixed, wanted, atol=1e-4, rtol=1e-5)
    predictors = [one.roi_heads.stages[1].box_predictor for one in (module, folded)]
    predictors[1].cls_score = predictors[0].cls_score
    wrong = static("cascade_rcnn", folded)(images(1))[1]
    assert (wrong - wanted).abs().max() > 0.1


@torch.no_grad()
def test_padding_goes_through_all_stages_as_padding() -> None:
    graph: Any = static("cascade_rcnn")
    levels = list(graph.backbone(images(1)).values())[:3]
    rows = torch.tensor([[[10.0, 10.0, 40.0, 30.0], [0.0, 0.0, 0.0, 0.0], [96.0, 5.0, 96.0, 9.0]]])
    boxes, logits = graph._detect(levels, rows)
    assert boxes.isfinite().all()
    assert logits.isfinite().all()
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    assert (area > 0).tolist() == [[True, False, False]]
    assert (boxes[..., [1, 3]] <= SIZE[0]).all()


def found(*rows: tuple[float, float]) -> Detections:
    """Return detections of class 0, of (left, score)."""
    boxes = np.array([[left, 0, left + 50, 50] for left, _ in rows], np.float32)
    scores = np.array([score for _, score in rows], np.float32)
    return Detections(boxes, scores, np.zeros(len(rows), np.int64))


def test_of_two_boxes_with_one_score_either_may_win() -> None:
    rows = found((0.4, 0.5), (0.0, 0.5), (9.0, 0.2))
    assert _box_among([found((0.0, 0.5))], [rows], 1e-4) == 0.0
    assert _box_among([found((0.4, 0.5))], [rows], 1e-4) == 0.0


def test_a_box_that_no_row_has_or_another_scores_otherwise_is_far() -> None:
    rows = found((0.4, 0.5), (0.0, 0.4))
    assert _box_among([found((0.0, 0.5))], [rows], 1e-4) == pytest.approx(0.4, abs=1e-3)
    assert _box_among([found((0.0, 0.3))], [rows], 1e-4) == np.inf
    other = Detections(rows.boxes, rows.scores, np.ones(2, np.int64))
    assert _box_among([found((0.4, 0.5))], [other], 1e-4) == np.inf
