"""Figures from synthetic timings: what they must be is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench_samples import accuracy, contestant, result, series

from ltdeploy.bench.result import Contestant, sentence
from ltdeploy.bench.speed import Series, Speed, Spread, speed_of
from ltdeploy.metrics import Figure


def test_percentiles_and_throughput_of_known_latencies() -> None:
    latencies = list(np.linspace(1.0, 100.0, 100))
    speed = speed_of(
        Series(batch=4, threads=2, rounds={0: latencies[:50], 1: latencies[50:]}), None
    )
    assert speed.runs == 100
    assert speed.p50_ms.value == pytest.approx(50.5)
    assert speed.p95_ms == pytest.approx(np.quantile(latencies, 0.95))
    assert speed.p99_ms == pytest.approx(np.quantile(latencies, 0.99))
    # Rounds of mean 25.5 ms and 75.5 ms, four images each run.
    assert speed.images_per_s.value == pytest.approx((4000 / 25.5 + 4000 / 75.5) / 2)
    assert speed.p50_ms.low == pytest.approx(25.5 + 0.05 * 50)
    assert speed.p50_ms.high == pytest.approx(75.5 - 0.05 * 50)


def test_a_percentile_needs_runs() -> None:
    few, some = (speed_of(Series(1, 1, {0: [1.0] * runs}), None) for runs in (19, 99))
    assert (few.p95_ms, few.p99_ms) == (None, None)
    assert (some.p95_ms, some.p99_ms) == (1.0, None)


def test_drift_does_not_reach_the_ratio() -> None:
    """Rounds slow down by half again and again; both suffer alike, and the ratio does not."""
    drift = 1.5 ** np.arange(10)
    slow, fast = (
        Series(1, 1, {n: (base * drift[n] * np.ones(5)).tolist() for n in range(10)})
        for base in (10.0, 4.0)
    )
    speed = speed_of(fast, slow)
    assert speed.ratio is not None
    assert (speed.ratio.low, speed.ratio.value, speed.ratio.high) == pytest.approx((2.5, 2.5, 2.5))
    assert speed.images_per_s.high > 10 * speed.images_per_s.low
    # Against rounds in another order, drift would be all there is to see.
    shuffled = Series(1, 1, {n: slow.rounds[9 - n] for n in range(10)})
    wrong = speed_of(fast, shuffled).ratio
    assert wrong is not None
    assert wrong.high > 10 * wrong.low


def test_a_burst_in_a_round_moves_the_median_of_it_little() -> None:
    calm = series((1, 1), 10.0)
    disturbed = Series(1, 1, {n: [*one, 500.0] for n, one in calm.rounds.items()})
    speed = speed_of(disturbed, calm)
    assert speed.ratio is not None
    assert speed.ratio.value == pytest.approx(1.0, abs=0.05)
    assert speed.images_per_s.value < 0.5 * speed_of(calm, None).images_per_s.value


def test_only_rounds_that_both_took_are_compared() -> None:
    first = Series(1, 1, {0: [10.0], 1: [10.0]})
    assert speed_of(Series(1, 1, {1: [5.0], 2: [1.0]}), first).ratio == Spread(2.0, 2.0, 2.0)
    assert speed_of(Series(1, 1, {2: [1.0]}), first).ratio is None


def test_labels_tell_apart_in_the_fewest_words() -> None:
    precisions = result(contestant(first=True), contestant(precision="int8"))
    assert precisions.labels() == ["fp32", "int8"]
    engines = result(contestant(first=True), contestant(engine="openvino"))
    assert engines.labels() == ["onnxruntime-cpu", "openvino-cpu"]
    models = result(contestant(first=True), contestant("birds", engine="openvino"))
    assert models.labels() == ["moths · onnxruntime-cpu", "birds · openvino-cpu"]
    assert result(contestant(first=True)).labels() == ["onnxruntime-cpu"]
    told = contestant(engine="openvino:hint=throughput")
    assert told.engine_shown == "openvino:hint=throughput"
    assert contestant(engine="auto").engine_shown == "auto (auto-cpu)"


def test_what_fails_everywhere_is_told_once() -> None:
    gone = "No GPU."
    shown = result(
        contestant(first=True),
        contestant(engine="tensorrt", failure=gone),
        contestant(engine="openvino", failure="No package."),
        contestant(precision="int8"),
        contestant(precision="int8", engine="tensorrt", failure=gone),
        contestant(precision="int8", engine="openvino"),
    )
    assert shown.failures() == {"tensorrt": gone, "fp32 · openvino": "No package."}


def test_the_sentence_names_the_fastest_and_what_the_tail_pays() -> None:
    told = sentence(result())
    fastest = result().contestants[5]
    best = max(fastest.speeds, key=lambda speed: speed.images_per_s.value)
    images = best.images_per_s
    assert told.startswith(f"int8 · openvino-cpu is the fastest: {images.value:.0f} images/s (")
    assert f"({images.low:.0f} … {images.high:.0f}) at batch {best.batch} and 2 threads, " in told
    assert ", 2.94 × the first there (2." in told
    assert "; few −1.90 points" in told
    assert "many" not in told
    alone = sentence(result(contestant(first=True), contestant(engine="openvino", latency_ms=20)))
    assert alone.startswith("onnxruntime-cpu is the fastest: ")
    assert "×" not in alone


def with_speeds(one: Contestant, *speeds: Speed) -> Contestant:
    return replace(one, speeds=speeds)


def test_the_fastest_is_that_of_all_rows() -> None:
    """The most threads are not the fastest where they wait for each other."""
    first = contestant(first=True)
    slow, fast = first.speed_at(8, 2), first.speed_at(1, 1)
    assert slow is not None
    assert fast is not None
    fast = replace(fast, images_per_s=Spread(726.0, 700.0, 740.0))
    slow = replace(slow, images_per_s=Spread(692.0, 650.0, 700.0))
    told = sentence(result(with_speeds(first, fast, slow)))
    assert told == (
        "onnxruntime-cpu is fastest with 726 images/s (700 … 740) at batch 1 and 1 thread."
    )
    assert sentence(result(with_speeds(first, slow))) == (
        "onnxruntime-cpu: 692 images/s (650 … 700) at batch 8 and 2 threads."
    )


def test_no_factor_rests_on_noise() -> None:
    first, other = contestant(first=True), contestant(engine="openvino", latency_ms=5)
    noisy = [replace(speed, ratio=Spread(1.38, 0.29, 16.29)) for speed in other.speeds]
    told = sentence(result(first, with_speeds(other, *noisy)))
    assert told.startswith("openvino-cpu is the fastest: ")
    assert "×" not in told
    shaky = [replace(speed, stable=False) for speed in first.speeds]
    told = sentence(result(with_speeds(first, *shaky), other))
    assert told.startswith("openvino-cpu is the fastest: ")
    assert "×" not in told
    assert "× the first there" in sentence(result(first, other))


def test_what_was_not_stable_is_not_the_fastest() -> None:
    first, other = contestant(first=True), contestant(engine="openvino", latency_ms=5)
    shaky = with_speeds(other, *(replace(speed, stable=False) for speed in other.speeds))
    assert sentence(result(first, shaky)).startswith("onnxruntime-cpu is the fastest: ")
    told = sentence(result(shaky, shaky))
    assert told == "Nothing was stable after its warm-up, so none is called the fastest."


def test_what_failed_on_the_way_is_not_the_fastest() -> None:
    lost = replace(contestant(engine="openvino", latency_ms=1.0), failure="The device is lost.")
    told = sentence(result(contestant(first=True), contestant(engine="x", latency_ms=5.0), lost))
    assert told.startswith("x-cpu is the fastest: ")
    assert sentence(result(lost)) == "No engine ran to the end."


def test_the_sentence_does_not_hide_what_another_group_loses() -> None:
    measured = accuracy(32.0, 1.0)
    assert measured.change is not None
    worse = {**measured.change.groups, "many": Figure(-9.7, -10.5, -8.9)}
    measured = replace(measured, change=replace(measured.change, groups=worse))
    told = sentence(
        result(contestant(first=True), contestant(engine="x", latency_ms=2, measured=measured))
    )
    assert "few +1.00 points" in told
    assert "many −9.70 points (95 % interval −10.50 to −8.90)" in told
    assert list(measured.change.lost(1.0)) == ["many"]
    assert not measured.change.lost(10.0)
