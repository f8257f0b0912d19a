"""A query detector's Hugging Face folder to a bundle that finds what the folder's model finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from box_samples import write_boxes
from detector_folders import NAMES, write_folder

import ltdeploy
from ltdeploy.canvas import load_on_canvas
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_boxes
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.errors import ExportError, FixError
from ltdeploy.export.detection import detector_export
from ltdeploy.export.detection.detector_checks import detections_of
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.fixes import FixSpec
from ltdeploy.models.detectors.detector import Detector
from ltdeploy.models.loading import load_model
from ltdeploy.models.options import LoadOptions
from ltdeploy.pairing import agreement
from ltdeploy.verify.boxes.run import verify_detector

TABLE = ClassTable(NAMES, (300, 150, 40, 8))
FIXES = {
    "detr": FixSpec("norcal", {"gamma": 0.4}),
    "rt_detr_v2": FixSpec("odds", {"gamma": 0.4}),
    "d_fine": FixSpec("odds", {"gamma": 0.4}),
}
# Tracing the Python code itself takes from 10 seconds (DETR) to a minute (D-FINE).
FAMILIES = [pytest.param(f, marks=() if f == "detr" else pytest.mark.slow) for f in FIXES]


@dataclass(frozen=True)
class Exported:
    model: Detector
    bundle: Path
    boxes: Path


def load(folder: Path, family: str) -> Detector:
    write_folder(folder / family, family)
    model = load_model(folder / family, options=LoadOptions(classes=TABLE))
    assert isinstance(model, Detector)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return a family's detector, its bundle, and photographs with boxes."""
    family: str = request.param
    folder = tmp_path_factory.mktemp(family)
    model, boxes = load(folder, family), write_boxes(folder)
    done = export_detector(model, [FIXES[family]], folder / "x.ltd", images=open_boxes(str(boxes)))
    assert done.checks.detections > 50  # else nothing was compared
    assert done.checks.score_difference < 1e-4
    return Exported(model, done.bundle.path, boxes)


def test_the_bundle_finds_what_the_unfused_reference_finds(exported: Exported) -> None:
    model, data = exported.model, open_boxes(str(exported.boxes))
    whole = model.canvas.place(model.canvas.height_px, model.canvas.width_px)
    with ltdeploy.load_detector(exported.bundle, engine="onnxruntime", verify=True) as predictor:
        fix = predictor.bundle.manifest.fix.logit_map()
        reference = DetectorReference(model)
        for index in range(4):
            canvas, placement = load_on_canvas(data.source(index), model.canvas)
            raw = reference.run({"images": canvas[None]})
            fixed = {**raw, "logits": fix.apply(raw["logits"])}
            (expected,) = detections_of(fixed, model.score_rule, model.keep_rule, model.canvas)
            (found,) = predictor.detect(canvas[None], [whole])
            apart = agreement(expected, found, least_score=0.02)
            assert apart.score_difference < 1e-4
            assert apart.box_difference_px < 0.1
            assert apart.alone < 0.02
            (unfixed,) = detections_of(raw, model.score_rule, model.keep_rule, model.canvas)
            changed = agreement(unfixed, found, least_score=0.02)
            assert max(changed.score_difference, changed.alone) > 0.05  # the fix does something
            (in_photo,) = predictor.detect(canvas[None], [placement])
            assert in_photo.boxes[:, 2].max() > model.canvas.width_px  # the photograph's pixels
            assert in_photo.boxes[:, 2].max() <= 160


def test_the_bundle_tells_what_it_is(exported: Exported) -> None:
    with ltdeploy.load_detector(exported.bundle, engine="onnxruntime") as predictor:
        told = predictor.bundle.manifest
        assert told.arch == exported.model.arch
        assert told.fix.folded == "weights"
        assert "{" not in told.head.path
        assert told.detection is not None
        assert told.detection.keep_rule().suppression == "none"
        assert predictor.bundle.canvas == exported.model.canvas
        assert predictor.replay_golden() < 1e-3


def test_verify_loads_the_folder_again(exported: Exported) -> None:
    done = verify_detector(exported.bundle, open_boxes(str(exported.boxes)), engine="onnxruntime")
    assert done.provenance["Reference"] == f"{exported.model.source.path.name} on torch-cpu"
    for before, after in zip(done.reference, done.candidate, strict=True):
        apart = agreement(before, after, least_score=0.02)
        assert max(apart.score_difference, apart.alone) < 0.021


def test_norcal_is_for_softmax_and_odds_for_sigmoids(tmp_path: Path) -> None:
    for family, method in (("detr", "odds"), ("rt_detr_v2", "norcal")):
        with pytest.raises(FixError, match=method):
            export_detector(
                load(tmp_path, family), [FixSpec(method, {"gamma": 0.4})], tmp_path / "x.ltd"
            )
    assert not (tmp_path / "x.ltd").exists()


@pytest.mark.slow
def test_a_fold_into_the_background_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, right = load(tmp_path, "detr"), detector_export.fold_into

    def turned(module: Any, family: str, scale: Any, shift: Any) -> torch.nn.Module:
        return right(module, family, scale, np.roll(shift, 1))  # as if it were the first column

    monkeypatch.setattr(detector_export, "fold_into", turned)
    with pytest.raises(ExportError, match="differs from the reference"):
        export_detector(model, [FIXES["detr"]], tmp_path / "x.ltd")
    assert not (tmp_path / "x.ltd").exists()
