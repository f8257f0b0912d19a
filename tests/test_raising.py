"""The raise changes what comes through the cut, and nothing within a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.boxes import Detections
from ltdeploy.classes import LVIS_GROUPS, ClassTable
from ltdeploy.errors import DataError, UsageError
from ltdeploy.raising import GroupRaise, fit_group_raise

TABLE = ClassTable(("person", "cup", "lynx"), (900, 40, 3), LVIS_GROUPS)


def found(scores: Sequence[float], labels: Sequence[int]) -> Detections:
    """Return detections whose boxes say their place."""
    boxes = np.arange(len(scores), dtype=np.float32)[:, None] + np.array([0, 0, 1, 1], np.float32)
    return Detections(boxes, np.array(scores, np.float32), np.array(labels, np.int64))


def test_odds_by_hand() -> None:
    raised = GroupRaise({"rare": 3.0}).apply(found([0.6, 0.5, 0.25], [0, 2, 1]), TABLE)
    np.testing.assert_array_equal(raised.labels, [2, 0, 1])
    np.testing.assert_allclose(raised.scores, [0.75, 0.6, 0.25], rtol=1e-6)
    np.testing.assert_array_equal(raised.boxes[:, 0], [1, 0, 2])


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30),
    factors=st.tuples(st.floats(0.1, 50), st.floats(0.1, 50)),
)
@settings(max_examples=60, deadline=None)
def test_scores_stay_in_range_and_in_order(
    scores: list[float], factors: tuple[float, float]
) -> None:
    labels = [place % 3 for place in range(len(scores))]
    given_scores = found(sorted(scores, reverse=True), labels)
    raised = GroupRaise({"rare": factors[0], "common": factors[1]}).apply(given_scores, TABLE)
    assert ((raised.scores >= 0) & (raised.scores <= 1)).all()
    assert (np.diff(raised.scores) <= 0).all()
    for label in range(3):
        before = given_scores.boxes[given_scores.labels == label]
        after = raised.boxes[raised.labels == label]
        if len(np.unique(raised.scores[raised.labels == label])) == len(after):
            np.testing.assert_array_equal(after, before)


def rare_through_the_cut(cut: Sequence[Detections]) -> float:
    """Return how many of the rare class came through."""
    return float(sum((one.labels == 2).sum() for one in cut))


def test_the_fit_raises_what_gains_and_leaves_the_rest() -> None:
    photos = [found([0.5, 0.4, 0.3, 0.15, 0.1], [0, 0, 1, 0, 2]) for _ in range(4)]
    raised = fit_group_raise(photos, TABLE, top_k=2, measure=rare_through_the_cut)
    # odds of 0.1 are 1/9, of 0.4 are 2/3: six times and more; the next factor tried is 8
    assert raised.factors == {"common": 1.0, "rare": 8.0}
    assert raised.record["before"] == 0
    assert raised.record["after"] == 4
    assert raised.record["photographs"] == 4
    assert {"common": 1.0, "rare": 8.0, "measured": 4.0} in raised.record["tried"]
    assert GroupRaise(**raised.to_dict()) == raised


def test_without_a_gain_nothing_is_raised() -> None:
    raised = fit_group_raise([found([0.5], [2])], TABLE, 1, measure=rare_through_the_cut)
    assert raised.factors == {"common": 1.0, "rare": 1.0}


def test_groups_without_classes_are_left_out() -> None:
    table = ClassTable(("person", "lynx"), (900, 3), LVIS_GROUPS)
    raised = fit_group_raise([found([0.5], [1])], table, 1, lambda cut: 0.0)
    assert raised.factors == {"rare": 1.0}


def test_wrong_raises() -> None:
    with pytest.raises(UsageError, match="group 'rare' is 0"):
        GroupRaise({"rare": 0})
    with pytest.raises(DataError, match=r"the group 'few'.* frequent, common, rare"):
        GroupRaise({"few": 2.0}).apply(found([0.5], [0]), TABLE)
    with pytest.raises(UsageError, match="numbers of 1 or more"):
        fit_group_raise([found([0.5], [0])], TABLE, 1, rare_through_the_cut, factors=[0.5])
    with pytest.raises(UsageError, match="no photograph"):
        fit_group_raise([], TABLE, 1, rare_through_the_cut)
