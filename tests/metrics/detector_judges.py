"""What tests of detectors share: made detections, and the evaluators that judge ours."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltdeploy.boxes import Detections
from ltdeploy.metrics.matching import ImageTruth

Json = dict[str, Any]


def read(path: Path) -> Json:
    """Read a COCO or LVIS file, its images in the order of the evaluators."""
    content: Json = json.loads(path.read_text())
    content["images"].sort(key=lambda image: image["id"])
    content["categories"].sort(key=lambda category: category["id"])
    return content


def truth_in(content: Json) -> list[ImageTruth]:
    """Return the truth of each image; boxes in float32, as data sets give them."""
    label = {category["id"]: c for c, category in enumerate(content["categories"])}
    own: dict[int, list[Json]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        own[annotation["image_id"]].append(annotation)

    def labels(image: Json, key: str) -> np.ndarray | None:
        return np.array([label[c] for c in image[key]], np.int64) if key in image else None

    return [
        ImageTruth(
            boxes=_corners([a["bbox"] for a in own[image["id"]]]),
            labels=np.array([label[a["category_id"]] for a in own[image["id"]]], np.int64),
            crowd=np.array([a.get("iscrowd", 0) for a in own[image["id"]]], np.bool_),
            area=np.array([a["area"] for a in own[image["id"]]], np.float64),
            negative=labels(image, "neg_category_ids"),
            not_exhaustive=labels(image, "not_exhaustive_category_ids"),
        )
        for image in content["images"]
    ]


def _corners(xywh: list[list[float]]) -> np.ndarray:
    boxes = np.array(xywh, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)


def synthesise(
    truth: list[ImageTruth], classes: int, seed: int, extra: int = 40, decimals: int = 2
) -> list[Detections]:
    """Draw jittered truth, duplicates, wrong classes, unlisted classes and boxes of nothing.

    Scores are rounded, so that many tie, within an image and across.
    """
    rng = np.random.default_rng(seed)
    everywhere = np.unique(np.concatenate([t.labels for t in truth]))
    detections = []
    for image in truth:
        copies = rng.integers(0, 4, len(image.boxes))
        boxes = np.repeat(image.boxes, copies, axis=0).astype(np.float64)
        labels = np.repeat(image.labels, copies)
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        boxes += rng.normal(0, 0.08, boxes.shape) * sides
        wrong = rng.random(len(labels)) < 0.2
        labels = np.where(wrong, rng.choice(everywhere, len(labels)), labels)
        corner = rng.uniform(0, 400, (extra, 2))
        nothing = np.concatenate([corner, corner + rng.uniform(4, 250, (extra, 2))], axis=1)
        named = [image.labels, image.negative, image.not_exhaustive]
        pool = np.concatenate([labels[:0], *(part for part in named if part is not None)])
        pool = pool if len(pool) and rng.random() < 0.7 else np.arange(classes)
        boxes = np.concatenate([boxes, nothing])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.concatenate([labels, rng.choice(pool, extra)]).astype(np.int64)
        scores = np.round(rng.random(len(labels)), decimals)
        detections.append(Detections(boxes.astype(np.float32), scores.astype(np.float32), labels))
    return detections


def results_of(content: Json, detections: list[Detections]) -> list[Json]:
    """Return detections as COCO results."""
    results = []
    for image, own in zip(content["images"], detections, strict=True):
        for box, score, label in zip(own.boxes.astype(float), own.scores, own.labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": content["categories"][label]["id"],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                }
            )
    return results


def lvis_says(
    path: Path, results: list[Json], monkeypatch: pytest.MonkeyPatch, most: int = 300
) -> tuple[Json, np.ndarray]:
    """Return lvis's figures in percent, and precision of shape (T, R, F, A)."""
    # lvis 0.5.3 draws with OpenCV, which no figure needs, and knows numpy's old name of float.
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    monkeypatch.setattr(np, "float", float, raising=False)
    lvis = pytest.importorskip("lvis")
    logging.getLogger("lvis").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its logger says warn
        gt = lvis.LVIS(str(path))
        judge = lvis.LVISEval(gt, lvis.LVISResults(gt, results, max_dets=most), "bbox")
        # Classes without an object are in none of its means, and take most of its time.
        judge.params.cat_ids = sorted(gt.cat_img_map)
        judge.run()
    figures = {key: 100 * value for key, value in judge.get_results().items()}
    precision = np.full((10, 101, len(gt.cats), 4), -1.0)
    precision[:, :, np.isin(sorted(gt.cats), judge.params.cat_ids)] = judge.eval["precision"]
    return figures, precision


def coco_says(content: Json, results: list[Json], module: str, kind: str = "bbox") -> np.ndarray:
    """Return precision, shape (T, R, F, A), from pycocotools or a module that is used like it."""
    pytest.importorskip(module)
    with contextlib.redirect_stdout(io.StringIO()):
        if module == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        gt = COCO()
        gt.dataset = {"info": {}, **content}
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes(results), kind)
        judge.evaluate()
        judge.accumulate()
    return np.asarray(judge.eval["precision"])[..., -1]


def mean_of(precision: np.ndarray) -> float:
    """Return the evaluators' mean in percent: over what is above −1."""
    return 100 * float(precision[precision > -1].mean())
