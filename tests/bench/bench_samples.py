"""Benchmark results with made-up timings, for the tests of figures and reports."""

from __future__ import annotations

import numpy as np

from ltdeploy.bench.accuracy import Accuracy, Change
from ltdeploy.bench.machine import Machine
from ltdeploy.bench.result import BenchResult, Contestant
from ltdeploy.bench.speed import Series, speed_of
from ltdeploy.metrics import Figure

GROUPS = ("many", "medium", "few")
CELLS = ((1, 1), (1, 2), (8, 1), (8, 2))


def machine(load_average: float | None = 0.0) -> Machine:
    """Return a machine."""
    return Machine(
        cpu="Some CPU <3 GHz>",
        cores=2,
        cpu_quota=None,
        instruction_sets=("avx2", "avx512_vnni"),
        memory_bytes=16 << 30,
        gpus=(),
        platform="Linux x86_64",
        python="3.11.7",
        versions={"ltdeploy": "0"},
        load_average=load_average,
    )


def series(cell: tuple[int, int], latency_ms: float, rounds: int = 10, runs: int = 12) -> Series:
    """Return latencies about ``latency_ms``, with a drift from round to round."""
    rng = np.random.default_rng(cell[0])
    return Series(
        batch=cell[0],
        threads=cell[1],
        rounds={
            number: (latency_ms * (1 + 0.1 * number) * rng.uniform(0.9, 1.1, runs)).tolist()
            for number in range(rounds)
        },
        warm_up_runs=40,
        load_s=0.5,
        peak_bytes=123 << 20,
    )


def accuracy(few: float, change: float | None) -> Accuracy:
    """Return accuracies with a given one of the rarest group."""

    def figure(value: float, half: float = 1.5) -> Figure:
        return Figure(value, value - half, value + half)

    moved = None
    if change is not None:
        moved = Change(
            balanced=figure(change / 2, 0.3),
            groups={"many": figure(0.0, 0.2), "medium": None, "few": figure(change, 0.4)},
            flips=123,
        )
    return Accuracy(
        images=10_000,
        unreadable=0,
        overall=figure(50.0),
        balanced=figure(45.0),
        groups={"many": figure(60.0), "medium": None, "few": figure(few)},
        chose_fix=0,
        change=moved,
    )


def contestant(
    model: str = "moths",
    precision: str = "fp32",
    engine: str = "onnxruntime",
    *,
    latency_ms: float = 10.0,
    first: bool = False,
    measured: Accuracy | None = None,
    failure: str | None = None,
) -> Contestant:
    """Return a bundle on an engine, its ratios against 10 ms per image and thread."""

    def all_series(ms: float) -> list[Series]:
        return [series((batch, threads), ms * batch / threads) for batch, threads in CELLS]

    pairs = zip(all_series(latency_ms), all_series(10.0), strict=True)
    speeds = tuple(speed_of(own, None if first else other) for own, other in pairs)
    return Contestant(
        bundle=f"{model}.{precision}.ltd",
        model=model,
        precision=precision,
        arch="cifar:resnet20",
        file_bytes=1_000_000,
        engine=engine,
        runs_on=None if failure else f"{engine}-cpu",
        failure=failure,
        speeds=() if failure else speeds,
        accuracy=measured,
    )


def result(*contestants: Contestant, interrupted: bool = False) -> BenchResult:
    """Return a result of these, or of six with accuracies and one that failed."""
    made = contestants or (
        contestant(first=True, measured=accuracy(31.0, None)),
        contestant(engine="openvino", latency_ms=7.0, measured=accuracy(31.0, 0.0)),
        contestant(precision="bf16", engine="onnxruntime", failure="No <Conv> in bf16."),
        contestant(
            precision="bf16", engine="openvino", latency_ms=4.9, measured=accuracy(30.9, -0.1)
        ),
        contestant(precision="int8", latency_ms=5.0, measured=accuracy(29.0, -2.0)),
        contestant(
            precision="int8", engine="openvino", latency_ms=3.4, measured=accuracy(29.1, -1.9)
        ),
        contestant(precision="int8", engine="tensorrt", failure="No GPU."),
    )
    return BenchResult(
        contestants=made,
        measure="accuracy",
        groups=GROUPS,
        seconds=3.0,
        rounds=10,
        inputs="images of val",
        machine=machine(),
        warnings=("Something <b>was</b> busy.",),
        provenance=machine().facts(),
        interrupted=interrupted,
    )
