"""Average precision: equal to lvis, pycocotools and faster-coco-eval, and right by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detector_judges import (
    coco_says,
    lvis_says,
    mean_of,
    read,
    results_of,
    synthesise,
    truth_in,
)

from ltdeploy.boxes import Detections
from ltdeploy.datasets.boxes import BoxDataset, BoxImage, BoxTruth
from ltdeploy.errors import DataError
from ltdeploy.metrics.detection import average_precision, evaluate, mean_precision, pooled
from ltdeploy.metrics.matching import (
    COCO_LIMITS,
    FIXED_LIMITS,
    ImageTruth,
    Limits,
    match,
    truth_of,
)
from ltdeploy.metrics.overlaps import mask_areas

AT_THE_EVALUATORS_SIDE = 1e-6  # points of AP


def boxes_at(*left: float, side: float = 40) -> np.ndarray:
    """Return square boxes in a row."""
    return np.array([[x, 0, x + side, side] for x in left], np.float32).reshape(-1, 4)


def image(boxes: np.ndarray, labels: list[int], **more: Any) -> ImageTruth:
    """Return the truth of an image; areas are those of the boxes."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64)
    crowd = np.array(more.pop("crowd", [False] * len(labels)), np.bool_)
    return ImageTruth(boxes, np.array(labels, np.int64), crowd, area, **more)


def found(boxes: np.ndarray, scores: list[float], labels: list[int]) -> Detections:
    return Detections(boxes, np.array(scores, np.float32), np.array(labels, np.int64))


@pytest.mark.parametrize(("extra", "decimals"), [(40, 2), (450, 1)])
def test_equals_lvis(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, extra: int, decimals: int
) -> None:
    # With 450 boxes of nothing, the limit of 300 per image bites.
    path = data_dir / "lvis" / "lvis_v0.5_val_100.json"
    content = read(path)
    groups = [category["frequency"] for category in content["categories"]]
    truth = truth_in(content)
    detections = synthesise(truth, len(groups), seed=extra, extra=extra, decimals=decimals)
    theirs, precision = lvis_says(path, results_of(content, detections), monkeypatch)
    ours = evaluate(truth, detections, groups)

    assert 1 < ours.ap < 60
    for key, value in (
        ("AP", ours.ap),
        ("AP50", ours.ap50),
        ("AP75", ours.ap75),
        ("APs", ours.ap_small),
        ("APm", ours.ap_medium),
        ("APl", ours.ap_large),
        *((f"AP{group}", ours.by_group[group].ap) for group in "rcf"),
    ):
        assert value == pytest.approx(theirs[key], abs=AT_THE_EVALUATORS_SIDE), key
    by_class = precision[..., 0].mean(axis=(0, 1))
    expected = np.where(by_class < 0, np.nan, 100 * by_class)
    np.testing.assert_allclose(ours.by_class, expected, atol=AT_THE_EVALUATORS_SIDE)


def test_fixed_is_lvis_without_its_limit_per_image(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data_dir / "lvis" / "lvis_v0.5_val_100.json"
    content = read(path)
    groups = [category["frequency"] for category in content["categories"]]
    truth = truth_in(content)
    detections = synthesise(truth, len(groups), seed=3, extra=450)
    results = results_of(content, detections)
    theirs, _ = lvis_says(path, results, monkeypatch, most=-1)
    ours = evaluate(truth, detections, groups)
    assert ours.fixed == pytest.approx(theirs["AP"], abs=AT_THE_EVALUATORS_SIDE)
    assert ours.by_group["c"].fixed == pytest.approx(theirs["APc"], abs=AT_THE_EVALUATORS_SIDE)
    assert ours.fixed > ours.ap + 1  # the limit costs, so the two can be told apart


def test_federated_rules_matter(data_dir: Path) -> None:
    content = read(data_dir / "lvis" / "lvis_v0.5_val_100.json")
    groups = [category["frequency"] for category in content["categories"]]
    truth = truth_in(content)
    detections = synthesise(truth, len(groups), seed=4)
    federated = evaluate(truth, detections, groups)
    strict = [replace(t, not_exhaustive=np.zeros(0, np.int64)) for t in truth]
    searched = [replace(t, negative=np.arange(len(groups))) for t in truth]
    assert federated.ap > evaluate(strict, detections, groups).ap + 0.1
    assert federated.ap > evaluate(searched, detections, groups).ap + 0.1


def with_crowds(content: dict[str, Any]) -> dict[str, Any]:
    """Return the same file with every fourth object a crowd."""
    annotations = [dict(a, iscrowd=int(a["id"] % 4 == 0)) for a in content["annotations"]]
    return dict(content, annotations=annotations)


@pytest.mark.parametrize(
    ("module", "crowds", "extra"),
    [
        ("pycocotools", False, 20),
        ("pycocotools", True, 400),  # more than the limit of 100 per image and class
        ("faster_coco_eval", True, 20),
        ("faster_coco_eval", False, 400),
    ],
)
def test_equals_coco_evaluators(data_dir: Path, module: str, crowds: bool, extra: int) -> None:
    content = read(data_dir / "bccd" / "test.json")
    content = with_crowds(content) if crowds else content
    truth = truth_in(content)
    detections = synthesise(truth, 3, seed=extra, extra=extra)
    precision = coco_says(content, results_of(content, detections), module)
    ours = evaluate(truth, detections, ["few", "many", "medium"])
    assert ours.limits == COCO_LIMITS
    for value, theirs in (
        (ours.ap, precision[..., 0]),
        (ours.ap50, precision[0, ..., 0]),
        (ours.ap75, precision[5, ..., 0]),
        (ours.ap_small, precision[..., 1]),
        (ours.ap_medium, precision[..., 2]),
        (ours.ap_large, precision[..., 3]),
        (ours.by_group["many"].ap, precision[:, :, 1, 0]),
    ):
        assert value == pytest.approx(mean_of(theirs), abs=AT_THE_EVALUATORS_SIDE)


def test_by_hand() -> None:
    # Right, wrong, right of three objects: precision 1 to recall 1/3, 2/3 to recall 2/3, then 0.
    truth = [image(boxes_at(0, 100, 200), [0, 0, 0])]
    detections = [found(boxes_at(0, 400, 100), [0.9, 0.8, 0.7], [0, 0, 0])]
    precision = average_precision(match(truth, detections, 1, Limits()))
    assert precision[0] == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)


