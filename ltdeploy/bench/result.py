"""What a benchmark found: engines side by side, with speed and accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import numbered
from ..metrics import Figure
from ..webpage.pieces import signed
from .accuracy import Accuracy
from .machine import Machine
from .speed import Speed

__all__ = ["SEPARATOR", "BenchResult", "Contestant", "points", "sentence", "short"]

SCHEMA = 1
SEPARATOR = " · "  # between model and engine in a label


@dataclass(frozen=True)
class Contestant:
    """A bundle on an engine.

    Parameters
    ----------
    bundle : the bundle's path, as it was given.
    model : what the bundle is called in tables.
    precision, arch : of its graph.
    file_bytes : of its graph.
    engine : as it was asked for.
    runs_on : what ran, ``"openvino-cpu"``; None where nothing did.
    failure : why it could not be measured, or not to the end; None where it was.
    speeds : one for each batch size and number of threads that was measured.
    accuracy : None where no labelled images were given, or it could not be measured.
    """

    bundle: str
    model: str
    precision: str
    arch: str
    file_bytes: int
    engine: str
    runs_on: str | None
    failure: str | None
    speeds: tuple[Speed, ...]
    accuracy: Accuracy | None

    @property
    def engine_shown(self) -> str:
        """The engine for people: what ran, and what it was told."""
        if self.runs_on is None or ":" in self.engine:
            return self.engine
        return f"auto ({self.runs_on})" if self.engine == "auto" else self.runs_on

    def speed_at(self, batch: int, threads: int) -> Speed | None:
        """Return the figures at a batch size and number of threads, where measured."""
        found = (s for s in self.speeds if (s.batch, s.threads) == (batch, threads))
        return next(found, None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return {
            **vars(self),
            "speeds": [speed.to_dict() for speed in self.speeds],
            "accuracy": None if self.accuracy is None else self.accuracy.to_dict(),
        }


@dataclass(frozen=True)
class BenchResult:
    """Figures of all bundles and engines.

    Parameters
    ----------
    contestants : in the order asked; ratios and changes are against the first that was measured.
    measure : what ``accuracy`` is of: ``"accuracy"``, of detectors ``"average precision"``.
    groups : names of the groups, the most frequent first.
    seconds, rounds : time per configuration, and the rounds it was split into.
    inputs : what the engines were timed on, in words.
    machine : where.
    warnings : what makes figures doubtful, as sentences.
    provenance : what was measured with what, by label.
    interrupted : whether it was ended before it was done.
    """

    contestants: tuple[Contestant, ...]
    measure: str
    groups: tuple[str, ...]
    seconds: float
    rounds: int
    inputs: str
    machine: Machine
    warnings: tuple[str, ...]
    provenance: Mapping[str, str]
    interrupted: bool

    @property
    def measured(self) -> tuple[Contestant, ...]:
        """Those that have speeds."""
        return tuple(one for one in self.contestants if one.speeds)

    @property
    def first(self) -> Contestant:
        """The one that ratios and changes are against."""
        return self.measured[0]

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """All batch sizes and numbers of threads that were measured, ascending."""
        return tuple(sorted({(s.batch, s.threads) for one in self.measured for s in one.speeds}))

    def failures(self) -> dict[str, str]:
        """Return the reason by what failed for it; engines that fail alike everywhere once."""
        by_reason: dict[str, list[tuple[str, Contestant]]] = {}
        for label, one in zip(self.labels(), self.contestants, strict=True):
            if one.failure is not None:
                by_reason.setdefault(one.failure, []).append((label, one))
        bundles = len({one.bundle for one in self.contestants})
        found = {}
        for reason, failed in by_reason.items():
            names: dict[str, None] = {}
            for label, one in failed:
                alike = sum(other.engine == one.engine for _, other in failed)
                names[one.engine if alike == bundles else label] = None
            found[", ".join(names)] = reason
        return found

    def labels(self) -> list[str]:
        """Return what tells the contestants apart, shortest first: precision, model, engine.

        What is the same for all is left out.
        """
        models, engines = ({*values} for values in zip(*self._names(), strict=True))
        shown = []
        for model, engine in self._names():
            parts = [model] if len(models) > 1 else []
            parts += [engine] if len(engines) > 1 or not parts else []
            shown.append(SEPARATOR.join(parts))
        return shown

    def _names(self) -> Iterator[tuple[str, str]]:
        """Yield model and engine of each; the precision stands for the model where it can."""
        by_model = {(one.bundle, one.precision) for one in self.contestants}
        distinct = len({precision for _, precision in by_model}) == len(by_model)
        for one in self.contestants:
            yield (one.precision if distinct else one.model), one.engine_shown

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable result; its keys are stable within a schema version."""
        first = self.first
        return {
            "schema": SCHEMA,
            "interrupted": self.interrupted,
            "sentence": sentence(self),
            "seconds": self.seconds,
            "rounds": self.rounds,
            "inputs": self.inputs,
            "measure": self.measure,
            "groups": list(self.groups),
            "first": {"bundle": first.bundle, "engine": first.engine},
            "contestants": [
                {"label": label, **one.to_dict()}
                for label, one in zip(self.labels(), self.contestants, strict=True)
            ],
            "failures": self.failures(),
            "machine": self.machine.to_dict(),
            "warnings": list(self.warnings),
            "provenance": dict(self.provenance),
        }


