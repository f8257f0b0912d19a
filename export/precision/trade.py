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
from .layers import GraphLayers
from .search import Found, Recipe, Trial

__all__ = ["TradeRow", "measure_trade", "speed_ratio"]

_ROUNDS = 7


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
    layers: GraphLayers,
    open_graph: OpenGraph,
    images: npt.NDArray[np.uint8],
) -> tuple[TradeRow, ...]:
    """Return every trial of a search with its speed.

    Parameters
    ----------
    layers : of the float32 graph.
    images : one batch, array of shape (N, H, W, 3), uint8.
    """
    reference = open_graph(layers.model)
    try:
        rows = []
        for trial in found.trials:
            engine = open_graph(recipe(frozenset(trial.restored)))
            try:
                share = layers.low_share(trial.restored)
                rows.append(TradeRow(trial, share, speed_ratio(reference, engine, images)))
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
            one.run({entry: images})
            seconds.append(time.perf_counter() - started)
        if round_:  # the first warms up
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
