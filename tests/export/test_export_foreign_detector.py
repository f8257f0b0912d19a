"""Exported ONNX detectors: batches, the fix in the rows of the classes, FastestDet's own words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_detector_samples as samples
import pytest
from PIL import Image

import ltdeploy
from ltdeploy.bundle import open_bundle
from ltdeploy.canvas import load_on_canvas
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_boxes
from ltdeploy.engines import open_engine
from ltdeploy.engines.one_by_one import OneByOne
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.errors import ExportError, FixError
from ltdeploy.export.detection import foreign_graph
from ltdeploy.export.detection.detector_export import ExportedDetector, export_detector
from ltdeploy.fixes import FixSpec
from ltdeploy.models.detectors.onnx_detector import OnnxDetector
from ltdeploy.models.detectors.onnx_mapping import OutputMapping, read_mapping
from ltdeploy.models.loading import load_model
from ltdeploy.models.options import LoadOptions

TABLE = ClassTable(("disc", "bar", "ring", "star"), (300, 150, 30, 8))
FIXES = {
    "yolov5": FixSpec("odds", {"gamma": 0.5}),
    "yolov8": FixSpec("odds", {"gamma": 0.5}),
    "detr": FixSpec("norcal", {"gamma": 0.5}),
}
BUILDERS: dict[str, Callable[..., onnx.ModelProto]] = {
    "yolov5": samples.yolov5,
    "yolov8": samples.yolov8,
    "detr": samples.detr,
}


def loaded(layout: str, folder: Path, **building: Any) -> OnnxDetector:
    path = samples.write(BUILDERS[layout](**building), folder / "detector.onnx")
    told = OutputMapping.model_validate_json(json.dumps(samples.MAPPINGS[layout]))
    model = load_model(path, options=LoadOptions(classes=TABLE), outputs=told)
    assert isinstance(model, OnnxDetector)
    return model


def exported(model: OnnxDetector, layout: str, folder: Path) -> ExportedDetector:
    return export_detector(model, [FIXES[layout]], folder / "detector.ltd")


@pytest.mark.parametrize("batch", [1, "n"])
@pytest.mark.parametrize("layout", list(BUILDERS))
def test_every_layout_is_exported_for_any_batch(
    layout: str, batch: int | str, tmp_path: Path
) -> None:
    done = exported(loaded(layout, tmp_path, batch=batch), layout, tmp_path)
    assert done.checks.detections > 20  # else nothing was compared
    assert done.checks.score_difference < 1e-5
    assert done.checks.box_difference_px < 0.01
    manifest = done.bundle.manifest
    assert manifest.graphs[0].inputs[0].shape == ("batch", 64, 64, 3)
    count = {"yolov5": 240, "yolov8": 80, "detr": 16}[layout]
    shapes = {tensor.name: tensor.shape for tensor in manifest.graphs[0].outputs}
    assert shapes["boxes"] == ("batch", count, 4)
    assert shapes["logits"] == ("batch", count, 4 + (layout == "detr"))
    assert ("quality" in shapes) == (layout == "yolov5")
    assert manifest.fix.folded == "weights"
    assert read_mapping(done.bundle.path / "outputs.json").layout == layout


def test_the_graph_is_one_that_tensorrt_builds(tmp_path: Path) -> None:
    done = exported(loaded("yolov5", tmp_path), "yolov5", tmp_path)
    graph = onnx.load(done.bundle.graph_path).graph
    kinds = [node.op_type for node in graph.node]
    assert not {"NonZero", "Loop", "If", "NonMaxSuppression", "BatchNormalization"} & set(kinds)
    assert kinds.index("Cast") < kinds.index("Transpose")


def test_a_fix_costs_no_node(tmp_path: Path) -> None:
    model = loaded("yolov8", tmp_path, norm=False)
    without = export_detector(model, [], tmp_path / "plain.ltd").bundle.manifest
    fixed = exported(model, "yolov8", tmp_path).bundle.manifest
    assert without.fix.folded == "none"
    assert without.graphs[0].nodes == fixed.graphs[0].nodes


def test_a_graph_that_takes_one_image_stays_so_and_says_it(tmp_path: Path) -> None:
    done = exported(loaded("yolov8", tmp_path, mixed=True), "yolov8", tmp_path)
    assert done.checks.score_difference < 1e-5
    manifest = done.bundle.manifest
    assert manifest.graphs[0].inputs[0].shape == (1, 64, 64, 3)
    assert any("one photograph at a time" in note for note in manifest.source.notes)
    engine = open_engine(open_bundle(done.bundle.path), "onnxruntime")
    assert isinstance(engine, OneByOne)
    images = done.bundle.golden_detections().images
    together = engine.run({"images": images})["logits"]
    apart = [engine.run({"images": images[[at]]})["logits"] for at in range(len(images))]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    assert np.ptp(together, axis=0).any()
    assert engine.run({"images": images[:0]})["boxes"].shape[0] == 0
    engine.close()
    with ltdeploy.load_detector(done.bundle.path, engine="onnxruntime", verify=True) as predictor:
        assert len(predictor.detect(images, [predictor.bundle.canvas.place(64, 64)] * 6)) == 6


def test_a_wrong_fold_or_decoding_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("yolov8", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(foreign_graph, "fold_rows", lambda *arguments: None)
        with pytest.raises(ExportError, match="differs from the reference"):
            exported(model, "yolov8", tmp_path)
    with monkeypatch.context() as patched:
        right = foreign_graph.prepend_normalisation
        patched.setattr(
            foreign_graph,
            "prepend_normalisation",
            lambda *arguments, bgr: right(*arguments, bgr=not bgr),
        )
        with pytest.raises(ExportError, match="differs from the reference"):
            exported(model, "yolov8", tmp_path)
    assert not (tmp_path / "detector.ltd").exists()


def test_a_fix_that_does_not_fold_is_refused(tmp_path: Path) -> None:
    model = loaded("detr", tmp_path)
    with pytest.raises(FixError):
        export_detector(model, [FixSpec("disalign", {})], tmp_path / "d.ltd")


# FastestDet, as its author published it (BSD-3): photographs, network and post-processing.

FASTESTDET = {
    "layout": "fastestdet",
    "canvas": {"fit": "squash", "channels": "bgr", "mean": [0, 0, 0], "std": [1, 1, 1]},
}
COCO_TABLE = ClassTable(
    tuple(f"class {label}" for label in range(80)),
    tuple(int(60_000 / (label + 1) ** 1.4) for label in range(80)),
)
PERSON, BUS, CAT, DOG = 0, 5, 15, 16


@pytest.fixture(scope="module")
def fastestdet(data_dir: Path) -> OnnxDetector:
    told = OutputMapping.model_validate_json(json.dumps(FASTESTDET))
    path = data_dir / "fastestdet" / "FastestDet.onnx"
    model = load_model(path, options=LoadOptions(classes=COCO_TABLE), outputs=told)
    assert isinstance(model, OnnxDetector)
    return model


def size_px(path: Path) -> tuple[int, int]:
    """Return width and height of a photograph."""
    with Image.open(path) as picture:
        return picture.size


def write_coco(photographs: Path, path: Path) -> Path:
    """Write a COCO json over the five photographs, with one box each."""
    images = [
        {"id": at, "file_name": f"{at}.jpg", "width": width, "height": height}
        for at in range(5)
        for width, height in [size_px(photographs / f"{at}.jpg")]
    ]
    boxes = [
        {"id": at, "image_id": at, "category_id": 1, "bbox": [9, 9, 50, 50], "area": 2500}
        for at in range(5)
    ]
    categories = [{"id": at + 1, "name": name} for at, name in enumerate(COCO_TABLE.names)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def bundles(
    fastestdet: OnnxDetector, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ExportedDetector]:
    """Return the bundle without a fix and with logit adjustment."""
    folder = tmp_path_factory.mktemp("fastestdet")
    root = data_dir / "fastestdet"
    photographs = open_boxes(str(write_coco(root, folder / "coco.json")), root=str(root))
    fix = FixSpec("logit_adjustment", {"tau": 0.5})
    return {
        "plain": export_detector(fastestdet, [], folder / "p.ltd", images=photographs),
        "fixed": export_detector(fastestdet, [fix], folder / "f.ltd", images=photographs),
    }


def cells(model: OnnxDetector, canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the boxes, objectness and probabilities of the original file, cell by cell."""
    planes = canvas[:, :, ::-1].astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    engine = OnnxRuntimeEngine(model.source.path)
    grid = engine.run({"input.1": np.ascontiguousarray(planes)})["758"][0].astype(np.float64)
    engine.close()
    boxes = np.empty((22 * 22, 4))
    for place, (row, column) in enumerate(itertools.product(range(22), repeat=2)):
        x, y, width, height = grid[1:5, row, column]
        centre = np.array([column + np.tanh(x), row + np.tanh(y)]) / 22
        half = 0.5 / (1 + np.exp(-np.array([width, height])))
        boxes[place] = 352 * np.concatenate([centre - half, centre + half])
    return boxes, grid[0].reshape(-1), grid[5:].reshape(80, -1).T