def test_a_second_box_of_an_object_is_wrong() -> None:
    truth = [image(boxes_at(0, 100), [0, 0])]
    twice = [found(boxes_at(0, 0, 100), [0.9, 0.8, 0.7], [0, 0, 0])]
    once = [twice[0][np.array([0, 2])]]
    assert evaluate(truth, once, ["few"]).ap == pytest.approx(100)
    assert evaluate(truth, twice, ["few"]).ap == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_a_crowd_takes_many_and_counts_neither_way() -> None:
    truth = [image(np.concatenate([boxes_at(0), boxes_at(100, side=200)]), [0, 0], crowd=[0, 1])]
    detections = [found(boxes_at(0, 110, 150, 180), [0.6, 0.9, 0.8, 0.7], [0, 0, 0, 0])]
    assert evaluate(truth, detections, ["few"]).ap == pytest.approx(100)
    alone = [replace(truth[0], crowd=np.zeros(2, np.bool_))]
    assert evaluate(alone, detections, ["few"]).ap < 50


def test_pool_rewards_scores_that_mean_the_same() -> None:
    # Class 1's right box stands under class 0's wrong one: no class alone can see that.
    truth = [image(boxes_at(0, 100), [0, 1])]
    above = [found(boxes_at(0, 300, 100), [0.9, 0.8, 0.7], [0, 0, 1])]
    below = [found(boxes_at(0, 300, 100), [0.9, 0.6, 0.7], [0, 0, 1])]
    assert evaluate(truth, above, ["many", "few"]).fixed == pytest.approx(100)
    assert evaluate(truth, above, ["many", "few"]).pool == pytest.approx(
        100 * (51 + 50 * 2 / 3) / 101
    )
    assert evaluate(truth, below, ["many", "few"]).pool == pytest.approx(100)


