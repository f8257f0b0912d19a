"""From latencies in rounds to figures: percentiles, throughput, and ratios, with their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Series", "Speed", "Spread", "speed_of"]

_LOW, _HIGH = 0.05, 0.95
# Below so many runs a percentile is the slowest run under another name.
_LEAST_RUNS = {0.95: 20, 0.99: 100}


@dataclass(frozen=True)
class Spread:
    """The median over the rounds, and where nine in ten of them lie."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return median, 5 % and 95 % quantile of one value per round."""
        low, value, high = np.quantile(values, [_LOW, 0.5, _HIGH])
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class Series:
    """What was measured of one engine at one batch size and number of threads.

    Parameters
    ----------
    rounds : latencies in milliseconds, by the round they were taken in.
    warm_up_runs, stable : runs before the first round, and whether they had become alike.
    load_s : what opening the engine took.
    peak_bytes : main memory of its process, up to this batch size; None where not told.
    """

    batch: int
    threads: int
    rounds: Mapping[int, Sequence[float]]
    warm_up_runs: int = 0
    stable: bool = True
    load_s: float = 0.0
    peak_bytes: int | None = None

    def medians_ms(self) -> dict[int, float]:
        """Return the median latency of each round."""
        return {number: float(np.median(one)) for number, one in self.rounds.items()}


@dataclass(frozen=True)
class Speed:
    """Figures of one engine at one batch size and number of threads.

    Parameters
    ----------
    runs, rounds : that were measured.
    p50_ms : median latency of all runs; its ends are those of the medians of single rounds.
    p95_ms, p99_ms : latencies that 95 and 99 in 100 runs stay below; None under 20 and 100 runs.
    images_per_s : one caller, one batch after another.
    ratio : how many times as fast as the first engine at the same batch size and threads: its
        median latency over this one's, round by round; None where it was not measured.
    warm_up_runs, stable, load_s, peak_bytes : as :class:`Series`.
    """

    batch: int
    threads: int
    runs: int
    rounds: int
    p50_ms: Spread
    p95_ms: float | None
    p99_ms: float | None
    images_per_s: Spread
    ratio: Spread | None
    warm_up_runs: int
    stable: bool
    load_s: float
    peak_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def speed_of(series: Series, first: Series | None) -> Speed:
    """Return the figures of ``series``, compared round by round with ``first``.

    Parameters
    ----------
    series : with at least one round.
    first : the series to compare with, or None.
    """
    latencies = np.concatenate([list(one) for one in series.rounds.values()])
    medians = series.medians_ms()
    of_medians = Spread.of(list(medians.values()))
    others = {} if first is None else first.medians_ms()
    ratios = [others[number] / own for number, own in medians.items() if number in others]
    throughputs = [1000.0 * series.batch * len(one) / sum(one) for one in series.rounds.values()]
    p95_ms, p99_ms = (
        float(np.quantile(latencies, share)) if len(latencies) >= least else None
        for share, least in _LEAST_RUNS.items()
    )
    return Speed(
        batch=series.batch,
        threads=series.threads,
        runs=len(latencies),
        rounds=len(series.rounds),
        p50_ms=Spread(float(np.median(latencies)), of_medians.low, of_medians.high),
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        images_per_s=Spread.of(throughputs),
        ratio=Spread.of(ratios) if ratios else None,
        warm_up_runs=series.warm_up_runs,
        stable=series.stable,
        load_s=series.load_s,
        peak_bytes=series.peak_bytes,
    )
