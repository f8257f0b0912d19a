"""What a fix is chosen for: each objective by hand, and the weights that follow from the aim."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdeploy.calibrate import Aim
from ltdeploy.calibrate.objective import (
    Objective,
    best_value,
    likelihood_weights,
    strata_of,
)
from ltdeploy.classes import ClassTable
from ltdeploy.errors import UsageError
from ltdeploy.fixes import FixContext
from ltdeploy.metrics import Bootstrap

COUNTS = [500, 300, 90, 40, 9, 4]  # two classes in each group
TABLE = ClassTable.from_counts(COUNTS)
LABELS = np.array([0, 0, 0, 1, 2, 3, 4, 4, 5])
CORRECT = np.array([1, 1, 0, 1, 1, 0, 1, 0, 0], dtype=bool)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def reached(
    correct: np.ndarray, labels: np.ndarray, objective: Objective, prior: np.ndarray | None = None
) -> float:
    strata = strata_of(labels, TABLE, Aim(objective, prior))
    return float(strata.values(correct[:, None], objective)[0])


def test_objectives_by_hand() -> None:
    values = {name: reached(CORRECT, LABELS, name) for name in OBJECTIVES}
    many, medium, few = 100 * (2 / 3 + 1) / 2, 50.0, 25.0
    assert values["balanced"] == pytest.approx((2 * many + 2 * medium + 2 * few) / 6)
    assert values["few"] == pytest.approx(few)
    assert values["harmonic"] == pytest.approx(3 / (1 / many + 1 / medium + 1 / few))
    assert values["overall"] == pytest.approx(100 * 5 / 9)


def test_overall_under_a_target_prior_by_hand() -> None:
    prior = np.array([0.5, 0.1, 0.1, 0.1, 0.2, 0.0])
    expected = 100 * (0.5 * 2 / 3 + 0.1 + 0.1 + 0.2 / 2)
    assert reached(CORRECT, LABELS, "overall", prior) == pytest.approx(expected)
    # What is measured per class does not change with how often the classes come.
    for name in ("balanced", "few", "harmonic"):
        assert reached(CORRECT, LABELS, name, prior) == pytest.approx(
            reached(CORRECT, LABELS, name)
        )


def test_a_uniform_target_prior_makes_overall_balanced() -> None:
    found = reached(CORRECT, LABELS, "overall", np.full(6, 1 / 6))
    assert found == pytest.approx(reached(CORRECT, LABELS, "balanced"))


def test_classes_without_images_leave_their_share_to_the_others() -> None:
    seen = LABELS != 0
    prior = np.array([0.5, 0.1, 0.1, 0.1, 0.2, 0.0])
    expected = 100 * (0.1 + 0.1 + 0.2 / 2) / 0.5
    assert reached(CORRECT[seen], LABELS[seen], "overall", prior) == pytest.approx(expected)


def test_images_of_impossible_classes_count_alike() -> None:
    """Of a fold whose images the prior gives nothing: no division by zero."""
    prior = np.array([1.0, 0, 0, 0, 0, 0])
    few = LABELS >= 4
    assert reached(CORRECT[few], LABELS[few], "overall", prior) == pytest.approx(100 / 3)


def test_groups_without_images_are_left_out() -> None:
    correct, labels = np.array([True, False]), np.array([0, 2])
    assert reached(correct, labels, "balanced") == 50.0
    assert reached(correct, labels, "few") == 0.0  # the rarest group that there is: medium
    assert reached(correct[:1], labels[:1], "harmonic") == 100.0
    strata = strata_of(labels, TABLE, Aim())
    assert list(strata.groups) == ["many", "medium"]
    np.testing.assert_array_equal(strata.head, [1.0, 0.0])
    np.testing.assert_array_equal(strata.rarest, [0.0, 1.0])


def test_a_group_at_zero_makes_the_harmonic_mean_zero() -> None:
    labels = np.arange(6)
    assert reached(labels < 4, labels, "harmonic") == 0.0
    assert reached(np.zeros(6, dtype=bool), labels, "harmonic") == 0.0
    assert reached(labels < 5, labels, "harmonic") == pytest.approx(75.0)


@given(seed=st.integers(0, 2**31), images=st.integers(1, 40))
def test_values_stay_in_range_and_weights_sum_to_one(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(6, size=images)
    prior = rng.random(6)
    correct = rng.random((images, 3)) < rng.random()
    for name in OBJECTIVES:
        strata = strata_of(labels, TABLE, Aim(name, prior / prior.sum()))
        weights = [strata.overall, strata.balanced, *strata.groups.values()]
        assert [w.sum() for w in weights] == pytest.approx([1.0] * len(weights))
        values = strata.values(correct, name)
        assert values.shape == (3,)
        assert (values >= 0).all()
        assert (values <= 100 + 1e-9).all()


@pytest.mark.parametrize("prior", [None, [0.3, 0.05, 0.2, 0.15, 0.2, 0.1]])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_replicates_are_the_objective_of_repeated_images(
    name: Objective, prior: list[float] | None
) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), [4, 3, 2, 6, 1, 5])
    correct = rng.random((21, 3)) < 0.6
    aim = Aim(name, None if prior is None else np.array(prior))
    strata = strata_of(labels, TABLE, aim)
    multiplicities = Bootstrap(labels, TABLE, replicates=5).multiplicities
    found = strata.replicates(correct, name, multiplicities)
    assert found.shape == (5, 3)
    # An image keeps its weight in every replicate: classes are not averaged anew.
    image = 1 / np.bincount(labels)[labels]
    if name == "overall":
        image = np.ones(21) if prior is None else image * np.array(prior)[labels]
    for replicate, times in zip(found, multiplicities, strict=True):
        again = np.repeat(np.arange(21), times.astype(int))

        def share(rows: np.ndarray) -> np.ndarray:
            return 100 * np.average(correct[rows], axis=0, weights=image[rows])

        groups = [share(again[labels[again] // 2 == group]) for group in range(3)]
        with np.errstate(divide="ignore"):
            expected = {
                "balanced": share(again),
                "overall": share(again),
                "few": groups[-1],
                "harmonic": 3 / (1 / np.array(groups)).sum(axis=0),
            }[name]
        np.testing.assert_allclose(replicate, expected, rtol=1e-5, atol=1e-9)


UNFIXED = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)  # all of many, nothing else


def columns(*right: tuple[int, ...]) -> np.ndarray:
    """Return one column per value, with these images answered rightly."""
    made = np.zeros((len(LABELS), len(right)), dtype=bool)
    for column, rows in enumerate(right):
        made[list(rows), column] = True
    return made


def test_the_best_value_is_taken_and_ties_go_to_the_mildest() -> None:
    strata = strata_of(LABELS, TABLE, Aim())
    rising = columns((0,), (0, 4), (0, 4, 5))
    assert best_value(rising, UNFIXED, strata, Aim()) == 2
    tied = columns((0,), (3, 4), (4, 5), (3, 8))
    assert best_value(tied, UNFIXED, strata, Aim()) == 1
    assert best_value(tied[:, ::-1], UNFIXED, strata, Aim()) == 0


def test_values_that_cost_the_head_too_much_are_not_taken() -> None:
    labels = np.repeat(np.arange(6), 100)
    unfixed = labels < 2  # the two classes of the head
    found = np.stack([unfixed, unfixed, unfixed], axis=1)
    found[labels == 5, 1], found[:5, 1] = True, False  # costs the head 2.5 points
    found[labels >= 4, 2], found[:20, 2] = True, False  # costs it 10
    for limit, expected in ((None, 2), (15.0, 2), (10.0, 1), (5.0, 1), (2.5, 0), (0.0, 0)):
        aim = Aim(max_head_loss=limit)
        assert best_value(found, unfixed, strata_of(labels, TABLE, aim), aim) == expected


def test_where_nothing_is_allowed_the_mildest_value_is_taken() -> None:
    aim = Aim(max_head_loss=1.0)
    found = columns((4,), (4, 5), (4, 5, 8))
    assert best_value(found, UNFIXED, strata_of(LABELS, TABLE, aim), aim) == 0


def context_of(labels: np.ndarray) -> FixContext:
    return FixContext(classes=TABLE, logits=np.zeros((len(labels), 6)), labels=labels)


def mass(weights: np.ndarray) -> np.ndarray:
    return np.bincount(LABELS, weights=weights, minlength=6) / len(LABELS)


def test_likelihoods_count_every_class_alike() -> None:
    for objective in ("balanced", "few", "harmonic"):
        weights = likelihood_weights(context_of(LABELS), Aim(objective))  # type: ignore[arg-type]
        assert weights.mean() == pytest.approx(1.0)
        np.testing.assert_allclose(mass(weights), np.full(6, 1 / 6))


def test_likelihoods_count_classes_as_the_target_prior_says() -> None:
    prior = np.array([0.5, 0.1, 0.1, 0.1, 0.2, 0.0])
    for objective in OBJECTIVES:
        weights = likelihood_weights(context_of(LABELS), Aim(objective, prior))
        assert weights.mean() == pytest.approx(1.0)
        np.testing.assert_allclose(mass(weights), prior)
        assert weights[LABELS == 5].tolist() == [0.0]


def test_likelihoods_count_images_alike_for_overall_accuracy() -> None:
    assert likelihood_weights(context_of(LABELS), Aim("overall")).tolist() == [1.0] * 9


def test_a_prior_of_absent_classes_alone_weighs_nothing() -> None:
    prior = np.array([0.0, 0, 0, 0, 0, 1])
    weights = likelihood_weights(context_of(LABELS[:4]), Aim("balanced", prior))
    assert weights.tolist() == [1.0] * 4


def test_the_prior_has_a_name() -> None:
    assert Aim().prior_name == Aim("few").prior_name == "uniform"
    assert Aim("overall").prior_name == "validation"
    assert Aim("overall", np.full(6, 1 / 6)).prior_name == "given"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("balance",), "Did you mean 'balanced'"),
        (("worst",), "expected one of balanced, few, harmonic, overall"),
        (("overall", np.array([50.0, 30, 20])), r"shape \(3,\) and the sum 100"),
        (("overall", np.array([1.5, -0.5])), "at least 0 per class"),
        (("overall", np.array([np.nan, 1.0])), "the sum nan"),
        (("overall", np.array([[0.5, 0.5]])), r"shape \(1, 2\)"),
        (("balanced", None, -1.0), "head loss allowed is -1.0"),
        (("balanced", None, np.nan), "head loss allowed is nan"),
        (("balanced", None, np.inf), "head loss allowed is inf"),
    ],
)
def test_aims_that_make_no_sense_are_refused(
    arguments: tuple[Objective, np.ndarray | None, float], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        Aim(*arguments)