@pytest.mark.parametrize("kind", ["plain", "fixed"])
def test_fastestdet_decodes_as_an_independent_reading_of_it(
    bundles: dict[str, ExportedDetector], fastestdet: OnnxDetector, data_dir: Path, kind: str
) -> None:
    done = bundles[kind]
    assert done.checks.score_difference < 1e-5
    assert done.checks.box_difference_px < 0.1
    engine = open_engine(done.bundle, "onnxruntime")
    assert engine.inputs[0].shape[0] is None  # the file's own batch is 1
    rule = fastestdet.score_rule
    tau = 0.5 if kind == "fixed" else 0.0
    prior = np.array(COCO_TABLE.counts) / sum(COCO_TABLE.counts)
    for number in range(5):
        source = data_dir / "fastestdet" / f"{number}.jpg"
        canvas, _ = load_on_canvas(source, fastestdet.canvas)
        boxes, objectness, classes = cells(fastestdet, canvas)
        found = engine.run({"images": canvas[None]})
        np.testing.assert_allclose(found["boxes"][0], boxes, atol=0.01)
        weighted = classes * prior**-tau  # what logit adjustment is, said of probabilities
        expected = weighted / weighted.sum(axis=1, keepdims=True)
        scores = rule.scores(found["logits"][0], found["quality"][0])
        np.testing.assert_allclose(
            scores, expected**0.4 * objectness[:, None] ** 0.6, atol=1e-4, rtol=1e-3
        )
    engine.close()


