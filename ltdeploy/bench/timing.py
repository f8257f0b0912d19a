"""Take the time of something again and again: until it is stable, and then in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

__all__ = ["WarmUp", "take_turn", "warm_up"]

Clock = Callable[[], float]

_WINDOW_RUNS, _WINDOW_S = 3, 0.1
_MOST_WINDOWS, _LONGEST_S = 12, 20.0
_SAME_SHARE = 0.05
_SETTLE_S = 0.05


@dataclass(frozen=True)
class WarmUp:
    """How many runs it took until two windows in a row were alike, or that none were."""

    runs: int
    stable: bool


def warm_up(run: Callable[[], object], clock: Clock = time.perf_counter) -> WarmUp:
    """Run until the medians of two windows in a row differ by less than five in a hundred.

    A window is at least three runs and a tenth of a second. After twelve windows, or twenty
    seconds, it ends as unstable.
    """
    runs, before, started = 0, None, clock()
    for _ in range(_MOST_WINDOWS):
        window = _window(run, _WINDOW_RUNS, _WINDOW_S, clock)
        runs += len(window)
        now = median(window)
        if before is not None and abs(now - before) <= _SAME_SHARE * before:
            return WarmUp(runs, True)
        if before is not None and clock() - started > _LONGEST_S:
            break
        before = now
    return WarmUp(runs, False)


def take_turn(
    run: Callable[[], object], seconds: float, clock: Clock = time.perf_counter
) -> list[float]:
    """Return the latencies of one turn, in milliseconds: of ``seconds``, and at least one run.

    The first runs, for a twentieth of a second, are not counted: whoever had the turn before has
    left its own data in the caches, and threads that still wait for work.
    """
    _window(run, 1, _SETTLE_S, clock)
    return [1000.0 * latency for latency in _window(run, 1, seconds, clock)]


def _window(
    run: Callable[[], object], least_runs: int, least_s: float, clock: Clock
) -> list[float]:
    """Return the seconds of each run, of at least so many runs and so much time."""
    latencies: list[float] = []
    total = 0.0
    while len(latencies) < least_runs or total < least_s:
        started = clock()
        run()
        latencies.append(clock() - started)
        total += latencies[-1]
    return latencies
