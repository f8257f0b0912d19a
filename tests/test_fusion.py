"""Fusion equals the published formulas where all know all, and counts only those that know."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.boxes import Detections, pairwise_iou
from ltdeploy.errors import DataError, UsageError
from ltdeploy.fusion import FusionRule, fuse, known_classes
from ltdeploy.suppression import hard_nms, soft_nms

SOFT = FusionRule("soft_nms")
WBF = FusionRule(score_threshold=0)
OBJECTS = np.array([[10, 10, 60, 60], [40, 30, 90, 90], [5, 50, 45, 95]], np.float32)


def model(seed: int, classes: Sequence[int] = (0, 1, 2)) -> Detections:
    """Return what one model finds: each object, shifted a little, once or twice, and rubbish."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([OBJECTS, OBJECTS[:1], OBJECTS + 1]) + rng.normal(0, 3, (7, 4))
    boxes = np.clip(boxes, 0, 100).astype(np.float32)
    scores = rng.uniform(0.05, 1, 7).astype(np.float32)
    return Detections(boxes, scores, rng.choice(np.array(classes), 7))


def slow_fusion(
    found: Sequence[Detections], weights: Sequence[float], iou: float
) -> list[tuple[float, int, npt.NDArray[np.float64]]]:
    """Section 3 of arXiv 1910.13302, for models that all know all classes."""
    pool = sorted(
        (
            (float(score) * weight, int(label), box.astype(np.float64))
            for one, weight in zip(found, weights, strict=True)
            for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True)
        ),
        key=lambda entry: -entry[0],
    )
    clusters: list[list[tuple[float, int, npt.NDArray[np.float64]]]] = []

    def fused(cluster: list[tuple[float, int, npt.NDArray[np.float64]]]) -> npt.NDArray[np.float64]:
        total: npt.NDArray[np.float64] = sum(s * b for s, _, b in cluster) / sum(
            s for s, _, _ in cluster
        )
        return total

    for entry in pool:
        overlaps = [
            float(pairwise_iou(fused(c)[None], entry[2][None])[0, 0]) if c[0][1] == entry[1] else -1
            for c in clusters
        ]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if overlaps and overlaps[best] > iou:
            clusters[best].append(entry)
        else:
            clusters.append([entry])
    results = []
    for cluster in clusters:
        mean = sum(s for s, _, _ in cluster) / len(cluster)
        score = mean * min(len(found), len(cluster)) / sum(weights)
        results.append((score, cluster[0][1], fused(cluster)))
    return sorted(results, key=lambda result: -result[0])


@given(
    seed=st.integers(0, 10**6),
    weights=st.lists(st.floats(0.2, 3), min_size=1, max_size=4),
    iou=st.floats(0.3, 0.8),
)
@settings(max_examples=40, deadline=None)
def test_weighted_boxes_are_the_papers(seed: int, weights: list[float], iou: float) -> None:
    found = [model(seed + place) for place in range(len(weights))]
    expected = slow_fusion(found, weights, iou)
    fused = fuse(found, FusionRule(iou=iou, score_threshold=0), weights=weights)
    np.testing.assert_allclose(fused.scores, [score for score, _, _ in expected], rtol=1e-6)
    np.testing.assert_array_equal(fused.labels, [label for _, label, _ in expected])
    np.testing.assert_allclose(fused.boxes, [box for _, _, box in expected], rtol=1e-5)


@pytest.fixture(scope="module")
def ensemble_boxes() -> ModuleType:
    """Return the paper's own module, without the package's others, which need numba."""
    package = importlib.util.find_spec("ensemble_boxes")
    if package is None or package.origin is None:
        pytest.skip("ensemble-boxes is not installed")
    file = Path(package.origin).with_name("ensemble_boxes_wbf.py")
    spec = importlib.util.spec_from_file_location("ensemble_boxes_wbf", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(10))
def test_weighted_boxes_are_those_of_the_papers_code(ensemble_boxes: ModuleType, seed: int) -> None:
    found = [model(3 * seed + place) for place in range(3)]
    boxes, scores, labels = ensemble_boxes.weighted_boxes_fusion(
        [one.boxes / 100 for one in found],
        [one.scores for one in found],
        [one.labels for one in found],
        weights=[1, 2, 1.5],
        iou_thr=0.55,
    )
    fused = fuse(found, WBF, weights=[1, 2, 1.5])
    np.testing.assert_allclose(fused.scores, scores, rtol=1e-6)
    np.testing.assert_array_equal(fused.labels, labels)
    np.testing.assert_allclose(fused.boxes / 100, boxes, atol=1e-6)


def one_box(score: float, label: int, left: float = 0) -> Detections:
    """Return a single detection."""
    box = np.array([[left, 0, left + 10, 10]], np.float32)
    return Detections(box, np.array([score], np.float32), np.array([label]))


def test_a_class_counts_the_models_that_know_it() -> None:
    found = [Detections.empty(), one_box(0.8, 1), one_box(0.6, 0)]
    knows = np.array([[True, False], [False, True], [True, False]])
    fused = fuse(found, WBF, knows)
    np.testing.assert_array_equal(fused.labels, [1, 0])
    # class 1: the one model that knows it; class 0: one of the two that do
    np.testing.assert_allclose(fused.scores, [0.8, 0.3])
    published = fuse(found, WBF)
    np.testing.assert_allclose(published.scores, [0.8 / 3, 0.6 / 3], rtol=1e-6)


