"""A detector's bundle: what it holds, what it finds, and that a wrong graph is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from box_samples import ARCH, CANVAS, NAMES, lively_detector, write_boxes, write_detector
from PIL import Image

import ltdeploy
from ltdeploy.canvas import load_on_canvas
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_boxes
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.errors import BundleError, CheckpointError, ExportError, FixError
from ltdeploy.export.detection import detector_export
from ltdeploy.export.detection.detector_checks import detections_of
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.fixes import FixSpec
from ltdeploy.models.detectors.detector import Detector, load_detector
from ltdeploy.models.loading import load_model
from ltdeploy.models.options import LoadOptions
from ltdeploy.pairing import agreement


@pytest.fixture(scope="module")
def folder(module_folder: Path) -> Path:
    return module_folder


@pytest.fixture(scope="module")
def boxes(folder: Path) -> Path:
    return write_boxes(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Detector:
    loaded = load_model(write_detector(folder / "det.pt"))
    assert isinstance(loaded, Detector)
    return loaded


@pytest.fixture(scope="module")
def bundle(folder: Path, model: Detector, boxes: Path) -> Path:
    fixes = [FixSpec("norcal", {"gamma": 0.4})]
    done = export_detector(model, fixes, folder / "det.ltd", images=open_boxes(str(boxes)))
    assert done.checks.detections > 20  # else nothing was compared
    assert done.checks.score_difference < 1e-5
    return done.bundle.path


def test_a_checkpoint_tells_what_it_is(model: Detector) -> None:
    assert (model.arch, model.canvas) == (ARCH, CANVAS)
    assert model.require_complete().names == NAMES
    assert model.head.classes == len(NAMES) + 1
    assert model.head.background == 0
    assert model.trained_with == "cross_entropy"


def test_a_bare_state_dict_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "bare.pth"
    torch.save({f"module.{k}": v for k, v in lively_detector().state_dict().items()}, path)
    table = ClassTable(NAMES, (300, 150, 8))
    loaded = load_model(path, options=LoadOptions(classes=table))
    assert isinstance(loaded, Detector)
    assert loaded.arch == ARCH
    assert any("recognised by its keys" in note for note in loaded.source.notes)
    with pytest.raises(CheckpointError, match=r"--classes FILE.*without the background"):
        load_detector(path).require_complete()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    weights = lively_detector().state_dict()
    del weights["rpn.head.bbox_pred.bias"]
    torch.save(weights, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"Nearest is .*320_fpn: rpn\.head\.bbox_pred\.bias"):
        load_model(tmp_path / "broken.pth")


def test_a_table_with_the_background_is_refused(folder: Path) -> None:
    table = ClassTable(("background", *NAMES), (0, 300, 150, 8))
    loaded = load_detector(folder / "det.pt", options=LoadOptions(classes=table))
    with pytest.raises(CheckpointError, match="must not list the background"):
        loaded.require_complete()


def test_the_bundle_finds_what_the_unfused_reference_finds(
    bundle: Path, model: Detector, boxes: Path
) -> None:
    data = open_boxes(str(boxes))
    reference = DetectorReference(model)
    with ltdeploy.load_detector(bundle, engine="onnxruntime", verify=True) as predictor:
        fix = predictor.bundle.manifest.fix.logit_map()
        for index in range(4):
            canvas, placement = load_on_canvas(data.source(index), model.canvas)
            (found,) = predictor.detect(canvas[None], [placement])
            raw = reference.run({"images": canvas[None]})
            whole = model.canvas.place(model.canvas.height_px, model.canvas.width_px)
            (at_canvas,) = predictor.detect(canvas[None], [whole])
            fixed = {**raw, "logits": fix.apply(raw["logits"])}
            (expected,) = detections_of(fixed, model.score_rule, model.keep_rule, model.canvas)
            apart = agreement(expected, at_canvas, least_score=0.02)
            assert apart.score_difference < 1e-4
            assert apart.box_difference_px < 0.1
            assert apart.alone < 0.02
            assert len(found)
            assert found.boxes[:, 2].max() <= 160  # the photograph's pixels


def test_answers_name_class_group_and_box(bundle: Path, folder: Path) -> None:
    with ltdeploy.load_detector(bundle, engine="onnxruntime") as predictor:
        photo = folder / "images" / "0-1.png"
        answer = predictor(photo, min_score=0.0)
        assert {one.name for one in answer.found} <= set(NAMES)
        assert [one.score for one in answer.found] == sorted(
            (one.score for one in answer.found), reverse=True
        )
        told = answer.to_dict()["boxes"][0]
        assert set(told) == {"label", "name", "score", "box", "group"}
        listed = list(predictor.stream([("a", photo), ("b", b"no image"), ("c", photo)], top_k=3))
        assert [one.error is None for one in listed] == [True, False, True]
        assert len(listed[0].found) <= 3


def test_a_detector_and_a_classifier_are_not_taken_for_each_other(
    bundle: Path, bundle_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"is a detector: ltdeploy\.load_detector"):
        ltdeploy.load(bundle)
    with pytest.raises(BundleError, match=r"is a classifier; load it with ltdeploy\.load"):
        ltdeploy.load_detector(bundle_path, engine="onnxruntime")


def test_tau_norm_is_refused_on_a_softmax_detector(model: Detector, tmp_path: Path) -> None:
    with pytest.raises(FixError, match=r"20\.98"):
        export_detector(model, [FixSpec("tau_norm", {"tau": 0.7})], tmp_path / "x.ltd")
    assert not (tmp_path / "x.ltd").exists()


def test_a_graph_that_computes_something_else_is_noticed(
    model: Detector, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = detector_export.static_module

    def wrong(module: Any, kind: Any, canvas: Any) -> Any:
        graph: Any = right(module, kind, canvas)
        graph.iou = 0.05  # suppresses proposals that the reference keeps
        return graph

    monkeypatch.setattr(detector_export, "static_module", wrong)
    with pytest.raises(ExportError, match="differs from the reference"):
        export_detector(model, [], tmp_path / "x.ltd", images=open_boxes(str(boxes)))
    assert not (tmp_path / "x.ltd").exists()


def test_golden_samples_notice_another_model(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ltdeploy.load_detector(bundle, engine="onnxruntime") as predictor:
        assert predictor.replay_golden() < 1e-3
        run = predictor.engine.run

        def louder(feeds: Any) -> dict[str, np.ndarray]:
            outputs = run(feeds)
            return {**outputs, "logits": outputs["logits"] * 1.3}

        monkeypatch.setattr(predictor.engine, "run", louder)
        with pytest.raises(BundleError, match="away from the golden samples"):
            predictor.replay_golden()


def test_photographs_of_any_shape_come_back_in_their_pixels(bundle: Path) -> None:
    tall = Image.new("RGB", (40, 300), (128, 128, 128))
    with ltdeploy.load_detector(bundle, engine="onnxruntime") as predictor:
        for one in predictor(tall, min_score=0.0).found:
            assert one.box[2] <= 40
            assert one.box[3] <= 300
