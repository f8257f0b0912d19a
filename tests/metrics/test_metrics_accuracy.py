"""Accuracies per class and group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdeploy.errors import DataError
from ltdeploy.metrics import average_accuracy, per_class_accuracy


def test_counts_images_and_correct_per_class() -> None:
    images, correct = per_class_accuracy(np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0]), 4)
    assert images.tolist() == [2, 0, 3, 0]
    assert correct.tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize(
    ("labels", "predictions", "said"),
    [
        ([0, 4], [0, 0], "label outside 0..3, for example 4"),
        ([0, -1], [0, 0], "for example -1"),
        ([0, 1], [0], r"\(2,\) and predictions \(1,\)"),
    ],
)
def test_refuses_labels_that_do_not_fit(
    labels: list[int], predictions: list[int], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        per_class_accuracy(np.array(labels), np.array(predictions), 4)


def test_class_and_image_averages_differ_where_classes_have_unequal_images() -> None:
    figures = average_accuracy(np.array([9, 1]), np.array([9, 0]), np.array([0, 1]))
    assert figures.class_averaged == pytest.approx(50.0)
    assert figures.image_averaged == pytest.approx(90.0)
    assert figures.worst == 1


def test_empty_groups_are_none_and_classes_without_images_are_named() -> None:
    images, correct = np.array([4, 2, 2, 0]), np.array([3, 1, 0, 0])
    empty = average_accuracy(images, correct, np.arange(0))
    assert (empty.classes, empty.class_averaged, empty.worst) == (0, None, None)
    few = average_accuracy(images, correct, np.array([2, 3]))
    assert few.class_averaged == 0.0  # measured and zero, unlike an empty group
    assert few.without_images == (3,)
    assert few.classes == 2
    unseen = average_accuracy(images, correct, np.array([3]))
    assert (unseen.classes, unseen.images, unseen.class_averaged) == (1, 0, None)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60),
    st.permutations(range(6)),
)
def test_averages_do_not_depend_on_the_order_of_classes(
    pairs: list[tuple[int, int]], order: list[int]
) -> None:
    labels, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    renamed = np.array(order)
    everyone = np.arange(6)
    one = average_accuracy(*per_class_accuracy(labels, predictions, 6), everyone)
    other = average_accuracy(
        *per_class_accuracy(renamed[labels], renamed[predictions], 6), everyone
    )
    assert one.class_averaged == pytest.approx(other.class_averaged)
    assert one.image_averaged == pytest.approx(100 * (labels == predictions).mean())
    assert one.image_averaged == pytest.approx(other.image_averaged)