def test_pool_is_one_ranking(data_dir: Path) -> None:
    content = read(data_dir / "bccd" / "test.json")
    truth = truth_in(content)
    detections = synthesise(truth, 3, seed=0)
    matches = match(truth, detections, 3, FIXED_LIMITS)
    right = matches.outcome[0, 0] == 1
    order = np.argsort(-matches.score, kind="stable")
    correct = np.cumsum(right[order])
    precision = correct / np.arange(1, len(order) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(correct / len(matches.truth_image), np.linspace(0, 1, 101))
    expected = np.append(envelope, 0)[places].mean()
    assert average_precision(pooled(matches))[0, 0] == pytest.approx(expected)


def test_fixed_keeps_the_best_of_each_class() -> None:
    truth = [image(boxes_at(0), [0])] * 3
    detections = [found(boxes_at(0, 100), [score, 0.1], [0, 1]) for score in (0.9, 0.8, 0.7)]
    matches = match(truth, detections, 2, Limits(per_class=2))
    assert matches.score.tolist() == pytest.approx([0.9, 0.8, 0.1, 0.1])
    assert matches.image.tolist() == [0, 1, 0, 1]
    assert matches.position.tolist() == [0, 0, 1, 1]


def test_classes_and_groups_without_truth_are_in_no_mean() -> None:
    truth = [image(boxes_at(0), [0])]
    detections = [found(boxes_at(0, 100), [0.9, 0.8], [0, 1])]
    scores = evaluate(truth, detections, ["many", "few"])
    assert scores.ap == pytest.approx(100)
    assert np.isnan(scores.by_class[1])
    assert scores.by_group["few"].ap is None
    assert scores.by_group["few"].pool is None
    assert scores.by_group["few"].classes == 0
    assert scores.ap_small is None  # 40² is medium
    assert scores.ap_medium == pytest.approx(100)


def test_nothing_found_and_nothing_there() -> None:
    nothing = image(boxes_at(), [])
    scores = evaluate([image(boxes_at(0), [0])], [Detections.empty()], ["many"])
    assert (scores.ap, scores.fixed, scores.pool) == (0, 0, 0)
    scores = evaluate([nothing], [found(boxes_at(0), [0.5], [0])], ["many"])
    assert (scores.ap, scores.fixed, scores.pool) == (None, None, None)
    assert evaluate([], [], ["many"]).ap is None


def test_masks_equal_pycocotools(data_dir: Path) -> None:
    # The masks are polygons over BCCD's boxes: diamonds, so that boxes and masks differ.
    pytest.importorskip("pycocotools")
    from pycocotools import mask as coder

    content = read(data_dir / "bccd" / "test.json")
    content = with_crowds(dict(content, images=content["images"][:12]))
    size = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    annotations = [a for a in content["annotations"] if a["image_id"] in size]

    def diamond(box: list[float], image_id: int) -> dict[str, Any]:
        x, y, w, h = box
        polygon = [x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]
        return coder.merge(coder.frPyObjects([polygon], *size[image_id]))

    for annotation in annotations:
        annotation["segmentation"] = diamond(annotation["bbox"], annotation["image_id"])
    content["annotations"] = annotations
    truth = [
        replace(t, masks=[a["segmentation"] for a in annotations if a["image_id"] == i["id"]])
        for t, i in zip(truth_in(content), content["images"], strict=True)
    ]
    detections = synthesise(truth, 3, seed=0)
    results = results_of(content, detections)
    for result in results:
        result["segmentation"] = diamond(result.pop("bbox"), result["image_id"])
    masks = [
        [r["segmentation"] for r in results if r["image_id"] == i["id"]] for i in content["images"]
    ]
    precision = coco_says(json_like(content), results, "pycocotools", kind="segm")
    ours = average_precision(match(truth, detections, 3, COCO_LIMITS, masks))
    np.testing.assert_allclose(
        ours.T, precision[..., 0].mean(axis=1), atol=AT_THE_EVALUATORS_SIDE / 100
    )
    by_boxes = average_precision(match(truth, detections, 3, COCO_LIMITS))
    assert abs(mean_precision(by_boxes) - mean_precision(ours)) > 0.005
    with pytest.raises(DataError, match="0 masks for"):
        match([replace(t, masks=None) for t in truth], detections, 3, COCO_LIMITS, masks)
    with pytest.raises(DataError, match=r"masks for \d+ detections"):
        match(truth, detections, 3, COCO_LIMITS, [own[1:] for own in masks])


def json_like(content: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that an evaluator may write into."""

    def text(value: object) -> object:
        return value.decode() if isinstance(value, bytes) else value

    copied: dict[str, Any] = json.loads(json.dumps(content, default=text))
    return copied


@pytest.mark.parametrize(
    ("truth", "detections", "said"),
    [
        ([], [Detections.empty()], "0 images with truth and 1 with"),
        ([image(boxes_at(0), [2])], [Detections.empty()], r"truth with the label 2; expected 0 to"),
        ([image(boxes_at(), [])], [found(boxes_at(0), [0.5], [-1])], "detection with the label -1"),
        ([image(boxes_at(), [])], [found(boxes_at(np.nan), [0.5], [0])], r"detection box \[nan"),
        ([image(boxes_at(), [])], [found(boxes_at(0), [np.nan], [0])], "score is not a finite"),
    ],
)
def test_broken_input_is_refused(
    truth: list[ImageTruth], detections: list[Detections], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        evaluate(truth, detections, ["many", "few"])


def test_a_data_set_gives_its_truth() -> None:
    two = BoxTruth(
        boxes=boxes_at(0, 100),
        labels=np.array([1, 0]),
        crowd=np.array([False, True]),
        area=np.array([700.0, 1600.0]),
        ids=np.array([7, 8]),
    )
    photo = BoxImage(1, "a.jpg", b"", 200, 50, np.array([2]), np.array([1]))
    outlines = {7: [[0.0, 0, 40, 0, 40, 20, 0, 20]], 8: {"size": [50, 200], "counts": [0, 10000]}}
    dataset = BoxDataset("made", "abc", [photo], [two], segmentations=lambda: outlines)
    (truth,) = truth_of(dataset)
    assert (truth.negative.tolist(), truth.not_exhaustive.tolist()) == ([2], [1])
    assert (truth.boxes, truth.area, truth.masks) == (two.boxes, two.area, None)
    (masked,) = truth_of(dataset, masks=True)
    assert mask_areas(masked.masks).tolist() == [800, 10000]
    del outlines[8]
    with pytest.raises(DataError, match="annotation 8 without a segmentation"):
        truth_of(dataset, masks=True)
