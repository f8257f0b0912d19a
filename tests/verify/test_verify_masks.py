"""Mask R-CNN from its checkpoint to a verdict by masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from faster_coco_eval.core import mask as evaluator
from mask_samples import lively_mask_rcnn, write_mask_rcnn, write_outlines

import ltdeploy
from ltdeploy.canvas import load_on_canvas
from ltdeploy.datasets import open_boxes
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.errors import ExportError
from ltdeploy.export.detection import kept_detections, kept_export
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.export.precision.gate_run import on_onnxruntime
from ltdeploy.models.detectors.detector import Detector
from ltdeploy.models.loading import load_model
from ltdeploy.verify.boxes import contenders, verify_detector

FEW = 8  # masks per photograph: each costs as much as a small network


@pytest.fixture(scope="module")
def few_masks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_detections, "MOST_MASKS", FEW)
        yield


@pytest.fixture(scope="module")
def traced() -> Iterator[list[onnx.ModelProto]]:
    """Keep the graphs of raw outputs that exports make on the way: tracing takes half a minute."""
    kept: list[onnx.ModelProto] = []
    original = kept_export.keep_inside

    def recorded(raw: onnx.ModelProto, *rest: Any) -> onnx.ModelProto:
        kept.append(raw)
        return original(raw, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_export, "keep_inside", recorded)
        yield kept


@pytest.fixture(scope="module")
def made(module_folder: Path, few_masks: None, traced: list[onnx.ModelProto]) -> Path:
    """Return a folder with a checkpoint, two data sets and a bundle that gives masks."""
    write_mask_rcnn(module_folder / "m.pt")
    write_outlines(module_folder, seed=0)
    write_outlines(module_folder, seed=1)
    model = load_model(module_folder / "m.pt")
    assert isinstance(model, Detector)
    data = open_boxes(str(module_folder / "boxes-0.json"))
    done = export_detector(model, [], module_folder / "m.ltd", images=data, nms_in_graph=True)
    assert done.inside is not None
    assert done.inside.mask_difference is not None
    assert done.inside.mask_difference < 1e-5
    return module_folder


def test_masks_are_the_reference_s(made: Path) -> None:
    model = load_model(made / "m.pt")
    assert isinstance(model, Detector)
    data = open_boxes(str(made / "boxes-1.json"))
    reference = DetectorReference(model)
    with ltdeploy.load_detector(made / "m.ltd", engine="onnxruntime", verify=True) as predictor:
        canvas, placement = load_on_canvas(data.source(0), predictor.canvas)
        (found,) = predictor.detect(canvas[None], [placement])
        whole = predictor.canvas.place(*canvas.shape[:2])
        (placed,) = predictor.detect(canvas[None], [whole])
    (expected,) = reference.masks(canvas[None], [placed])
    assert found.masks is not None
    assert len(found) == FEW
    assert expected.std() > 0.05  # masks that differ from cell to cell
    np.testing.assert_allclose(found.masks.grids, expected, atol=1e-5)


def test_predict_writes_them(cli: Callable[..., tuple[int, str, str]], made: Path) -> None:
    photograph = made / "images" / "0-1.png"
    code, said, _ = cli("predict", made / "m.ltd", photograph, "--json", "-")
    assert code == 0
    for one in json.loads(said)["boxes"]:
        packed = evaluator.frPyObjects(one["mask"], *one["mask"]["size"])
        assert evaluator.decode(packed).shape == (120, 160)
    assert cli("predict", made / "m.ltd", photograph, "--out", "p.parquet")[0] == 0
    (row,) = pq.read_table("p.parquet").to_pylist()
    assert row["boxes"][0]["mask"]["size"] == [120, 160]


def test_verify_by_masks(cli: Callable[..., tuple[int, str, str]], made: Path) -> None:
    data = made / "boxes-1.json"
    code, said, _ = cli(
        "verify", made / "m.ltd", "--data", data, "--by", "masks", "--json", "v.json"
    )
    told = json.loads(Path("v.json").read_text())
    assert (code, told["verdict"], told["matched_by"]) == (0, "pass", "masks")
    assert told["max_mask_diff"] < 1e-2
    assert "the same boxes and masks on 12 images" in said


def test_other_masks_are_noticed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference with the same boxes and other masks: by boxes the same, by masks not."""
    original = contenders.BoxContender.with_masks

    def inverted(self: Any, *rest: Any) -> Any:
        found = original(self, *rest)
        if not isinstance(self.engine, DetectorReference):
            return found
        return [replace(one, masks=replace(one.masks, grids=1 - one.masks.grids)) for one in found]

    data = open_boxes(str(made / "boxes-1.json"))
    monkeypatch.setattr(contenders.BoxContender, "with_masks", inverted)
    assert verify_detector(made / "m.ltd", data).result.equivalent
    told = verify_detector(made / "m.ltd", data, by="masks").result
    assert not told.equivalent
    assert told.max_mask_diff is not None
    assert told.max_mask_diff > 0.1


