"""The latency model: it recovers a line, keeps its bounds, and guesses nothing."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdeploy.serve.latency import LatencyModel

_SECONDS = st.floats(0, 1e4)
_RUN = st.tuples(st.integers(1, 512), _SECONDS)


def _taught(runs: list[tuple[int, float]]) -> LatencyModel:
    model = LatencyModel()
    for images, seconds in runs:
        model.observe(images, seconds)
    return model


def test_nothing_is_predicted_before_the_first_run() -> None:
    assert LatencyModel().predict(16) == 0.0


@given(st.floats(0, 1), st.floats(0, 0.1), st.integers(0, 2**32))
def test_a_line_is_recovered_from_noisy_runs(fixed_s: float, per_image_s: float, seed: int) -> None:
    draw = random.Random(seed)
    runs = []
    for _ in range(200):
        images = draw.randint(1, 16)
        runs.append((images, (fixed_s + per_image_s * images) * draw.uniform(0.97, 1.03)))
    model = _taught(runs)
    for images in (1, 8, 16):
        exact = fixed_s + per_image_s * images
        longest = fixed_s + per_image_s * 16
        assert model.predict(images) == pytest.approx(exact, abs=0.05 * longest)


@given(st.floats(0, 10), st.floats(0, 1))
def test_an_exact_line_is_recovered_exactly(fixed_s: float, per_image_s: float) -> None:
    sizes = [1, 4, 16, 2, 8] * 3
    model = _taught([(images, fixed_s + per_image_s * images) for images in sizes])
    for images in (1, 16, 64):
        exact = fixed_s + per_image_s * images
        assert model.predict(images) == pytest.approx(exact, rel=1e-6, abs=1e-12)


@given(st.lists(_RUN, max_size=60))
def test_predictions_are_finite_and_grow_with_the_images(runs: list[tuple[int, float]]) -> None:
    model = _taught(runs)
    predicted = [model.predict(images) for images in (1, 2, 3, 16, 512, 5000)]
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in predicted)
    assert predicted == sorted(predicted)


@given(st.lists(_RUN, min_size=1, max_size=60))
def test_the_fit_is_the_best_line_within_the_bounds(runs: list[tuple[int, float]]) -> None:
    model = _taught(runs)
    weights = [0.95 ** (len(runs) - 1 - place) for place in range(len(runs))]

    def misfit(fixed_s: float, per_image_s: float) -> float:
        return sum(
            weight * (seconds - fixed_s - per_image_s * images) ** 2
            for weight, (images, seconds) in zip(weights, runs, strict=True)
        )

    total = sum(weights)
    mean = sum(w * n for w, (n, _) in zip(weights, runs, strict=True)) / total
    spread = sum(w * (n - mean) ** 2 for w, (n, _) in zip(weights, runs, strict=True)) / total
    if spread < 2e-3 * mean**2:  # too little is known of other sizes to fit a line
        return
    per_image_s = model.predict(2) - model.predict(1)
    fixed_s = model.predict(1) - per_image_s
    best = misfit(fixed_s, per_image_s)
    size = max(1e-9, misfit(0, 0))
    for step in (1e-3, -1e-3):
        for other in (
            (fixed_s * (1 + step), per_image_s),
            (fixed_s, per_image_s * (1 + step)),
            (fixed_s + abs(step), per_image_s),
            (fixed_s, per_image_s + abs(step)),
        ):
            assert misfit(*other) >= best - 1e-9 * size


@given(st.integers(1, 64), st.floats(1e-4, 10), st.integers(1, 50))
def test_one_batch_size_predicts_the_least_of_what_fits(
    images: int, seconds: float, times: int
) -> None:
    model = _taught([(images, seconds)] * times)
    assert model.predict(images) == pytest.approx(seconds)
    assert model.predict(2 * images) == pytest.approx(seconds)  # perhaps the engine is parallel
    assert model.predict(1) == pytest.approx(seconds / images)  # perhaps it is not


def test_a_machine_that_slows_down_is_believed() -> None:
    model = _taught([(size, 0.01 * size) for size in (1, 8, 16) * 50])
    for size in (1, 8, 16) * 40:
        model.observe(size, 0.03 * size)
    assert model.predict(16) == pytest.approx(0.48, rel=0.05)


def test_a_single_slow_run_is_forgotten() -> None:
    model = _taught([(1, 5.0)] + [(size, 0.01) for size in (1, 2) * 100])
    assert model.predict(1) == pytest.approx(0.01, rel=0.1)
