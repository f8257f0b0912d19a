"""Turns on a shared device: shares of time, no hoarding, no lost slot."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from batching_samples import within
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.serve.fairness import Turns


class _Clock:
    """Time that passes when a run says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def _keep_running(
    turns: Turns, clock: _Clock, name: str, run_s: float, log: list[str], end_s: float
) -> None:
    while clock.now_s < end_s:
        async with turns.turn(name):
            await asyncio.sleep(0)
            clock.now_s += run_s
            log.append(name)


def test_busy_models_get_equal_time_whatever_their_runs_take() -> None:
    async def check() -> None:
        clock, log = _Clock(), []
        turns = Turns(clock=clock)
        await asyncio.gather(
            _keep_running(turns, clock, "long", 10.0, log, 2000.0),
            _keep_running(turns, clock, "short", 1.0, log, 2000.0),
        )
        runs = Counter(log)
        assert runs["long"] * 10 == pytest.approx(runs["short"], abs=12)

    within(check)


def test_taking_turns_in_order_of_arrival_would_not_be_fair() -> None:
    """The control of the test above: a plain semaphore gives both as many runs."""

    async def check() -> None:
        clock, log = _Clock(), []
        lock = asyncio.Semaphore(1)

        async def keep_running(name: str, run_s: float) -> None:
            while clock.now_s < 2000.0:
                async with lock:
                    await asyncio.sleep(0)
                    clock.now_s += run_s
                    log.append(name)

        await asyncio.gather(keep_running("long", 10.0), keep_running("short", 1.0))
        runs = Counter(log)
        assert runs["long"] * 10 > 5 * runs["short"]

    within(check)


def test_a_quiet_model_waits_for_one_run_at_most() -> None:
    async def check() -> None:
        clock, log = _Clock(), []
        turns = Turns(clock=clock)
        busy = [
            asyncio.create_task(_keep_running(turns, clock, "busy", 1.0, log, 300.0))
            for _ in range(5)
        ]
        waited = []
        while clock.now_s < 250.0:
            await asyncio.sleep(0)
            before = len(log)
            async with turns.turn("quiet"):
                waited.append(len(log) - before)
                clock.now_s += 0.1
            for _ in range(30):
                await asyncio.sleep(0)
        await asyncio.gather(*busy)
        assert len(waited) > 5
        assert max(waited) <= 1

    within(check)


def test_an_idle_model_hoards_no_turns() -> None:
    async def check() -> None:
        clock, log = _Clock(), []
        turns = Turns(clock=clock)
        await _keep_running(turns, clock, "early", 1.0, log, 1000.0)
        log.clear()
        await asyncio.gather(
            _keep_running(turns, clock, "early", 1.0, log, 1040.0),
            _keep_running(turns, clock, "late", 1.0, log, 1040.0),
        )
        runs = Counter(log)
        assert abs(runs["early"] - runs["late"]) <= 2

    within(check)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_no_more_runs_than_slots(slots: int) -> None:
    async def check() -> None:
        turns, running, most = Turns(slots), 0, 0

        async def run(name: str) -> None:
            nonlocal running, most
            async with turns.turn(name):
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                running -= 1

        await asyncio.gather(*(run(f"model{number % 4}") for number in range(40)))
        assert most == slots
        assert not turns.is_busy

    within(check)


def test_a_turn_ends_with_an_exception_too() -> None:
    async def check() -> None:
        turns = Turns()
        with pytest.raises(ValueError, match="broken"):
            async with turns.turn("model"):
                raise ValueError("broken")
        async with turns.turn("model"):
            assert turns.is_busy

    within(check)


def test_a_cancelled_waiter_blocks_nobody() -> None:
    async def check() -> None:
        turns, log = Turns(), []

        async def run(name: str) -> None:
            async with turns.turn(name):
                log.append(name)

        async with turns.turn("first"):
            gone = asyncio.create_task(run("gone"))
            stays = asyncio.create_task(run("stays"))
            await asyncio.sleep(0)
            gone.cancel()
        await asyncio.wait({gone, stays})
        assert log == ["stays"]
        assert not turns.is_busy

    within(check)


def test_a_waiter_cancelled_as_it_is_given_the_turn_hands_it_on() -> None:
    async def check() -> None:
        turns = Turns()

        async def run() -> None:
            async with turns.turn("model"):
                raise AssertionError("it was cancelled")

        async with turns.turn("first"):
            gone = asyncio.create_task(run())
            await asyncio.sleep(0)
        # After the grant's callback, before the task that it wakes.
        asyncio.get_running_loop().call_soon(gone.cancel)
        with pytest.raises(asyncio.CancelledError):
            await gone
        async with turns.turn("next"):
            pass
        assert not turns.is_busy

    within(check)


def test_a_waiter_cancelled_before_the_grant_is_passed_over() -> None:
    async def check() -> None:
        turns, log = Turns(), []

        async def run(name: str) -> None:
            async with turns.turn(name):
                log.append(name)

        async with turns.turn("first"):
            gone = asyncio.create_task(run("gone"))
            await asyncio.sleep(0)
        # The grant is due; then one more asks; only then does the cancelled one hear of it.
        stays = asyncio.create_task(run("stays"))
        gone.cancel()
        await asyncio.wait({gone, stays})
        assert log == ["stays"]
        assert not turns.is_busy

    within(check)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 3), st.none() | st.integers(0, 8)), max_size=25
    ),
)
def test_no_turn_is_lost_whoever_is_cancelled_when(
    slots: int, runs: list[tuple[int, int, int | None]]
) -> None:
    async def check() -> None:
        turns, running = Turns(slots), 0

        async def run(start: int, length: int, name: str) -> None:
            nonlocal running
            for _ in range(start):
                await asyncio.sleep(0)
            async with turns.turn(name):
                running += 1
                assert running <= slots
                try:
                    for _ in range(length):
                        await asyncio.sleep(0)
                finally:
                    running -= 1

        async def cancel(task: asyncio.Task[None], after: int) -> None:
            for _ in range(after):
                await asyncio.sleep(0)
            task.cancel()

        tasks, cancels = [], []
        for number, (start, length, after) in enumerate(runs):
            tasks.append(asyncio.create_task(run(start, length, f"model{number % 3}")))
            if after is not None:
                cancels.append(asyncio.create_task(cancel(tasks[-1], after)))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*cancels)
        for outcome, (_, _, after) in zip(outcomes, runs, strict=True):
            is_cancelled = isinstance(outcome, asyncio.CancelledError)
            assert outcome is None or (is_cancelled and after is not None)
        assert not turns.is_busy

    within(check)
