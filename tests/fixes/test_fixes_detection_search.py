"""Group factors and strengths of detectors' fixes, chosen by any objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.arrays import softmax
from ltdeploy.classes import LVIS_GROUPS, ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import (
    AffineMap,
    FixContext,
    GroupOdds,
    LogitMap,
    NorCal,
    choose_strength_by,
    fit_group_odds,
)
from ltdeploy.models.head import Head

# Groups: frequent, common, rare, rare; the background is column 1.
COUNTS = (500, 40, 10, 1)
COLUMNS = [0, 2, 3, 4]


def make_context(counts: tuple[int, ...] = COUNTS) -> FixContext:
    head = Head("linear", np.zeros((len(counts) + 1, 1)), None, background=1)
    names = tuple(f"class {label}" for label in range(len(counts)))
    return FixContext(head=head, classes=ClassTable(names, counts, LVIS_GROUPS))


def shifts(mapped: LogitMap) -> np.ndarray:
    assert isinstance(mapped, AffineMap)
    assert mapped.shift[1] == 0
    return mapped.shift[COLUMNS]


def test_group_odds_by_hand() -> None:
    mapped = GroupOdds((0.5, 1.0, 4.0)).fit(make_context())
    np.testing.assert_allclose(shifts(mapped), np.log([0.5, 1, 4, 4]))
    # p = 0.2 each: against the background's 0.2 the odds are the factors.
    found = softmax(mapped.apply(np.zeros((1, 5))))[0]
    np.testing.assert_allclose(found[COLUMNS] / found[1], [0.5, 1, 4, 4])


def test_the_planted_factors_are_found() -> None:
    wanted = np.log([0.25, 2.0, 8.0, 8.0])

    def closeness(mapped: LogitMap) -> float:
        return -float(((shifts(mapped) - wanted) ** 2).sum())

    found = fit_group_odds(make_context(), closeness)
    assert found.fix == GroupOdds((0.25, 2.0, 8.0))
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.settled
    assert found.trace[0].numbers == (1.0, 1.0, 1.0)
    assert found.trace[0].value == found.neutral
    assert found.trace[1].numbers[:2] == (1.0, 1.0)  # the rarest group is tried first
    np.testing.assert_allclose(shifts(found.fitted), wanted)


@given(seed=st.integers(0, 2**31), most_rounds=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_it_is_never_worse_never_long_and_always_the_same(seed: int, most_rounds: int) -> None:
    """Whatever the objective says: here a different number for every map, or none."""
    calls = []

    def whim(mapped: LogitMap) -> float:
        calls.append(mapped)
        key = np.round(shifts(mapped) * 1000).astype(np.int64) + 10_000
        value = np.random.default_rng([seed, *key]).normal()
        return float("nan") if value < -1 and shifts(mapped).any() else float(value)

    context = make_context()
    found = fit_group_odds(context, whim, most_rounds=most_rounds)
    assert found.value >= found.neutral
    assert len(calls) == len(found.trace) <= 1 + most_rounds * 3 * 9
    assert len({trial.numbers for trial in found.trace}) == len(found.trace)
    assert found.value == np.nanmax([trial.value for trial in found.trace])
    again = fit_group_odds(context, whim, most_rounds=most_rounds)
    assert again.fix == found.fix
    np.testing.assert_array_equal([t.value for t in again.trace], [t.value for t in found.trace])


def test_what_makes_no_difference_changes_nothing() -> None:
    found = fit_group_odds(make_context(), lambda _: 0.25)
    assert found.fix == GroupOdds((1.0, 1.0, 1.0))
    assert found.fitted.is_identity
    assert found.settled
    assert len(found.trace) == 1 + 3 * 8


def test_of_equal_factors_the_mildest_is_taken() -> None:
    found = fit_group_odds(make_context(), lambda mapped: float(shifts(mapped)[0] > 0))
    assert found.fix == GroupOdds((2.0, 1.0, 1.0))


def test_a_group_without_classes_is_left_out() -> None:
    found = fit_group_odds(make_context((500, 400)), lambda _: 1.0)
    assert found.fix == GroupOdds((1.0, 1.0, 1.0))
    assert len(found.trace) == 1 + 8
    assert found.fix.freedom(make_context((500, 400))) == 1


def test_rounds_that_run_out_are_told() -> None:
    def ridge(mapped: LogitMap) -> float:
        """A narrow ridge along equal factors, on which single steps creep."""
        first, second, third, _ = shifts(mapped)
        return float(-((third - second) ** 2) - (second - 2) ** 2 - (first - 0.1) ** 2)

    assert not fit_group_odds(make_context(), ridge, most_rounds=1).settled
    long = fit_group_odds(make_context(), ridge, most_rounds=20)
    assert long.settled


def test_strength_of_norcal_by_an_objective() -> None:
    """Objects of the rare class lose to the frequent one until γ takes its head start off."""
    head = Head("linear", np.zeros((3, 1)), None, background=2)
    context = FixContext(head=head, classes=ClassTable.from_counts([1000, 10]))
    logits = np.array([[3.0, 0.0, -2.0]] * 2 + [[2.0, 0.5, -2.0]] * 2)
    labels = np.array([0, 0, 1, 1])

    def accuracy(mapped: LogitMap) -> float:
        return float((mapped.apply(logits).argmax(axis=1) == labels).mean())

    found = choose_strength_by(NorCal, NorCal.grid, context, accuracy)
    # The rare class wins rows 2 and 3 from 100^γ > e^1.5 on, γ = 0.326, and rows 0, 1 at 0.65.
    assert found.fix == NorCal(0.4)
    assert (found.neutral, found.value) == (0.5, 1.0)
    assert found.settled
    assert [trial.numbers[0] for trial in found.trace] == list(NorCal.grid)
    idle = choose_strength_by(NorCal, NorCal.grid, context, lambda _: 1.0)
    assert idle.fitted.is_identity


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_an_objective_without_a_number_is_refused(value: float) -> None:
    with pytest.raises(FixError, match=r"The objective is .* objects of any class"):
        fit_group_odds(make_context(), lambda _: value)


def test_a_later_nan_is_only_the_worst() -> None:
    values = iter([0.5] + [float("nan")] * 100)
    found = fit_group_odds(make_context(), lambda _: next(values))
    assert found.fix == GroupOdds((1.0, 1.0, 1.0))
    assert np.isnan(found.trace[1].value)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: GroupOdds((1.0, 0.0, 1.0)), "0 is among the factors"),
        (lambda: GroupOdds((1.0, float("inf"))), "inf is among"),
        (lambda: GroupOdds(()), "factors|no factor"),
        (lambda: fit_group_odds(make_context(), lambda _: 1.0, factors=[1, -2]), "-2 is among"),
        (lambda: GroupOdds((1.0, 2.0)).fit(make_context()), "frequent, common, rare, in this ord"),
        (
            lambda: fit_group_odds(replace(make_context(), classes=None), lambda _: 1.0),
            "group_odds needs training counts",
        ),
        (
            lambda: fit_group_odds(replace(make_context(), head=None), lambda _: 1.0),
            "which column of the logits",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(build, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FixError, match=text):
        build()
