"""Suppression gives what torchvision and a slow reading of the papers give."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, nms

from ltdeploy.arrays import FloatArray, IntArray
from ltdeploy.boxes import pairwise_iou
from ltdeploy.suppression import hard_nms, soft_nms


def crowd(
    seed: int, count: int, classes: int = 3, spread: float = 60
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return overlapping boxes with distinct scores."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, spread, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], axis=1)
    scores = rng.permutation(np.linspace(0.01, 0.99, count))
    labels = rng.integers(0, classes, count)
    return boxes.astype(np.float32), scores.astype(np.float32), labels


def slow_soft_nms(
    boxes: FloatArray, scores: FloatArray, labels: IntArray, sigma: float, threshold: float
) -> list[tuple[int, float]]:
    """Figure 2 of arXiv 1704.04503, class by class and box by box."""
    found = []
    for label in set(labels.tolist()):
        left = {i: float(scores[i]) for i in range(len(scores)) if labels[i] == label}
        while left:
            best = max(left, key=lambda i: left[i])
            score = left.pop(best)
            if score > threshold:
                found.append((best, score))
            for other in left:
                overlap = float(pairwise_iou(boxes[[best]], boxes[[other]])[0, 0])
                left[other] *= float(np.exp(-(overlap**2) / sigma))
    return sorted(found, key=lambda pair: -pair[1])


@given(seed=st.integers(0, 10**6), count=st.integers(1, 400), iou=st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_hard_is_torchvisions(seed: int, count: int, iou: float) -> None:
    boxes, scores, labels = crowd(seed, count)
    tensors = [torch.from_numpy(array) for array in (boxes, scores, labels)]
    expected = batched_nms(*tensors, iou)
    np.testing.assert_array_equal(hard_nms(boxes, scores, labels, iou), expected)
    expected = nms(*tensors[:2], iou)
    np.testing.assert_array_equal(hard_nms(boxes, scores, None, iou), expected)


@pytest.mark.parametrize("top_k", [1, 7, 200])
def test_the_first_k_are_those_of_all(top_k: int) -> None:
    boxes, scores, labels = crowd(3, 900, classes=20, spread=300)
    everything = hard_nms(boxes, scores, labels)
    np.testing.assert_array_equal(hard_nms(boxes, scores, labels, 0.5, top_k), everything[:top_k])
    rows, lowered = soft_nms(boxes, scores, labels)
    first, first_lowered = soft_nms(boxes, scores, labels, top_k=top_k)
    np.testing.assert_array_equal(first, rows[:top_k])
    np.testing.assert_array_equal(first_lowered, lowered[:top_k])


@given(seed=st.integers(0, 10**6), count=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_suppressing_twice_changes_nothing(seed: int, count: int) -> None:
    boxes, scores, labels = crowd(seed, count)
    kept = hard_nms(boxes, scores, labels)
    again = hard_nms(boxes[kept], scores[kept], labels[kept])
    np.testing.assert_array_equal(again, np.arange(len(kept)))
    assert (np.diff(scores[kept]) < 0).all()


@given(seed=st.integers(0, 10**6), count=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_rows_does_not_matter(seed: int, count: int) -> None:
    boxes, scores, labels = crowd(seed, count)
    mixed = np.random.default_rng(seed).permutation(count)
    shuffled = boxes[mixed], scores[mixed], labels[mixed]
    np.testing.assert_array_equal(mixed[hard_nms(*shuffled)], hard_nms(boxes, scores, labels))
    rows, lowered = soft_nms(boxes, scores, labels)
    mixed_rows, mixed_lowered = soft_nms(*shuffled)
    np.testing.assert_array_equal(mixed[mixed_rows], rows)
    np.testing.assert_allclose(mixed_lowered, lowered, rtol=1e-5)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), sigma=st.floats(0.1, 2))
@settings(max_examples=30, deadline=None)
def test_soft_is_the_papers(seed: int, count: int, sigma: float) -> None:
    boxes, scores, labels = crowd(seed, count)
    expected = slow_soft_nms(boxes, scores, labels, sigma, 0.05)
    rows, lowered = soft_nms(boxes, scores, labels, sigma, 0.05)
    assert abs(len(rows) - len(expected)) <= 1  # one may stand on the threshold
    shared = min(len(rows), len(expected))
    np.testing.assert_allclose(lowered[:shared], [s for _, s in expected][:shared], rtol=1e-4)
    assert (np.diff(lowered) <= 0).all()
    assert set(rows[: shared - 1].tolist()) <= {row for row, _ in expected}


def test_soft_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    rows, lowered = soft_nms(boxes, scores, np.array([0, 0, 1]), sigma=0.5)
    np.testing.assert_array_equal(rows, [0, 2, 1])  # of another class: stays
    np.testing.assert_allclose(lowered, [0.9, 0.7, 0.8 * np.exp(-(0.5**2) / 0.5)], rtol=1e-6)
    everything, _ = soft_nms(boxes, scores, None, sigma=0.5, score_threshold=0.4)
    np.testing.assert_array_equal(everything, [0, 1])


def test_equal_scores_keep_the_order_of_the_rows() -> None:
    boxes = np.array([[0, 0, 9, 9], [20, 0, 29, 9], [0, 0, 9, 9]], np.float32)
    scores = np.full(3, 0.5, np.float32)
    np.testing.assert_array_equal(hard_nms(boxes, scores, None), [0, 1])


def empty() -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
    """Return no box."""
    return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)


def test_nothing_gives_nothing() -> None:
    assert len(hard_nms(*empty())) == 0
    rows, lowered = soft_nms(*empty())
    assert (len(rows), len(lowered)) == (0, 0)


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = np.zeros((2, 4), np.float32)
    assert len(hard_nms(boxes, np.array([0.5, 0.4], np.float32), None)) == 2
