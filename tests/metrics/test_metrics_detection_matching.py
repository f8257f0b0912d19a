"""Matching: as a plain loop over the rules does it; and images that count several times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.boxes import Detections, pairwise_iou
from ltdeploy.errors import DataError
from ltdeploy.metrics.detection import average_precision, evaluate, mean_precision
from ltdeploy.metrics.matching import AREAS, IOU_THRESHOLDS, ImageTruth, Limits, Matches, match

CLASSES = 3
SEEDS = st.integers(0, 2**32 - 1)


def crowded(seed: int, images: int = 4) -> tuple[list[ImageTruth], list[Detections]]:
    """Draw images whose boxes overlap, tie in score and size, and follow every rule somewhere."""
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for _ in range(images):
        objects, boxes = int(rng.integers(0, 7)), int(rng.integers(0, 12))
        corner = rng.integers(0, 5, (objects + boxes, 2)) * 8
        sides = rng.choice([24, 32, 40, 110], (objects + boxes, 2))
        all_boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
        labels = rng.integers(0, CLASSES, objects + boxes)
        own, found = labels[:objects], labels[objects:]
        federated = bool(rng.random() < 0.5)
        truth.append(
            ImageTruth(
                boxes=all_boxes[:objects],
                labels=own,
                crowd=rng.random(objects) < 0.2,
                area=sides[:objects].prod(axis=1) * rng.uniform(0.6, 1.0, objects),
                negative=np.setdiff1d([0], own) if federated else None,
                not_exhaustive=np.array([1]) if federated else None,
            )
        )
        scores = rng.integers(1, 5, boxes) / 5
        detections.append(Detections(all_boxes[objects:], scores.astype(np.float32), found))
    return truth, detections


def by_loops(truth: list[ImageTruth], detections: list[Detections]) -> dict[tuple[int, ...], int]:
    """Return the outcome by (area, threshold, image, position), one detection at a time."""
    ranges = [(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)]
    outcomes = {}
    for i, (there, found) in enumerate(zip(truth, detections, strict=True)):
        iou = pairwise_iou(found.boxes.astype(np.float64), there.boxes.astype(np.float64))
        areas = (found.boxes[:, 2:] - found.boxes[:, :2]).astype(np.float64).prod(axis=1)
        for d, g in np.ndindex(iou.shape):
            if there.crowd[g]:
                low = np.maximum(found.boxes[d, :2], there.boxes[g, :2])
                high = np.minimum(found.boxes[d, 2:], there.boxes[g, 2:])
                iou[d, g] = np.clip(high - low, 0, None).prod() / areas[d]
        for a, (low, high) in enumerate(ranges):
            silent = there.crowd | (there.area < low) | (there.area > high)
            for t, threshold in enumerate(IOU_THRESHOLDS):
                free = set(range(len(there.labels)))
                for d in np.argsort(-found.scores, kind="stable"):
                    label = int(found.labels[d])
                    known = label in there.labels
                    if there.negative is not None and not known and label not in there.negative:
                        continue
                    fits = [
                        (not silent[g], iou[d, g], g)
                        for g in free
                        if there.labels[g] == label and iou[d, g] >= threshold
                    ]
                    if fits:
                        counts, _, best = max(fits)
                        free -= set() if there.crowd[best] else {best}
                        outcome = 1 if counts else 0
                    else:
                        outside = areas[d] < low or areas[d] > high
                        loose = there.not_exhaustive is not None and label in there.not_exhaustive
                        spared = outside or loose
                        outcome = 0 if spared else -1
                    outcomes[a, t, i, int(d)] = outcome
    return outcomes


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_outcomes_are_those_of_a_plain_loop(seed: int) -> None:
    truth, detections = crowded(seed)
    matches = match(truth, detections, CLASSES, Limits())
    expected = by_loops(truth, detections)
    assert matches.outcome.size == len(expected)
    for (a, t, d), outcome in np.ndenumerate(matches.outcome):
        where = (a, t, int(matches.image[d]), int(matches.position[d]))
        assert expected[where] == outcome, where


def test_the_plain_loop_sees_every_outcome() -> None:
    drawn = [crowded(seed) for seed in range(20)]
    outcomes = np.concatenate([list(by_loops(*images).values()) for images in drawn])
    assert np.isin([-1, 0, 1], outcomes).all()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, counts=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_an_image_that_counts_twice_is_two_images(seed: int, counts: list[int]) -> None:
    truth, detections = crowded(seed)
    # Equal scores within an image would stand once per copy, or all copies of one first.
    detections = [
        Detections(d.boxes, d.scores + np.arange(len(d), dtype=np.float32) / 1000, d.labels)
        for d in detections
    ]
    weighted = average_precision(
        match(truth, detections, CLASSES, Limits()), np.array([counts], np.float64)
    )
    several = np.repeat(np.arange(4), counts)
    copied = match([truth[i] for i in several], [detections[i] for i in several], CLASSES, Limits())
    np.testing.assert_allclose(weighted[0], average_precision(copied), atol=1e-12)


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_replicates_do_not_know_of_each_other(seed: int) -> None:
    matches = match(*crowded(seed), CLASSES, Limits())
    weights = np.random.default_rng(seed).integers(0, 3, (5, 4)).astype(np.float64)
    together = average_precision(matches, weights, area="medium")
    apart = [average_precision(matches, row[None], area="medium")[0] for row in weights]
    np.testing.assert_array_equal(together, apart)
    once = average_precision(matches, np.ones((1, 4)))[0]
    np.testing.assert_array_equal(once, average_precision(matches))


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_classes_may_be_renumbered(seed: int) -> None:
    truth, detections = crowded(seed)
    new = np.array([2, 0, 1])

    def names(labels: np.ndarray | None) -> np.ndarray | None:
        return None if labels is None else new[labels]

    moved = [
        ImageTruth(
            t.boxes, new[t.labels], t.crowd, t.area, names(t.negative), names(t.not_exhaustive)
        )
        for t in truth
    ]
    shifted = [Detections(d.boxes, d.scores, new[d.labels]) for d in detections]
    before = average_precision(match(truth, detections, CLASSES, Limits()))
    after = average_precision(match(moved, shifted, CLASSES, Limits()))
    np.testing.assert_array_equal(before, after[new])


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_only_the_order_of_scores_matters(seed: int) -> None:
    truth, detections = crowded(seed)
    squared = [Detections(d.boxes, d.scores**2, d.labels) for d in detections]
    groups = ["many", "few", "few"]
    first, second = evaluate(truth, detections, groups), evaluate(truth, squared, groups)
    assert first.by_group == second.by_group
    np.testing.assert_array_equal(first.by_class, second.by_class)


def test_many_pairs_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, detections = crowded(7, images=30)
    whole = match(truth, detections, CLASSES, Limits())
    monkeypatch.setattr("ltdeploy.metrics.assignment._PAIRS_AT_ONCE", 3)
    parts = match(truth, detections, CLASSES, Limits())
    np.testing.assert_array_equal(whole.outcome, parts.outcome)


def test_many_replicates_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    matches = match(*crowded(7, images=30), CLASSES, Limits())
    weights = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), 50).astype(np.float64)
    whole = average_precision(matches, weights)
    monkeypatch.setattr("ltdeploy.metrics.detection._NUMBERS_AT_ONCE", 1000)
    np.testing.assert_array_equal(whole, average_precision(matches, weights))


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Limits(), 6),
        (Limits(per_image=2), 4),
        (Limits(per_image_and_class=1), 4),
        (Limits(per_class=1), 2),
        (Limits(per_image=2, per_class=1), 1),  # the other class's only box is no image's best
    ],
)
def test_limits(limits: Limits, kept: int) -> None:
    boxes = np.array([[0, 0, 9, 9]] * 3, np.float32)
    own = Detections(boxes, np.array([0.5, 0.9, 0.7], np.float32), np.array([0, 1, 1]))
    matches = match([_silent()] * 2, [own] * 2, 2, limits)
    assert len(matches.score) == kept
    assert matches.score.max() == pytest.approx(0.9)


def _silent() -> ImageTruth:
    none = np.zeros(0, np.int64)
    return ImageTruth(np.zeros((0, 4), np.float32), none, none.astype(bool), none.astype(float))


def test_means_leave_out_what_has_no_truth() -> None:
    precision = np.array([[[0.2, 0.4], [np.nan, np.nan]], [[np.nan, np.nan], [np.nan, np.nan]]])
    np.testing.assert_allclose(mean_precision(precision), [0.3, np.nan])
    np.testing.assert_allclose(mean_precision(precision, np.array([1])), [np.nan, np.nan])


def test_weights_and_areas_that_do_not_fit_are_refused() -> None:
    matches: Matches = match(*crowded(0), CLASSES, Limits())
    with pytest.raises(DataError, match=r"shape \(1, 3\); expected .* 4 columns"):
        average_precision(matches, np.ones((1, 3)))
    with pytest.raises(DataError, match="'tiny'; expected one of all, small"):
        average_precision(matches, area="tiny")
    assert len(AREAS) == matches.outcome.shape[0]