def short(value: float | None) -> str:
    """Return a figure in three digits, or more where it has no fraction, or a dash.

    >>> short(0.04567), short(12.345), short(1234.5), short(None)
    ('0.0457', '12.3', '1,234', '–')
    """
    if value is None:
        return "–"
    if value <= 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def points(figure: Figure) -> str:
    """Return a difference with its interval.

    >>> points(Figure(-1.5, -2.0, -1.0))
    '−1.50 points (95 % interval −2.00 to −1.00)'
    """
    ends = f"{signed(figure.low)} to {signed(figure.high)}"
    return f"{signed(figure.value)} points (95 % interval {ends})"


def sentence(result: BenchResult) -> str:
    """Say which is the fastest of all that was measured, where, and what it costs.

    One that failed on the way, or was not stable after its warm-up, is not named. A factor over the
    first is named where both were stable and their ratio's range does not hold 1. The cost is what
    it does to the rarest group, and any other group that clearly loses by it.
    """
    ended = [
        (label, one, speed)
        for label, one in zip(result.labels(), result.contestants, strict=True)
        if one.failure is None
        for speed in one.speeds
    ]
    if not ended:
        return "No engine ran to the end."
    stable = [item for item in ended if item[2].stable]
    if not stable:
        return "Nothing was stable after its warm-up, so none is called the fastest."
    label, best, speed = max(stable, key=lambda item: item[2].images_per_s.value)
    images = speed.images_per_s
    told = (
        f"{short(images.value)} images/s ({short(images.low)} … {short(images.high)}) at batch "
        f"{speed.batch} and {numbered(speed.threads, 'thread')}"
    )
    if len(ended) == 1:
        return f"{label}: {told}."
    alone = len({id(one) for _, one, _ in ended}) == 1
    told = f"{label} is the fastest: {told}" if not alone else f"{label} is fastest with {told}"
    told += _factor(result, speed)
    change = None if best.accuracy is None else best.accuracy.change
    if change is None:
        return f"{told}."
    tail = result.groups[-1]
    figure = change.groups.get(tail)
    shown = {} if figure is None else {tail: figure}
    told += "".join(f"; {name} {points(one)}" for name, one in {**shown, **change.lost()}.items())
    return f"{told}."


def _factor(result: BenchResult, speed: Speed) -> str:
    """Return how many times as fast as the first this is, if that can be told."""
    first = result.first.speed_at(speed.batch, speed.threads)
    ratio = speed.ratio
    if ratio is None or first is None or not first.stable or ratio.low <= 1.0 <= ratio.high:
        return ""
    ends = f"{short(ratio.low)} … {short(ratio.high)}"
    return f", {short(ratio.value)} × the first there ({ends})"
