"""What each division of the layers buys: speed, beside what the search knows of size and groups."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ltdeploy.engines import Engine

from .gate_run import OpenGraph
from .recipe import Recipe
from .search import Found, Trial

__all__ = ["TradeRow", "measure_trade", "speed_ratio"]

_ROUNDS = 7
_TURN_S = 0.1
_BATCH = 16
_BATCH_PIXELS = _BATCH * 224 * 224


@dataclass(frozen=True)
class TradeRow:
    """A trial, its share of multiply-adds in low precision, and its speed.

    ``speed`` is the throughput relative to the float32 graph's, the median of rounds side by side.
    """

    trial: Trial
    low_share: float
    speed: float


def measure_trade(
    found: Found,
    recipe: Recipe,
    open_graph: OpenGraph,
    images: npt.NDArray[np.uint8],
) -> tuple[TradeRow, ...]:
    """Return every trial of a search with its speed.

    Parameters
    ----------
    images : array of shape (N, H, W, 3), uint8.
    """
    pixels = images.shape[1] * images.shape[2]
    batch = images[: max(1, min(_BATCH, _BATCH_PIXELS // pixels))]
    reference = open_graph(recipe.whole)
    try:
        rows = []
        for trial in found.trials:
            engine = open_graph(recipe.make(frozenset(trial.restored)))
            try:
                share = recipe.low_share(trial.restored)
                rows.append(TradeRow(trial, share, speed_ratio(reference, engine, batch)))
            finally:
                engine.close()
        return tuple(rows)
    finally:
        reference.close()


def speed_ratio(reference: Engine, engine: Engine, images: npt.NDArray[np.uint8]) -> float:
    """Return how many times as fast ``engine`` is: the median of rounds in which both run."""
    pair: Sequence[Engine] = (reference, engine)
    entry = reference.inputs[0].name
    ratios = []
    for round_ in range(_ROUNDS + 1):
        seconds = []
        for one in pair:
            started = time.perf_counter()
            runs = 0
            while not runs or time.perf_counter() - started < _TURN_S:
                one.run({entry: images})
                runs += 1
            seconds.append((time.perf_counter() - started) / runs)
        if round_:  # the first warms up
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
