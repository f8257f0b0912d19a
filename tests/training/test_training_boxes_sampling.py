"""Repeat factor sampling: the factors, the rounding by chance, and what arrives in training."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn_boxes import GREEN, RED, drawn
from hypothesis import given
from hypothesis import strategies as st

from ltdeploy.canvas import Canvas
from ltdeploy.errors import UsageError
from ltdeploy.training.box_batches import TrainCanvases
from ltdeploy.training.box_schedule import BoxTrainOptions, plan_steps
from ltdeploy.training.repeat_factor import epoch_order, parse_sampler, repeat_factors

CLASSES = 4
held_in_images = st.lists(
    st.lists(st.integers(0, CLASSES - 1), max_size=5).map(lambda v: np.array(v, np.int64)),
    min_size=1,
    max_size=30,
)


def test_factors_of_a_hand_worked_case() -> None:
    # 16 images: class 0 in all, class 1 in 4 (f = 1/4), class 2 in 1 (f = 1/16); t = 1/4.
    held = [[0]] * 12 + [[0, 1, 1]] * 3 + [[0, 1, 2]]
    factors = repeat_factors([np.array(one) for one in held], 3, 0.25)
    assert factors.tolist() == [1.0] * 15 + [2.0]
    # t = 1: √(1 / f) is 1, 2 and 4.
    factors = repeat_factors([np.array(one) for one in held], 3, 1.0)
    assert factors.tolist() == [1.0] * 12 + [2.0] * 3 + [4.0]


@given(held_in_images, st.floats(1e-4, 1.0))
def test_factors_equal_the_formula_written_out(held: list[np.ndarray], t: float) -> None:
    expected = []
    for image in held:
        largest = 1.0
        for label in image:
            share = sum(label in other for other in held) / len(held)
            largest = max(largest, math.sqrt(t / share))
        expected.append(largest)
    np.testing.assert_allclose(repeat_factors(held, CLASSES, t), expected, rtol=1e-12)


@given(held_in_images, st.integers(0, 99))
def test_each_image_comes_its_factor_rounded_either_way(held: list[np.ndarray], seed: int) -> None:
    factors = repeat_factors(held, CLASSES, 1.0)
    times = np.bincount(epoch_order(factors, np.random.default_rng(seed)), minlength=len(held))
    assert (times >= np.floor(factors)).all()
    assert (times <= np.ceil(factors)).all()


def test_over_epochs_each_image_comes_its_factor_on_average() -> None:
    factors = np.array([1.0, 1.3, 2.75, 1.0])
    random = np.random.default_rng(0)
    epochs = [np.bincount(epoch_order(factors, random), minlength=4) for _ in range(4000)]
    np.testing.assert_allclose(np.mean(epochs, axis=0), factors, atol=0.03)
    assert len({tuple(one) for one in epochs}) == 4


def arriving(threshold: float | None) -> np.ndarray:
    """Return how many boxes of each class arrive in 20 epochs, batches made as in training."""
    images = TrainCanvases(drawn([(RED,)] * 15 + [(GREEN,)]), Canvas(32, 32))
    options = BoxTrainOptions(epochs=20, batch_size=2, repeat_threshold=threshold)
    plan = plan_steps(images.readable, images.labels(), 2, options)
    samples = [one for batch in images.batches(step.chosen for step in plan) for one in batch]
    return np.bincount(np.concatenate([one.labels for one in samples]), minlength=2)


def test_the_sampler_changes_what_arrives() -> None:
    assert arriving(None).tolist() == [300, 20]
    assert arriving(0.01).tolist() == [300, 20]  # no class is that rare
    # The one image in 16 comes √(1 / (1 / 16)) = 4 times; of 19 images one is left over by chance.
    red, green = arriving(1.0)
    assert 70 <= green <= 80
    assert 280 <= red <= 320


def test_the_plan_hangs_on_the_seed_and_differs_from_epoch_to_epoch() -> None:
    readable = np.arange(3, 19)
    labels = [np.zeros(1, np.int64)] * 16

    def orders(seed: int) -> list[tuple[int, ...]]:
        plan = plan_steps(readable, labels, 1, BoxTrainOptions(epochs=3, batch_size=4, seed=seed))
        assert [step.number for step in plan] == list(range(12))
        assert [step.epoch for step in plan] == [0] * 4 + [1] * 4 + [2] * 4
        flat = np.concatenate([step.chosen for step in plan]).reshape(3, 16)
        assert all(sorted(epoch) == readable.tolist() for epoch in flat)
        return [tuple(epoch) for epoch in flat]

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    assert len(set(orders(0))) == 3


def test_batches_larger_than_the_data_are_made_smaller_and_leftovers_dropped() -> None:
    labels = [np.zeros(1, np.int64)] * 5
    for batch_size, sizes in ((8, [5]), (2, [2, 2])):
        options = BoxTrainOptions(epochs=1, batch_size=batch_size)
        plan = plan_steps(np.arange(5), labels, 1, options)
        assert [len(step.chosen) for step in plan] == sizes


@pytest.mark.parametrize(
    "text",
    [
        "balanced",
        "repeat_factor:",
        "repeat_factor:t=",
        "",
        "repeat_factor:t=x",
        "repeat_factor:s=0.1",
    ],
)
def test_other_samplers_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected repeat_factor or repeat_factor:t=SHARE"):
        parse_sampler(text)


@pytest.mark.parametrize("share", ["0", "-0.1", "1.5", "inf"])
def test_thresholds_that_are_no_share_are_refused(share: str) -> None:
    with pytest.raises(UsageError, match="expected a share of the images"):
        parse_sampler(f"repeat_factor:t={share}")
