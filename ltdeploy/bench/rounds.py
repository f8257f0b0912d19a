"""Every engine in turn, round after round, so that what drifts hits all alike."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..bundle import Bundle
from ..engines import parse_engine
from ..errors import EngineError, LtdeployError, UsageError
from ..progress import Tracker
from .accuracy import Accuracy
from .machine import usable_cores
from .process import EngineProcess
from .speed import Series

__all__ = ["ROUNDS", "BenchOptions", "Entry", "Running", "open_all", "take_turns"]

ROUNDS = 10
_LARGEST_BATCH = 4096


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    Parameters
    ----------
    batches : images per run.
    threads : threads of one run; None takes what an engine was asked for with (``threads=N``), and
        of others one, and all cores.
    seconds : measured time of each configuration; slow ones take longer, one run each round.

    Raises
    ------
    UsageError
        If a value is out of range.
    """

    batches: tuple[int, ...] = (1, 8)
    threads: tuple[int, ...] | None = None
    seconds: float = 3.0

    def __post_init__(self) -> None:
        for option, values in (("--batch", self.batches), ("--threads", self.threads or (1,))):
            if not values or not all(1 <= value <= _LARGEST_BATCH for value in values):
                shown = ",".join(map(str, values))
                raise UsageError(
                    f"{option} is {shown!r}; expected whole numbers from 1 to {_LARGEST_BATCH} "
                    "with commas, like 1,8."
                )
        if not 0.0 < self.seconds <= 3600.0:
            raise UsageError(
                f"--seconds is {self.seconds:g}; expected more than 0 and at most 3600."
            )

    def threads_of(self, engine: str) -> tuple[int, ...]:
        """Return the numbers of threads to run an engine with, ascending."""
        own = parse_engine(engine).threads
        return tuple(sorted({*(self.threads or ((1, usable_cores()) if own is None else (own,)))}))

    @property
    def all_batches(self) -> tuple[int, ...]:
        """The batch sizes, ascending: so a process's peak memory is that of the batch in hand."""
        return tuple(sorted({*self.batches}))


@dataclass(eq=False)
class Entry:
    """A bundle on an engine while it is measured."""

    bundle: Bundle
    path: str
    engine: str
    runs_on: str | None = None
    failure: str | None = None
    series: dict[tuple[int, int], Series] = field(default_factory=dict)
    latencies: dict[tuple[int, int], dict[int, list[float]]] = field(default_factory=dict)
    accuracy: Accuracy | None = None

    @property
    def is_measured(self) -> bool:
        """Whether it had a turn; the first entry that had is what all are compared with."""
        return bool(self.latencies)

    def fail(self, error: LtdeployError, *, named: bool) -> None:
        """Keep why it cannot run, or raise where it was asked for by name."""
        if named:
            raise EngineError(f"{self.path} on {self.engine}: {error}") from error
        self.failure = str(error)


@dataclass(frozen=True, eq=False)
class Running:
    """One configuration, warmed up: whose turn it can be."""

    entry: Entry
    process: EngineProcess
    cell: tuple[int, int]


def open_all(
    entries: Sequence[Entry],
    inputs: dict[str, Path],
    named: bool,
    options: BenchOptions,
    stack: ExitStack,
    track: Tracker,
) -> list[Running]:
    """Open and warm up every configuration.

    Raises
    ------
    EngineError
        If one that was asked for does not run, or none does.
    """
    running: list[Running] = []
    wanted = [(entry, n) for entry in entries for n in options.threads_of(entry.engine)]
    for entry, threads in track(wanted, total=len(wanted), label="warm-up"):
        if entry.failure is not None:
            continue
        try:
            process = stack.enter_context(
                EngineProcess(entry.bundle.path, entry.engine, threads, inputs[entry.path])
            )
            entry.runs_on = process.name
            for batch in options.all_batches:
                told = process.ask(do="warm", batch=batch)
                entry.series[batch, threads] = Series(
                    batch=batch,
                    threads=threads,
                    rounds={},
                    warm_up_runs=told["runs"],
                    stable=told["stable"],
                    load_s=process.load_s,
                    peak_bytes=told["peak_bytes"],
                )
                running.append(Running(entry, process, (batch, threads)))
        except EngineError as error:
            entry.fail(error, named=named)
    if not any(one.entry.failure is None for one in running):
        reasons = "; ".join(f"{entry.engine}: {entry.failure}" for entry in entries)
        raise EngineError(f"No engine here runs {entries[0].path}. {reasons}")
    return [one for one in running if one.entry.failure is None]


def take_turns(running: Sequence[Running], options: BenchOptions, track: Tracker) -> None:
    """Let every configuration have its turn in every round, in another order each time."""
    turns = list(_turns(running))
    for number, one in track(turns, total=len(turns), label="bench"):
        if one.entry.failure is not None:
            continue
        try:
            told = one.process.ask(do="turn", batch=one.cell[0], seconds=options.seconds / ROUNDS)
        except EngineError as error:
            one.entry.fail(error, named=False)
            continue
        one.entry.latencies.setdefault(one.cell, {})[number] = told["latencies_ms"]


def _turns(running: Sequence[Running]) -> Iterator[tuple[int, Running]]:
    for number in range(ROUNDS):
        order = list(running)
        random.Random(number).shuffle(order)  # nobody always follows the same neighbour
        yield from ((number, one) for one in order)