def test_weights_count_among_those_that_know() -> None:
    found = [one_box(0.5, 0), one_box(0.8, 0), one_box(0.9, 1)]
    knows = np.array([[True, False], [True, False], [False, True]])
    fused = fuse(found, WBF, knows, weights=[3, 1, 0.5])
    by_hand = {1: 0.9, 0: (3 * 0.5 + 0.8) / 4}
    np.testing.assert_allclose(fused.scores, [by_hand[label] for label in fused.labels], rtol=1e-6)
    soft = fuse(found, SOFT, knows, weights=[3, 1, 0.5])
    assert soft.scores[soft.labels == 1] == pytest.approx(0.9)  # 0.9 · 0.5 / 0.5


def test_boxes_by_hand() -> None:
    fused = fuse([one_box(0.9, 0), one_box(0.3, 0, left=2)], WBF)
    np.testing.assert_allclose(fused.boxes, [[0.5, 0, 10.5, 10]])
    np.testing.assert_allclose(fused.scores, [0.6])


def test_soft_nms_of_one_model_is_soft_nms() -> None:
    found = model(4)
    rows, lowered = soft_nms(found.boxes, found.scores, found.labels, SOFT.sigma)
    fused = fuse([found], SOFT)
    np.testing.assert_array_equal(fused.boxes, found.boxes[rows])
    np.testing.assert_array_equal(fused.scores, lowered)


@pytest.mark.parametrize("rule", [WBF, SOFT])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_fused_boxes_lie_within_what_was_found(rule: FusionRule, seed: int) -> None:
    found = [model(seed), model(seed + 1), model(seed + 2)]
    fused = fuse(found, rule)
    boxes = np.concatenate([one.boxes for one in found])
    labels = np.concatenate([one.labels for one in found])
    for label in np.unique(fused.labels):
        own, of_class = boxes[labels == label], fused.boxes[fused.labels == label]
        assert (of_class >= own.min(axis=0) - 1e-4).all()
        assert (of_class <= own.max(axis=0) + 1e-4).all()
    assert fused.scores.max() <= np.concatenate([one.scores for one in found]).max() + 1e-6
    assert (np.diff(fused.scores) <= 0).all()


@pytest.mark.parametrize("rule", [WBF, SOFT])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_the_order_of_models_does_not_matter(rule: FusionRule, seed: int) -> None:
    found = [model(seed), model(seed + 1, (0, 1)), model(seed + 2, (2,))]
    knows = np.array([[True] * 3, [True, True, False], [False, False, True]])
    weights = [1.0, 2.0, 0.7]
    fused = fuse(found, rule, knows, weights)
    again = fuse(found[::-1], rule, knows[::-1], weights[::-1])
    np.testing.assert_allclose(again.scores, fused.scores, rtol=1e-5)
    np.testing.assert_allclose(again.boxes, fused.boxes, rtol=1e-5)


@pytest.mark.parametrize("rule", [WBF, SOFT])
def test_nothing_found_by_anyone(rule: FusionRule) -> None:
    fused = fuse([Detections.empty(), Detections.empty()], rule)
    assert fused.boxes.shape == (0, 4)
    assert fused.boxes.dtype == np.float32
    assert len(fuse([one_box(0.01, 0)], FusionRule(rule.method, score_threshold=0.5))) == 0


def test_who_knows_what() -> None:
    knows = known_classes([None, np.array([2, -1, 2])], 4)
    np.testing.assert_array_equal(knows, [[True] * 4, [False, False, True, False]])


def test_a_model_that_finds_what_it_does_not_know() -> None:
    knows = np.array([[True, False]])
    with pytest.raises(DataError, match="Model 0 found the label 1, which it does not know"):
        fuse([one_box(0.5, 1)], WBF, knows)
    with pytest.raises(DataError, match="found the label 2"):
        fuse([one_box(0.5, 2)], WBF, knows)
    with pytest.raises(DataError, match=r"shape \(1, 2\); expected \(2, F\)"):
        fuse([one_box(0.5, 0)] * 2, WBF, knows)


def test_wrong_weights() -> None:
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(UsageError, match="expected 2 finite numbers above 0"):
            fuse([one_box(0.5, 0)] * 2, WBF, weights=weights)
    with pytest.raises(UsageError, match="nothing to fuse"):
        fuse([], WBF)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"method": "soft"}, "Unknown fusion method 'soft'"),
        ({"iou": 1.5}, "iou is 1.5"),
        ({"sigma": -1}, "sigma is -1"),
        ({"score_threshold": -1}, "score_threshold is -1"),
    ],
)
def test_wrong_rules(values: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        FusionRule(**values)  # type: ignore[arg-type]


def test_fused_boxes_of_a_class_hardly_overlap_any_more() -> None:
    found = [model(seed) for seed in range(6)]
    fused = fuse(found, WBF)
    kept = hard_nms(fused.boxes, fused.scores, fused.labels, iou=0.8)
    assert len(kept) == len(fused) < sum(map(len, found))