def test_what_has_no_masks_is_named(
    cli: Callable[..., tuple[int, str, str]], made: Path, tmp_path: Path
) -> None:
    content = json.loads((made / "boxes-1.json").read_text())
    del content["annotations"][3]["segmentation"]
    other = made / "without.json"
    other.write_text(json.dumps(content))
    code, _, said = cli("verify", made / "m.ltd", "--data", other, "--by", "masks")
    assert code == 2
    assert "without a segmentation" in said
    code, _, said = cli("verify", made / "m.ltd", "--data", other, "--by", "mask")
    assert code == 2
    assert "--by is 'mask'; expected boxes or masks" in said


def test_a_wrong_mask_branch_is_noticed(
    made: Path, traced: list[onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(made / "m.pt")
    assert isinstance(model, Detector)
    other = lively_mask_rcnn(seed=9)
    other.roi_heads.mask_roi_pool = model.module.roi_heads.mask_roi_pool

    class Wrong(kept_export.KeptMasks):
        def __init__(self, kept: Any, module: Any, static: Any) -> None:
            super().__init__(kept, other, static)

    monkeypatch.setattr(kept_export, "KeptMasks", Wrong)
    keep = kept_detections.rule_inside(model.keep_rule, masks=True)
    rules = model.score_rule, keep, model.canvas
    data = open_boxes(str(made / "boxes-0.json"))
    canvases = np.stack([load_on_canvas(data.source(at), model.canvas)[0] for at in range(2)])
    with pytest.raises(ExportError, match="masks differ from the reference's"):
        kept_export.kept_graph(model, traced[0], rules, on_onnxruntime, canvases, exact=True)


def test_one_mask_for_all_classes(
    made: Path, traced: list[onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class-agnostic mask layer, one row: recognised in the file, and exported as it is."""
    content = torch.load(made / "m.pt", weights_only=True)
    for part in ("weight", "bias"):
        name = f"roi_heads.mask_predictor.mask_fcn_logits.{part}"
        content["state_dict"][name] = content["state_dict"][name][2:3].clone()
    torch.save(content, tmp_path / "one.pt")
    model = load_model(tmp_path / "one.pt")
    assert isinstance(model, Detector)
    assert model.has_masks
    data = open_boxes(str(made / "boxes-0.json"))
    canvases = np.stack([load_on_canvas(data.source(at), model.canvas)[0] for at in range(2)])
    keep = kept_detections.rule_inside(model.keep_rule, masks=True)
    rules = model.score_rule, keep, model.canvas
    kept = kept_export.kept_graph(model, traced[0], rules, on_onnxruntime, canvases, exact=True)
    assert kept.mask_difference is not None
    assert kept.mask_difference < 1e-5
    # Held against torchvision's own branch, and against each class's own row: those differ.
    rows = load_model(made / "m.pt")
    assert isinstance(rows, Detector)
    monkeypatch.setattr(DetectorReference, "masks", _masks_of(rows))
    with pytest.raises(ExportError, match="masks differ from the reference's"):
        kept_export.kept_graph(model, traced[0], rules, on_onnxruntime, canvases, exact=True)


def _masks_of(other: Detector) -> Callable[..., Any]:
    original = DetectorReference.masks
    return lambda _, *rest: original(DetectorReference(other), *rest)