def test_fastestdet_finds_what_its_published_post_processing_finds(
    bundles: dict[str, ExportedDetector], fastestdet: OnnxDetector, data_dir: Path
) -> None:
    import torch
    from torchvision.ops import batched_nms

    compared = 0
    with ltdeploy.load_detector(bundles["plain"].bundle.path, engine="onnxruntime") as predictor:
        for number in range(5):
            source = data_dir / "fastestdet" / f"{number}.jpg"
            canvas, placement = load_on_canvas(source, fastestdet.canvas)
            boxes, objectness, classes = cells(fastestdet, canvas)
            scores, labels = objectness**0.6 * classes.max(1) ** 0.4, classes.argmax(1)
            sure = scores > 0.5
            parts = (boxes[sure], scores[sure], labels[sure])
            kept = batched_nms(*map(torch.from_numpy, parts), 0.45).numpy()
            (found,) = predictor.detect(canvas[None], [placement])
            for at in kept:
                same = found.labels == parts[2][at]
                (box,) = placement.to_original(parts[0][[at]])
                near = np.abs(found.boxes[same] - box).max(axis=1)
                score = found.scores[same][near.argmin()]
                assert near.min() < 0.1
                assert abs(score - parts[1][at]) < 1e-4
                compared += 1
    assert compared >= 15


@pytest.mark.parametrize(
    ("photograph", "labels", "box"),
    [  # drawn around the objects by eye, on the photographs
        (1, {BUS}, (44, 78, 590, 415)),
        (3, {PERSON}, (45, 68, 178, 300)),
        (4, {CAT, DOG}, (130, 150, 420, 424)),
    ],
)
def test_fastestdets_best_boxes_sit_on_the_objects(
    bundles: dict[str, ExportedDetector],
    data_dir: Path,
    photograph: int,
    labels: set[int],
    box: tuple[int, ...],
) -> None:
    from ltdeploy.boxes import pairwise_iou

    with ltdeploy.load_detector(bundles["plain"].bundle.path, engine="onnxruntime") as predictor:
        source = data_dir / "fastestdet" / f"{photograph}.jpg"
        answer = predictor(source, min_score=0.4)
        best = max((one for one in answer.found if one.label in labels), key=lambda one: one.score)
        overlap = pairwise_iou(np.array([best.box], np.float32), np.array([box], np.float32))
        assert overlap[0, 0] > 0.75
        width, height = size_px(source)
        assert 0 <= best.box[0] < best.box[2] <= width
        assert 0 <= best.box[1] < best.box[3] <= height


def test_fastestdet_in_another_order_of_channels_is_another_model(
    fastestdet: OnnxDetector, data_dir: Path
) -> None:
    # A negative control: what the mapping says matters, and is not corrected by anything.
    canvas, _ = load_on_canvas(data_dir / "fastestdet" / "4.jpg", fastestdet.canvas)
    right, wrong = cells(fastestdet, canvas), cells(fastestdet, canvas[:, :, ::-1])
    assert np.abs(right[2] - wrong[2]).max() > 0.1
